"""Airflow executes every file of the plugins folder that .airflowignore does not name, under its bare name."""

from __future__ import annotations

from pathlib import Path

from airflow._shared.module_loading import find_path_from_directory

PLUGINS = Path(__file__).parents[2] / "plugins"


def test_no_file_of_the_package_is_loaded_as_a_plugin() -> None:
    """Without it, Alembic's env.py would run in each process, and errors.py would become the module ``errors``."""
    loaded = list(find_path_from_directory(str(PLUGINS), ".airflowignore", "glob"))
    inside = [
        path for path in loaded if "medflex/" in str(path).replace(str(PLUGINS), "") and str(path).endswith(".py")
    ]
    assert inside == []
    assert list((PLUGINS / "medflex").rglob("*.py"))
