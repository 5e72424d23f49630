"""Partner actions while the clinic, or another attempt, is at work on the same appointment, and behind a crash."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from medflex.airflow.hooks import medlock_actions
from medflex.airflow.hooks.medlock_actions import ActionTransaction, MedlockActions
from medflex.domain.partner_actions import ActionType, Ruling, read_action
from medflex.errors import ActionsWaitError
from medflex.ledger.store import Ledger
from tests.airflow.acting import (
    SECOND,
    answer,
    apply,
    at,
    decisions,
    found,
    instant,
    journal,
    moment,
    read,
    row,
    send,
    wish,
)
from tests.airflow.test_loading import FakeClock
from tests.airflow.world import World

HISTORY = """
CREATE TABLE medlock.history (id bigint, who text, status text, starts_at timestamptz);
CREATE FUNCTION medlock.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO medlock.history VALUES (new.id, session_user, new.status, new.starts_at); RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON medlock.appointment FOR EACH ROW EXECUTE FUNCTION medlock.note();
"""
MOVED = "UPDATE medlock.appointment SET starts_at = starts_at + interval '1 day', ends_at = ends_at + interval '1 day',"
MOVED += " updated_at = now() WHERE id = %s"
A_WHILE = 20.0
"""Seconds after which something that should happen at once has not happened."""


class Killed(BaseException):
    """The end of a process, as far as a test can play it."""


@pytest.fixture
def clinics(world: World) -> World:
    """Sixteen small clinics, all sent; every change of an appointment is noted."""
    found(world, 16)
    send(world)
    world.edit(HISTORY)
    return world


def ask(world: World, *actions: dict[str, Any]) -> list[str]:
    """Let partners ask for something, up to the inbox; return the actions' ids."""
    ids = world.control.add_actions(actions)
    assert read(world).new == len(actions)
    return ids


def ruled(world: World) -> dict[str, str | None]:
    """Return reason by action, where ledger and journal agree."""
    there = {str(action): reason for action, _, reason in journal(world)}
    known = {str(action): reason for action, _, reason in decisions(world)}
    assert there == {action: reason for action, reason in known.items() if reason}
    return known


def effects(world: World) -> Counter[int]:
    """Return how often partners' actions changed which appointment."""
    return Counter(id_ for (id_,) in world.read("SELECT id FROM medlock.history WHERE who = 'medlock_actions'"))


@contextmanager
def in_thread(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run something beside the test; what it returned, or raised, is in the list when it is over."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield out
    finally:
        thread.join(A_WHILE)
        assert not thread.is_alive()


def wait_until_blocked(world: World) -> None:
    """Wait until somebody waits for a lock."""
    pause = threading.Event()
    for _ in range(int(A_WHILE / 0.02)):
        if world.read("SELECT FROM pg_locks WHERE NOT granted"):
            return
        pause.wait(0.02)
    raise AssertionError("nobody waits for a lock")


# The clinic holds on to the appointment


HELD = {
    1: (MOVED, ActionType.CONFIRM, Ruling.CHANGED),
    2: ("UPDATE medlock.appointment SET status = 'arrived' WHERE id = %s", ActionType.CONFIRM, Ruling.FINISHED),
    3: ("UPDATE medlock.appointment SET comment = 'x' WHERE id = %s", ActionType.CANCEL, Ruling.DONE),
    4: ("DELETE FROM medlock.appointment WHERE id = %s", ActionType.CONFIRM, Ruling.UNKNOWN_APPOINTMENT),
    5: ("UPDATE medlock.appointment SET is_anonymous = true WHERE id = %s", ActionType.CANCEL, Ruling.REVOKED),
    6: ("UPDATE medlock.appointment SET clinic_id = 7 WHERE id = %s", ActionType.CANCEL, Ruling.UNKNOWN_APPOINTMENT),
    8: ("UPDATE medlock.appointment SET status = 'confirmed' WHERE id = %s", ActionType.CONFIRM, Ruling.ALREADY_SO),
}


def test_what_the_clinic_commits_while_an_action_waits_for_it_is_what_the_action_is_judged_by(clinics: World) -> None:
    ids = ask(clinics, *(wish(clinic, type_) for clinic, (_, type_, _) in HELD.items()))
    with ExitStack() as stack:
        held = [stack.enter_context(psycopg.connect(clinics.medlock)) for _ in HELD]
        for connection, (clinic, (sql, _, _)) in zip(held, HELD.items(), strict=True):
            connection.execute(sql.encode(), [clinic * 100 + 1])
        with in_thread(lambda: apply(clinics)) as out:
            for connection in held:
                wait_until_blocked(clinics)
                connection.commit()
    assert out[0].problems == []
    assert [ruled(clinics)[id_] for id_ in ids] == [ruling for *_, ruling in HELD.values()]
    assert effects(clinics) == {301: 1}
    assert row(clinics, 101)[1:] == tuple(instant(at(time)) + timedelta(days=1) for time in ("10:00", "10:30"))
    assert clinics.read("SELECT status, comment FROM medlock.appointment WHERE id = 301") == [("cancelled", "x")]


def test_what_the_clinic_takes_back_was_never_there(clinics: World) -> None:
    ids = ask(clinics, wish(1, "confirm"))
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(MOVED.encode(), [101])
        with in_thread(lambda: apply(clinics)):
            wait_until_blocked(clinics)
            connection.rollback()
    assert ruled(clinics) == {ids[0]: Ruling.DONE}
    assert row(clinics, 101)[0] == "confirmed"


@pytest.mark.parametrize("chunk", [1, 100])
def test_who_is_held_up_too_long_waits_with_all_behind_it_and_holds_up_nobody_else(
    clinics: World, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(medlock_actions, "LOCK_SECONDS", 0.2)
    first, other, second, third, last = ask(
        clinics,
        wish(1, "confirm"),
        wish(2, "confirm"),
        wish(1, "notification"),
        wish(1, "cancel"),
        wish(3, "cancel"),
    )
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(b"SELECT FROM medlock.appointment WHERE id = 101 FOR UPDATE")
        for _ in range(2):
            applied = apply(clinics, chunk=chunk)
            assert [type(problem) for problem in applied.problems] == [ActionsWaitError]
            assert applied.waiting == 3
            assert ruled(clinics) == {
                first: None, other: Ruling.DONE, second: None, third: None, last: Ruling.DONE,
            }  # fmt: skip
        assert answer(clinics).answers == {"taken": 2}
    applied = apply(clinics, chunk=chunk)
    assert (applied.problems, applied.waiting) == ([], 0)
    assert [ruled(clinics)[id_] for id_ in (first, second, third)] == [Ruling.DONE, Ruling.RECORDED, Ruling.DONE]
    assert effects(clinics) == {101: 2, 201: 1, 301: 1}
    assert answer(clinics).answers == {"taken": 3}


def test_a_clinic_that_holds_many_appointments_is_waited_for_once(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medlock_actions, "LOCK_SECONDS", 1)
    ids = ask(
        clinics,
        *(wish(1, "notification", appointment_id=100 + n) for n in (1, 2, 3)),
        *(wish(1, "confirm", appointment_id=102) for _ in range(3)),
        wish(2, "confirm"),
    )
    timeouts: list[str] = []
    original = ActionTransaction._run

    def noting(self: ActionTransaction, name: str, **parameters: Any) -> None:
        if name == "lock_appointment":
            timeouts.extend(self._cursor.execute("SHOW lock_timeout").fetchone() or ())
        original(self, name, **parameters)

    monkeypatch.setattr(ActionTransaction, "_run", noting)
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(b"SELECT FROM medlock.appointment WHERE clinic_id = 1 FOR UPDATE")
        applied = apply(clinics)
    assert applied.waiting == 6
    assert [ruled(clinics)[id_] for id_ in ids] == [None] * 6 + ["done"]
    # Each appointment is still tried, and other clinics are waited for as ever.
    assert sorted(timeouts) == ["10ms", "10ms", "1s", "1s"]


def test_what_cannot_change_an_appointment_is_prepared_together(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever tells of a hundred notifications about one appointment has each prepared by itself."""
    kinds = ("notification",) * 4 + ("confirm",) + ("notification",) * 3 + ("cancel", "notification")
    odd = wish(1, "cancel", base_version=None)
    ids = clinics.control.add_actions([*(wish(1, kind) for kind in kinds), odd, wish(2, "confirm")], unchecked=True)
    read(clinics)
    prepared: list[int] = []
    original = MedlockActions.clinics_of

    def noting(self: MedlockActions, lpu_ids: Any) -> Any:
        prepared.append(len(lpu_ids))
        return original(self, lpu_ids)

    monkeypatch.setattr(MedlockActions, "clinics_of", noting)
    apply(clinics)
    assert len(prepared) == 3
    rulings = [{"notification": "recorded"}.get(kind, "done") for kind in kinds]
    assert [ruled(clinics)[id_] for id_ in ids] == [*rulings, "malformed", "done"]
    order = clinics.read(
        "SELECT action_id::text FROM medlock.partner_action WHERE appointment_id = 101 ORDER BY decided_at"
    )
    assert [id_ for (id_,) in order if id_ in ids[: len(kinds)]] == ids[: len(kinds)]


def test_a_partner_that_never_saw_an_appointment_learns_nothing_by_waiting(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medlock_actions, "LOCK_SECONDS", 0.2)
    held = wish(1, "confirm")
    strangers = [
        wish(1, "confirm", partner_id=999),
        wish(1, "confirm", partner_id=999, appointment_id=199),
        wish(1, "cancel", partner_id=999, base_version=None),
        wish(2, "confirm", appointment_id=101),
        wish(1, "confirm", created_at=moment(days=401)),
        wish(1, "confirm", lpu_id=999),
    ]
    own = wish(1, "notification", partner_id=SECOND)
    clinics.control.add_actions([strangers[0] | {"id": str(uuid4())}, held, *strangers, own], unchecked=True)
    read(clinics)
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(b"SELECT FROM medlock.appointment WHERE id = 101 FOR UPDATE")
        assert apply(clinics).waiting == 2
        answer(clinics)
    rulings = ruled(clinics)
    assert (rulings[held["id"]], rulings[own["id"]]) == (None, None)
    assert [rulings[item["id"]] for item in strangers] == [
        "other_partner", "unknown_appointment", "malformed", "unknown_appointment", "too_old", "unknown_clinic",
    ]  # fmt: skip
    assert {item["id"] for item in strangers} <= set(clinics.control.results())
    run(clinics)
    assert (ruled(clinics)[held["id"]], ruled(clinics)[own["id"]]) == ("done", "recorded")


def test_a_table_that_is_locked_as_a_whole_makes_everything_wait(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medlock_actions, "LOCK_SECONDS", 0.2)
    ids = ask(clinics, wish(1, "confirm"), wish(2, "confirm"))
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(b"LOCK TABLE medlock.appointment")
        with pytest.raises(ActionsWaitError):
            apply(clinics)
        assert set(decisions_of(clinics).values()) == {None}
    apply(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, Ruling.DONE)


def decisions_of(world: World) -> dict[str, str | None]:
    return {str(action): reason for action, _, reason in decisions(world)}


# The clinic works on it between the look that prepares and the transaction that decides


class Meddling(MedlockActions):
    """Something happens right before each transaction begins, behind the look that prepares."""

    def __init__(self, conninfo: str, *happenings: Callable[[], Any]) -> None:
        super().__init__(conninfo)
        self._happenings = iter(happenings)

    @contextmanager
    def transaction(self) -> Iterator[ActionTransaction]:
        next(self._happenings, lambda: None)()
        with super().transaction() as transaction:
            yield transaction


LATE_EDITS = {
    "moved": (MOVED, ActionType.CONFIRM, Ruling.CHANGED),
    "cancelled": (
        "UPDATE medlock.appointment SET status = 'cancelled', updated_at = now() WHERE id = %s",
        ActionType.RESCHEDULE,
        Ruling.FINISHED,
    ),
    "begun": (
        "UPDATE medlock.appointment SET starts_at = now() - interval '1 minute' WHERE id = %s",
        ActionType.CANCEL,
        Ruling.PAST,
    ),
    "deleted": ("DELETE FROM medlock.appointment WHERE id = %s", ActionType.NOTIFICATION, Ruling.UNKNOWN_APPOINTMENT),
    "refused": (
        "UPDATE medlock.patient SET refused_marketing = true WHERE id = (%s - 1) / 10 + 1",
        ActionType.NOTIFICATION,
        Ruling.REVOKED,
    ),
    "banned": (
        "UPDATE medlock.doctor SET medflex_banned = true WHERE id = (%s - 1) / 10 + 1",
        ActionType.CONFIRM,
        Ruling.REVOKED,
    ),
    "link cut": (
        "UPDATE medlock.clinic_partner SET enabled = false WHERE clinic_id = %s / 100 AND partner_id = 3",
        ActionType.CONFIRM,
        Ruling.PARTNER_CLOSED,
    ),
    "switched off": (
        "UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = %s / 100",
        ActionType.NOTIFICATION,
        Ruling.REVOKED,
    ),
    "another zone": (
        "UPDATE medlock.clinic SET timezone = 'Asia/Omsk' WHERE id = %s / 100",
        ActionType.RESCHEDULE,
        Ruling.OUTSIDE_SCHEDULE,
    ),
    "slot booked": (
        "UPDATE medlock.appointment SET starts_at = starts_at - interval '1 hour',"
        " ends_at = ends_at - interval '1 hour' WHERE id = %s + 1",
        ActionType.RESCHEDULE,
        Ruling.SLOT_TAKEN,
    ),
    "patient booked": (
        "UPDATE medlock.appointment SET starts_at = starts_at - interval '3 hours',"
        " ends_at = ends_at - interval '3 hours' WHERE id = %s + 2",
        ActionType.RESCHEDULE,
        Ruling.PATIENT_BUSY,
    ),
    "hours cancelled": (
        "DELETE FROM medlock.doctor_schedule WHERE doctor_id = (%s - 1) / 10 + 1",
        ActionType.RESCHEDULE,
        Ruling.OUTSIDE_SCHEDULE,
    ),
    "phone corrected": (
        "UPDATE medlock.patient SET phone = '8 (995) 123-45-68', updated_at = now() WHERE id = (%s - 1) / 10 + 1",
        ActionType.CONFIRM,
        Ruling.DONE,
    ),
    "nothing": ("SELECT %s", ActionType.RESCHEDULE, Ruling.DONE),
}


def test_an_action_is_judged_by_what_is_committed_when_it_is_carried_out(clinics: World) -> None:
    ids = ask(clinics, *(wish(number, type_) for number, (_, type_, _) in enumerate(LATE_EDITS.values(), start=1)))
    happenings = [
        lambda sql=sql, id_=number * 100 + 1: clinics.edit(sql, [id_])
        for number, (sql, _, _) in enumerate(LATE_EDITS.values(), start=1)
    ]
    assert apply(clinics, medlock=Meddling(clinics.medlock_actions, *happenings)).problems == []
    assert dict(zip(LATE_EDITS, (ruled(clinics)[id_] for id_ in ids), strict=True)) == {
        name: ruling for name, (_, _, ruling) in LATE_EDITS.items()
    }
    done = [number for number, (*_, ruling) in enumerate(LATE_EDITS.values(), start=1) if ruling is Ruling.DONE]
    assert effects(clinics) == {number * 100 + 1: 1 for number in done}


def test_a_new_time_that_passes_by_while_actions_wait_is_past(clinics: World) -> None:
    """A chunk waits for whoever is slow, and what was ahead when it was prepared may have begun by then."""
    clock = FakeClock(instant(at("09:30")))

    def pass_by() -> None:
        clock.sleep(120)

    times = {"dt_start": at("09:31"), "dt_end": at("09:50")}
    ids = ask(clinics, wish(1, "reschedule", **times), wish(2, "confirm"))
    apply(clinics, clock=clock, medlock=Meddling(clinics.medlock_actions, pass_by))
    assert [ruled(clinics)[id_] for id_ in ids] == ["no_such_time", "done"]


# Two attempts at once


def test_of_two_attempts_at_once_each_action_is_decided_and_takes_effect_once(clinics: World) -> None:
    actions = [wish(clinic, type_) for clinic in range(1, 8) for type_ in ("notification", "confirm", "cancel")]
    actions += [wish(clinic, "reschedule") for clinic in range(8, 15)] + [wish(999, "confirm")]
    ids = ask(clinics, *actions)
    # Both have prepared everything before the first of them decides.
    barrier = threading.Barrier(2, timeout=A_WHILE)

    def attempt() -> Any:
        return apply(clinics, medlock=Meddling(clinics.medlock_actions, barrier.wait))

    with in_thread(attempt) as first, in_thread(attempt) as second:
        pass
    assert first[0].problems == second[0].problems == []
    assert Counter(ruled(clinics).values()) == {"done": 21, "recorded": 7, "unknown_clinic": 1}
    assert set(ruled(clinics)) == set(ids)
    assert effects(clinics) == {c * 100 + 1: 2 if c < 8 else 1 for c in range(1, 15)}
    assert answer(clinics).answers == {"taken": len(ids)}


def test_an_attempt_that_was_thought_dead_finds_the_decision_of_the_next_one(clinics: World) -> None:
    """It has prepared; the other one decides, and the clinic goes on; then it wakes up."""
    ids = ask(clinics, wish(1, "confirm"), wish(2, "notification"), wish(3, "reschedule"), wish(4, "cancel"))

    def another() -> None:
        assert apply(clinics).problems == []
        # Judged anew, each of them would be another ruling.
        clinics.edit("UPDATE medlock.appointment SET status = 'completed', updated_at = now()")

    assert apply(clinics, medlock=Meddling(clinics.medlock_actions, another)).problems == []
    assert [ruled(clinics)[id_] for id_ in ids] == ["done", "recorded", "done", "done"]
    assert effects(clinics) == {101: 1, 301: 1, 401: 1}


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("shared", ["doctor", "patient"])
def test_two_reschedules_cannot_meet_in_one_slot(clinics: World, shared: str, isolation: str) -> None:
    # As a database of the clinic may have it for all.
    name = clinics.medlock.rsplit("/", 1)[1]
    clinics.edit(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    clinics.edit("UPDATE medlock.appointment SET patient_id = 11, doctor_id = 12 WHERE id = 103")
    other = 102 if shared == "doctor" else 103
    times = instant(at("11:00")), instant(at("11:30"))

    def move(transaction: ActionTransaction, appointment_id: int) -> bool:
        doctor, patient = clinics.read(
            "SELECT doctor_id, patient_id FROM medlock.appointment WHERE id = %s", [appointment_id]
        )[0]
        transaction.lock(1, appointment_id)
        slot = transaction.slot(1, appointment_id, doctor, patient, times)
        if slot.doctor_busy or slot.patient_busy:
            return False
        action = read_action(wish(1, "reschedule", appointment_id=appointment_id))
        assert action is not None
        return transaction.carry_out(action, 1, times)

    def second() -> bool:
        try:
            with MedlockActions(clinics.medlock_actions) as medlock, medlock.transaction() as transaction:
                return move(transaction, other)
        except ActionsWaitError:
            return False

    with ExitStack() as stack:
        medlock = stack.enter_context(MedlockActions(clinics.medlock_actions))
        with medlock.transaction() as transaction:
            assert move(transaction, 101)
            out = stack.enter_context(in_thread(second))
            wait_until_blocked(clinics)
    assert out == [False]
    assert effects(clinics) == {101: 1}


# The end of a process at each durable step


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, at_call: int = 1, after: bool = False) -> None:
    """End the process in a certain call of a method, before or after what the method does; the next process lives."""
    original, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def call(*arguments: Any, **more: Any) -> Any:
        number = next(calls)
        if number == at_call and not after:
            raise Killed
        result = original(*arguments, **more)
        if number == at_call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, call)


STEPS: dict[str, tuple[type, str, int, bool]] = {
    "before the page is kept": (Ledger, "store_actions", 1, False),
    "behind the page": (Ledger, "store_actions", 1, True),
    "before preparing": (Ledger, "undecided", 1, False),
    "between effect and journal": (ActionTransaction, "journal", 3, False),
    "before the commit": (ActionTransaction, "journal", 3, True),
    "between commit and ledger": (Ledger, "save_decided", 1, False),
    "behind the ledger": (Ledger, "save_decided", 2, True),
    "before the answers": (Ledger, "unanswered", 1, True),
    "between answers and ledger": (Ledger, "save_answered", 1, False),
    "behind the answers": (Ledger, "save_answered", 1, True),
}


def test_wherever_a_process_ends_the_next_one_goes_on_and_nothing_happens_twice(clinics: World) -> None:
    """Each step with an appointment of its own, in one world."""
    expected: Counter[int] = Counter()
    for number, (name, step) in enumerate(STEPS.items(), start=1):
        ids = clinics.control.add_actions(
            [
                wish(number, "notification"),
                wish(number, "reschedule"),
                wish(number, "confirm"),
                wish(number, "confirm", partner_id=SECOND),
            ]
        )
        with pytest.MonkeyPatch.context() as patch:
            once(patch, *step[:2], at_call=step[2], after=step[3])
            with pytest.raises(Killed):
                run(clinics)
        run(clinics)
        expected[number * 100 + 1] = 2
        assert [ruled(clinics)[id_] for id_ in ids] == ["recorded", "done", "done", "already_so"], name
        assert effects(clinics) == expected, name
        results = clinics.control.results()
        assert {results[id_]["status_code"] for id_ in ids} == {204}, name


def run(world: World) -> None:
    """Run all three steps, as the DAG does when nothing fails."""
    assert read(world).problem is None
    assert apply(world).problems == []
    assert answer(world).problems == []


def test_a_partner_goes_on_from_what_it_did_also_when_the_process_ended_in_between(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(clinics, wish(1, "confirm"))
    with pytest.MonkeyPatch.context() as patch:
        once(patch, Ledger, "save_decided")
        with pytest.raises(Killed):
            apply(clinics)
    apply(clinics)
    ask(clinics, wish(1, "cancel"))
    apply(clinics)
    assert list(ruled(clinics).values()) == ["done", "done"]


def test_a_ledger_that_has_forgotten_everything_is_told_by_the_journal(clinics: World) -> None:
    ids = clinics.control.add_actions([wish(1, "confirm"), wish(2, "reschedule"), wish(3, "cancel", partner_id=999)])
    run(clinics)
    before = journal(clinics)
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(b"TRUNCATE ledger.partner_action")
        connection.execute(b"DELETE FROM ledger.watch WHERE name = 'partner_actions'")
    clinics.edit("UPDATE medlock.appointment SET status = 'completed', updated_at = now()")
    # Nor is anybody waited for: there is nothing left to be judged.
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(b"SELECT FROM medlock.appointment WHERE id IN (101, 201, 301) FOR UPDATE")
        run(clinics)
    assert journal(clinics) == before
    assert [ruled(clinics)[id_] for id_ in ids] == ["done", "done", "other_partner"]
    assert effects(clinics) == {101: 1, 201: 1}
    states = clinics.read_ledger("SELECT is_effect, answer FROM ledger.partner_action ORDER BY seq")
    assert states == [(True, "taken"), (True, "taken"), (False, "taken")]
