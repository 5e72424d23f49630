"""Withdrawals against a real ledger, a real Medlock and the real sandbox Medflex with its faults switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from medflex.airflow.withdrawing import NUMBERS, Withdrawer, WithdrawResult
from medflex.clock import Clock, SystemClock
from medflex.errors import LeaseHeldError, MedflexRefusedError
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.world import World


@pytest.fixture
def sent(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex."""
    result = load(filled_world, planned(filled_world))
    assert not result.problems
    return filled_world


def withdraw(world: World, clinic_ids: list[int] | None = None, **settings: Any) -> WithdrawResult:
    """Withdraw as the tasks would: a sweep of these clinics, or a quick look (``None``) and, behind it, the sweep that
    it says is due.
    """
    if settings.pop("preview", False):
        with withdrawer(world, **settings) as writer:
            return writer.preview(clinic_ids or [])
    with withdrawer(world, **settings) as writer:
        result = writer.quick() if clinic_ids is None else writer.sweep(clinic_ids)
    adds_up(result)
    while result.sweep_is_due:
        with withdrawer(world, **{"holder": "test/sweep"} | settings) as writer:
            swept = writer.sweep_further()
        adds_up(swept)
        result = joined(result, swept)
    return result


def quick(world: World, kind: type[Withdrawer] = Withdrawer, **settings: Any) -> WithdrawResult:
    """Look quickly, and leave to another lane what is due besides."""
    with withdrawer(world, kind, **settings) as writer:
        result = writer.quick()
    adds_up(result)
    return result


@contextmanager
def withdrawer(
    world: World,
    kind: type[Withdrawer] = Withdrawer,
    *,
    clock: Clock | None = None,
    holder: str = "test/withdraw",
    **settings: Any,
) -> Iterator[Withdrawer]:
    """A new one, as for a task."""
    with world.parts(**settings) as (medlock, ledger, client):
        yield kind(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=clock or SystemClock(),
            holder=holder,
            run_key=None,
            jitter=lambda: 1.0,
        )


def adds_up(result: WithdrawResult) -> None:
    numbers = {name: result.total(name) for name in NUMBERS}
    assert numbers["revoked"] == sum(value for name, value in numbers.items() if name != "revoked"), numbers


def joined(one: WithdrawResult, other: WithdrawResult) -> WithdrawResult:
    """Return what became of records in two looks; what the first has left is looked at again by the second."""
    both = WithdrawResult(problems=[*one.problems, *other.problems], asked=one.asked + other.asked)
    both.delays = [*one.delays, *other.delays]
    both.sweep_is_due = other.sweep_is_due
    for result in (one, other):
        for clinic_id, counts in result.numbers.items():
            both.numbers[clinic_id].update(counts)
        for mine, theirs in ((both.revoked, result.revoked), (both.held, result.held)):
            for key, ids in theirs.items():
                mine[key] += ids
    return both


def numbers(result: WithdrawResult) -> dict[str, int]:
    """Return those of the numbers that are not zero."""
    return {name: result.total(name) for name in NUMBERS if result.total(name)}


def shown_ids(world: World) -> set[int]:
    return {record_id for _, record_id in world.control.records()}


def some(world: World, number: int, clinic_id: int = 1) -> list[int]:
    """Return ids of appointments of a clinic that Medflex shows, each of another patient, of those with the fewest."""
    (lpu_id,) = world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0]
    ids = [record_id for lpu, record_id in world.control.records() if lpu == lpu_id]
    rows = world.read(
        "SELECT min(id) FROM medlock.appointment WHERE id = ANY(%s) GROUP BY patient_id ORDER BY count(*), 1 LIMIT %s",
        [ids, number],
    )
    assert len(rows) == number
    return sorted(row[0] for row in rows)


def of_patients(world: World, ids: list[int]) -> set[int]:
    """Return all appointments that Medflex shows of the patients of these appointments."""
    rows = world.read(
        "SELECT id FROM medlock.appointment WHERE patient_id IN"
        " (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))",
        [ids],
    )
    return {row[0] for row in rows} & shown_ids(world)


REFUSE = (
    "UPDATE medlock.patient SET {} = {}, updated_at = now()"
    " WHERE id IN (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))"
)
SWEEP, QUICK = [1, 2, 3], None


# Every reason and every value is judged in tests/domain/test_revocations.py; here, that the lanes find them.
@pytest.mark.parametrize(
    ("flag", "value", "clinic_ids"),
    [
        ("refused_personal_data", "true", SWEEP),
        ("refused_notifications", "NULL", QUICK),
        ("refused_marketing", "true", QUICK),
    ],
)
def test_a_refusal_is_withdrawn_with_its_reason_and_nothing_else_is(
    sent: World, flag: str, value: str, clinic_ids: list[int] | None
) -> None:
    assert numbers(withdraw(sent, clinic_ids)) == {}
    ids = some(sent, 2)
    gone = of_patients(sent, ids)
    before = shown_ids(sent)
    sent.edit(REFUSE.format(flag, value), [ids])
    result = withdraw(sent, clinic_ids)
    assert numbers(result) == {"revoked": len(gone), "withdrawn": len(gone)}
    assert before - shown_ids(sent) == gone
    assert sent.shown() == sent.expected()
    assert {item["reason"] for item in sent.control.tombstones().values()} == {flag}
    assert numbers(withdraw(sent, clinic_ids)) == {}


CHANGES = {
    "anonymous_appointment": "UPDATE medlock.appointment SET is_anonymous = true, updated_at = now()"
    " WHERE id = ANY(%s)",
    "person_changed": "UPDATE medlock.appointment SET updated_at = now(), patient_id = (SELECT id FROM medlock.patient"
    " other WHERE other.clinic_id = appointment.clinic_id AND other.id <> patient_id ORDER BY id LIMIT 1)"
    " WHERE id = ANY(%s)",
    "moved_out_of_window": "UPDATE medlock.appointment SET starts_at = now() + interval '60 days',"
    " ends_at = now() + interval '60 days 1 hour', updated_at = now() WHERE id = ANY(%s)",
    "appointment_gone": "DELETE FROM medlock.appointment WHERE id = ANY(%s)",
    "reference_broken": "DELETE FROM medlock.patient WHERE id IN"
    " (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))",
    "phone_unreadable": "UPDATE medlock.patient SET phone = 'call my wife', updated_at = now() WHERE id IN"
    " (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))",
    "doctor_banned": "UPDATE medlock.doctor SET medflex_banned = true, updated_at = now() WHERE id IN"
    " (SELECT doctor_id FROM medlock.appointment WHERE id = ANY(%s))",
}


@pytest.mark.parametrize("clinic_ids", [SWEEP, QUICK], ids=["sweep", "quick"])
def test_each_change_that_revokes_is_found(sent: World, clinic_ids: list[int] | None) -> None:
    withdraw(sent)
    # A ban hits all appointments of the doctor, so it is one of another clinic.
    reasons = dict(zip(CHANGES, [*some(sent, len(CHANGES) - 1), *some(sent, 1, 3)], strict=True))
    for reason, id_ in reasons.items():
        sent.edit(CHANGES[reason], [[id_]])
    before = shown_ids(sent)
    # A minute later: not all is looked at again and again.
    later = FakeClock(datetime.now(UTC) + timedelta(minutes=1))
    if clinic_ids is None:
        # It has to go by what has changed, and what it says is due by what is gone.
        first = quick(sent, clock=later)
        result = joined(first, withdraw(sent, clock=later))
        assert {reason for _, reason in first.revoked} == set(reasons) - {
            "appointment_gone", "reference_broken", "phone_unreadable",
        }  # fmt: skip
    else:
        result = withdraw(sent, clinic_ids, clock=later)
    told = {id_: reason for (_, reason), found in result.revoked.items() for id_ in found}
    assert {reason: told.get(id_) for reason, id_ in reasons.items()} == {reason: reason for reason in reasons}
    assert set(told.values()) == set(reasons)
    ids = set(reasons.values())
    assert ids <= before - shown_ids(sent)
    assert not result.held
    expected = sent.expected()
    # Somebody else's appointment may be shared, as that other patient's; the next transfer sends it.
    assert sent.shown() == {key: record for key, record in expected.items() if key[1] not in ids}


SWITCHES = {
    "switched off": "UPDATE medlock.medflex_access SET enabled = false, changed_at = now() WHERE clinic_id = 2",
    "off and on again": "UPDATE medlock.medflex_access SET changed_at = now() WHERE clinic_id = 2",
    "by somebody else": "UPDATE medlock.medflex_access SET changed_by = (SELECT min(id) FROM medlock.staff"
    " WHERE clinic_id = 2 AND role <> 'head') WHERE clinic_id = 2",
    "head is head no more": "UPDATE medlock.staff SET role = 'registrar' WHERE clinic_id = 2",
    "no lpu_id": "UPDATE medlock.clinic SET lpu_id = NULL WHERE id = 2",
    "another lpu_id": "UPDATE medlock.clinic SET lpu_id = 4711 WHERE id = 2",
    "links deleted": "DELETE FROM medlock.clinic_partner WHERE clinic_id = 2",
    "one partner less": "DELETE FROM medlock.clinic_partner WHERE clinic_id = 2 AND partner_id ="
    " (SELECT min(partner_id) FROM medlock.clinic_partner WHERE clinic_id = 2 AND enabled)",
}


@pytest.mark.parametrize("stamp", ["infinity", "0044-03-15 12:00:00 BC", "20226-01-01 00:00+00"])
@pytest.mark.parametrize("clinic_ids", [SWEEP, QUICK], ids=["sweep", "quick"])
def test_a_stamp_that_no_calendar_has_keeps_nobody_s_refusal_from_taking_effect(
    sent: World, clinic_ids: list[int] | None, stamp: str
) -> None:
    """One row of one patient must not stop everybody's withdrawals."""
    withdraw(sent, clinic_ids)
    (strange, *others) = some(sent, 3)
    sent.edit(REFUSE.format("refused_marketing", "true"), [others])
    sent.edit(
        "UPDATE medlock.patient SET updated_at = %s::timestamptz, refused_marketing = TRUE"
        " WHERE id = (SELECT patient_id FROM medlock.appointment WHERE id = %s)",
        [stamp, strange],
    )
    withdraw(sent, clinic_ids)
    assert not shown_ids(sent) & of_patients(sent, others)
    withdraw(sent, SWEEP)  # a stamp in the past is seen by the sweep only
    assert not shown_ids(sent) & of_patients(sent, [strange])


@pytest.mark.parametrize(
    ("change", "clinic_ids"),
    [*((change, QUICK) for change in SWITCHES), ("switched off", SWEEP), ("one partner less", SWEEP)],
)
def test_a_clinic_that_permits_less_is_withdrawn_whole(sent: World, change: str, clinic_ids: list[int] | None) -> None:
    withdraw(sent)
    before = shown_ids(sent)
    of_clinic = {row[0] for row in sent.read("SELECT id FROM medlock.appointment WHERE clinic_id = 2")}
    sent.edit(SWITCHES[change])
    result = withdraw(sent, clinic_ids)
    assert not result.held
    assert shown_ids(sent) == before - of_clinic
    assert result.total("withdrawn") == len(before & of_clinic) > 20


def test_a_vanished_clinic_is_held_and_asked_about(sent: World) -> None:
    withdraw(sent)
    before = shown_ids(sent)
    for table in ("medflex_access", "clinic_partner", "smart_care_scenario", "staff"):
        sent.edit(f"DELETE FROM medlock.{table} WHERE clinic_id = 2")
    sent.edit("DELETE FROM medlock.clinic WHERE id = 2")
    result = withdraw(sent)
    assert {reason for _, reason in result.held} == {"clinic_gone"}
    assert result.asked == 1
    assert shown_ids(sent) == before


def test_what_left_the_window_stays_and_is_withdrawn_all_the_same(sent: World) -> None:
    (old, other) = some(sent, 2)
    sent.edit(
        "UPDATE medlock.appointment SET starts_at = now() - interval '50 days' WHERE id = ANY(%s)", [[old, other]]
    )
    assert numbers(withdraw(sent, [1, 2, 3])) == {}
    assert {old, other} <= shown_ids(sent)
    states = sent.read_ledger("SELECT state FROM ledger.record WHERE appointment_id = ANY(%s)", [[old, other]])
    assert states == [("aged_out",), ("aged_out",)]
    sent.edit(REFUSE.format("refused_personal_data", "true"), [[old]])
    assert withdraw(sent).total("withdrawn") >= 1
    assert old not in shown_ids(sent)
    assert other in shown_ids(sent)


def test_vanished_rows_beyond_the_threshold_are_held_and_refusals_beside_them_flow(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 30)
    refused = of_patients(sent, ids[25:])
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[:25]])
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids[25:]])
    before = shown_ids(sent)
    result = withdraw(sent, [1, 2, 3])
    assert before - shown_ids(sent) == refused - set(ids[:25])
    assert result.total("held") == 25
    assert result.asked == 1
    (row,) = sent.read_ledger("SELECT clinic_id, appointment_ids, state, live FROM ledger.hold")
    assert (row[0], sorted(row[1]), row[2]) == (1, ids[:25], "open")
    # Asked once, however often it is found.
    assert withdraw(sent, [1, 2, 3]).asked == 0

    with sent.parts() as (_, ledger, _):
        (hold,) = ledger.claim_holds("run a", 500)
        assert ledger.claim_holds("run b", 500) == []
        assert [(item.hold_id, item.asked_in) for item in ledger.claim_holds("run a", 500)] == [(hold.hold_id, "run a")]
        # Its run is gone: what the runbook says lets another one ask it.
        runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
        (statement,) = [line for line in runbook.splitlines() if line.startswith("UPDATE ledger.hold SET asked_in")]
        with ledger._transaction() as cursor:
            cursor.execute(statement.replace("clinic_id = 17", f"clinic_id = {hold.clinic_id}").encode())
        assert [item.hold_id for item in ledger.claim_holds("run b", 500)] == [hold.hold_id]
        assert ledger.decide_hold(hold.hold_id, "released", "somebody")
        assert not ledger.decide_hold(hold.hold_id, "kept", "somebody else")
    result = withdraw(sent, [1])
    assert result.total("withdrawn") == 25
    assert not shown_ids(sent) & set(ids[:25])
    # What a person has released is no measure of what vanishes by itself.
    more = some(sent, 10)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [more])
    assert withdraw(sent, [1]).total("withdrawn") == 10


def answered(world: World, ids: list[int], state: str) -> None:
    """Let these rows vanish in a mishap, a person answer so, and the rows come back and be sent again."""
    world.edit("CREATE TABLE aside AS SELECT * FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    world.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    assert withdraw(world, [1]).total("held") == len(ids)
    with world.parts() as (_, ledger, _):
        (hold,) = ledger.claim_holds("run", 500)
        assert ledger.decide_hold(hold.hold_id, state, "somebody")
    result = withdraw(world, [1])
    assert (result.total("withdrawn"), result.total("held")) == (
        (len(ids), 0) if state == "released" else (0, len(ids))
    )
    world.edit("INSERT INTO medlock.appointment SELECT * FROM aside")
    edited = "UPDATE medlock.appointment SET status = 'no_show', updated_at = now() WHERE id = ANY(%s)"
    world.edit(edited, [ids])
    assert not load(world, planned(world), extracted_at=datetime.now(UTC)).problems
    assert set(ids) <= shown_ids(world)


@pytest.mark.parametrize("state", ["released", "kept"])
def test_an_answer_does_not_hold_for_the_next_mishap_of_rows_that_were_back(sent: World, state: str) -> None:
    ids = some(sent, 25)
    answered(sent, ids, state)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    result = withdraw(sent, [1])
    assert (result.total("held"), result.asked) == (25, 1)
    assert set(ids) <= shown_ids(sent)


@pytest.mark.parametrize("days", [0, 8])
def test_rows_that_were_released_once_are_a_measure_of_what_vanishes_later(sent: World, days: int) -> None:
    ids = some(sent, 27)
    answered(sent, ids, "released")
    with psycopg.connect(sent.ledger) as connection:
        # Eight days later; what is withdrawn from here on is of that day.
        for column in ("decided_at", "found_at"):
            connection.execute(f"UPDATE ledger.hold SET {column} = {column} - make_interval(days => {days})".encode())
        connection.execute(f"UPDATE ledger.batch SET created_at = created_at - make_interval(days => {days})".encode())
    for start in (0, 9, 18):
        sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[start : start + 9]])
        withdraw(sent, [1])
    # Of which two lots would be more than may vanish in a day.
    assert len(set(ids) - shown_ids(sent)) <= 10


def test_records_are_withdrawn_in_the_order_in_which_every_lane_locks_them(sent: World) -> None:
    """One whose row is gone is found behind all that are there."""
    gone, *refused = some(sent, 4)
    sent.edit("DELETE FROM medlock.appointment WHERE id = %s", [gone])
    sent.edit(REFUSE.format("refused_marketing", "true"), [refused])
    withdraw(sent, [1])
    ((ids,),) = sent.read_ledger("SELECT appointment_ids FROM ledger.batch WHERE operation = 'withdraw'")
    assert {gone, *refused} <= set(ids)
    assert ids == sorted(ids)


def test_what_vanishes_bit_by_bit_is_held_like_what_vanishes_at_once(sent: World) -> None:
    ids = some(sent, 12)
    for start in (0, 4, 8):
        sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[start : start + 4]])
        result = withdraw(sent, [1])
        assert (result.total("withdrawn"), result.total("held")) == ((4, 0) if start < 8 else (0, 4))


def test_what_a_person_wants_to_keep_stays_and_is_not_asked_about_again(sent: World) -> None:
    ids = some(sent, 20)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    withdraw(sent, [1])
    with sent.parts() as (_, ledger, _):
        (hold,) = ledger.claim_holds("run", 500)
        ledger.decide_hold(hold.hold_id, "kept", "somebody")
    result = withdraw(sent, [1])
    assert (result.total("held"), result.asked, result.total("withdrawn")) == (20, 0, 0)
    assert set(ids) <= shown_ids(sent)
    # Something else that vanishes is another question; a no is not held, whatever was answered.
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [some(sent, 25)])
    assert withdraw(sent, [1]).asked == 1


def test_a_question_is_taken_back_when_the_rows_are_there_again(sent: World) -> None:
    sent.edit("CREATE TABLE aside AS SELECT * FROM medlock.appointment WHERE clinic_id = 1")
    sent.edit("DELETE FROM medlock.appointment WHERE clinic_id = 1")
    assert withdraw(sent, [1]).asked == 1
    sent.edit("INSERT INTO medlock.appointment SELECT * FROM aside")
    assert numbers(withdraw(sent, [1])) == {}
    assert sent.read_ledger("SELECT state FROM ledger.hold") == [("obsolete",)]


FAULTS: dict[str, dict[str, Any]] = {
    "timeout_after_effect": {"seconds": 1},
    "reset_before_effect": {},
    "malformed_body": {},
    "rate_limited": {"retry_after": 0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_loses_no_withdrawal_and_the_next_look_brings_it_over(sent: World, fault: str) -> None:
    withdraw(sent)
    ids = some(sent, 3)
    gone = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    fault_id = sent.control.add_fault(fault, match={"path_prefix": "/appointments/withdraw/"}, **FAULTS[fault])
    result = withdraw(sent, timeout=0.3, attempts=2)
    assert result.total("withdrawn") == 0
    assert result.problems
    assert result.problems[0].transient
    (open_ones,) = sent.read_ledger("SELECT count(*) FROM ledger.revocation")
    assert open_ones == (len(gone),)
    sent.control.remove_fault(fault_id)
    # The stamp of the change lies far behind now; what was found then is not forgotten.
    sent.edit("UPDATE medlock.patient SET updated_at = now() - interval '3 days'")
    result = withdraw(sent)
    assert result.total("withdrawn") == len(gone)
    assert sent.shown() == sent.expected()
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(0,)]


def test_a_withdrawal_begun_is_finished_and_a_regrant_is_sent_as_a_new_version(sent: World) -> None:
    ids = some(sent, 1)
    gone = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    fault = sent.control.add_fault("timeout_after_effect", match={"path_prefix": "/appointments/withdraw/"}, seconds=1)
    assert withdraw(sent, [1], timeout=0.3, attempts=1).total("withdraw_unknown") == len(gone)
    sent.control.remove_fault(fault)
    sent.edit(REFUSE.format("refused_marketing", "false"), [ids])
    result = withdraw(sent, [1])
    assert {reason for _, reason in result.revoked} == {"withdrawal_unfinished"}
    assert load(sent, planned(sent), extracted_at=datetime.now(UTC)).numbers
    assert sent.shown() == sent.expected()
    versions = {record["version"] for (_, key), record in sent.control.records().items() if key in gone}
    assert versions == {4}


def test_a_regrant_before_the_withdrawal_closes_it(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    gone = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    fault = sent.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=429)
    withdraw(sent, attempts=1)
    sent.control.remove_fault(fault)
    sent.edit(REFUSE.format("refused_marketing", "false"), [ids])
    assert numbers(withdraw(sent)) == {"revoked": len(gone), "permitted_again": len(gone)}
    assert sent.shown() == sent.expected()


def test_a_withdrawal_takes_a_clinic_over_from_a_loader_which_goes_on_behind_it(sent: World) -> None:
    """The refusal comes while a resync of the same clinic waits between two batches."""
    records = planned(sent).query("clinic_id == 1")
    ids = some(sent, 1)
    gone = of_patients(sent, ids)
    done: list[WithdrawResult] = []

    class Refusing(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if not done:
                sent.edit(REFUSE.format("refused_personal_data", "true"), [ids])
                done.append(withdraw(sent, [1]))

    sent.control.add_fault("rate_limited", times=1, skip=3, retry_after=1)
    result = load(sent, records, clock=Refusing(), parallel=1, batch_size=10, resync=True)
    assert done[0].total("withdrawn") == len(gone)
    assert not result.problems
    assert result.numbers[1]["accepted"] + result.numbers[1]["dropped"] == len(records)
    assert result.numbers[1]["dropped"] == len(gone)
    assert sent.shown() == sent.expected()


def test_two_withdrawals_wait_for_each_other(sent: World) -> None:
    ids = some(sent, 1)
    sent.edit(REFUSE.format("refused_personal_data", "true"), [ids])
    with sent.parts() as (_, ledger, _):
        ledger.acquire([1], "another withdrawal", purpose="withdraw")
        result = withdraw(sent, [1], clock=FakeClock())
    assert isinstance(result.problems[0], LeaseHeldError)
    assert result.total("withdraw_to_retry") == len(of_patients(sent, ids))


def test_a_refused_token_is_told_and_everything_stays_open(sent: World) -> None:
    sent.edit(SWITCHES["switched off"])
    sent.control.add_fault("unauthorized", times=1)
    result = withdraw(sent, [1, 2, 3], parallel=1)
    assert any(isinstance(problem, MedflexRefusedError) for problem in result.problems)
    assert result.total("withdraw_to_retry") == result.total("revoked") > 0
    assert withdraw(sent, [1, 2, 3]).total("withdrawn") == result.total("revoked")


def test_one_clinic_unknown_to_medflex_does_not_hold_up_the_others(sent: World) -> None:
    first, second = some(sent, 1, 1), some(sent, 1, 2)
    sent.edit(REFUSE.format("refused_personal_data", "true"), [[*first, *second]])
    expected = of_patients(sent, second)
    (lpu_id,) = sent.read("SELECT lpu_id FROM medlock.clinic WHERE id = 1")[0]
    sent.control.add_fault("status", match={"lpu_id": lpu_id}, status=404)
    result = withdraw(sent, [1, 2, 3], parallel=1)
    assert result.numbers[2]["withdrawn"] == len(expected)
    assert result.numbers[1]["withdrawn"] == 0
    assert result.problems


@pytest.mark.parametrize("tombstone", [False, True])
def test_versions_that_medflex_is_ahead_with_are_caught_up_at_once(sent: World, tombstone: bool) -> None:
    if tombstone:
        # A withdrawal that the ledger has forgotten: what stands at Medflex is not shown to anybody.
        with sent.parts() as (_, ledger, _), ledger._transaction() as cursor:
            cursor.execute("CREATE TABLE backup AS SELECT * FROM ledger.record")
        sent.edit(SWITCHES["switched off"])
        for _ in range(2):
            withdraw(sent, [2])
        with sent.parts() as (_, ledger, _), ledger._transaction() as cursor:
            cursor.execute("DELETE FROM ledger.record")
            cursor.execute("INSERT INTO ledger.record SELECT * FROM backup")
            cursor.execute("UPDATE ledger.record SET version = 0")
    else:
        for _ in range(3):
            load(sent, planned(sent), resync=True)
        with sent.parts() as (_, ledger, _), ledger._transaction() as cursor:
            cursor.execute("UPDATE ledger.record SET version = 1")
        sent.edit(SWITCHES["switched off"])
    result = withdraw(sent, [2])
    assert result.total("withdrawn") == result.total("revoked") > 0
    assert not result.problems


def test_a_preview_finds_the_same_and_writes_nothing(sent: World) -> None:
    ids = some(sent, 24)
    sent.edit(REFUSE.format("refused_personal_data", "true"), [ids[:3]])
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[3:]])
    before = sent.sent()
    foretold = withdraw(sent, [1, 2, 3], preview=True)
    assert sent.sent() == before
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(0,)]
    assert sent.read_ledger("SELECT count(*) FROM ledger.hold") == [(0,)]
    happened = withdraw(sent, [1, 2, 3])
    assert dict(foretold.revoked) == dict(happened.revoked)
    assert dict(foretold.held) == dict(happened.held)


def test_deleted_rows_are_noticed_without_any_stamp(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 2)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    result = withdraw(sent, clock=FakeClock(datetime.now(UTC) + timedelta(minutes=1)))
    assert result.total("withdrawn") == 2
    assert not shown_ids(sent) & set(ids)


def test_times_to_withdraw_are_kept_and_late_ones_are_told(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    sent.edit(
        "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() - interval '1 minute' WHERE id IN"
        " (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))",
        [ids],
    )
    gone = len(of_patients(sent, ids))
    fault = sent.control.add_fault("status", status=503)
    withdraw(sent, attempts=1)
    sent.control.remove_fault(fault)
    with sent.parts() as (_, ledger, _):
        assert ledger.late_revocations(3600).records == 0
        assert ledger.late_revocations(0).records == gone
        withdraw(sent)
        assert ledger.late_revocations(0).records == 0
        times = ledger.times_to_withdraw(datetime.now(UTC) - timedelta(hours=1))
    assert len(times) == gone
    assert times["seconds"].between(0, 600).all()
    assert set(times["reason"]) == {"refused_marketing"}


def test_a_refusal_that_has_not_reached_medflex_stays_one_when_its_row_vanishes_with_many_others(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 25)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids[:1]])
    fault = sent.control.add_fault("status", status=503)
    withdraw(sent, attempts=1)
    sent.control.remove_fault(fault)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    result = withdraw(sent, [1])
    assert result.total("held") == 24
    assert ids[0] not in shown_ids(sent)
    assert set(ids[1:]) <= shown_ids(sent)
