"""Lanes that write for the same records wait one behind the other, and none for one that waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pandas as pd
import psycopg
import pytest
from psycopg.types.json import Jsonb

from medflex.errors import LedgerDeadlockError
from medflex.ledger.connection import again_after_deadlock
from medflex.ledger.store import Ledger
from medflex.sql import query

FIRST, SECOND = 1, 2
"""Two keys; every statement here is given the second one first, and finds it first in its table."""
TABLES = {"record": "appointment_id", "revocation": "appointment_id", "clinic_seen": "clinic_id"}
KEYS = {"clinic_ids": [1, 1], "appointment_ids": [SECOND, FIRST], "lpu_ids": [1, 1]}


def resolution(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Write a withdrawal of both records down; return what resolve_batch takes."""
    row = connection.execute(
        "INSERT INTO ledger.batch (clinic_id, lpu_id, operation, epoch, appointment_ids, versions, reasons, revoked_at,"
        " created_at) VALUES (1, 1, 'withdraw', 1, '{2, 1}', '{2, 2}', '{x, x}', ARRAY[now(), now()], now())"
        " RETURNING batch_id"
    ).fetchone()
    connection.commit()
    assert row is not None
    return {
        "batch_id": row[0], "outcome": "acknowledged", "http_status": 200, "rejected_ids": [], "outdated_ids": [],
        "rejected_fields": Jsonb({}), "unknown_ids": [], "looked_at": None, "now": None,
    }  # fmt: skip


def seen(_: psycopg.Connection[Any]) -> dict[str, Any]:
    permits = {"lpu_id": 7, "is_open": True, "partner_ids": [], "changed_at": "2026-03-01T00:00Z", "writes": 0}
    clinics = [{"clinic_id": clinic_id, **permits} for clinic_id in (SECOND, FIRST)]
    return {"clinics": Jsonb(clinics)}


def fill(connection: psycopg.Connection[Any]) -> None:
    for key in (SECOND, FIRST):
        connection.execute(
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
            " VALUES (1, %s, 1, 1, 'sent', now())",
            [key],
        )
        connection.execute(
            "INSERT INTO ledger.revocation (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at,"
            " found_at) VALUES (1, %s, 1, 'x', false, now(), now())",
            [key],
        )
        connection.execute(
            "INSERT INTO ledger.clinic_seen (clinic_id, lpu_id, is_open, partner_ids, changed_at)"
            " VALUES (%s, 1, true, '{}', now())",
            [key],
        )
    connection.commit()


def lock(connection: psycopg.Connection[Any], table: str, key: int) -> None:
    connection.execute(f"SELECT 1 FROM ledger.{table} WHERE {TABLES[table]} = %s FOR UPDATE".encode(), [key])


@contextmanager
def waiting(uri: str, work: Callable[[], Any], behind: int) -> Iterator[Future[Any]]:
    """Let another thread work until it waits for this backend."""
    with psycopg.connect(uri, autocommit=True) as look, ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(work)
        asked = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        end = time.monotonic() + 30
        while not look.execute(asked, [behind]).fetchone():
            assert not under_way.done(), "it waits for nobody"
            assert time.monotonic() < end, "it neither ends nor waits"
        yield under_way


@pytest.mark.parametrize(
    ("name", "table", "parameters"),
    [
        ("age_out", "record", lambda _: KEYS),
        ("close_revocations", "revocation", lambda _: KEYS),
        ("save_clinics_seen", "clinic_seen", seen),
        ("widen_clinics_seen", "clinic_seen", seen),
        ("resolve_batch", "revocation", resolution),
    ],
)
def test_rows_are_locked_in_the_order_of_their_keys(
    ledger_db: str, name: str, table: str, parameters: Callable[[psycopg.Connection[Any]], Mapping[str, Any]]
) -> None:
    """Another lane has the first row and then wants the second one: who waits for the first must not have that."""
    with psycopg.connect(ledger_db) as other, psycopg.connect(ledger_db) as lane:
        fill(other)
        given = parameters(other)
        lock(other, table, FIRST)

        def work() -> None:
            # Else a join may happen to sort.
            lane.execute(
                "SELECT set_config(name, 'off', true) FROM pg_settings WHERE name ~ '^enable_(hash|merge)join$'"
            )
            lane.execute(query(f"ledger/{name}"), given)
            lane.commit()

        with waiting(ledger_db, work, other.info.backend_pid) as under_way:
            lock(other, table, SECOND)
            other.commit()
            under_way.result(30)


def was_ended(uri: str, work: Callable[[], Any]) -> bool:
    """Let a method that locks both revocations meet with a transaction that has the second one and wants the first one;
    tell whether it was the method's that Postgres ended.

    It ends the one that has waited for longer: the method's, unless this machine has stood still.
    """
    with psycopg.connect(uri) as other:
        fill(other)
        lock(other, "revocation", SECOND)
        with waiting(uri, work, other.info.backend_pid) as under_way:
            try:
                lock(other, "revocation", FIRST)
            except psycopg.errors.DeadlockDetected:
                other.rollback()
                under_way.result(30)
                return False
            other.commit()
            under_way.result(30)
            return True


def test_a_transaction_that_postgres_ends_for_another_one_is_run_once_more(ledger_db: str) -> None:
    records = pd.DataFrame({"clinic_id": [1, 1], "appointment_id": [FIRST, SECOND], "lpu_id": [1, 1]})
    with Ledger(ledger_db) as ledger, psycopg.connect(ledger_db, autocommit=True) as connection:
        for _ in range(5):
            done = was_ended(ledger_db, lambda: ledger.close_revocations(records))
            assert connection.execute("SELECT count(*) FROM ledger.revocation").fetchone() == (0,)
            if done:
                return
            connection.execute("TRUNCATE ledger.record, ledger.clinic_seen")
    pytest.fail("Postgres has ended the other transaction each time.")


def test_it_is_run_once_more_only() -> None:
    times = []

    @again_after_deadlock
    def always() -> None:
        times.append(1)
        raise LedgerDeadlockError("They waited for each other.")

    with pytest.raises(LedgerDeadlockError):
        always()
    assert len(times) == 2
