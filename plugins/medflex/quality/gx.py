"""Great Expectations as this product imports it: at its first use, quietly, and without what no rule needs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any


def import_great_expectations() -> Any:
    """Import Great Expectations with its analytics off; the switch is read at import."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with silence(), _at_first_use("altair", "scipy.stats"):
        import great_expectations as gx
    return gx


@contextmanager
def _at_first_use(*names: str) -> Iterator[None]:
    """Let modules that are imported within be loaded when something in them is asked for.

    Great Expectations imports these for statistics and plots of which no rule of ours makes use: a third of the time
    and half of the memory that its import takes.
    """
    finder = _LazyFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _LazyFinder(MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def silence() -> Iterator[None]:
    """Keep Great Expectations' log lines and warnings in: both may quote a value.

    Levels would not do: some of its modules set their own.
    """
    logger = logging.getLogger("great_expectations")
    propagate, handler = logger.propagate, logging.NullHandler()
    logger.propagate = False
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.propagate = propagate
            logger.removeHandler(handler)
