"""docker-compose.yml as Docker Compose reads it, as far as this one needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Z_]+)(?:(?P<how>:-|:\?)(?P<more>[^{}]*))?\})")


class MissingError(Exception):
    """A variable with ``:?`` is unset or empty."""


def raw() -> dict[str, Any]:
    """The file with its anchors resolved and its variables as they stand."""
    return dict(yaml.safe_load(TEXT))


def variables() -> dict[str, set[tuple[str, str]]]:
    """Each variable of the file -> how it is written: ``(":?", message)``, ``(":-", default)``, ``("pass", "")``."""
    found: dict[str, set[tuple[str, str]]] = {}
    # Comments name some, too.
    text = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    for match in _VARIABLE.finditer(text):
        if match["name"]:
            found.setdefault(match["name"], set()).add((match["how"] or "", match["more"] or ""))
    for service in raw()["services"].values():
        for name, value in service.get("environment", {}).items():
            if value is None:
                found.setdefault(name, set()).add(("pass", ""))
    return found


def interpolated(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file with variables from ``environment``; raises ``MissingError``."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        given = environment.get(match["name"], "")
        if not given and match["how"] == ":?":
            raise MissingError(match["name"])
        return given or (match["more"] or "" if match["how"] == ":-" else "")

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    tree: dict[str, Any] = walk(raw())
    for service in tree["services"].values():
        own = service.get("environment")
        if own is not None:
            service["environment"] = {
                name: environment.get(name) if item is None else item
                for name, item in own.items()
                if item is not None or name in environment
            }
    return tree


def dotenv(text: str) -> dict[str, str]:
    """The variables of a ``.env`` file: no comments, single quotes off."""
    pairs = (line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z_]+=", line))
    return {name: value[1:-1] if value.startswith("'") else value for name, value in pairs}
