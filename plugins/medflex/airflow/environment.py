"""Settings from the environment (docs/architecture.md); an empty one counts as left out, as compose files pass it."""

from __future__ import annotations

import os
import re

from medflex.errors import ConfigurationError


def setting(name: str, default: str = "") -> str:
    """Return the environment variable's text, without white space at its ends."""
    return os.environ.get(name, "").strip() or default


def number(name: str, default: float, *, most: float, unit: str) -> float:
    """Return the variable as a number above 0, at most ``most``.

    Raises:
        ConfigurationError: it is none.
    """
    text = setting(name)
    value = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
    if text and not 0 < value <= most:
        raise ConfigurationError(
            f"{name} is no number of {unit} above 0, at most {most:g}: correct it on all workers, or leave it out."
        )
    return value or default


def whole_number(name: str, default: int, *, most: int, unit: str) -> int:
    """Return the variable as a whole number from 1 to ``most``.

    Raises:
        ConfigurationError: it is none.
    """
    text = setting(name)
    value = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if text and not 1 <= value <= most:
        raise ConfigurationError(
            f"{name} is no whole number of {unit} from 1 to {most}: correct it on all workers, or leave it out."
        )
    return value or default
