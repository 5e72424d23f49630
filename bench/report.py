"""The measured figures as a section of docs/benchmarks.md, and what of them is not as it has to be."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from statistics import median

import psutil

from bench.task import SOURCE, Figures

LIMIT_MB = 500
LIBRARIES = ("apache-airflow", "pandas", "pyarrow", "adbc-driver-postgresql", "psycopg", "great-expectations")
RUNS = {
    "first": "first run, all records are new",
    "second": "second run, nothing has changed",
    "resync": "run in mode resync, all records are sent again",
}


@dataclass(frozen=True)
class Measured:
    """One task of one run. ``rows``: those through the task; ``writes``: the whole run's write requests to Medflex."""

    size: int
    run: str
    task: str
    rows: int
    writes: int
    figures: Figures


def broken(measured: Sequence[Measured]) -> list[str]:
    """Return what is not as it has to be, one sentence each."""
    over = [
        f"{item.task} ({item.run} run, {item.size:,} rows) had {item.figures.peak_mb:.0f} MB at its peak; below"
        f" {LIMIT_MB} MB is wanted."
        for item in measured
        if item.task != SOURCE and item.figures.peak_mb >= LIMIT_MB
    ]
    written = {(item.size, item.writes) for item in measured if item.run == "second" and item.writes}
    silent = {(item.size, item.run) for item in measured if item.run != "second" and not item.writes}
    return [
        *over,
        *(f"The second run of {size:,} rows made {writes} write requests; none is wanted." for size, writes in written),
        *(f"The {run} run of {size:,} rows sent nothing, so that it measured nothing." for size, run in silent),
    ]


def render(measured: Sequence[Measured], *, begun: datetime, postgres: str, load: float, command: str) -> str:
    """Return the section.

    Args:
        begun: when the measurements began (UTC).
        postgres: version of the server.
        load: the machine's load average before the first measurement.
    """
    small, large = min(item.size for item in measured), max(item.size for item in measured)
    repeats = sum(1 for item in measured if (item.size, item.task) == (small, SOURCE))
    baseline = median(item.figures.baseline_mb for item in measured)
    lines = [
        "## Memory and time of the daily run's tasks",
        "",
        f"Written by `{command}`.",
        "",
        "Each task of `medflex_transfer` runs in a process of its own, as Airflow runs it, on a real Postgres with a"
        " generated Medlock and on the sandbox Medflex, both on the same machine and without a limit of its rate. All"
        " rows lie in one shard. Peak memory is the most RSS the process ever held, in MB of 1,000,000 bytes; seconds"
        f" are those of the task without the start of its process. Runs at the smaller size: {repeats}, of which the"
        " table has the median seconds and the highest peak; at the larger size: 1.",
        "",
        f"{begun:%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, load"
        f" average {load:.1f} before the first measurement · {platform.system()} {platform.machine()} · Python"
        f" {platform.python_version()} · PostgreSQL {postgres} · "
        + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "",
        "Read seconds as ratios: with a load average above the number of cores others were at work.",
        "",
    ]
    for run, title in RUNS.items():
        lines += [f"### {title.capitalize()}", "", *_table(measured, run, small, large), "", _writes(measured, run), ""]
    lines += [
        "### What follows",
        "",
        f"- A task process holds {baseline:.0f} MB before its task begins: Airflow's runner and the parsed DAG file.",
        *(f"- {sentence}" for sentence in _conclusions(measured, small, large)),
    ]
    return "\n".join(lines) + "\n"


def _table(measured: Sequence[Measured], run: str, small: int, large: int) -> list[str]:
    sizes = (small, large)
    head = " | ".join(f"rows | s | rows/s | peak MB at {size:,}" for size in sizes)
    lines = [f"| task | {head} |", f"| --- |{' ---: |' * 8}"]
    for task in dict.fromkeys(item.task for item in measured if item.run == run):
        cells = [f"`{task}`" if task != SOURCE else "the query of `extract` alone"]
        for size in sizes:
            items = _of(measured, run, task, size)
            rows, seconds = items[0].rows, _seconds(items)
            cells += [f"{rows:,}", f"{seconds:.1f}", f"{rows / seconds:,.0f}" if rows else "–", f"{_peak(items):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _writes(measured: Sequence[Measured], run: str) -> str:
    numbers = {item.size: item.writes for item in measured if item.run == run}
    told = [f"{writes:,} with {size:,} rows" for size, writes in numbers.items()]
    return f"Write requests to Medflex: {', '.join(told)}."


def _conclusions(measured: Sequence[Measured], small: int, large: int) -> list[str]:
    limited = [item for item in measured if item.task != SOURCE]
    highest = max(limited, key=lambda item: item.figures.peak_mb)
    ratio = _seconds(_of(measured, "first", "extract", large)) / _seconds(_of(measured, "first", SOURCE, large))
    grown = {
        (run, task): _peak(_of(measured, run, task, large)) - _peak(_of(measured, run, task, small))
        for run, task in dict.fromkeys((item.run, item.task) for item in limited)
    }
    (run, task), most = max(grown.items(), key=lambda pair: pair[1])
    bytes_a_row = most * 1e6 / (large - small)
    return [
        f"Every task has to stay below {LIMIT_MB} MB. The highest peak is"
        f" {highest.figures.peak_mb:.0f} MB, `{highest.task}` in the {highest.run} run of {highest.size:,} rows.",
        f"From {small:,} to {large:,} rows the peaks of these tasks grow by {most:.0f} MB at most,"
        f" {bytes_a_row:.0f} bytes for each row more: `{task}`, {run} run.",
        f"`extract` takes {ratio:.1f} × as long as its query alone, read and thrown away, at {large:,} rows; the rest"
        " is Arrow, Parquet, the ledger and imports.",
    ]


def _of(measured: Sequence[Measured], run: str, task: str, size: int) -> list[Measured]:
    return [item for item in measured if (item.run, item.task, item.size) == (run, task, size)]


def _seconds(items: Sequence[Measured]) -> float:
    return median(item.figures.seconds for item in items)


def _peak(items: Sequence[Measured]) -> float:
    return max(item.figures.peak_mb for item in items)
