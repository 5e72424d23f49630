"""The demo Medlock's data: the same each time, and with everything wrong in them that the rules know."""

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest

from sandbox.medlock import canaries
from sandbox.medlock.canary import CANARIES
from sandbox.medlock.canary import Path as CanaryPath
from sandbox.medlock.generate import (
    CHUNK,
    FIRST_KINDS,
    UNKNOWN_ZONE,
    Kind,
    add_schedules,
    clinic_offsets,
    create_schema,
    generate,
    is_empty,
)

PROJECT = Path(__file__).parents[2]
ANCHOR = dt.datetime(2026, 3, 14, 9, 26, 53, tzinfo=dt.UTC)
TABLES = ("clinic", "staff", "medflex_access", "partner", "clinic_partner", "doctor", "patient", "appointment",
          "smart_care_scenario", "doctor_schedule", "smart_care_message", "partner_action")  # fmt: skip


def _fingerprint(uri: str) -> dict[str, object]:
    with psycopg.connect(uri) as connection:
        return {
            table: connection.execute(
                f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM medlock.{table} t".encode()
            ).fetchone()
            for table in TABLES
        }


def test_same_seed_size_and_anchor_give_the_same_data(medlock_db: str) -> None:
    generate(medlock_db, appointments=3_000, seed=5, anchor=ANCHOR)
    first = _fingerprint(medlock_db)
    generate(medlock_db, appointments=3_000, seed=5, anchor=ANCHOR)
    assert _fingerprint(medlock_db) == first
    # Another process, with another order of sets.
    program = (
        "import datetime as dt, os; from sandbox.medlock.generate import generate\n"
        "anchor = dt.datetime.fromisoformat(os.environ['ANCHOR'])\n"
        "generate(os.environ['URI'], appointments=3_000, seed=5, anchor=anchor)"
    )
    more = {"URI": medlock_db, "ANCHOR": ANCHOR.isoformat(), "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=os.environ | more, check=True)
    assert _fingerprint(medlock_db) == first
    generate(medlock_db, appointments=3_000, seed=6, anchor=ANCHOR)
    other = _fingerprint(medlock_db)
    seeded = ("patient", "appointment", "doctor", "doctor_schedule", "smart_care_message")
    assert [other[table] == first[table] for table in seeded] == [False] * 5


def test_sizes_are_as_asked_and_indexes_are_back(medlock_db: str) -> None:
    with psycopg.connect(medlock_db) as connection:
        query = b"SELECT indexdef FROM pg_indexes WHERE schemaname = 'medlock' ORDER BY 1"
        before = connection.execute(query).fetchall()
        world = generate(medlock_db, appointments=1_000, clinics=25, patients=400, doctors=60, anchor=ANCHOR)
        assert connection.execute(query).fetchall() == before
    birds = len(CANARIES)
    assert world.rows["clinic"] == 25
    assert world.rows["appointment"] == 1_000 + birds
    assert world.rows["patient"] == 400 + birds


def test_more_than_one_chunk_keeps_ids_apart(medlock_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.medlock.generate.CHUNK", 700)
    assert CHUNK > 700
    world = generate(medlock_db, appointments=2_000, anchor=ANCHOR)
    assert world.rows["appointment"] == 2_000 + len(CANARIES)
    assert world.rows["smart_care_message"] > 100


def test_generating_anew_leaves_nothing_of_before(medlock_db: str) -> None:
    with psycopg.connect(medlock_db) as connection:
        connection.execute(
            "INSERT INTO medlock.partner_action (action_id, status_code, reason, decided_at)"
            " VALUES (gen_random_uuid(), 204, 'done', now())"
        )
    generate(medlock_db, appointments=50, clinics=1, anchor=ANCHOR)
    with psycopg.connect(medlock_db) as connection:
        assert connection.execute("SELECT count(*) FROM medlock.partner_action").fetchone() == (0,)


def test_a_medlock_without_working_hours_gets_some_once(medlock_db: str) -> None:
    generate(medlock_db, appointments=50, clinics=2, seed=3, anchor=ANCHOR)
    before = _fingerprint(medlock_db)
    assert add_schedules(medlock_db, seed=3, anchor=ANCHOR) == 0
    with psycopg.connect(medlock_db) as connection:
        connection.execute("TRUNCATE medlock.doctor_schedule")
    assert add_schedules(medlock_db, seed=3, anchor=ANCHOR) > 500
    assert _fingerprint(medlock_db) == before


@pytest.mark.parametrize("clinics", [1, 2, 6])
def test_few_clinics_work(medlock_db: str, clinics: int) -> None:
    world = generate(medlock_db, appointments=50, clinics=clinics, anchor=ANCHOR)
    assert list(world.kinds.values()) == list(FIRST_KINDS[:clinics])


@pytest.mark.parametrize("seed", range(5))
def test_one_appointment_works(medlock_db: str, seed: int) -> None:
    """In so few rows there are columns without any value."""
    world = generate(medlock_db, appointments=1, clinics=21, seed=seed, anchor=ANCHOR)
    assert world.rows["appointment"] >= 1


def test_senseless_sizes_are_refused(medlock_db: str) -> None:
    with pytest.raises(ValueError, match="at least one clinic"):
        generate(medlock_db, clinics=0)


def test_schema_is_made_once_and_an_older_one_gets_what_it_lacks(new_database: Callable[[], str]) -> None:
    uri = new_database()
    create_schema(uri)
    assert is_empty(uri)
    actions, app = "medlock_actions", "medlock_app"
    added = {"doctor_schedule": actions, "smart_care_message": app, "partner_action": actions}
    with psycopg.connect(uri) as connection:
        connection.execute("INSERT INTO medlock.clinic VALUES (1)")
        for table in added:
            connection.execute(f"DROP TABLE medlock.{table}".encode())
        connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA medlock FROM medlock_app, medlock_actions")
    create_schema(uri)
    assert not is_empty(uri)
    with psycopg.connect(uri) as connection:
        for table, reader in added.items():
            assert connection.execute(
                "SELECT has_table_privilege(%s, %s, 'SELECT')", [reader, f"medlock.{table}"]
            ).fetchone() == (True,)
        indexes = "SELECT count(*) FROM pg_indexes WHERE indexname ~ '^(doctor_schedule|partner_action|smart_care_m)'"
        assert connection.execute(indexes).fetchone() == (7,)


@pytest.fixture(scope="module")
def demo(postgres, _medlock_template):
    """The demo's data in its usual size."""
    postgres.create_database("medlock_demo", "medlock_owner", template=_medlock_template)
    uri = postgres.uri("medlock_demo", "medlock_owner")
    world = generate(uri, anchor=ANCHOR, opens_in=dt.timedelta(seconds=75))
    with psycopg.connect(uri) as connection:
        yield world, connection
    postgres.drop_database("medlock_demo")


def _number(connection: psycopg.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


PATIENT_FLAGS = ("refused_personal_data", "refused_notifications", "refused_marketing")
EVERY_CATEGORY = {
    **{
        f"{flag} {value}": f"SELECT count(*) FROM medlock.patient WHERE {flag} IS {value}"
        for flag in PATIENT_FLAGS
        for value in ("TRUE", "FALSE", "NULL")
    },
    **{
        f"{column} {value}": f"SELECT count(*) FROM medlock.{table} WHERE {column} IS {value}"
        for table, column in (
            ("appointment", "is_anonymous"),
            ("doctor", "medflex_banned"),
            ("clinic_partner", "enabled"),
        )
        for value in ("TRUE", "FALSE", "NULL")
    },
    **{
        f"status {status}": f"SELECT count(*) FROM medlock.appointment WHERE status = '{status}'"
        for status in ("unconfirmed", "confirmed", "arrived", "completed", "cancelled", "no_show")
    },
    "status unheard of": "SELECT count(*) FROM medlock.appointment WHERE status LIKE 'перен%'",
    "entry direct": "SELECT count(*) FROM medlock.appointment WHERE entry = 'direct'",
    "entry online": "SELECT count(*) FROM medlock.appointment WHERE entry = 'online'",
    "entry unknown": "SELECT count(*) FROM medlock.appointment WHERE entry = 'kiosk'",
    "ends before it starts": "SELECT count(*) FROM medlock.appointment WHERE ends_at < starts_at",
    "ends as it starts": "SELECT count(*) FROM medlock.appointment WHERE ends_at = starts_at",
    "no end": "SELECT count(*) FROM medlock.appointment WHERE ends_at IS NULL",
    "nobody's patient": "SELECT count(*) FROM medlock.appointment a WHERE patient_id IS NOT NULL AND NOT EXISTS"
    " (SELECT FROM medlock.patient p WHERE p.id = a.patient_id)",
    "another clinic's patient": "SELECT count(*) FROM medlock.appointment a JOIN medlock.patient p"
    " ON p.id = a.patient_id WHERE p.clinic_id <> a.clinic_id",
    "nobody's doctor": "SELECT count(*) FROM medlock.appointment a WHERE doctor_id IS NOT NULL AND NOT EXISTS"
    " (SELECT FROM medlock.doctor d WHERE d.id = a.doctor_id)",
    "another clinic's doctor": "SELECT count(*) FROM medlock.appointment a JOIN medlock.doctor d"
    " ON d.id = a.doctor_id WHERE d.clinic_id <> a.clinic_id",
    "no patient": "SELECT count(*) FROM medlock.appointment WHERE patient_id IS NULL",
    "no doctor": "SELECT count(*) FROM medlock.appointment WHERE doctor_id IS NULL",
    "first name blank": "SELECT count(*) FROM medlock.patient WHERE btrim(first_name) = ''",
    "first name NULL": "SELECT count(*) FROM medlock.patient WHERE first_name IS NULL",
    "patronymic NULL": "SELECT count(*) FROM medlock.patient WHERE patronymic IS NULL",
    "patronymic blank": "SELECT count(*) FROM medlock.patient WHERE btrim(patronymic) = ''",
    "name padded": "SELECT count(*) FROM medlock.patient WHERE first_name LIKE ' %'",
    "phone NULL": "SELECT count(*) FROM medlock.patient WHERE phone IS NULL",
    "phone blank": "SELECT count(*) FROM medlock.patient WHERE btrim(phone) = ''",
    "phone junk": "SELECT count(*) FROM medlock.patient WHERE phone = 'б/н'",
    "phone with 8 and brackets": r"SELECT count(*) FROM medlock.patient WHERE phone ~ '^8 \(9\d\d\) '",
    "phone with +7": r"SELECT count(*) FROM medlock.patient WHERE phone ~ '^\+79\d{9}$'",
    "phone without prefix": r"SELECT count(*) FROM medlock.patient WHERE phone ~ '^9\d{9}$'",
    "landline": r"SELECT count(*) FROM medlock.patient WHERE phone ~ '^8 \(495\) '",
    "foreign": r"SELECT count(*) FROM medlock.patient WHERE phone ~ '^\+375'",
    "gaps of deleted rows": "SELECT max(id) - count(*) FROM medlock.appointment",
    "smart care on": "SELECT count(*) FROM medlock.smart_care_scenario WHERE enabled",
    "same scenario here and at a partner": "SELECT count(*) FROM medlock.smart_care_scenario s JOIN"
    " medlock.clinic_partner p USING (clinic_id) WHERE s.enabled AND p.enabled AND s.scenario = ANY (p.scenarios)",
}


@pytest.mark.parametrize("query", EVERY_CATEGORY.values(), ids=EVERY_CATEGORY)
def test_every_category_is_there(demo, query: str) -> None:
    assert _number(demo[1], query) > 0


def test_every_kind_of_switch_is_there_and_as_its_name_says(demo) -> None:
    world, connection = demo
    assert set(world.kinds.values()) == set(Kind)
    found = connection.execute(
        "SELECT c.id, c.lpu_id, c.timezone, x.clinic_id, x.enabled, x.changed_at, s.role, s.clinic_id = c.id"
        " FROM medlock.clinic c LEFT JOIN medlock.medflex_access x ON x.clinic_id = c.id"
        " LEFT JOIN medlock.staff s ON s.id = x.changed_by"
    ).fetchall()
    day = dt.timedelta(hours=24)
    for clinic, lpu_id, zone, access, enabled, changed_at, role, own in found:
        kind = world.kinds[clinic]
        assert (lpu_id is None) == (kind is Kind.NO_LPU_ID)
        assert (zone == UNKNOWN_ZONE) == (kind is Kind.UNKNOWN_ZONE)
        assert (access is None) == (kind is Kind.NEVER_CONFIGURED)
        if access is None:
            continue
        assert enabled == {Kind.OFF: False, Kind.ENABLED_UNKNOWN: None}.get(kind, True)
        assert role == {Kind.BY_ADMINISTRATOR: "administrator", Kind.BY_UNKNOWN: None}.get(kind, "head")
        assert own == {Kind.BY_FOREIGN_HEAD: False, Kind.BY_UNKNOWN: None}.get(kind, True)
        assert (changed_at is None) == (kind is Kind.NO_STAMP)
        if changed_at is not None:
            opens_in = changed_at + day - world.anchor
            if kind is Kind.OPENS_SOON:
                assert opens_in == dt.timedelta(seconds=75)
            elif kind is Kind.WAITING:
                assert dt.timedelta(hours=1) < opens_in < dt.timedelta(hours=24)
            elif kind is Kind.JUST_OPENED:
                assert opens_in == dt.timedelta(0)
            else:
                assert (changed_at > world.anchor) == (kind is Kind.FUTURE_STAMP)


def test_partner_links_are_as_the_kinds_say(demo) -> None:
    world, connection = demo
    for clinic, kind in world.kinds.items():
        enabled = _number(
            connection,
            f"SELECT count(*) FROM medlock.clinic_partner l JOIN medlock.partner p ON p.id = l.partner_id"
            f" WHERE l.enabled AND l.clinic_id = {clinic}",
        )
        assert (enabled == 0) == (kind in (Kind.NO_PARTNERS, Kind.PARTNERS_DISABLED, Kind.PARTNER_GONE))


def test_rows_lie_on_both_edges_of_every_clinics_window(demo) -> None:
    world, connection = demo
    clinics = connection.execute("SELECT id, timezone FROM medlock.clinic").fetchall()
    for clinic, zone in clinics:
        here = ZoneInfo("Europe/Moscow" if zone == UNKNOWN_ZONE else zone)
        midnight = world.anchor.astimezone(here).replace(hour=0, minute=0, second=0, microsecond=0)
        second = dt.timedelta(seconds=1)
        first, behind = midnight - dt.timedelta(days=45), midnight + dt.timedelta(days=31)
        edges = [first, first - second, behind, behind - second]
        found = connection.execute(
            "SELECT count(DISTINCT starts_at) FROM medlock.appointment WHERE clinic_id = %s AND starts_at = ANY (%s)",
            [clinic, edges],
        ).fetchone()
        assert found == (4,), f"clinic {clinic}"


def test_most_rows_lie_in_the_window_and_some_on_either_side(demo) -> None:
    connection = demo[1]
    low, high = ANCHOR - dt.timedelta(days=45), ANCHOR + dt.timedelta(days=31)
    row = connection.execute(
        "SELECT avg((starts_at BETWEEN %(low)s AND %(high)s)::int), count(*) FILTER (WHERE starts_at < %(low)s),"
        " count(*) FILTER (WHERE starts_at > %(high)s) FROM medlock.appointment",
        {"low": low, "high": high},
    ).fetchone()
    assert 0.8 < row[0] < 0.95
    assert min(row[1:]) > 200


def test_nearly_all_appointments_of_the_window_lie_in_working_hours_and_there_is_time_outside(demo) -> None:
    connection = demo[1]
    window = {"low": ANCHOR - dt.timedelta(days=44), "high": ANCHOR + dt.timedelta(days=30)}
    within = connection.execute(
        "SELECT avg((EXISTS (SELECT FROM medlock.doctor_schedule s WHERE s.doctor_id = a.doctor_id"
        " AND s.starts_at <= a.starts_at AND s.ends_at >= a.ends_at))::int)::float"
        " FROM medlock.appointment a JOIN medlock.doctor d ON d.id = a.doctor_id"
        " WHERE a.starts_at BETWEEN %(low)s AND %(high)s AND a.ends_at > a.starts_at",
        window,
    ).fetchone()
    assert 0.95 < within[0] < 0.99
    hours = connection.execute(
        "SELECT DISTINCT (s.starts_at AT TIME ZONE c.timezone)::time::text,"
        " (s.ends_at AT TIME ZONE c.timezone)::time::text"
        " FROM medlock.doctor_schedule s JOIN medlock.clinic c ON c.id = s.clinic_id WHERE c.timezone <> %s",
        [UNKNOWN_ZONE],
    ).fetchall()
    assert set(hours) == {("08:00:00", "21:00:00"), ("08:00:00", "13:00:00"), ("14:00:00", "21:00:00")}
    twice = "SELECT count(*) - count(DISTINCT (doctor_id, starts_at)) FROM medlock.doctor_schedule"
    assert _number(connection, twice) == 0
    every = "SELECT count(*) FROM medlock.doctor d WHERE NOT EXISTS (SELECT FROM medlock.doctor_schedule s"
    assert _number(connection, f"{every} WHERE s.doctor_id = d.id AND s.clinic_id = d.clinic_id)") == 0


def test_smart_care_wrote_about_past_appointments_what_its_clinic_has_switched_on(demo) -> None:
    connection = demo[1]
    foreign = (
        "SELECT count(*) FROM medlock.smart_care_message m LEFT JOIN medlock.appointment a ON a.id = m.appointment_id"
        " AND a.clinic_id = m.clinic_id AND a.starts_at < '2026-03-14 09:26:53+00'"
        " LEFT JOIN medlock.smart_care_scenario s ON s.clinic_id = m.clinic_id AND s.scenario = m.scenario"
        " AND s.enabled"
        " WHERE a.id IS NULL OR s.scenario IS NULL OR m.sent_at > '2026-03-14 09:26:53+00'"
        " OR (m.scenario LIKE 'after%') <> (m.sent_at >= a.starts_at)"
    )
    assert _number(connection, foreign) == 0
    assert 2_000 < _number(connection, "SELECT count(*) FROM medlock.smart_care_message") < 4_000
    assert _number(connection, "SELECT count(DISTINCT scenario) FROM medlock.smart_care_message") == 9
    both = (
        "SELECT count(*) FROM medlock.smart_care_message m JOIN medlock.clinic_partner l USING (clinic_id)"
        " WHERE l.enabled AND m.scenario = ANY (l.scenarios)"
    )
    assert _number(connection, both) > 100


def test_medflex_is_told_each_clinic_with_its_offset(demo) -> None:
    world, connection = demo
    told = clinic_offsets(connection.info.dsn + f" password={connection.info.password}", world.anchor)
    assert len(told) == len(world.kinds) - 1
    offsets = {clinic["time_offset"] for clinic in told}
    assert {120, 180, 720} <= offsets


def test_every_canary_is_there_and_nobody_else_looks_like_one(demo) -> None:
    connection = demo[1]
    for bird in CANARIES:
        found = connection.execute(
            "SELECT p.last_name, p.first_name, p.patronymic, p.phone, a.comment FROM medlock.patient p"
            " JOIN medlock.appointment a ON a.patient_id = p.id WHERE p.last_name = %s",
            [bird.last_name],
        ).fetchall()
        assert found == [(bird.last_name, bird.first_name, bird.patronymic, bird.phone, bird.comment)]
    strangers = _number(
        connection,
        r"SELECT count(*) FROM medlock.patient WHERE last_name NOT LIKE 'Канарейкин%'"
        r" AND regexp_replace(phone, '\D', '', 'g') ~ '^[78]?9955\d{6}$'",
    )
    assert strangers == 0


def test_canary_strings_cover_names_and_phones_as_written_and_normalised() -> None:
    strings = canaries()
    assert len(strings) == len(set(strings))
    assert min(len(text) for text in strings) >= 9
    for bird in CANARIES:
        assert {bird.last_name, bird.patronymic, bird.comment, bird.phone.strip()} <= set(strings)
        assert any(text in bird.digits for text in strings)
    assert {bird.path for bird in CANARIES} == set(CanaryPath)
