"""Which clinics a scheduled comparison looks at: those in doubt every hour, all of them once a week."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from medflex.airflow.tasks.reconcile import _scheduled
from medflex.ledger.store import Ledger

SUNDAY_NOON = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
"""12:30 in Moscow."""


def compared_all(ledger_db: str, at: datetime, *, mode: str = "reconcile", clinic_ids: list[int] | None = None) -> None:
    with psycopg.connect(ledger_db) as connection:
        connection.execute(
            "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at, clinic_ids)"
            " VALUES ('medflex_reconcile', %s, 'scheduled', %s, %s, %s, %s)",
            [at.isoformat() + mode, mode, at, at, clinic_ids],
        )


def in_doubt(ledger_db: str, clinic_id: int, at: datetime) -> None:
    with psycopg.connect(ledger_db) as connection:
        connection.execute(
            "INSERT INTO ledger.batch (clinic_id, lpu_id, operation, epoch, appointment_ids, versions, created_at,"
            " resolved_at, outcome, unknown_ids) VALUES (%s, 7, 'send', 1, '{1}', '{1}', %s, %s, 'unknown', '{1}')",
            [clinic_id, at, at],
        )


def test_all_clinics_when_none_was_ever_compared(ledger_db: str) -> None:
    compared_all(ledger_db, SUNDAY_NOON - timedelta(hours=1), mode="dry_run")
    compared_all(ledger_db, SUNDAY_NOON - timedelta(hours=1), clinic_ids=[1])
    with Ledger(ledger_db) as ledger:
        assert _scheduled(ledger, SUNDAY_NOON + timedelta(days=2)) is None


@pytest.mark.parametrize(
    ("last", "now", "everything"),
    [
        (timedelta(days=-7), timedelta(0), True),
        (timedelta(days=-1), timedelta(0), True),  # By hand the day before: the week has its own.
        (timedelta(hours=-1), timedelta(0), False),  # Just now.
        (timedelta(0), timedelta(hours=1), False),
        (timedelta(0), timedelta(days=6, hours=23), False),
        (timedelta(0), timedelta(days=7), True),
        (timedelta(days=-7), timedelta(hours=2), True),  # Nothing ran at noon: made up for.
        (timedelta(0), timedelta(days=3), False),
    ],
)
def test_once_a_week_all_of_them(ledger_db: str, last: timedelta, now: timedelta, everything: bool) -> None:
    compared_all(ledger_db, SUNDAY_NOON + last)
    with Ledger(ledger_db) as ledger:
        assert _scheduled(ledger, SUNDAY_NOON + now) == (None if everything else [])


def test_every_hour_those_in_doubt_for_a_day(ledger_db: str) -> None:
    compared_all(ledger_db, SUNDAY_NOON)
    now = SUNDAY_NOON + timedelta(days=2)
    in_doubt(ledger_db, 5, now - timedelta(hours=23))
    in_doubt(ledger_db, 3, now - timedelta(hours=1))
    in_doubt(ledger_db, 3, now - timedelta(hours=2))
    in_doubt(ledger_db, 9, now - timedelta(hours=25))
    with Ledger(ledger_db) as ledger:
        assert _scheduled(ledger, now) == [3, 5]
