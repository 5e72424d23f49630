"""The same transfer with dlt, in an environment of its own: ``python dlt_pipeline.py '{"postgres": …}'``.

Reads a view of the schema bench through SQLAlchemy into Arrow tables and posts rows in batches of 500 from a custom
destination. What is asked for: ``postgres`` (URL), ``view``, ``receiver`` (URL), ``folder`` (dlt's state and files),
``incremental`` (whether rows are read from the newest ``updated_at`` on). The last line of standard output says what
was done, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

asked = json.loads(sys.argv[1])
begun = time.perf_counter()
os.environ |= {
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
    "DLT_DATA_DIR": asked["folder"],
    # As dlt's page on performance advises: several files, so that they are loaded side by side.
    "DATA_WRITER__FILE_MAX_ITEMS": "100000",
}

import dlt  # noqa: E402 - its settings stand in the environment
import orjson  # noqa: E402
import requests  # noqa: E402
from dlt.sources.sql_database import sql_table  # noqa: E402

session = requests.Session()
session.trust_env = False
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))
counted = {"records": 0}


@dlt.destination(batch_size=500, loader_file_format="parquet", name="receiver")
def receiver(items, table):  # type: ignore[no-untyped-def]
    """Post one batch of rows; items: an Arrow record batch."""
    rows = items.to_pylist()
    reply = session.post(asked["receiver"] + "/rows", data=orjson.dumps(rows), timeout=60)
    reply.raise_for_status()


rows = sql_table(
    credentials=asked["postgres"],
    table=asked["view"],
    schema="bench",
    backend="pyarrow",
    chunk_size=100_000,
    incremental=dlt.sources.incremental("updated_at") if asked["incremental"] else None,
    primary_key="appointment_id",
    write_disposition="append" if asked["incremental"] else "replace",
)
pipeline = dlt.pipeline("bench_incremental" if asked["incremental"] else "bench_full", destination=receiver)
info = pipeline.run(rows)
info.raise_on_failed_jobs()
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
print(json.dumps({"seconds": time.perf_counter() - begun, "peak_mb": peak, "dlt": dlt.__version__}))
