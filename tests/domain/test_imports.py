"""The domain is pure: it imports pandas, numpy, phonenumbers and the standard library, and nothing from above."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import medflex.domain

MODULES = sorted(Path(medflex.domain.__path__[0]).glob("**/*.py"))
ALLOWED = {"pandas", "numpy", "phonenumbers"}
# Reading files, sockets or the clock of the machine would make a rule depend on more than its arguments.
IMPURE = {"os", "io", "time", "socket", "sqlite3", "urllib", "http", "subprocess", "random", "secrets"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_domain_imports_nothing_from_above(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top in ALLOWED or name.startswith("medflex.domain.") or top in sys.stdlib_module_names - IMPURE, name
        assert not (isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")), "a rule reads a clock"


def test_there_are_modules_to_look_at() -> None:
    assert {"window", "access", "eligibility", "payload", "changes", "packing"} <= {path.stem for path in MODULES}
