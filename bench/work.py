"""The product's own work: a task's function on all shards of a run, in one process: ``python -m bench.work '{…}'``.

Measured is what happens inside the function. What it imports there is told apart: it costs the same whatever the number
of rows, and Airflow pays it in each task process. ``python -m bench.task`` measures memory as Airflow has it; here all
shards of a task share one process. The last line of standard output is JSON, see :func:`main`.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from bench.task import peak_mb, task_context

ONCE = ("plan_shards", "publish_quality_report", "settle_run", "remove_staging")
"""These have no shard."""
PER_SHARD = ("look_at_gate", "withdraw_revoked", "extract", "withhold", "validate", "plan_changes", "load")
TASKS = ("plan_shards", *PER_SHARD, "publish_quality_report", "settle_run", "remove_staging")
"""In the order in which a run makes them."""


class ImportTime:
    """Counts the seconds (and CPU seconds) that the main thread spends importing modules which are not there yet."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0
        self._depth = 0
        bootstrap: Any = importlib._bootstrap
        find, main = bootstrap._find_and_load, threading.main_thread()

        def timed(*arguments: Any) -> Any:
            if self._depth or threading.current_thread() is not main:
                return find(*arguments)
            self._depth = 1
            begun, cpu = time.perf_counter(), time.process_time()
            try:
                return find(*arguments)
            finally:
                self._depth = 0
                self.seconds += time.perf_counter() - begun
                self.cpu += time.process_time() - cpu

        # The interpreter looks this name up each time that it imports what is not in sys.modules.
        bootstrap._find_and_load = timed


def main(argument: str) -> None:
    """Run what ``argument`` (JSON) names: ``task``, ``run_id``, ``mode``, ``run_after`` (ISO), ``shards``.

    Writes ``{"calls": [{"result", "seconds", "cpu_seconds", "imports"}], "peak_mb"}``; the first two without the
    imports, CPU seconds with all threads of this process and nothing of the servers.
    """
    asked = orjson.loads(argument)
    imports = ImportTime()
    from airflow.sdk.execution_time.context import set_current_context

    transfer, context = task_context(asked)
    name = asked["task"]
    function: Callable[..., Any] = getattr(transfer, name)
    calls = []
    with set_current_context(context):
        if name in ONCE:
            arguments_of: list[tuple[Any, ...]] = [()]
        elif name == "look_at_gate":
            arguments_of = [(context, shard["shard"]) for shard in asked["shards"]]
        else:
            arguments_of = [(shard,) for shard in asked["shards"]]
        for arguments in arguments_of:
            imported, imported_cpu = imports.seconds, imports.cpu
            begun, cpu = time.perf_counter(), time.process_time()
            result = function(*arguments)
            taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
            imported, imported_cpu = imports.seconds - imported, imports.cpu - imported_cpu
            if name == "look_at_gate":
                result = {"is_open": result.is_open}
            calls.append(
                {
                    "result": result,
                    "seconds": taken - imported,
                    "cpu_seconds": cpu - imported_cpu,
                    "imports": imported,
                }
            )
    # Whatever is no plain JSON (there should be nothing) is told by its text.
    said = orjson.dumps({"calls": calls, "peak_mb": peak_mb()}, default=str)
    sys.stdout.write("\n" + said.decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
