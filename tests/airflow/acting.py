"""What tests of partner actions share: records at Medflex, and the three steps of the DAG without Airflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg

from medflex.airflow.acting import ActionReader, Actor, Answered, Answerer, Applied, Read
from medflex.airflow.hooks.medlock_actions import MedlockActions
from medflex.clock import Clock, SystemClock
from tests.airflow.test_loading import load, planned
from tests.airflow.world import DIGEST_KEY, World

RUN = "a run of partner actions"


# -- the steps of the DAG --------------------------------------------------------------------------------------------


@contextmanager
def actor(world: World, clock: Clock | None = None, medlock: MedlockActions | None = None) -> Iterator[Actor]:
    """One attempt of the task that decides."""
    with world.parts() as (_, ledger, _), medlock or MedlockActions(world.medlock_actions) as actions:
        yield Actor(
            medlock=actions,
            ledger=ledger,
            clock=clock or SystemClock(),
            digest_key=DIGEST_KEY.encode(),
            run_id=RUN,
        )


def read(world: World, **settings: Any) -> Read:
    """Read partner actions into the ledger."""
    with world.parts(**settings) as (_, ledger, client):
        return ActionReader(client=client, ledger=ledger, clock=SystemClock(), jitter=lambda: 1.0).read(RUN)


def apply(world: World, clock: Clock | None = None, medlock: MedlockActions | None = None, **options: Any) -> Applied:
    """Decide about what is undecided."""
    with actor(world, clock, medlock) as made:
        return made.apply(**options)


def answer(world: World, **settings: Any) -> Answered:
    """Tell Medflex what was decided."""
    with world.parts(**settings) as (_, ledger, client):
        return Answerer(client=client, ledger=ledger, clock=SystemClock(), jitter=lambda: 1.0).answer(RUN)


def act(world: World, *actions: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Let partners act, and bring it to its end; return each action's status code and reason, in the order given."""
    ids = world.control.add_actions(actions)
    read(world)
    applied = apply(world)
    assert not applied.problems
    answered = answer(world)
    assert not answered.problems
    results = world.control.results()
    decided = {str(row[0]): row[1:] for row in decisions(world)}
    for id_ in ids:
        assert results[id_]["status_code"] == decided[id_][0]
    return [decided[id_] for id_ in ids]


def decisions(world: World) -> list[tuple[UUID, int, str]]:
    """Return the ledger's decisions: action, status code, reason."""
    return world.read_ledger("SELECT action_id, status_code, reason FROM ledger.partner_action ORDER BY seq")


def journal(world: World) -> list[tuple[UUID, int, str]]:
    """Return what stands in Medlock's journal: action, status code, reason."""
    return world.read("SELECT action_id, status_code, reason FROM medlock.partner_action ORDER BY decided_at")


def target(world: World, clinic_id: int = 1, status: str = "unconfirmed", nth: int = 0) -> dict[str, Any]:
    """Return what a partner needs for an action about an upcoming appointment that Medflex shows: ``lpu_id``,
    ``appointment_id``, ``partner_id``, ``base_version``.
    """
    (lpu_id,) = world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0]
    shown = {id_: record for (lpu, id_), record in world.control.records().items() if lpu == lpu_id}
    rows = world.read(
        "SELECT id FROM medlock.appointment WHERE id = ANY(%s) AND status = %s AND starts_at > %s ORDER BY id",
        [list(shown), status, datetime.now(UTC) + timedelta(hours=2)],
    )
    record = shown[rows[nth][0]]
    return {
        "lpu_id": lpu_id,
        "appointment_id": record["id"],
        "partner_id": record["partners"][0],
        "base_version": record["version"],
    }


# -- small clinics of which every row is known -----------------------------------------------------------------------

ZONE = "Europe/Moscow"
DAY: date = datetime.now(ZoneInfo(ZONE)).date() + timedelta(days=3)
"""The day of all appointments. The clinic's zone has no summer time."""
FAR = DAY + timedelta(days=40)
"""A day beyond the window on which doctors work, too."""
FIRST, SECOND, DISABLED = 3, 8, 17
"""Partners: the first two are linked with every clinic, the link of the third is cut."""
PERSONAL = ("Евлампия", "Порфирьевна", "Тестова", "9951234567")
"""What of the patients may be found nowhere."""

CLINICS = f"""
INSERT INTO medlock.partner (id, name, kind)
VALUES (3, 'One', 'mailing'), (8, 'Two', 'mailing'), (17, 'Three', 'mailing');
INSERT INTO medlock.clinic (id, lpu_id, name, timezone)
SELECT c, 50000 + c, 'Clinic', '{ZONE}' FROM generate_series(1, {{count}}) AS c;
INSERT INTO medlock.staff (id, clinic_id, full_name, login, role)
SELECT c.id * 10 + n, c.id, 'Somebody', role || c.id, role
FROM medlock.clinic AS c, (VALUES (1, 'head'), (2, 'administrator')) AS r (n, role);
INSERT INTO medlock.medflex_access (clinic_id, enabled, changed_at, changed_by)
SELECT id, true, now() - interval '30 days', id * 10 + 1 FROM medlock.clinic;
INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled, scenarios)
SELECT c.id, p.id, p.id <> {DISABLED}, '{{{{}}}}' FROM medlock.clinic AS c, medlock.partner AS p;
INSERT INTO medlock.doctor (id, clinic_id, full_name, speciality, medflex_banned, updated_at)
SELECT c.id * 10 + n, c.id, 'Doctor', 'any', false, now() - interval '100 days'
FROM medlock.clinic AS c, generate_series(1, 2) AS n;
INSERT INTO medlock.patient (
    id, clinic_id, last_name, first_name, patronymic, phone, refused_personal_data, refused_notifications,
    refused_marketing, updated_at
)
SELECT c.id * 10 + n, c.id, 'Тестова', 'Евлампия', 'Порфирьевна', '8 (995) 123-45-67', false, false, false,
    now() - interval '100 days'
FROM medlock.clinic AS c, generate_series(1, 5) AS n;
INSERT INTO medlock.appointment (
    id, clinic_id, patient_id, doctor_id, starts_at, ends_at, status, is_anonymous, entry, comment, created_at,
    updated_at
)
SELECT c.id * 100 + n, c.id, c.id * 10 + patient, c.id * 10 + doctor,
    ('{DAY} ' || start)::timestamp AT TIME ZONE '{ZONE}',
    ('{DAY} ' || start)::timestamp AT TIME ZONE '{ZONE}' + interval '30 minutes',
    status, false, 'direct', 'a comment', now() - interval '20 days', now() - interval '10 days'
FROM medlock.clinic AS c, (VALUES
    (1, 1, 1, '10:00', 'unconfirmed'),
    (2, 2, 1, '12:00', 'unconfirmed'),
    (3, 1, 2, '14:00', 'confirmed'),
    (4, 3, 1, '15:00', 'cancelled'),
    (5, 4, 1, '16:00', 'no_show')
) AS a (n, patient, doctor, start, status);
INSERT INTO medlock.doctor_schedule (id, clinic_id, doctor_id, starts_at, ends_at)
SELECT row_number() OVER (), c.id, c.id * 10 + doctor,
    (day || ' ' || since)::timestamp AT TIME ZONE '{ZONE}', (day || ' ' || until)::timestamp AT TIME ZONE '{ZONE}'
FROM medlock.clinic AS c, (VALUES
    (1, '09:00', '13:00'), (1, '13:00', '18:00'), (2, '07:00', '18:00')
) AS s (doctor, since, until), (VALUES ('{DAY}'), ('{FAR}')) AS d (day);
"""


def found(world: World, count: int) -> None:
    """Put clinics 1 to ``count`` into an empty Medlock, each for itself, and make them known to Medflex.

    Clinic c has the lpu_id 50000 + c, the doctors 10c + 1 (works from 9 to 13 and from 13 to 18) and 10c + 2 (from 7 to
    18), the patients 10c + 1 to 10c + 5, and on DAY these appointments of half an hour: 100c + 1, the one that is acted
    upon (10:00, patient 1, doctor 1, unconfirmed); + 2 (12:00, patient 2, doctor 1); + 3 (14:00, patient 1, doctor 2);
    + 4 (15:00, doctor 1, cancelled); + 5 (16:00, doctor 1, no_show). Nothing was changed within the last days.
    """
    with psycopg.connect(world.medlock) as connection:
        connection.execute(CLINICS.format(count=count).encode())
    world.introduce_clinics()


def send(world: World, clinic_ids: list[int] | None = None, **settings: Any) -> None:
    """Send what may be shared of these clinics (``None``: of all), as committed now."""
    records = planned(world)
    if clinic_ids is not None:
        records = records[records["clinic_id"].isin(clinic_ids)]
    assert not load(world, records, extracted_at=datetime.now(UTC), chunk=len(records), **settings).problems


def wish(clinic_id: int, type_: str, **more: Any) -> dict[str, Any]:
    """Return an action of the first partner on version 1 of the appointment that is acted upon, complete with id and
    time; a reschedule to a time that is free, a notification of a greeting. ``more`` replaces fields.
    """
    extra: dict[str, dict[str, Any]] = {
        "reschedule": {"dt_start": at("11:00"), "dt_end": at("11:30")},
        "notification": {"scenario": "greeting"},
    }
    return {
        "id": str(uuid4()),
        "lpu_id": 50_000 + clinic_id,
        "appointment_id": clinic_id * 100 + 1,
        "partner_id": FIRST,
        "type": type_,
        "base_version": 1,
        "dt_start": None,
        "dt_end": None,
        "scenario": None,
        "created_at": moment(),
        **extra.get(type_, {}),
        **more,
    }


def at(time: str, day: date = DAY) -> str:
    """Return a wall-clock time of the clinics as Medflex writes it."""
    return f"{day:%Y-%m-%d} {time}"


def instant(text: str) -> datetime:
    """Return a wall-clock time of the clinics as an instant."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONE)).astimezone(UTC)


def moment(**ago: float) -> str:
    """Return now, or a time before now, as Medflex writes it."""
    return (datetime.now(UTC) - timedelta(**ago)).isoformat(timespec="seconds").replace("+00:00", "Z")


def appointments(world: World) -> dict[int, dict[str, Any]]:
    """Return Medlock's appointments with every column."""
    rows = world.read("SELECT id, row_to_json(a), a::text FROM medlock.appointment AS a ORDER BY id")
    return {id_: {**columns, "as text": text} for id_, columns, text in rows}


def row(world: World, appointment_id: int) -> tuple[Any, ...]:
    """Return status, start and end of an appointment."""
    return world.read("SELECT status, starts_at, ends_at FROM medlock.appointment WHERE id = %s", [appointment_id])[0]
