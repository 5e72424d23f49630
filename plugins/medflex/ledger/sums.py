"""What is kept of a settled run in short, so that lists over many runs need not add up 20,000 clinics for each."""

from __future__ import annotations

from typing import Any

import psycopg

from medflex.sql import query

SUM_TABLES = ("run_total", "run_reason", "run_expectation")
"""Emptied for a run that starts anew."""

RUN_SUITE_SHARD = -1
"""Under this shard the result of the suite that judges the whole run is kept."""

_QUERIES = {"run_total": "run_totals", "run_reason": "run_reasons", "run_expectation": "run_expectations"}


def keep_sums(cursor: psycopg.Cursor[Any], run_key: int) -> None:
    """Write down a run's sums, those of a clinic's numbers, of reasons and of expectations; replaces earlier ones."""
    for table in SUM_TABLES:
        select = query(f"ledger/pages/{_QUERIES[table]}")
        cursor.execute(f"DELETE FROM ledger.{table} WHERE run_key = %s".encode(), (run_key,))
        # The columns of each query are named as those of its table.
        cursor.execute(
            f"INSERT INTO ledger.{table} SELECT (jsonb_populate_record(NULL::ledger.{table}, to_jsonb(summed))).*"
            f" FROM ({select}) AS summed".encode(),
            {"run_key": run_key, "clinic_ids": None},
        )
