"""Lineage: what is declared is what is read, no part of staging becomes a data set, and off it costs nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import psycopg
import pyarrow as pa
import pytest
from airflow.providers.common.compat.lineage.entities import Table
from airflow.sdk import Asset, AssetAlias

from medflex.airflow.lineage import SHOWN
from medflex.airflow.staging import Staging
from tests.airflow.dag_runs import dag

ROOT = Path(__file__).parents[2]
DAGS = (
    "medflex_transfer", "medflex_withdraw", "medflex_sweep", "medflex_partner_actions", "medflex_release",
    "medflex_reconcile",
)  # fmt: skip
WITHOUT_DATA = {
    "shard.withdrawals_ended", "remove_staging", "withdrawn", "acted", "ask", "hold.ask", "transfer",
    "settle_comparison", "transfer_parameters", "plan_comparison", "start_what_is_left", "swept",
}  # fmt: skip
"""Tasks that move nothing, or read only what the run itself has written down."""


def declared() -> list[Table]:
    """Return every table that a task of a DAG names."""
    return [
        table
        for dag_id in DAGS
        for task in dag(dag_id).tasks
        for table in (*task.inlets, *task.outlets)
        if isinstance(table, Table)
    ]


def test_the_tables_of_medlock_are_those_of_its_queries() -> None:
    # The look at change stamps is the triggerer's, and names no other table.
    queries = "\n".join(path.read_text() for path in (ROOT / "include/sql/medlock").rglob("*.sql"))
    code = re.sub(r"--.*", "", queries)
    read = set(re.findall(r"(?:FROM|JOIN|UPDATE|INTO)\s+medlock\.(\w+)", code))
    named = {table.name for table in declared() if table.cluster == "postgres://medlock_db"}
    assert {"appointment", "patient", "partner_action"} <= read
    assert named == read


def test_the_tables_of_the_ledger_exist(ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'").fetchall()
    named = {table.name for table in declared() if table.cluster == "postgres://medflex_ledger"}
    assert named
    assert named <= {name for (name,) in rows}


def test_a_name_is_a_connection_and_never_an_address() -> None:
    clusters = {table.cluster for table in declared()}
    assert clusters == {
        "postgres://medlock_db", "postgres://medflex_ledger", "staging://medflex", "https://medflex_api",
    }  # fmt: skip


def test_each_task_that_moves_data_says_so() -> None:
    for dag_id in DAGS:
        for task in dag(dag_id).tasks:
            tables = [item for item in (*task.inlets, *task.outlets) if not isinstance(item, Asset | AssetAlias)]
            assert bool(tables) != (task.task_id in WITHOUT_DATA), f"{dag_id}.{task.task_id}"


def test_exactly_these_tasks_change_what_partners_see() -> None:
    writing = {
        task.task_id for dag_id in DAGS for task in dag(dag_id).tasks if any(item == SHOWN for item in task.outlets)
    }
    assert writing == {
        "shard.load", "shard.withdraw_revoked", "withdraw_revoked_now", "sweep", "reconcile", "hold.carry_out",
        "share_changes",
    }  # fmt: skip


def test_staging_tells_lineage_of_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run would leave new data sets behind, and a task with such ones has its declared ones passed over."""
    import airflow.sdk.lineage

    collector = airflow.sdk.lineage.HookLineageCollector()
    monkeypatch.setattr(airflow.sdk.lineage, "get_hook_lineage_collector", lambda: collector)
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}/staging")
    staging = Staging("a_dag", "a run")
    staging.write(0, "extract", 0, pa.table({"id": [1]}))
    assert list(staging.slices(0, "extract")) == [[0]]
    assert staging.read(0, "extract", 0).num_rows == 1
    staging.clear(0, "extract")
    staging.remove()
    assert not collector.has_collected
    # The collector is the one that a path would use.
    with cast("Any", staging.folder.parent / "a file").open("wb") as file:
        file.write(b"x")
    assert collector.has_collected


def test_without_a_transport_the_provider_costs_nothing() -> None:
    program = (
        "import sys, airflow.sdk\n"
        "from airflow.providers.openlineage.plugins.openlineage import OpenLineageProviderPlugin as plugin\n"
        "print(plugin.listeners, 'openlineage.client' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if "OPENLINEAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[] False"
