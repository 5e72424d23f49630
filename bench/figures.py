"""What benchmarks of the whole stack share: how figures are told, and under which circumstances they were taken."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import psycopg

BARS = 40


def circumstances(begun: datetime, load: float) -> str:
    """Return when and where figures were taken, in one line.

    Args:
        begun: when the measurement began (UTC).
        load: the machine's load average before.
    """
    return (
        f"{begun:%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, load"
        f" average {load:.1f} before · {platform.system()} {platform.machine()} · Python {platform.python_version()}"
        f" · apache-airflow {version('apache-airflow')}"
    )


def row(title: str, seconds: Sequence[float]) -> str:
    """Return a row of a table: title, p50, p95, p99, most."""
    cells = [*(percentile(seconds, part) for part in (50, 95, 99)), max(seconds)]
    return f"| {title} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def histogram(seconds: Sequence[float]) -> list[str]:
    """Return one line per class of times, of 1, 2, 5, 10 … seconds so that there are a dozen at most."""
    width = next(step * 10**power for power in range(9) for step in (1, 2, 5) if max(seconds) / step / 10**power < 12)
    counts = [0] * (int(max(seconds) // width) + 1)
    for value in seconds:
        counts[int(value // width)] += 1
    return [
        f"{index * width:4}-{(index + 1) * width:<4} s {'#' * round(count * BARS / max(counts)):<{BARS}} {count}"
        for index, count in enumerate(counts)
    ]


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that so many percent of all do not exceed: one that was really measured."""
    return float(np.percentile(values, part, method="inverted_cdf"))


def read(uri: str, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(uri) as connection:
        return connection.execute(sql.encode(), parameters or None).fetchall()


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)
