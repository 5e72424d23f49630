"""How much a query reads, as Postgres tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from medflex.sql import query


def plan_of(
    connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any], *, is_run: bool = True
) -> dict[str, Any]:
    """Explain ``include/sql/<name>.sql`` and, if ``is_run``, run it; return the plan's root."""
    options = "ANALYZE, BUFFERS, FORMAT JSON" if is_run else "FORMAT JSON"
    ((plan,),) = connection.execute(f"EXPLAIN ({options}) {query(name)}".encode(), parameters).fetchall()
    root: dict[str, Any] = plan[0]["Plan"]
    return root


def rows_read(node: Mapping[str, Any]) -> dict[str, float]:
    """Return how many rows the scans of a plan that was run have read, by table: also those that a filter dropped."""
    read: dict[str, float] = {}
    if "Relation Name" in node:
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        read[node["Relation Name"]] = rows * node["Actual Loops"]
    for child in node.get("Plans", []):
        for table, rows in rows_read(child).items():
            read[table] = read.get(table, 0) + rows
    return read


def indexes(node: Mapping[str, Any]) -> set[str]:
    """Return the indexes that a plan uses."""
    own = {node["Index Name"]} if "Index Name" in node else set()
    return own.union(*(indexes(child) for child in node.get("Plans", [])))


def blocks(node: Mapping[str, Any]) -> int:
    """Return how many blocks a plan that was run has touched, some of them several times."""
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])
