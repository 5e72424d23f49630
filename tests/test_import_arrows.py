"""Imports point one way: dags → medflex.airflow → medflex.ledger, medflex.quality → medflex.domain."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plugins" / "medflex"
SHARED = {"medflex.errors", "medflex.clock", "medflex.sql", "medflex.arrow", "medflex.postgres"}

# What each layer may import of the product and of Airflow.
ALLOWED: dict[str, tuple[str, ...]] = {
    "domain": ("medflex.domain",),
    "quality": ("medflex.quality", "medflex.domain"),
    "ledger": ("medflex.ledger", "medflex.domain", *SHARED),
    "airflow": ("medflex.airflow", "medflex.ledger", "medflex.quality", "medflex.domain", *SHARED, "airflow"),
    "ui": (
        "medflex.ui",
        "medflex.airflow",
        "medflex.ledger",
        "medflex.quality",
        "medflex.domain",
        *SHARED,
        "airflow",
    ),
}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name} imports relatively"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "medflex" else {node.module}
            )
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    files = sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    for path in files:
        for module in imported(path):
            if module.split(".")[0] in ("medflex", "airflow", "sandbox", "tests"):
                fits = any(module == name or module.startswith(f"{name}.") for name in ALLOWED[layer])
                assert fits, f"{path.relative_to(ROOT)} imports {module}"


def test_the_domain_knows_neither_airflow_nor_http_nor_sql() -> None:
    for path in (PACKAGE / "domain").rglob("*.py"):
        roots = {module.split(".")[0] for module in imported(path)}
        assert not roots & {"airflow", "requests", "psycopg", "sqlalchemy", "pyarrow", "great_expectations"}, path.name


def test_a_dag_file_is_wiring() -> None:
    for path in (ROOT / "dags").glob("*.py"):
        for module in imported(path):
            assert module.split(".")[0] in ("__future__", "datetime", "typing", "airflow", "medflex"), module
            assert not module.startswith("medflex") or module.startswith("medflex.airflow"), module


def test_the_pages_touch_airflow_s_internals_in_one_place() -> None:
    """Airflow promises nothing about its api-server's modules; the type of a user is all that others name."""
    for path in (PACKAGE / "ui").rglob("*.py"):
        internal = {name for name in imported(path) if name.startswith("airflow.api_fastapi")}
        assert path.name == "security.py" or internal <= {"airflow.api_fastapi.auth.managers.models.base_user"}, path


def test_what_every_process_loads_as_a_plugin_is_light() -> None:
    """Each task, the scheduler and the triggerer execute the plugin: nothing of the pages themselves may come along."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; import airflow.sdk; import airflow.plugins_manager; before = set(sys.modules)\n"
            "import medflex_plugin\n"
            "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "plugins")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) - {"airflow"} == {"medflex", "medflex_plugin"}


def test_the_loader_does_without_airflow() -> None:
    """So that it can be driven with a clock of the test's own."""
    assert not any(module.split(".")[0] == "airflow" for module in imported(PACKAGE / "airflow" / "loading.py"))
