"""Reading Medlock: exact values, and of everything that can go wrong one sentence without the driver's text."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import adbc_driver_manager.dbapi as adbc
import pandas as pd
import psycopg
import pytest

import medflex.airflow.hooks.medlock as hook
from medflex import arrow
from medflex.airflow.hooks.medlock import APPOINTMENT_COLUMNS, Medlock, windows_json
from medflex.arrow import to_pandas
from medflex.domain.access import AccessState
from medflex.errors import (
    MedflexPipelineError,
    MedlockRefusedError,
    MedlockSchemaError,
    MedlockSlowError,
    MedlockUnavailableError,
)
from medflex.sql import query
from sandbox.postgres import Cluster, free_port

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HUGE = 2**53 + 1
CANARY = "Канария"
"""A patient's first name, which no message may hold."""


def windows(*clinic_ids: int, starts_from: datetime = NOW, starts_before: datetime | None = None) -> pd.DataFrame:
    """One window of an hour per clinic."""
    frame = pd.DataFrame({"clinic_id": list(clinic_ids)}, dtype="int64")
    before = starts_before or starts_from + timedelta(hours=1)
    return frame.assign(
        starts_from=pd.Series([starts_from] * len(frame), dtype="datetime64[us, UTC]"),
        starts_before=pd.Series([before] * len(frame), dtype="datetime64[us, UTC]"),
    )


def insert(uri: str, table: str, **values: Any) -> None:
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    with psycopg.connect(uri) as connection:
        connection.execute(f"INSERT INTO medlock.{table} ({names}) VALUES ({places})".encode(), list(values.values()))


def run(uri: str, sql: str) -> None:
    with psycopg.connect(uri) as connection:
        connection.execute(sql.encode())


def clinic(uri: str, id_: int, lpu_id: int | None = None) -> None:
    insert(uri, "clinic", id=id_, lpu_id=lpu_id or 40_000 + id_, name="Клиника", timezone="Europe/Moscow")


def appointment(uri: str, id_: int, **changes: Any) -> None:
    values = {"clinic_id": 1, "patient_id": 7, "doctor_id": 5, "starts_at": NOW, "status": "confirmed"}
    insert(uri, "appointment", id=id_, entry="direct", is_anonymous=False, **(values | changes))


@pytest.fixture
def small(medlock_db: str) -> str:
    """Two clinics with a patient and a doctor each, and appointment 100 of clinic 1; the owner's URI."""
    for number in (1, 2):
        clinic(medlock_db, number)
    for number, at in ((7, 1), (8, 2)):
        insert(
            medlock_db, "patient", id=number, clinic_id=at, first_name=CANARY, phone="8 900 111-22-33",
            refused_personal_data=False, refused_notifications=False, refused_marketing=False,
        )  # fmt: skip
    for number, at in ((5, 1), (6, 2)):
        insert(medlock_db, "doctor", id=number, clinic_id=at, medflex_banned=False)
    appointment(medlock_db, 100)
    return medlock_db


@pytest.fixture
def medlock(small: str, medlock_app: str) -> Iterator[Medlock]:
    with Medlock(medlock_app) as made:
        yield made


def extracted(medlock: Medlock, asked: pd.DataFrame) -> pd.DataFrame:
    with medlock.stream_appointments(asked) as batches:
        frames = [to_pandas(batch, ("patient_id", "doctor_id")) for batch in batches]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(APPOINTMENT_COLUMNS))


# -- values ------------------------------------------------------------------------------------------------------------


def test_clinics_are_all_or_those_that_were_asked_for(medlock: Medlock) -> None:
    assert medlock.clinics(None, NOW)["clinic_id"].tolist() == [1, 2]
    assert medlock.clinics([2, 999], NOW)["clinic_id"].tolist() == [2]
    nobody = medlock.clinics([], NOW)
    assert nobody.empty
    assert nobody.dtypes.to_dict() == medlock.clinics(None, NOW).dtypes.to_dict() | {"partner_ids": object}


def test_a_clinic_without_a_switch_and_partners_is_closed(medlock: Medlock) -> None:
    row = medlock.clinics([1], NOW).iloc[0]
    assert row["state"] == AccessState.CLOSED
    assert (row["partner_ids"], row["lpu_id"]) == ([], 40_001)
    assert row["access_enabled"] is pd.NA
    assert row["access_changed_at"] is pd.NaT


def test_ids_beyond_what_a_float_can_hold_are_exact(medlock: Medlock, small: str) -> None:
    """Beside missing ones, which make floats of a careless frame."""
    clinic(small, HUGE, HUGE + 2)
    clinic(small, 3)
    run(small, "UPDATE medlock.clinic SET lpu_id = NULL WHERE id = 3")
    insert(small, "partner", id=HUGE)
    insert(small, "clinic_partner", clinic_id=HUGE, partner_id=HUGE, enabled=True)
    insert(small, "patient", id=HUGE, clinic_id=HUGE)
    appointment(small, HUGE, clinic_id=HUGE, patient_id=HUGE, doctor_id=None)
    appointment(small, HUGE + 2, clinic_id=HUGE, patient_id=None, doctor_id=HUGE)

    clinics = medlock.clinics(None, NOW).set_index("clinic_id")
    assert clinics.loc[HUGE, "lpu_id"] == HUGE + 2
    assert clinics.loc[HUGE, "partner_ids"] == [HUGE]
    assert medlock.clinics([HUGE], NOW)["clinic_id"].tolist() == [HUGE]
    assert medlock.appointment_counts(windows(1, HUGE)) == {1: 1, HUGE: 2}

    now = medlock.consent_now([HUGE], [HUGE, HUGE + 2]).sort_values("appointment_id")
    rows = extracted(medlock, windows(1, HUGE)).query("clinic_id == @HUGE").sort_values("appointment_id")
    for frame in (now, rows):
        assert frame["appointment_id"].tolist() == [HUGE, HUGE + 2]
        assert frame["patient_id"].tolist() == [HUGE, pd.NA]
        assert frame["doctor_id"].tolist() == [pd.NA, HUGE]
        assert frame["patient_found"].tolist() == [True, False]


def test_consent_is_read_as_committed_now_and_a_deleted_appointment_has_no_row(medlock: Medlock, small: str) -> None:
    for number in (101, 102, 103):
        appointment(small, number)
    appointment(small, 200, clinic_id=2, patient_id=8, doctor_id=6)
    ids = [100, 101, 102, 103, 200, 999]
    # That of another clinic has no row either.
    assert sorted(medlock.consent_now([1], ids)["appointment_id"]) == [100, 101, 102, 103]
    run(small, "DELETE FROM medlock.appointment WHERE id = 100")
    run(small, "UPDATE medlock.appointment SET clinic_id = 2 WHERE id = 101")
    run(small, "UPDATE medlock.appointment SET is_anonymous = NULL, patient_id = 8 WHERE id = 102")
    run(small, "UPDATE medlock.doctor SET medflex_banned = true WHERE id = 5")
    now = medlock.consent_now([1], ids).set_index("appointment_id").sort_index()
    assert now.index.tolist() == [102, 103]
    # Patient 8 is of another clinic, so nothing is known of their consent.
    assert now["patient_found"].tolist() == [False, True]
    assert now["refused_marketing"].tolist() == [pd.NA, False]
    assert now["is_anonymous"].tolist() == [pd.NA, False]
    assert now["doctor_banned"].tolist() == [True, True]
    assert medlock.consent_now([1], []).empty


def test_the_last_look_reads_starts_to_the_microsecond_and_a_far_off_one_as_none(medlock: Medlock, small: str) -> None:
    starts = datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    appointment(small, 101, starts_at=starts)
    appointment(small, 102)
    run(small, "UPDATE medlock.appointment SET starts_at = 'infinity' WHERE id = 102")
    now = medlock.consent_now([1], [101, 102]).sort_values("appointment_id")
    micros = (starts - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert now["starts"].tolist() == [micros, pd.NA]


def test_windows_are_cut_to_the_microsecond(medlock: Medlock, small: str) -> None:
    begin = datetime(2026, 11, 22, 20, 59, 59, 999_999, tzinfo=UTC)
    tick = timedelta(microseconds=1)
    run(small, "DELETE FROM medlock.appointment")
    for number, moment in enumerate([begin - tick, begin, begin + tick, begin + 2 * tick, begin + 3 * tick]):
        appointment(small, number, starts_at=moment)
    asked = windows(1, starts_from=begin, starts_before=begin + 2 * tick)
    assert '"2026-11-22T20:59:59.999999Z"' in windows_json(asked)
    rows = extracted(medlock, asked)
    assert sorted(rows["appointment_id"]) == [1, 2]
    assert sorted(rows["starts_at"]) == [begin, begin + tick]
    assert medlock.appointment_counts(asked) == {1: 2}


SWITCHED = NOW - timedelta(hours=30)
# What turns a clinic's switch back, each by itself, and what becomes of the clinic.
TURNS = {
    "UPDATE medlock.medflex_access SET enabled = false": "closed",
    "UPDATE medlock.medflex_access SET changed_by = NULL": "closed",
    "UPDATE medlock.staff SET role = 'administrator'": "closed",
    f"UPDATE medlock.medflex_access SET changed_at = '{NOW:%Y-%m-%d %H:%M}+00'": "waiting",
    "UPDATE medlock.clinic SET lpu_id = NULL": "closed",
    "DELETE FROM medlock.medflex_access": "closed",
}


@pytest.fixture
def switched(small: str) -> str:
    """Clinic 1 switched on by its head 30 hours ago, with a partner; the owner's URI."""
    insert(small, "staff", id=9, clinic_id=1, login="head", role="head")
    insert(small, "medflex_access", clinic_id=1, enabled=True, changed_at=SWITCHED, changed_by=9)
    insert(small, "partner", id=3, name="Партнёр", kind="mailing")
    insert(small, "clinic_partner", clinic_id=1, partner_id=3, enabled=True)
    return small


@pytest.mark.parametrize("turn", list(TURNS))
def test_a_clinic_is_judged_anew_each_time_it_is_asked_for(switched: str, medlock: Medlock, turn: str) -> None:
    for _ in range(2):
        assert medlock.clinics([1], NOW)["state"].tolist() == ["open"]
    run(switched, turn)
    assert medlock.clinics([1], NOW)["state"].tolist() == [TURNS[turn]]


def test_a_clinic_that_was_open_shows_its_partners_and_its_number_as_they_are_now(
    switched: str, medlock: Medlock
) -> None:
    assert medlock.clinics([1], NOW)["partner_ids"].tolist() == [[3]]
    run(switched, "UPDATE medlock.clinic_partner SET enabled = false")
    assert medlock.clinics([1], NOW)["partner_ids"].tolist() == [[]]
    run(switched, "UPDATE medlock.clinic SET lpu_id = 50000 WHERE id = 1")
    assert medlock.clinics([1], NOW)["lpu_id"].tolist() == [50000]


def test_a_clinic_opens_when_its_hours_are_over_and_not_before(switched: str, medlock: Medlock) -> None:
    last = SWITCHED + timedelta(hours=24)
    tick = timedelta(microseconds=1)
    for now, state in ((last - tick, "waiting"), (last, "open"), (last - tick, "waiting"), (last, "open")):
        assert medlock.clinics([1], now)["state"].tolist() == [state]


def test_what_a_caller_does_to_a_clinic_is_not_seen_by_the_next_one(switched: str, medlock: Medlock) -> None:
    for _ in range(2):
        clinics = medlock.clinics([1], NOW)
        assert clinics["state"].tolist() == ["open"]
        clinics["state"] = "closed"
        clinics.loc[0, "lpu_id"] = 1
    assert medlock.clinics([1], NOW)["lpu_id"].tolist() == [40_001]


def test_of_clinics_that_were_open_only_those_whose_row_has_changed_are_judged_anew(
    switched: str, medlock: Medlock, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(switched, "clinic", id=3, lpu_id=40_003, name="Третья", timezone="Europe/Moscow")
    insert(switched, "staff", id=10, clinic_id=3, login="head3", role="head")
    insert(switched, "medflex_access", clinic_id=3, enabled=True, changed_at=SWITCHED, changed_by=10)
    judged: list[list[int]] = []
    judge = hook.judge_access

    def noting(clinics: pd.DataFrame, now: datetime) -> pd.DataFrame:
        judged.append(clinics["clinic_id"].tolist())
        return judge(clinics, now)

    monkeypatch.setattr(hook, "judge_access", noting)
    whole = medlock.clinics(None, NOW).set_index("clinic_id")
    assert whole.loc[[1, 3], "state"].tolist() == ["open", "open"]
    assert judged == [[1, 2, 3]]
    for asked in ([3], [1, 3], [1]):
        found = medlock.clinics(asked, NOW)
        pd.testing.assert_frame_equal(found.set_index("clinic_id"), whole.loc[asked])
        assert found.index.tolist() == list(range(len(asked)))
    assert len(judged) == 1
    # One that is not open is judged each time: its hours may be over by now.
    assert medlock.clinics([2, 3], NOW)["state"].tolist() == ["closed", "open"]
    run(switched, "UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = 3")
    assert medlock.clinics([1, 3], NOW)["state"].tolist() == ["open", "closed"]
    assert medlock.clinics([1], NOW)["state"].tolist() == ["open"]
    assert judged[1:] == [[2, 3], [1, 3]]


def test_no_windows_have_no_appointments(medlock: Medlock) -> None:
    assert extracted(medlock, windows()).empty
    assert medlock.appointment_counts(windows()) == {}


def test_very_many_clinics_are_counted_by_a_sample_that_a_small_table_is_in_whole(
    medlock: Medlock, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_by: list[str] = []
    query = hook.query
    monkeypatch.setattr(hook, "query", lambda name: (asked_by.append(name), query(name))[1])
    appointment(small, 101)
    appointment(small, 102, starts_at=NOW + timedelta(hours=1))
    appointment(small, 200, clinic_id=2, patient_id=8, doctor_id=6)
    clinics = range(1, hook.MOST_COUNTED + 1)
    assert medlock.appointment_counts(windows(*clinics)) == {1: 2, 2: 1}
    assert medlock.appointment_counts(windows(*clinics, 9_999)) == {1: 2, 2: 1}
    # Also where Postgres has counted the table's rows.
    run(small, "ANALYZE medlock.appointment")
    assert medlock.appointment_counts(windows(*clinics, 9_999)) == {1: 2, 2: 1}
    assert asked_by == ["medlock/appointment_counts", *["medlock/appointment_samples"] * 2]


@pytest.mark.parametrize("read", ["appointment_counts", "stream_appointments"])
def test_medlock_cannot_be_written_to(small: str, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    """Also with the owner's rights, by which a careless administrator may have set the connection up."""
    with Medlock(small) as careless:
        with monkeypatch.context() as adapted:
            adapted.setattr(hook, "query", lambda _: "DELETE FROM medlock.appointment RETURNING clinic_id, 1")
            told(careless, read)
        assert careless.appointment_counts(windows(1)) == {1: 1}


# -- what goes wrong ---------------------------------------------------------------------------------------------------

READS: dict[str, Callable[[Medlock], object]] = {
    "clinics": lambda medlock: medlock.clinics(None, NOW),
    "consent_now": lambda medlock: medlock.consent_now([1], [100]),
    "appointment_counts": lambda medlock: medlock.appointment_counts(windows(1)),
    "appointment_samples": lambda medlock: medlock.appointment_counts(windows(*range(1, hook.MOST_COUNTED + 2))),
    "stream_appointments": lambda medlock: extracted(medlock, windows(1)),
}
CHANGES: dict[str, Callable[[Medlock], object]] = {
    "changed_patients": lambda medlock: medlock.changed_patients(NOW, most=1),
    "changed_rows": lambda medlock: medlock.changed_rows(NOW, most=1),
}


def told(medlock: Medlock, read: str) -> MedflexPipelineError:
    """Return the error that a read ends with; it stands alone and quotes nothing."""
    with pytest.raises(MedflexPipelineError) as caught:
        (READS | CHANGES)[read](medlock)
    error = caught.value
    assert CANARY not in str(error)
    assert "ERROR" not in str(error)
    assert "\n" not in str(error)
    # A cause would be printed with its text, which is the driver's.
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


@pytest.mark.parametrize(
    ("breaking", "reads", "kind", "sentence"),
    [
        (
            "ALTER TABLE medlock.patient RENAME COLUMN refused_marketing TO refused_adverts",
            ("consent_now", "stream_appointments"),
            MedlockSchemaError,
            "lacks the column patient.refused_marketing",
        ),
        (
            "ALTER TABLE medlock.appointment RENAME TO visit",
            ("consent_now", "appointment_counts", "appointment_samples", "stream_appointments"),
            MedlockSchemaError,
            "lacks the relation medlock.appointment",
        ),
        ("ALTER SCHEMA medlock RENAME TO other", tuple(READS), MedlockSchemaError, "^Medlock lacks the relation"),
        (
            "ALTER TABLE medlock.patient ALTER COLUMN phone TYPE bigint USING 7",
            ("stream_appointments",),
            MedlockSchemaError,
            "The column phone of .* has type int64, the contract .* wants string: cast it in the query",
        ),
        (
            "ALTER TABLE medlock.appointment ALTER COLUMN doctor_id TYPE integer",
            ("consent_now", "stream_appointments"),
            MedlockSchemaError,
            "The column doctor_ids? of .* the contract .*: cast it in the query",
        ),
        (
            "ALTER TABLE medlock.appointment ALTER COLUMN starts_at TYPE text",
            ("appointment_counts", "appointment_samples", "stream_appointments"),
            MedlockSchemaError,
            r"fails on Medlock's data \(SQLSTATE 42883\)",
        ),
        (
            "REVOKE SELECT ON ALL TABLES IN SCHEMA medlock FROM medlock_app",
            tuple(READS),
            MedlockRefusedError,
            "may not read a table of Medlock: grant it SELECT",
        ),
        (
            "REVOKE USAGE ON SCHEMA medlock FROM medlock_app",
            tuple(READS),
            MedlockRefusedError,
            "may not read a table of Medlock: grant it SELECT",
        ),
    ],
)
def test_a_medlock_that_is_not_as_the_queries_want_it(
    medlock: Medlock, small: str, breaking: str, reads: tuple[str, ...], kind: type, sentence: str
) -> None:
    run(small, breaking)
    for read in reads:
        error = told(medlock, read)
        assert type(error) is kind, read
        assert pd.Series([str(error)]).str.contains(sentence).all(), str(error)
        assert not error.transient


@pytest.mark.parametrize(
    ("read", "name", "left_out", "told_of"),
    [
        ("stream_appointments", "appointments", "    patient.phone,\n", "returns no column phone"),
        ("clinics", "clinics", "    clinic.timezone,\n", "returns no column timezone"),
        ("consent_now", "consent_now", "    doctor.medflex_banned AS doctor_banned,\n", "no column doctor_banned"),
        ("consent_now", "consent_now", "    array_agg(appointment.doctor_id) AS doctor_ids,\n", "column doctor_ids of"),
        ("changed_patients", "changed_patients", " AS patient_id", "no column patient_id"),
        ("changed_rows", "changed_rows", " AS doctors", "no column doctors"),
    ],
)
def test_a_column_that_the_query_leaves_out(
    medlock: Medlock, monkeypatch: pytest.MonkeyPatch, read: str, name: str, left_out: str, told_of: str
) -> None:
    """A query that was adapted to another MIS."""
    adapted = query(f"medlock/{name}").replace(left_out, "")
    assert adapted != query(f"medlock/{name}")
    monkeypatch.setattr(hook, "query", lambda _: adapted)
    error = told(medlock, read)
    assert type(error) is MedlockSchemaError
    assert told_of in str(error)


@pytest.mark.parametrize(
    ("read", "name", "right", "cast", "told_of"),
    [
        # 'false' is a text that is not empty.
        ("clinics", "clinics", "access_switch.enabled AS", "coalesce(access_switch.enabled, FALSE)::text AS",
         "access_enabled .* is not boolean"),
        ("clinics", "clinics", "THEN clinic.lpu_id END", "THEN clinic.lpu_id::text END", "lpu_id .* is not bigint"),
        ("consent_now", "consent_now", "doctor.id IS NOT NULL AS doctor_found", "'f'::text AS doctor_found",
         "doctor_found .* is not boolean"),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_not_cast(
    medlock: Medlock, monkeypatch: pytest.MonkeyPatch, read: str, name: str, right: str, cast: str, told_of: str
) -> None:
    """A query that was adapted to another MIS, whose flags are texts."""
    adapted = query(f"medlock/{name}").replace(right, cast, 1)
    assert adapted != query(f"medlock/{name}")
    monkeypatch.setattr(hook, "query", lambda _: adapted)
    error = told(medlock, read)
    assert type(error) is MedlockSchemaError
    assert re.search(told_of, str(error))


@pytest.mark.parametrize("stamp", [NOW.replace(tzinfo=None), "2026-01-02 03:04:05+00"])
def test_a_switch_turned_at_a_local_time_is_not_taken_for_utc(stamp: Any) -> None:
    with pytest.raises(MedlockSchemaError, match=r"access_changed_at .* is not timestamptz"):
        hook.typed_frame(
            "medlock/clinics", ["access_changed_at"], [(stamp,)], {"access_changed_at": "datetime64[us, UTC]"}
        )


def test_a_row_that_breaks_the_query_is_not_quoted(medlock: Medlock, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = query("medlock/appointments").replace("patient.phone,", "patient.first_name::bigint::text AS phone,")
    monkeypatch.setattr(hook, "query", lambda _: adapted)
    error = told(medlock, "stream_appointments")
    assert type(error) is MedlockSchemaError
    assert "fails on Medlock's data" in str(error)


@pytest.mark.parametrize("read", READS)
def test_a_database_that_is_not_there(read: str) -> None:
    with Medlock(f"postgresql://medlock_app@127.0.0.1:{free_port()}/medlock") as medlock:
        error = told(medlock, read)
    assert type(error) is MedlockUnavailableError
    assert error.transient


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("wrong", ["user", "database"])
def test_a_log_in_that_is_refused(postgres: Cluster, medlock_app: str, read: str, wrong: str) -> None:
    name = medlock_app.rsplit("/", 1)[1]
    uri = postgres.uri(name, "nobody_at_all") if wrong == "user" else postgres.uri("no_such_medlock", "medlock_app")
    with Medlock(uri) as medlock:
        error = told(medlock, read)
    assert type(error) is MedlockRefusedError
    assert "refuses the log-in" in str(error)
    assert not error.transient


@pytest.mark.parametrize("read", READS)
def test_a_server_without_room_is_told_from_one_that_is_away(postgres: Cluster, medlock_app: str, read: str) -> None:
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {medlock_app.rsplit('/', 1)[1]} CONNECTION LIMIT 0".encode())
    with Medlock(medlock_app) as medlock:
        error = told(medlock, read)
    assert type(error) is MedlockUnavailableError
    assert error.transient
    assert "takes no more connections: let fewer tasks run at once" in str(error)


@pytest.mark.parametrize("read", READS)
def test_a_table_that_is_locked_for_long_is_told(
    medlock_db: str, medlock_app: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "_LIMITS", arrow._LIMITS.replace("'120s'", "'50ms'"))
    with psycopg.connect(medlock_db) as other, Medlock(medlock_app, timeout_seconds=1) as medlock:
        other.execute("LOCK TABLE medlock.clinic, medlock.appointment IN ACCESS EXCLUSIVE MODE")
        error = told(medlock, read)
    assert type(error) is MedlockSlowError
    assert "kept a query waiting for too long: look whether a table is locked there" in str(error)


def hang_up(postgres: Cluster, name: str) -> None:
    """End every session of the product's log-in in a database, as a restart of the server does."""
    with psycopg.connect(postgres.uri("postgres", "postgres")) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = 'medlock_app'",
            [name],
        )


def test_a_session_that_was_ended_is_told_once_and_opened_anew(
    medlock: Medlock, medlock_app: str, postgres: Cluster
) -> None:
    assert len(medlock.clinics(None, NOW)) == 2
    hang_up(postgres, medlock_app.rsplit("/", 1)[1])
    error = told(medlock, "clinics")
    assert type(error) is MedlockUnavailableError
    assert len(medlock.clinics(None, NOW)) == 2


def test_a_stream_that_breaks_in_the_middle_is_told(
    medlock: Medlock, small: str, medlock_app: str, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must never look like the end of the data: the rest would count as deleted."""
    run(
        small,
        "INSERT INTO medlock.appointment (id, clinic_id, patient_id, doctor_id, starts_at, status, entry)"
        f" SELECT id, 1, 7, 5, '{NOW.isoformat()}', 'confirmed', 'direct' FROM generate_series(1000, 200999) AS id",
    )
    monkeypatch.setattr("medflex.arrow.BATCH_BYTES", 100_000)
    seen = 0

    def read() -> None:
        nonlocal seen
        with medlock.stream_appointments(windows(1)) as batches:
            for batch in batches:
                if not seen:
                    hang_up(postgres, medlock_app.rsplit("/", 1)[1])
                seen += batch.num_rows

    with pytest.raises(MedflexPipelineError) as caught:
        read()
    assert type(caught.value) is MedlockUnavailableError
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__
    assert 0 < seen < 200_000


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ZeroDivisionError()])
def test_an_error_of_our_own_while_streaming_stays_what_it_is(medlock: Medlock, error: Exception) -> None:
    """A full disk under the staging is no trouble of Medlock's."""

    def read() -> None:
        with medlock.stream_appointments(windows(1)) as batches:
            for _ in batches:
                raise error

    with pytest.raises(type(error)) as caught:
        read()
    assert caught.value is error


def test_a_stream_that_is_left_in_the_middle_reads_no_more_and_ends_its_session(
    medlock: Medlock, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch that is being read ahead is waited for before its connection is closed."""
    run(
        small,
        "INSERT INTO medlock.appointment (id, clinic_id, patient_id, doctor_id, starts_at, status, entry)"
        f" SELECT id, 1, 7, 5, '{NOW.isoformat()}', 'confirmed', 'direct' FROM generate_series(1000, 50999) AS id",
    )
    monkeypatch.setattr("medflex.arrow.BATCH_BYTES", 100_000)
    threads = set(threading.enumerate())
    closed = []
    original = adbc.Connection.close

    def close(connection: adbc.Connection) -> None:
        closed.append(set(threading.enumerate()) - threads)
        original(connection)

    monkeypatch.setattr(adbc.Connection, "close", close)
    for read in (
        medlock.stream_appointments(windows(1)),
        medlock.stream_appointments_now([1] * 50_000, list(range(1000, 51_000)), 1000),
    ):
        with read as parts:
            assert next(iter(parts)).num_rows
        assert closed.pop() == set()
    assert set(threading.enumerate()) == threads


def test_a_look_at_many_records_has_no_parallel_workers(
    medlock: Medlock, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    appointment(small, 4711)
    sql = query("medlock/appointments_now")
    now = "current_setting('max_parallel_workers_per_gather') AS status"
    assert "    appointment.status,\n" in sql
    asked = sql.replace("    appointment.status,\n", f"    {now},\n")
    monkeypatch.setattr("medflex.airflow.hooks.medlock.query", lambda _: asked)
    with medlock.stream_appointments_now([1], [4711], 10) as parts:
        assert [status for part in parts for status in part["status"].to_pylist()] == ["0"]
