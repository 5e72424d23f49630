"""The world that other tests stand on: a midnight that passes in their midst changes nothing of what they compare."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from sandbox.medlock.generate import generate
from tests.airflow.world import LONGEST_TEST, see_to_midnights
from tests.domain.oracles.loop import judge_appointments

SOON, LATEST = timedelta(seconds=1), LONGEST_TEST


def starts(connection: psycopg.Connection[Any]) -> dict[int, tuple[datetime, str]]:
    """Return by appointment when it starts and its clinic's zone."""
    rows = connection.execute(
        "SELECT a.id, a.starts_at, c.timezone FROM medlock.appointment AS a"
        " JOIN medlock.clinic AS c ON c.id = a.clinic_id WHERE a.starts_at IS NOT NULL"
    ).fetchall()
    return {id_: (starts_at, zone) for id_, starts_at, zone in rows}


@pytest.mark.parametrize("ahead", [SOON, LATEST], ids=["soon", "as late as may be"])
@pytest.mark.parametrize("hour", [12, 21, 22], ids=["Kamchatka", "Moscow", "Kaliningrad"])
def test_no_midnight_moves_anything_into_the_window_or_out_of_it(medlock_db: str, hour: int, ahead: timedelta) -> None:
    midnight = datetime(2026, 11, 30, hour, tzinfo=UTC)
    now = midnight - ahead
    generate(medlock_db, appointments=600, clinics=3, anchor=now)
    with psycopg.connect(medlock_db, autocommit=True) as connection:
        given = starts(connection)
        before, after = (judge_appointments(connection, moment, [moment]) for moment in (now, midnight))
        assert before.keys() - after.keys()
        assert after.keys() - before.keys()
        see_to_midnights(medlock_db, now)
        before, after = (judge_appointments(connection, moment, [moment]) for moment in (now, midnight))
        assert before.keys() == after.keys()
        # Only where it is midnight then, and not by more than has to be: the other clinics keep their edges.
        moved = {id_: start for id_, start in starts(connection).items() if start != given[id_]}
        assert moved
        for id_, (start, zone) in moved.items():
            assert start - given[id_][0] == timedelta(days=1)
            assert midnight.astimezone(ZoneInfo(zone)).hour == 0
