"""
### What would be written without this product

One task that reads the appointments into pandas, drops whose consent is missing, and posts the rest: in batches of 500
through one session (`bench_plain_batches`), or one by one (`bench_plain_records`). `bench_plain_lean` lets Postgres
drop them and reads only what is sent. For the comparison in `bench/compare.py` only. Nothing remembers what was sent,
so each day costs the same.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from airflow.sdk import DAG, BaseHook, Param, get_current_context, task

BATCH = 500
SQL = "SELECT * FROM bench.appointments"
SENT = (
    "clinic_id", "lpu_id", "partners", "appointment_id", "doctor_id", "starts_at", "ends_at", "status", "entry",
    "first_name", "patronymic", "phone",
)  # fmt: skip


def read() -> Any:
    """Return the appointments that may be shared as a DataFrame; ``limit`` of the run's conf: of so many rows."""
    # Imported here and not above, as everywhere: Airflow parses this file every half minute, whoever is being measured.
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    limit = get_current_context()["params"]["limit"]
    df = PostgresHook(postgres_conn_id="medlock_db").get_df(SQL + (f" LIMIT {int(limit)}" if limit else ""))
    for column in ("refused_personal_data", "refused_notifications", "refused_marketing", "is_anonymous"):
        df = df[df[column] == False]  # noqa: E712 - None is no permission
    df = df[(df["doctor_banned"] == False) & df["patient_found"] & df["doctor_found"]]  # noqa: E712
    df = df[(df["partners"] != "") & (df["ends_at"] > df["starts_at"]) & df["entry"].isin(["direct", "online"])]
    df = df[df["phone_is_readable"]]
    for column in ("phone", "first_name"):
        df = df[df[column].notna() & (df[column].str.strip(" ") != "")]
    return _as_sent(df)


def read_lean() -> Any:
    """Return the same; Postgres filters, and gives the columns that are sent."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    sql = f"SELECT {', '.join(SENT)} FROM bench.permitted"
    return _as_sent(PostgresHook(postgres_conn_id="medlock_db").get_df(sql))


def _as_sent(df: Any) -> Any:
    return df[list(SENT)].astype({"doctor_id": "int64"}).fillna({"patronymic": "", "status": ""})


def post(rows: Any, number: int, send: Any) -> dict[str, float]:
    """Post rows in batches of this size (0: each alone); return records and seconds of the sending."""
    url = BaseHook.get_connection("bench_receiver").host + "/rows"
    begun = time.perf_counter()
    for start in range(0, len(rows), number or BATCH):
        records = rows.iloc[start : start + (number or BATCH)].to_dict("records")
        for body in [records] if number else records:
            reply = send(url, data=json.dumps(body, default=str), headers={"Content-Type": "application/json"})
            reply.raise_for_status()
    return {"records": len(rows), "seconds": time.perf_counter() - begun}


def send_batches() -> dict[str, float]:
    """Read, filter, post in batches of 500 through one session."""
    return post_batches(read())


def send_lean() -> dict[str, float]:
    """Read what is to be sent, post in batches of 500 through one session."""
    return post_batches(read_lean())


def post_batches(rows: Any) -> dict[str, float]:
    """Post rows in batches of 500 through one session."""
    import requests

    with requests.Session() as session:
        return post(rows, BATCH, session.post)


def send_records() -> dict[str, float]:
    """Read, filter, post one by one."""
    import requests

    return post(read(), 0, requests.post)


for name, function in (
    ("bench_plain_batches", send_batches), ("bench_plain_lean", send_lean), ("bench_plain_records", send_records)
):  # fmt: skip
    with DAG(
        dag_id=name,
        schedule=None,
        start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - there is no schedule
        catchup=False,
        doc_md=__doc__,
        params={"limit": Param(None, type=["null", "integer"], description="Read so many rows only; empty: all.")},
    ) as dag:
        task(task_id="send")(function)()
    globals()[name] = dag
