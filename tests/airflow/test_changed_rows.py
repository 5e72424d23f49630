"""What has changed in Medlock, where somebody has touched all rows: each step of each query reads a bounded number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from medflex.airflow.hooks.medlock import CHANGING, Medlock
from medflex.airflow.hooks.medlock_actions import MedlockActions
from medflex.airflow.triggers import consent
from medflex.airflow.triggers.consent import ConsentChangeTrigger
from medflex.arrow import Streams
from medflex.ledger.store import Ledger
from tests.plans import plan_of, rows_read

MOST, AMONG = 20, 100
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NO_EDITS = datetime.max.replace(tzinfo=UTC)
TOUCHED = datetime(2026, 11, 30, 9, tzinfo=UTC)
FILL = f"""
INSERT INTO medlock.doctor (id, clinic_id, medflex_banned, updated_at)
SELECT id, 1, true, '{TOUCHED}'::timestamptz - id * interval '1 ms' FROM generate_series(1, 500) AS id;
INSERT INTO medlock.patient (
    id, clinic_id, refused_personal_data, refused_notifications, refused_marketing, updated_at
)
SELECT id, 1, false, false, true, '{TOUCHED}'::timestamptz - id * interval '1 ms' FROM generate_series(1, 10000) AS id;
INSERT INTO medlock.appointment (id, clinic_id, patient_id, doctor_id, starts_at, is_anonymous, updated_at)
SELECT
    id, 1, 1 + id % 10000, 1 + id % 500, '{TOUCHED}'::timestamptz + id * interval '1 minute', true,
    '{TOUCHED}'::timestamptz - id * interval '1 ms'
FROM generate_series(1, 40000) AS id;
ANALYZE medlock.doctor, medlock.patient, medlock.appointment
"""


@pytest.fixture
def touched(medlock_db: str) -> str:
    """A Medlock all of whose rows were touched and say no, those with the lowest ids last; the owner's URI."""
    with psycopg.connect(medlock_db) as owner:
        owner.execute(FILL.encode())
    return medlock_db


@pytest.fixture
def medlock(medlock_app: str) -> Iterator[Medlock]:
    with Medlock(medlock_app) as made:
        yield made


def since(stamp: datetime) -> dict[str, datetime]:
    return dict.fromkeys(CHANGING, stamp)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("changed_rows", 1),
        ("changed_appointments", 3),
        ("changed_patients", 1),
        # Of an appointment the patient and the doctor as well.
        ("change_stamp", 3),
    ],
)
def test_no_more_rows_of_a_table_are_read_than_are_looked_at(touched: str, name: str, times: int) -> None:
    newest = TOUCHED - timedelta(milliseconds=AMONG + 0.5)
    sinces = {f"{table}_since": newest for table in CHANGING}
    parameters = {"since": LONG_AGO if name == "changed_rows" else newest, "edited_since": LONG_AGO, "most": MOST}
    with psycopg.connect(touched) as owner:
        read = rows_read(plan_of(owner, f"medlock/{name}", parameters | sinces))
    assert {"appointment", "patient", "doctor"} & set(read)
    # Of so few doctors all may be the shorter way.
    assert read.get("doctor", 0) <= 500
    assert max(rows for table, rows in read.items() if table != "doctor") <= times * AMONG, read


def test_the_newest_changes_are_found_and_of_a_doctor_the_latest_appointments(touched: str, medlock: Medlock) -> None:
    everybody = range(1, 40_001)
    of_doctor = sorted((id_ for id_ in everybody if id_ % 500 == 0), reverse=True)
    for kind, expected in (
        ("UPDATE medlock.appointment SET is_anonymous = true", set(range(1, MOST + 1))),
        # Four appointments each.
        ("UPDATE medlock.patient SET refused_marketing = true", {id_ for id_ in everybody if id_ % 10_000 < MOST // 4}),
        ("UPDATE medlock.doctor SET medflex_banned = true", set(of_doctor[:MOST])),
    ):
        with psycopg.connect(touched) as owner:
            owner.execute("UPDATE medlock.appointment SET is_anonymous = false")
            owner.execute("UPDATE medlock.patient SET refused_marketing = false")
            owner.execute("UPDATE medlock.doctor SET medflex_banned = false")
            owner.execute(kind.encode())
        found = medlock.changed_appointments(since(LONG_AGO), edited_since=NO_EDITS, most=MOST)
        assert set(found["appointment_id"]) == expected


def test_behind_which_stamp_a_table_has_changed_further_is_told(touched: str, medlock: Medlock) -> None:
    def stamp(number: int) -> datetime:
        return TOUCHED - timedelta(milliseconds=number)

    def behind(number: int) -> datetime:
        return stamp(number) + timedelta(microseconds=1)

    # Each by itself: the tables hold 40,000, 10,000 and 500 rows.
    for number, more in ((499, 3), (500, 2), (9_999, 2), (10_000, 1), (39_999, 1), (40_000, 0)):
        found = medlock.changed_rows(LONG_AGO, most=number)
        assert list(found) == list(CHANGING)
        assert [found[name] for name in CHANGING] == [behind(number + 1)] * more + [None] * (3 - more)
    assert set(medlock.changed_rows(stamp(5), most=4).values()) == {behind(5)}
    assert set(medlock.changed_rows(stamp(5), most=5).values()) == {None}


def test_the_watch_goes_over_the_newest_rows_of_each_table(
    touched: str, medlock_app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", medlock_app)

    async def looked(most: int) -> str:
        monkeypatch.setattr(consent, "MOST_STAMPS", most)
        connection = await ConsentChangeTrigger()._connect()
        try:
            return (await consent._look(connection, LONG_AGO))["revoking"]
        finally:
            await connection.close()

    # How many, and their fingerprint.
    assert asyncio.run(looked(10)).startswith("30/")
    assert asyncio.run(looked(600)).startswith("1700/")
    assert asyncio.run(looked(50_000)).startswith("50500/")
    before = asyncio.run(looked(10))
    with psycopg.connect(touched) as owner:
        owner.execute("UPDATE medlock.patient SET updated_at = %s WHERE id = 9000", [TOUCHED])
    assert asyncio.run(looked(10)) != before
    # Of people who are touched at one instant, more than are looked at, none is looked at, and that is seen.
    before = asyncio.run(looked(600))
    with psycopg.connect(touched) as owner:
        owner.execute("UPDATE medlock.patient SET updated_at = %s WHERE id <= 700", [TOUCHED + timedelta(hours=1)])
    after = asyncio.run(looked(600))
    assert after.startswith("1100/")
    assert after != before
    with psycopg.connect(touched) as owner:
        owner.execute("UPDATE medlock.patient SET updated_at = %s WHERE id <= 700", [TOUCHED + timedelta(hours=2)])
    assert asyncio.run(looked(600)) != after


def test_sessions_that_read_much_have_no_queries_compiled(
    medlock_db: str, medlock_app: str, medlock_actions: str, ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than to run them, and a server as it comes does it to what seems to cost much."""
    for uri in (medlock_db, ledger_db):
        with psycopg.connect(uri) as owner:
            owner.execute(f"ALTER DATABASE {uri.rsplit('/', 1)[1]} SET jit = on".encode())
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", medlock_app)
    asked = "SELECT current_setting('jit') AS jit"
    with psycopg.connect(medlock_app) as plain:
        assert plain.execute(asked).fetchone() == ("on",)
    with Medlock(medlock_app) as medlock, Ledger(ledger_db) as ledger, closing(Streams(medlock_app)) as streams:
        assert medlock._connections.get().execute(asked).fetchone() == ("off",)
        with ledger._statement() as cursor:
            assert cursor.execute(asked).fetchone() == {"jit": "off"}
        assert streams.read(asked, settings={})["jit"].to_pylist() == ["off"]
    with MedlockActions(medlock_actions) as actions, actions._cursor() as cursor:
        assert cursor.execute(asked).fetchone() == ("off",)

    async def watching() -> Any:
        connection = await ConsentChangeTrigger()._connect()
        try:
            return await (await connection.execute(asked)).fetchone()
        finally:
            await connection.close()

    assert asyncio.run(watching()) == ("off",)
