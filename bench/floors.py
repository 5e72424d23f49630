"""The least that moving the data takes, each in a process of its own: ``python -m bench.floors '{"what": …}'``.

``copy``: the product's query by COPY in binary form, thrown away. ``pandas``: the same as ``extract`` reads it, and
into pandas, which ``extract`` leaves to the tasks behind it. ``post``: recorded bodies of the product, by a client that
does nothing else, in four threads. The last line of standard output is JSON: ``rows``, ``seconds`` (without imports),
``peak_mb``.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

THREADS = 4
PART_ROWS = 50_000
"""As large as the parts that ``extract`` writes; it gathers them from 8,000 rows of a slice at a time."""


def copy(asked: dict[str, Any]) -> tuple[int, float]:
    """Let Postgres send the rows of ``extract`` and throw them away."""
    import psycopg

    from medflex.sql import query

    statement = f"COPY ({query('medlock/appointments')}) TO STDOUT (FORMAT binary)"
    begun = time.perf_counter()
    with psycopg.connect(asked["postgres"]) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config('medflex.windows', %s, false)", [asked["windows"]])
        with cursor.copy(statement.encode()) as rows:
            for _ in rows:
                pass
        number = cursor.rowcount
    return number, time.perf_counter() - begun


def to_pandas(asked: dict[str, Any]) -> tuple[int, float]:
    """Read what ``extract`` reads, in parts as large as it writes, each turned into pandas and dropped."""
    # Imports are no part of it: the driver is imported at the first look otherwise.
    import adbc_driver_postgresql.dbapi  # noqa: F401
    import pandas as pd
    import pyarrow as pa

    from medflex.airflow.hooks.medlock import Medlock
    from medflex.arrow import to_pandas as frame_of

    windows = pd.DataFrame(orjson.loads(asked["windows"]))
    for name in ("starts_from", "starts_before"):
        windows[name] = pd.to_datetime(windows[name], utc=True)
    number = 0
    begun = time.perf_counter()
    with Medlock(asked["postgres"]) as medlock, medlock.stream_appointments(windows) as batches:
        gathered: list[Any] = []
        for batch in batches:
            gathered.append(batch)
            if sum(item.num_rows for item in gathered) >= PART_ROWS:
                number += len(frame_of(pa.Table.from_batches(gathered), ("patient_id", "doctor_id")))
                gathered = []
        if gathered:
            number += len(frame_of(pa.Table.from_batches(gathered), ("patient_id", "doctor_id")))
    return number, time.perf_counter() - begun


def post(asked: dict[str, Any]) -> tuple[int, float]:
    """Post recorded bodies, four at a time, each thread on a connection of its own."""
    from bench.receiver import HOST, SEND, TOKEN, bodies

    waiting = bodies(Path(asked["recording"]))
    headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
    if waiting[0][:2] == b"\x1f\x8b":
        headers["Content-Encoding"] = "gzip"
    number, failures = len(waiting), list[str]()

    def work() -> None:
        connection = http.client.HTTPConnection(HOST, asked["port"])
        while True:
            try:
                body = waiting.pop()
            except IndexError:
                return
            connection.request("POST", SEND, body, headers | {"Idempotency-Key": str(uuid.uuid4())})
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200:
                failures.append(f"HTTP {reply.status}")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures or waiting:
        raise RuntimeError(f"Not all bodies were taken: {failures[:1]}, {len(waiting)} left.")
    return number, seconds


def main(argument: str) -> None:
    """Measure what ``argument`` (JSON) names."""
    asked = orjson.loads(argument)
    floors: dict[str, Callable[[dict[str, Any]], tuple[int, float]]] = {"copy": copy, "pandas": to_pandas, "post": post}
    rows, seconds = floors[asked["what"]](asked)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    sys.stdout.write("\n" + orjson.dumps({"rows": rows, "seconds": seconds, "peak_mb": peak}).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
