"""What is imported before task processes are forked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medflex.airflow.preload import LIBRARIES
from sandbox.stack import Stack, stack_environment
from tests.conftest import ROOT

HEAVY = {"great_expectations", "numpy", "pandas", "phonenumbers", "psycopg", "pyarrow", "requests"}


def said_by(program: str, environment: dict[str, str]) -> object:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **stack_environment(Stack(tmp_path))}


def test_a_task_finds_its_libraries_imported_and_reads_the_products_code_anew(environment: dict[str, str]) -> None:
    found = said_by(
        "import json, sys, medflex.airflow.preload;"
        " before = set(sys.modules);"
        f" sys.path.insert(0, {str(ROOT / 'dags')!r});"
        " import medflex_transfer, medflex.airflow.loading, medflex.airflow.withdrawing, medflex.airflow.staging;"
        " import medflex.airflow.hooks.medlock, medflex.ledger.store, medflex.quality.validation as validation;"
        " validation.import_great_expectations();"
        " print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))",
        environment,
    )
    before, anew = map(set, found)  # type: ignore[call-overload]
    assert set(LIBRARIES) <= before
    ours = {name for name in before if name.partition(".")[0] == "medflex"}
    assert ours == {
        "medflex",
        "medflex.airflow",
        "medflex.airflow.preload",
        "medflex.quality",
        "medflex.quality.gx",
    }
    assert {name.partition(".")[0] for name in anew} & HEAVY == set()
    assert "medflex.airflow.tasks.transfer" in anew


def test_local_executors_processes_are_forked_from_one_that_has_them(environment: dict[str, str]) -> None:
    """As Airflow does it: the start method and the modules to preload are given to multiprocessing."""
    found = said_by(
        "import json, multiprocessing, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from airflow.configuration import conf\n"
        "from airflow.utils.process_utils import set_component_mp_start_method\n"
        "set_component_mp_start_method('scheduler')\n"
        "with ProcessPoolExecutor(1) as pool:\n"
        "    there = pool.submit(eval, \"'great_expectations' in __import__('sys').modules\").result()\n"
        "    frozen = pool.submit(eval, \"__import__('gc').get_freeze_count()\").result()\n"
        "print(json.dumps([multiprocessing.get_start_method(), there, frozen > 100_000]))",
        environment,
    )
    # What is frozen the garbage collector of a task leaves alone.
    assert found == ["forkserver", True, True]


def test_what_cannot_be_imported_keeps_no_worker_from_starting(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "pandas.py").write_text("raise RuntimeError('broken')\n")
    broken = environment | {"PYTHONPATH": os.pathsep.join((str(tmp_path), environment["PYTHONPATH"]))}
    assert said_by("import sys, medflex.airflow.preload; print(str('psycopg' in sys.modules).lower())", broken) is True
