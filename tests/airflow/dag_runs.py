"""Running the DAG in this process, with Airflow's real task runner on a real metadata database."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]


def dag(dag_id: str) -> Any:
    """Return a DAG of the dags folder, parsed anew: dag.test() writes a run's conf into the params of the object."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags"))
    assert not bag.import_errors, bag.import_errors
    return bag.dags[dag_id]


def _without_retries(dag_id: str) -> Any:
    """Return a DAG whose tasks are tried once, and without deadline: dag.test() really waits between tries, and in
    Airflow 3.3.2 it cannot end a run that has a deadline (test_alerts.py tells when it can).
    """
    from airflow.sdk.definitions.mappedoperator import MappedOperator

    found = dag(dag_id)
    found.deadline = None
    for operator in found.tasks:
        if isinstance(operator, MappedOperator):
            operator.partial_kwargs["retries"] = 0
        else:
            operator.retries = 0
    return found


@contextmanager
def _short_naps() -> Iterator[None]:
    """Let ``dag.test()`` look again at once where it would sleep for a second, and nobody else.

    It sleeps after each look that found no task to start, also when that look has moved the run on by itself: a run
    that fails early slept four times.
    """
    from airflow.sdk import DAG

    sleep, runner = time.sleep, DAG.test.__code__

    def nap(seconds: float) -> None:
        sleep(0.02 if sys._getframe(1).f_code is runner else seconds)

    with patch.object(time, "sleep", nap):
        yield


def run_dag(dag_id: str, logical_date: datetime | None = None, **conf: Any) -> Any:
    """Run a DAG to its end; return the DagRun."""
    with _short_naps():
        return _without_retries(dag_id).test(logical_date=logical_date, run_conf=conf)


def run_transfer(logical_date: datetime | None = None, **conf: Any) -> Any:
    """Run ``medflex_transfer`` to its end; return the DagRun."""
    return run_dag("medflex_transfer", logical_date, **conf)


def task_states(run: Any) -> dict[tuple[str, int], str]:
    """Return the state of each task instance of a run, by task id and map index."""
    return {(item.task_id, item.map_index): str(item.state) for item in run.get_task_instances()}
