"""One task of ``medflex_transfer`` in a process of its own, as Airflow runs it: ``python -m bench.task '{"task": …}'``.

The last line of standard output is its :class:`Figures` as JSON.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import psutil

PROJECT = Path(__file__).resolve().parent.parent
DAG_ID = "medflex_transfer"
SOURCE = "COPY (query) to nowhere"
"""Not a task: the query of ``extract`` alone, read as fast as Postgres can give it away; nothing is faster."""


@dataclass(frozen=True)
class Figures:
    """What one process said of itself: memory in MB (1,000,000 bytes), seconds of the task without its start-up."""

    result: Any
    seconds: float
    baseline_mb: float
    peak_mb: float


def peak_mb() -> float:
    """Return the most memory (RSS) that this process has held since its program was started, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # macOS, which counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # Not ru_maxrss, into which Linux carries over what the parent had held when it started this program.
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def task_context(asked: dict[str, Any]) -> tuple[Any, Any]:
    """Import what Airflow's task process has imported before it calls the function.

    Args:
        asked: ``run_id``, ``mode``, ``run_after`` (ISO).

    Returns:
        The module of the tasks' functions, and the context in which Airflow would call one of them.
    """
    # What Airflow's task process has in memory before it calls the function: its runner and the parsed DAG file.
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.sdk.api.datamodels._generated import DagRun, DagRunState, DagRunType
    from airflow.sdk.execution_time import task_runner  # noqa: F401 - for the memory it takes

    dags = PROJECT / "dags"
    bag = BundleDagBag(str(dags / f"{DAG_ID}.py"), bundle_path=dags, bundle_name="dags", safe_mode=False)
    assert not bag.import_errors, bag.import_errors

    from medflex.airflow.tasks import transfer

    dag_run = DagRun(
        dag_id=DAG_ID,
        run_id=asked["run_id"],
        logical_date=None,
        data_interval_start=None,
        data_interval_end=None,
        run_after=asked["run_after"],
        start_date=asked["run_after"],
        end_date=None,
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        consumed_asset_events=[],
        partition_key=None,
    )
    context = {
        "dag_run": dag_run,
        # Asked for are the number of the attempt, as staging has a folder for each, whether the task is still at work,
        # and whether another run waits.
        "ti": SimpleNamespace(
            task_id="measured",
            map_index=None,
            try_number=1,
            get_dr_count=lambda **_: 0,
            get_task_states=lambda **_: {asked["run_id"]: {"measured": "running"}},
        ),
        "params": {"mode": asked["mode"], "clinic_ids": None, "accept_row_counts": None},
        "outlet_events": _Events(),
    }
    return transfer, context


class _Events:
    """Takes the events of assets and forgets them."""

    def __getitem__(self, _: object) -> Any:
        return SimpleNamespace(extra={}, add=lambda *_: None)


def main(argument: str) -> None:
    """Run what ``argument`` (JSON) names: ``task``, ``run_id``, ``mode``, ``run_after`` (ISO), ``shard``."""
    asked = orjson.loads(argument)
    from airflow.sdk.execution_time.context import set_current_context

    transfer, context = task_context(asked)
    # All clinics in one shard: the case to measure is a shard of that size.
    transfer.TARGET_ROWS = 10**12
    tasks: dict[str, Callable[[Any], Any]] = {
        "plan_shards": lambda _: transfer.plan_shards(),
        SOURCE: lambda _: _read_and_discard(context),
        "extract": transfer.extract,
        "withhold": transfer.withhold,
        "validate": transfer.validate,
        "plan_changes": transfer.plan_changes,
        "load": transfer.load,
    }
    baseline = psutil.Process().memory_info().rss / 1e6
    with set_current_context(context):
        started = time.perf_counter()
        result = tasks[asked["task"]](asked["shard"])
        # The query alone has timed itself, without connecting and imports.
        seconds = result if asked["task"] == SOURCE else time.perf_counter() - started
    sys.stdout.write("\n" + orjson.dumps(asdict(Figures(result, seconds, baseline, peak_mb()))).decode() + "\n")


def _read_and_discard(context: Any) -> float:
    """Let Postgres send what ``extract`` asks for, and throw it away; return how many seconds that took."""
    import psycopg

    from medflex.airflow import connections
    from medflex.airflow.hooks.medlock import Medlock, windows_json
    from medflex.airflow.schedule import resolve_anchor
    from medflex.clock import SystemClock
    from medflex.domain.window import clinic_windows
    from medflex.sql import query

    now = SystemClock().now()
    conninfo = connections.postgres_conninfo(connections.MEDLOCK)
    with Medlock(conninfo) as medlock:
        windows = clinic_windows(medlock.clinics(None, now), resolve_anchor(context), now, cut_to_today=True)
    with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('medflex.windows', %s, false)", (windows_json(windows),))
        statement = f"COPY ({query('medlock/appointments')}) TO STDOUT (FORMAT binary)"
        started = time.perf_counter()
        with cursor.copy(statement.encode()) as copy:
            for _ in copy:
                pass
        return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
