"""Messages that patients get twice (R15), looked for with a real Medlock and a real ledger."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest

from medflex.airflow import messages
from medflex.airflow.hooks.medlock import Medlock
from medflex.airflow.messages import look_for_double_messages
from medflex.domain.access import AccessState
from medflex.domain.messages import MESSAGE_DAYS, MessageLook, MessageWarning, Twice
from medflex.domain.packing import Shard
from medflex.errors import LedgerUnavailableError
from medflex.ledger.report import funnel_text
from medflex.ledger.store import Ledger, Run
from sandbox.postgres import free_port
from tests.airflow.dag_runs import run_transfer
from tests.airflow.world import World

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=MESSAGE_DAYS)
TICK = timedelta(microseconds=1)
CANARY = "Канарейкина +7 999 000-11-22"
HUGE = 2**53 + 1


def insert(uri: str, table: str, **values: Any) -> None:
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    with psycopg.connect(uri) as connection:
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})".encode(), list(values.values()))


def run_sql(uri: str, sql: str) -> None:
    with psycopg.connect(uri) as connection:
        connection.execute(sql.encode())


@pytest.fixture
def clinics(medlock_db: str) -> str:
    """Three clinics and the partners 5, 17 and 20; the owner's URI."""
    for number in (1, 2, 3):
        insert(medlock_db, "medlock.clinic", id=number, lpu_id=40_000 + number, timezone="Europe/Moscow")
    for number in (5, 17, 20):
        insert(medlock_db, "medlock.partner", id=number)
    return medlock_db


@pytest.fixture
def medlock(clinics: str, medlock_app: str) -> Iterator[Medlock]:
    with Medlock(medlock_app) as made:
        yield made


def link(uri: str, clinic_id: int, partner_id: int, scenarios: list[str | None] | None, enabled: Any = True) -> None:
    insert(
        uri, "medlock.clinic_partner", clinic_id=clinic_id, partner_id=partner_id, enabled=enabled, scenarios=scenarios
    )


def runs(uri: str, clinic_id: int, scenario: str, enabled: bool | None = True) -> None:
    insert(uri, "medlock.smart_care_scenario", clinic_id=clinic_id, scenario=scenario, enabled=enabled)


def told(uri: str, clinic_id: int, appointment_id: int, scenario: str | None, sent_at: Any = NOW) -> None:
    values = {"clinic_id": clinic_id, "appointment_id": appointment_id, "scenario": scenario, "sent_at": sent_at}
    insert(uri, "medlock.smart_care_message", id=uuid.uuid4().int >> 65, **values)


def overlaps(medlock: Medlock, clinic_ids: list[int] | None = None) -> list[tuple[Any, ...]]:
    frame = medlock.scenario_overlaps(clinic_ids)
    assert frame.dtypes.astype("str").tolist() == ["int64", "str", "object"]
    return [
        (row.clinic_id, None if pd.isna(row.scenario) else row.scenario, row.partner_ids)
        for row in frame.itertuples(index=False)
    ]


# -- by configuration --------------------------------------------------------------------------------------------------


def test_r15_what_smart_care_and_a_partner_both_run(medlock: Medlock, clinics: str) -> None:
    link(clinics, 1, 20, ["visit_reminder", "greeting"])
    link(clinics, 1, 17, ["visit_reminder", "after_visit_survey"])
    link(clinics, 2, 17, ["visit_reminder"])
    for clinic_id, scenario in ((1, "visit_reminder"), (1, "greeting"), (1, "visit_details"), (2, "greeting")):
        runs(clinics, clinic_id, scenario)
    runs(clinics, 3, "visit_reminder")
    assert overlaps(medlock) == [(1, "greeting", [20]), (1, "visit_reminder", [17, 20])]
    assert overlaps(medlock, [2, 3]) == []
    assert overlaps(medlock, [1, 3]) == overlaps(medlock)
    assert overlaps(medlock, []) == []


@pytest.mark.parametrize("enabled", [False, None])
def test_r15_what_is_not_known_to_be_on_does_not_overlap(medlock: Medlock, clinics: str, enabled: bool | None) -> None:
    link(clinics, 1, 17, ["visit_reminder"], enabled=enabled)
    runs(clinics, 1, "visit_reminder")
    link(clinics, 2, 17, ["visit_reminder"])
    runs(clinics, 2, "visit_reminder", enabled=enabled)
    link(clinics, 3, 17, None, enabled=enabled)
    runs(clinics, 3, "visit_reminder")
    assert overlaps(medlock) == []


def test_r15_a_partner_that_does_not_exist_sends_nothing(medlock: Medlock, clinics: str) -> None:
    link(clinics, 1, 99, ["visit_reminder"])
    link(clinics, 2, 99, None)
    for clinic_id in (1, 2):
        runs(clinics, clinic_id, "visit_reminder")
    assert overlaps(medlock) == []


def test_r15_partners_of_which_it_is_not_known_what_they_run_are_told_apart(medlock: Medlock, clinics: str) -> None:
    """Neither an overlap, which nobody knows of, nor silence, which would read as none."""
    link(clinics, 1, 20, None)
    link(clinics, 1, 17, None)
    link(clinics, 1, 5, ["greeting"])
    runs(clinics, 1, "greeting")
    runs(clinics, 1, "visit_reminder")
    link(clinics, 2, 17, None)  # Smart Care runs nothing here.
    runs(clinics, 2, "greeting", enabled=False)
    link(clinics, 3, 17, [])  # Known to run nothing.
    link(clinics, 3, 5, [None])
    runs(clinics, 3, "greeting")
    assert overlaps(medlock) == [(1, "greeting", [5]), (1, None, [17, 20])]


def test_r15_names_are_compared_as_people_mean_them(medlock: Medlock, clinics: str) -> None:
    link(clinics, 1, 17, [" Visit_Reminder", "visit_reminder\n"])
    link(clinics, 1, 20, [CANARY])
    runs(clinics, 1, "VISIT_REMINDER ")
    runs(clinics, 1, "visit_reminder")
    runs(clinics, 1, CANARY)
    assert overlaps(medlock) == [(1, "visit_reminder", [17]), (1, CANARY.lower(), [20])]


# -- by record ---------------------------------------------------------------------------------------------------------


def test_r15_what_smart_care_has_sent_about_the_appointments_that_were_asked_for(
    medlock: Medlock, clinics: str
) -> None:
    told(clinics, 1, 100, "visit_reminder")
    told(clinics, 1, 100, " Visit_Reminder", SINCE)
    told(clinics, 1, 100, "greeting")
    told(clinics, 1, 100, None)
    told(clinics, 1, 101, "greeting")  # not asked for
    told(clinics, 1, 102, "greeting", SINCE - TICK)
    told(clinics, 1, 102, "greeting", None)
    told(clinics, 2, 103, "greeting")  # asked for as another clinic's
    told(clinics, HUGE, HUGE + 2, "greeting")
    asked = [(1, 100), (1, 100), (1, 102), (1, 103), (HUGE, HUGE + 2), (3, 999)]
    frame = medlock.smart_care_messages([clinic for clinic, _ in asked], [number for _, number in asked], SINCE)
    assert frame.dtypes.astype("str").tolist() == ["int64", "int64", "str", "int64"]
    assert sorted(frame.itertuples(index=False, name=None)) == [
        (1, 100, "greeting", 1),
        (1, 100, "visit_reminder", 2),
        (HUGE, HUGE + 2, "greeting", 1),
    ]
    assert medlock.smart_care_messages([], [], SINCE).empty


# -- the look ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(ledger_db: str) -> Iterator[Ledger]:
    with Ledger(ledger_db, now=lambda: NOW) as made:
        yield made


def start(ledger: Ledger, *clinic_ids: int, chosen: list[int] | None = None) -> Run:
    rows = [
        {
            "clinic_id": number,
            "lpu_id": 40_000 + number,
            "access_state": "open",
            "closed_reason": None,
            "opens_at": None,
        }
        for number in clinic_ids
    ]
    return ledger.start_run(
        dag_id="medflex_transfer", run_id="run 1", run_type="scheduled", mode="plan", anchor=NOW, clinic_ids=chosen,
        started_at=NOW, clinics=rows, shards=[Shard("open", clinic_ids, AccessState.OPEN)],
    )  # fmt: skip


def notified(uri: str, clinic_id: int, appointment_id: int, scenario: str, partner_id: int = 17) -> None:
    insert(
        uri, "ledger.partner_action", action_id=uuid.uuid4(), clinic_id=clinic_id, appointment_id=appointment_id,
        partner_id=partner_id, type="notification", scenario=scenario, status_code=204, reason="recorded",
        decided_at=NOW - timedelta(days=1), read_at=NOW, read_in="a test",
    )  # fmt: skip


def look(ledger: Ledger, run: Run, medlock_uri: str) -> MessageLook:
    return look_for_double_messages(ledger, run, NOW, lambda: Medlock(medlock_uri))


@pytest.fixture
def busy(clinics: str, ledger_db: str) -> str:
    """Something of each kind in clinic 1, and the same in clinic 2."""
    for clinic_id in (1, 2):
        runs(clinics, clinic_id, "visit_reminder")
        runs(clinics, clinic_id, CANARY)
        link(clinics, clinic_id, 17, ["visit_reminder", CANARY])
        link(clinics, clinic_id, 20, None)
        notified(ledger_db, clinic_id, 100, "visit_reminder")
        told(clinics, clinic_id, 100, "Visit_Reminder")
        notified(ledger_db, clinic_id, 101, "greeting")
        notified(ledger_db, clinic_id, 101, "greeting", 20)
        notified(ledger_db, clinic_id, 102, "greeting")
    return clinics


FOUND = (
    MessageWarning(1, Twice.DOUBLED, "greeting", (17, 20), 1, (101,)),
    MessageWarning(1, Twice.DOUBLED, "visit_reminder", (17,), 1, (100,)),
    MessageWarning(1, Twice.OVERLAP, "other", (17,)),
    MessageWarning(1, Twice.OVERLAP, "visit_reminder", (17,)),
    MessageWarning(1, Twice.UNKNOWN, "", (20,)),
)


@pytest.mark.parametrize("chosen", [None, [1]])
@pytest.mark.parametrize("asked", [1, 20_000])
def test_r15_the_runs_clinics_are_told_and_no_others(
    ledger: Ledger,
    busy: str,
    medlock_app: str,
    chosen: list[int] | None,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(messages, "ASKED_ROWS", asked)
    run = start(ledger, 1, 3, chosen=chosen)
    found = look(ledger, run, medlock_app)
    assert sorted(found.warnings, key=lambda item: (item.kind, item.scenario)) == list(FOUND)
    assert (found.since, found.overlaps_problem, found.doubled_problem) == (SINCE, None, None)
    kept = ledger.messages(run.run_key)
    assert kept == MessageLook(SINCE, FOUND)
    assert CANARY.casefold() not in (repr(found) + caplog.text).casefold()


def test_a_medlock_without_records_of_smart_care_leaves_what_partners_sent(
    ledger: Ledger, busy: str, medlock_app: str
) -> None:
    run_sql(busy, "DELETE FROM medlock.smart_care_message")
    found = look(ledger, start(ledger, 1), medlock_app)
    assert [item.scenario for item in found.of(Twice.DOUBLED)] == ["greeting"]


def test_when_medlock_is_away_nothing_is_judged_and_nothing_fails(ledger: Ledger, busy: str) -> None:
    run = start(ledger, 1)
    found = look(ledger, run, f"postgresql://medlock_app@127.0.0.1:{free_port()}/medlock")
    assert found.warnings == ()
    assert found.overlaps_problem == found.doubled_problem
    assert found.overlaps_problem is not None
    assert "does not answer" in found.overlaps_problem
    assert ledger.messages(run.run_key) == found


@pytest.mark.parametrize(
    ("table", "judged"), [("smart_care_message", Twice.OVERLAP), ("smart_care_scenario", Twice.DOUBLED)]
)
def test_the_part_that_can_be_judged_is_judged(
    ledger: Ledger, busy: str, medlock_app: str, table: str, judged: Twice
) -> None:
    run_sql(busy, f"DROP TABLE medlock.{table}")
    found = look(ledger, start(ledger, 1), medlock_app)
    problems = [found.doubled_problem, found.overlaps_problem]
    (problem,) = filter(None, problems)
    assert f"lacks the relation medlock.{table}" in problem
    assert problems.index(problem) == (0 if judged is Twice.OVERLAP else 1)
    assert {item.kind for item in found.warnings} - {Twice.UNKNOWN} == {judged}


def test_a_medlock_that_refuses_to_be_read_is_told(ledger: Ledger, busy: str, medlock_app: str) -> None:
    run_sql(busy, "REVOKE SELECT ON medlock.smart_care_message FROM medlock_app")
    found = look(ledger, start(ledger, 1), medlock_app)
    assert found.doubled_problem is not None
    assert "grant it SELECT" in found.doubled_problem


def test_a_ledger_that_breaks_off_is_no_trouble_of_medlock(
    ledger: Ledger, busy: str, ledger_db: str, medlock_app: str
) -> None:
    run = start(ledger, 1)
    run_sql(ledger_db, "ALTER TABLE ledger.partner_action RENAME TO gone")
    with pytest.raises(LedgerUnavailableError):
        look(ledger, run, medlock_app)
    assert ledger.messages(run.run_key) is None


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("airflow_db")
@pytest.mark.timeout(300)
def test_r15_a_plan_tells_what_patients_get_twice(filled_world: World) -> None:
    uri = filled_world.medlock
    run_sql(uri, "DELETE FROM medlock.smart_care_scenario")
    ((partner_id,),) = filled_world.read(
        "UPDATE medlock.clinic_partner SET scenarios = '{visit_reminder}' WHERE (clinic_id, partner_id) = ("
        " SELECT clinic_id, min(partner_id) FROM medlock.clinic_partner WHERE clinic_id = 2 AND enabled"
        " GROUP BY clinic_id) RETURNING partner_id"
    )
    run_sql(uri, "UPDATE medlock.clinic_partner SET enabled = false WHERE clinic_id = 2 AND scenarios IS NULL")
    runs(uri, 2, "visit_reminder")
    at = datetime.now(UTC)
    told(uri, 2, 100, "greeting", at)
    insert(
        filled_world.ledger, "ledger.partner_action", action_id=uuid.uuid4(), clinic_id=2, appointment_id=100,
        partner_id=partner_id, type="notification", scenario="greeting", status_code=204, reason="recorded",
        decided_at=at, read_at=at, read_in="a test",
    )  # fmt: skip
    assert run_transfer(mode="plan").state == "success"
    report = funnel_text(filled_world.ledger)
    assert "      greeting: appointments 1, clinics 1 (2)" in report
    assert "      visit_reminder: clinics 1 (2)" in report
    (page,) = filled_world.data_docs.rglob("run.html")
    text = page.read_text(encoding="utf-8")
    assert "Messages that patients get twice" in text
    assert json.loads(page.with_name("run.json").read_text(encoding="utf-8"))["suites"]["run"]["warning"] == 1
