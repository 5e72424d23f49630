"""Memory and time of the daily run's tasks: ``python -m bench`` (``make bench``).

Each task runs in a process of its own, on real servers, at two sizes. Ends with 1 when a task goes over its memory or a
second run writes anything. At the default sizes the table also goes to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.document import write_section
from bench.report import Measured, broken, render
from bench.task import SOURCE, Figures
from bench.world import BenchError, World, started

ROWS = 1_000_000
REPEAT = 3
TASKS = {
    "first": (SOURCE, "extract", "withhold", "validate", "plan_changes", "load"),
    "second": ("extract", "withhold", "validate", "plan_changes", "load"),
    "resync": ("extract", "withhold", "validate", "plan_changes", "load"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the large shard (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=REPEAT, help="runs at a tenth of these rows, of which medians are taken"
    )
    options = parser.parse_args(arguments)
    if options.rows < 1000 or options.repeat < 1:
        parser.error("give at least 1000 rows and at least one run")
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    command = f"python -m bench --rows {options.rows} --repeat {options.repeat}"
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder, started(Path(folder)) as world:
            measured = [
                *measure(world, options.rows // 10, options.repeat),
                *measure(world, options.rows, 1),
            ]
            text = render(measured, begun=begun, postgres=world.postgres_version(), load=load, command=command)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    if (options.rows, options.repeat) == (ROWS, REPEAT):
        write_section("tasks", text)
    failures = broken(measured)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def measure(world: World, rows: int, repeat: int) -> list[Measured]:
    """Measure all tasks of a first run, of a second one with nothing changed, and of one that sends all again.

    Raises:
        BenchError: the world is not what was to be measured, for example more than one shard.
    """
    _say(f"Generating a shard of {rows:,} rows …")
    world.fill(rows)
    measured = []
    for number in range(1, repeat + 1):
        world.forget()
        for name, mode in (("first", "transfer"), ("second", "transfer"), ("resync", "resync")):
            run = {"run_id": f"{name} {number}", "mode": mode, "run_after": datetime.now(UTC).isoformat()}
            shards = world.run("plan_shards", run).result
            if len(shards) != 1:
                raise BenchError(f"All rows were to lie in one shard, and there are {len(shards)}.")
            of_run = {}
            for task in TASKS[name]:
                _say(f"{rows:,} rows, {name} run {number} of {repeat}: {task}")
                of_run[task] = world.run(task, run, shards[0])
            extracted = of_run["extract"].result
            if extracted < rows:
                raise BenchError(f"The shard was to have {rows} rows, and has {extracted}.")
            writes = world.writes()
            measured += [
                Measured(rows, name, task, _rows(task, figures, extracted), writes, figures)
                for task, figures in of_run.items()
            ]
    return measured


def _rows(task: str, figures: Figures, extracted: int) -> int:
    """Return how many records went through a task."""
    if task == "plan_changes":
        return sum(figures.result[name] for name in ("new", "changed", "again", "unchanged"))
    return sum(figures.result.values()) if task == "load" else extracted


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
