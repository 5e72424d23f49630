"""What partners sent and which patients were told twice, in a real ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest

from medflex.domain.access import AccessState
from medflex.domain.messages import MessageLook, MessageWarning, Twice
from medflex.domain.packing import Shard
from medflex.errors import LedgerUnavailableError
from medflex.ledger.report import funnel_text
from medflex.ledger.store import Ledger, Run
from sandbox.postgres import free_port
from tests.ledger.times import NOW

SINCE = NOW - timedelta(days=45)
TICK = timedelta(microseconds=1)
HUGE = 2**53 + 1
Record = Callable[..., None]


def start(ledger: Ledger, clinic_ids: tuple[int, ...] = (1, 2), run_id: str = "run 1") -> Run:
    clinics = [
        {"clinic_id": clinic_id, "lpu_id": 40_000 + clinic_id, "access_state": "open", "closed_reason": None,
         "opens_at": None}
        for clinic_id in clinic_ids
    ]  # fmt: skip
    return ledger.start_run(
        dag_id="medflex_transfer", run_id=run_id, run_type="scheduled", mode="transfer", anchor=NOW, clinic_ids=None,
        started_at=NOW, clinics=clinics, shards=[Shard("open", clinic_ids, AccessState.OPEN)],
    )  # fmt: skip


@pytest.fixture
def record(ledger_db: str) -> Record:
    """A function that writes down a partner's action as it stands when it is decided."""

    def write(clinic_id: int, appointment_id: int, scenario: str | None, partner_id: int = 17, **changes: Any) -> None:
        values: dict[str, Any] = {
            "action_id": uuid.uuid4(), "clinic_id": clinic_id, "appointment_id": appointment_id, "scenario": scenario,
            "partner_id": partner_id, "type": "notification", "status_code": 204, "reason": "recorded",
            "decided_at": NOW, "read_at": NOW, "read_in": "a test", **changes,
        }  # fmt: skip
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        with psycopg.connect(ledger_db) as connection:
            connection.execute(
                f"INSERT INTO ledger.partner_action ({names}) VALUES ({places})".encode(), list(values.values())
            )

    return write


def sent(ledger: Ledger, run: Run, since: datetime = SINCE) -> list[tuple[Any, ...]]:
    parts = list(ledger.notifications(run.run_key, since))
    if not parts:
        return []
    frame = pd.concat(parts, ignore_index=True)
    assert frame.dtypes.astype("str").to_dict() == {
        "clinic_id": "int64", "appointment_id": "int64", "scenario": "str", "messages": "int64",
        "partner_ids": "object",
    }  # fmt: skip
    return [(*row[:-1], list(row[-1])) for row in frame.itertuples(index=False, name=None)]


# -- what partners sent


def test_r14_notifications_are_counted_per_appointment_and_scenario(ledger: Ledger, record: Record) -> None:
    run = start(ledger, (1, 2, HUGE))
    record(1, 100, "visit_reminder", 20)
    record(1, 100, "visit_reminder", 17)
    record(1, 100, "visit_reminder", 17)
    record(1, 100, " Visit_Reminder\n", 5)
    record(1, 100, "visit_details")
    record(2, 100, "visit_reminder")
    record(HUGE, HUGE + 2, "greeting", HUGE)
    assert sent(ledger, run) == [
        (1, 100, "visit_details", 1, [17]),
        (1, 100, "visit_reminder", 4, [5, 17, 20]),
        (2, 100, "visit_reminder", 1, [17]),
        (HUGE, HUGE + 2, "greeting", 1, [HUGE]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "confirm"},
        {"status_code": 404},
        {"status_code": None, "reason": None, "decided_at": None},
        {"decided_at": SINCE - TICK},
        {"clinic_id": 3},
        {"clinic_id": None},
        {"scenario": None},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_only_notifications_that_were_taken_lately_about_the_runs_clinics(
    ledger: Ledger, record: Record, changes: dict[str, Any]
) -> None:
    run = start(ledger)
    record(**{"clinic_id": 1, "appointment_id": 100, "scenario": "visit_reminder"} | changes)
    assert sent(ledger, run) == []
    record(1, 100, "visit_reminder", decided_at=SINCE)
    assert len(sent(ledger, run)) == 1


def test_an_unreachable_ledger_is_told_without_the_drivers_text() -> None:
    with Ledger(f"postgresql://x@127.0.0.1:{free_port()}/x") as away, pytest.raises(LedgerUnavailableError):
        next(away.notifications(1, SINCE))


# -- what a run found

LOOK = MessageLook(
    SINCE,
    (
        MessageWarning(1, Twice.DOUBLED, "visit_reminder", (17, 20), 1002, tuple(range(1000))),
        MessageWarning(2, Twice.DOUBLED, "visit_reminder", (17,), 3, (7, 8, 9)),
        MessageWarning(2, Twice.DOUBLED, "other", (17,), 1, (7,)),
        *(MessageWarning(number, Twice.OVERLAP, "greeting", (17,)) for number in range(1, 8)),
        MessageWarning(HUGE, Twice.UNKNOWN, "", (5,)),
    ),
)


def test_what_was_found_comes_back_and_is_replaced_by_what_is_found_next(ledger: Ledger) -> None:
    run, other = start(ledger), start(ledger, run_id="run 2")
    assert ledger.messages(run.run_key) is None
    ledger.save_messages(run.run_key, LOOK)
    ledger.save_messages(other.run_key, LOOK)
    assert ledger.messages(run.run_key) == MessageLook(
        SINCE, tuple(sorted(LOOK.warnings, key=lambda item: (item.kind, item.clinic_id, item.scenario)))
    )
    problem = MessageLook(SINCE + TICK, (), "Medlock is away.", "Medlock is still away.")
    ledger.save_messages(run.run_key, problem)
    assert ledger.messages(run.run_key) == problem
    kept = ledger.messages(other.run_key)
    assert kept is not None
    assert len(kept.warnings) == len(LOOK.warnings)


def test_a_name_that_has_not_the_form_of_one_is_never_kept(ledger: Ledger) -> None:
    run = start(ledger)
    for kind, name in ((Twice.OVERLAP, "Канарейкина"), (Twice.DOUBLED, ""), (Twice.UNKNOWN, "greeting")):
        with pytest.raises(LedgerUnavailableError, match="CheckViolation") as caught:
            ledger.save_messages(run.run_key, MessageLook(SINCE, (MessageWarning(1, kind, name, (17,)),)))
        assert "Канарейкина" not in str(caught.value)
    assert ledger.messages(run.run_key) is None, "all or nothing"


# -- the report


def test_the_report_says_what_patients_get_twice_in_few_lines(ledger: Ledger, ledger_db: str) -> None:
    run, another = start(ledger), start(ledger, run_id="run 2")
    ledger.save_messages(another.run_key, LOOK)
    assert "Smart Care" not in funnel_text(ledger_db, run.run_id), "nobody has looked"
    ledger.save_messages(run.run_key, LOOK)
    lines = funnel_text(ledger_db, run.run_id).splitlines()
    begin = lines.index(f"Appointments that got two messages of one scenario since {SINCE:%Y-%m-%d}:")
    assert lines[begin - 1] == ""
    assert lines[begin + 1 :] == [
        "      visit_reminder: appointments 1,005, clinics 2 (1, 2)",
        "      other: appointments 1, clinics 1 (2)",
        "Scenarios that Smart Care and a partner both run:",
        "      greeting: clinics 7 (1, 2, 3, 4, 5 …)",
        "Partners beside Smart Care of which it is not known what they run:",
        f"      clinics 1 ({HUGE})",
    ]


def test_the_report_tells_nothing_found_from_not_judged(ledger: Ledger, ledger_db: str) -> None:
    run = start(ledger)
    ledger.save_messages(run.run_key, MessageLook(SINCE, (), None, "Medlock is away."))
    assert funnel_text(ledger_db).splitlines()[-2:] == [
        f"Appointments that got two messages of one scenario since {SINCE:%Y-%m-%d}: not judged. Medlock is away.",
        "Scenarios that Smart Care and a partner both run: none",
    ]
    ledger.save_messages(run.run_key, MessageLook(SINCE, (), "Medlock is away.", None))
    assert funnel_text(ledger_db).splitlines()[-2:] == [
        f"Appointments that got two messages of one scenario since {SINCE:%Y-%m-%d}: none",
        "Scenarios that Smart Care and a partner both run: not judged. Medlock is away.",
    ]
