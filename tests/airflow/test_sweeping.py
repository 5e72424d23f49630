"""Looking for deleted rows in all that Medflex shows: beside refusals, not before them, and a piece at a time.

Against a real ledger, a real Medlock and the real sandbox Medflex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from medflex.airflow.hooks.medlock import Medlock
from medflex.airflow.withdrawing import Withdrawer, WithdrawResult
from medflex.clock import Clock
from medflex.errors import MedlockSlowError, MedlockUnavailableError
from medflex.ledger import watches
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.test_reconciling import of_clinic
from tests.airflow.test_withdrawing import (
    REFUSE,
    SWITCHES,
    adds_up,
    joined,
    numbers,
    of_patients,
    quick,
    shown_ids,
    some,
    withdraw,
    withdrawer,
)
from tests.airflow.world import World


class OneClinicAtATime(Withdrawer):
    """Any group of clinics takes all the time there is."""

    live_rows = many_live_rows = narrowed_rows = 1
    sweep_time = narrowed_time = timedelta(0)


@pytest.fixture
def sent(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex; nobody has looked yet."""
    assert not load(filled_world, planned(filled_world)).problems
    return filled_world


def sweep(world: World, kind: type[Withdrawer] = Withdrawer, clock: Clock | None = None) -> WithdrawResult:
    with withdrawer(world, kind, clock=clock, holder="test/sweep") as writer:
        result = writer.sweep_further()
    adds_up(result)
    return result


def progress(world: World) -> dict[str, Any] | None:
    rows = world.read_ledger("SELECT value FROM ledger.watch WHERE name = %s", [watches.SWEEP])
    return rows[0][0] if rows else None


def delete(world: World, *clinic_ids: int) -> set[int]:
    """Delete one shown appointment of each of these clinics."""
    ids = [some(world, 1, clinic_id)[0] for clinic_id in clinic_ids]
    world.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    return set(ids)


def left_by_a_sweep(world: World) -> set[int]:
    """Let a sweep find two deleted rows that it cannot withdraw; Medflex answers again after that."""
    withdraw(world)
    gone = delete(world, 1, 2)
    fault = world.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=503)
    assert sweep(world, clock=in_minutes()).problems
    world.control.remove_fault(fault)
    return gone


def write_ledger(world: World, sql: str, parameters: Sequence[Any] = ()) -> int:
    with psycopg.connect(world.ledger, autocommit=True) as connection:
        return connection.execute(sql, parameters).rowcount


def in_minutes(minutes: float = 1.0) -> FakeClock:
    return FakeClock(datetime.now(UTC) + timedelta(minutes=minutes))


def test_a_refusal_does_not_wait_for_all_that_medflex_shows_to_be_looked_at(sent: World) -> None:
    assert withdraw(sent).sweep_is_due is False
    gone = delete(sent, 1, 2, 3)
    refused = of_patients(sent, some(sent, 1)) - gone
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    result = quick(sent, clock=in_minutes())
    # It says so, and does not do it.
    assert result.sweep_is_due
    assert {reason for _, reason in result.revoked} == {"refused_marketing"}
    assert gone <= shown_ids(sent)
    assert not refused & shown_ids(sent)
    result = sweep(sent, clock=in_minutes())
    assert numbers(result) == {"revoked": len(gone), "withdrawn": len(gone)}
    assert not result.sweep_is_due
    assert not gone & shown_ids(sent)
    assert not quick(sent, clock=in_minutes(60)).sweep_is_due


def test_each_look_notes_since_when_a_sweep_is_due_until_it_was_made(sent: World) -> None:
    """For the alert that nobody makes it."""
    withdraw(sent)
    quick(sent)
    assert due_since(sent) is None
    delete(sent, 1)
    first = in_minutes(1)
    for minutes in (1, 6, 11):
        quick(sent, clock=in_minutes(minutes))
        assert due_since(sent) == pytest.approx(first.now().timestamp(), abs=5)
    sweep(sent, clock=in_minutes(12))
    quick(sent, clock=in_minutes(13))
    assert due_since(sent) is None


def due_since(world: World) -> float | None:
    ((value,),) = world.read_ledger("SELECT value FROM ledger.watch WHERE name = 'consent'")
    text = value.get("sweep_due_since")
    return datetime.fromisoformat(text).timestamp() if text else None


def test_what_was_revoked_before_the_first_look_of_all_is_found_by_the_first_sweep(sent: World) -> None:
    ids = some(sent, 2)
    gone = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_personal_data", "true"), [ids])
    first = quick(sent)
    assert (numbers(first), first.sweep_is_due) == ({}, True)
    assert numbers(sweep(sent)) == {"revoked": len(gone), "withdrawn": len(gone)}
    assert sent.shown() == sent.expected()


def test_the_first_look_takes_no_clinic_for_one_that_has_just_changed(sent: World) -> None:
    """Or each look of ten minutes would go over everything that Medflex shows."""
    quick(sent)
    sent.edit("UPDATE medlock.patient SET phone = 'call my wife'")
    # Those only whose appointments have a stamp of the last two hours.
    assert quick(sent).total("withdrawn") < 50
    assert sweep(sent).total("revoked") > 100


def test_a_sweep_goes_on_behind_the_clinic_at_which_it_has_ended(sent: World) -> None:
    withdraw(sent)
    first, second, third = (delete(sent, clinic_id) for clinic_id in (1, 2, 3))
    clock = in_minutes()
    result = sweep(sent, OneClinicAtATime, clock)
    assert (set(*result.revoked.values()), result.sweep_is_due) == (first, True)
    # What is deleted where it has been already is found by the next one.
    late = delete(sent, 1)
    result = sweep(sent, OneClinicAtATime, clock)
    assert (set(*result.revoked.values()), result.sweep_is_due) == (second, True)
    assert quick(sent, clock=clock).sweep_is_due
    result = sweep(sent, OneClinicAtATime, clock)
    assert (set(*result.revoked.values()), result.sweep_is_due) == (third, False)
    assert late <= shown_ids(sent)
    # A sweep that took no time at all, by this clock, may be made again at once.
    assert quick(sent, clock=clock).sweep_is_due
    assert set(*sweep(sent, clock=clock).revoked.values()) == late
    assert not quick(sent, clock=clock).sweep_is_due


def test_a_piece_that_fails_is_done_again_and_those_before_it_are_not(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(sent)
    gone = delete(sent, 1, 2, 3)
    clock = in_minutes()
    assert sweep(sent, OneClinicAtATime, clock).sweep_is_due
    noted = progress(sent)
    assert noted is not None
    assert noted["after"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(Withdrawer, "_judge", _away)
        with pytest.raises(MedlockUnavailableError):
            sweep(sent, OneClinicAtATime, clock)
    assert progress(sent) == noted
    assert sweep(sent, OneClinicAtATime, clock).total("withdrawn") == 1
    assert sweep(sent, OneClinicAtATime, clock).sweep_is_due is False
    assert not gone & shown_ids(sent)


def _away(*_: object) -> None:
    raise MedlockUnavailableError("Medlock is away.")


def test_the_time_of_all_pieces_counts_for_when_the_next_sweep_may_begin(sent: World) -> None:
    """One that takes a minute is made at most every ten."""

    class Slow(OneClinicAtATime):
        def _judge(self, live: Any, now: datetime) -> Any:
            if len(live):
                clock.sleep(20.0)
            return super()._judge(live, now)

    clock = FakeClock()
    result = WithdrawResult()
    result.sweep_is_due = True
    pieces = 0
    while result.sweep_is_due:
        result = sweep(sent, Slow, clock)
        pieces += 1
    noted = progress(sent)
    assert noted is not None
    assert (pieces, noted["seconds"], noted["after"]) == (3, 60.0, None)
    delete(sent, 1)
    last_piece_began = clock.now() - timedelta(seconds=20)
    for minutes, is_due in ((9.9, False), (10.0, True)):
        assert quick(sent, clock=FakeClock(last_piece_began + timedelta(minutes=minutes))).sweep_is_due is is_due


def test_what_the_last_piece_had_found_is_brought_over_by_the_next_run_and_not_by_a_look_for_refusals(
    sent: World,
) -> None:
    gone = left_by_a_sweep(sent)
    # The task that found it may be at work with it: for half an hour nobody else is.
    assert numbers(quick(sent, clock=in_minutes(10))) == {}
    assert gone <= shown_ids(sent)
    # Nothing is due any more, and what is left is done all the same.
    assert numbers(sweep(sent, clock=in_minutes(10.5))) == {"revoked": 2, "withdrawn": 2}
    assert not gone & shown_ids(sent)


def test_a_look_for_refusals_brings_over_what_a_sweep_has_left_for_long(sent: World) -> None:
    gone = left_by_a_sweep(sent)
    assert numbers(quick(sent, clock=in_minutes(30))) == {}
    assert numbers(quick(sent, clock=in_minutes(31.5))) == {"revoked": 2, "withdrawn": 2}
    assert not gone & shown_ids(sent)


def test_what_several_pieces_have_left_stays_with_the_sweep(sent: World) -> None:
    withdraw(sent)
    gone = delete(sent, 1, 2, 3)
    refused = of_patients(sent, [some(sent, 2)[1]]) - gone
    fault = sent.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=503)
    clock = in_minutes()
    for _ in range(3):
        assert sweep(sent, OneClinicAtATime, clock).problems
        clock.sleep(1)
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    assert quick(sent, clock=clock).problems
    sent.control.remove_fault(fault)
    # The quick look brings over what is its own.
    assert numbers(quick(sent, clock=clock)) == {"revoked": len(refused), "withdrawn": len(refused)}
    result = sweep(sent, clock=clock)
    assert (set().union(*result.revoked.values()), result.total("withdrawn")) == (gone, 3)


def test_more_edits_than_a_look_has_time_for_are_left_to_a_sweep(sent: World) -> None:
    """Somebody touches the stamps of a whole table."""

    class Few(Withdrawer):
        most_edits = 20

    withdraw(sent)
    moved, refusing = some(sent, 2)
    refused = of_patients(sent, [refusing]) - {moved}
    sent.edit("UPDATE medlock.appointment SET updated_at = now()")
    sent.edit("UPDATE medlock.appointment SET starts_at = now() + interval '60 days' WHERE id = %s", [moved])
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    result = quick(sent, Few, clock=in_minutes())
    assert result.sweep_is_due
    assert {reason for _, reason in result.revoked} == {"refused_marketing"}
    assert not refused & shown_ids(sent)
    assert moved in shown_ids(sent)
    assert sweep(sent, clock=in_minutes()).total("withdrawn") == 1
    assert not quick(sent, clock=in_minutes(200)).sweep_is_due


class Few(Withdrawer):
    most_edits = 1000


def slow_medlock(monkeypatch: pytest.MonkeyPatch, name: str, is_slow: Callable[..., bool]) -> list[dict[str, Any]]:
    """Let a question take too long where ``is_slow`` says so of what is asked; return what was asked.

    A statement that really takes two minutes needs a database of hundreds of millions of rows.
    """
    asked: list[dict[str, Any]] = []
    original = getattr(Medlock, name)

    def ask(self: Medlock, since: Any, **more: Any) -> Any:
        asked.append(more)
        if is_slow(**more):
            raise MedlockSlowError("Medlock took too long.")
        return original(self, since, **more)

    monkeypatch.setattr(Medlock, name, ask)
    return asked


@pytest.mark.parametrize("name", ["changed_appointments", "changed_patients", "changed_rows"])
def test_where_medlock_takes_too_long_to_say_what_has_changed_less_is_asked_for(
    sent: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else each look would fail, and the next one begin where it did."""
    withdraw(sent)
    quick(sent)
    # Of the last ones 100, among ten times as many.
    enough = 1000 if name == "changed_rows" else 101
    asked = slow_medlock(monkeypatch, name, lambda most, **_: most > enough)
    refusing, other = some(sent, 2)
    refused = of_patients(sent, [refusing])
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    assert quick(sent, Few, clock=in_minutes()).problems == []
    assert not refused & shown_ids(sent)
    number = len(asked)
    assert number > 1
    # A quarter of an hour long nobody waits for that again.
    also = of_patients(sent, [other])
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(also)])
    assert quick(sent, Few, clock=in_minutes(15.5)).problems == []
    assert not also & shown_ids(sent)
    assert all(more["most"] <= enough for more in asked[number:])
    number = len(asked)
    quick(sent, Few, clock=in_minutes(17.5))
    assert max(more["most"] for more in asked[number:]) > enough


def test_what_is_not_among_the_less_that_is_asked_for_is_a_sweeps(sent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw(sent)
    assert not quick(sent).sweep_is_due
    asked = slow_medlock(monkeypatch, "changed_appointments", lambda most, **_: most > 101)
    moved, refusing = some(sent, 2)
    refused = of_patients(sent, [refusing]) - {moved}
    sent.edit("UPDATE medlock.appointment SET starts_at = now() + interval '60 days' WHERE id = %s", [moved])
    assert sent.edit("UPDATE medlock.appointment SET updated_at = now()") > 101
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    assert quick(sent, Few, clock=in_minutes()).sweep_is_due
    assert asked[-1]["most"] == 100
    assert not refused & shown_ids(sent)
    assert moved in shown_ids(sent)
    assert sweep(sent, clock=in_minutes(2)).total("withdrawn") == 1
    assert moved not in shown_ids(sent)


def test_a_medlock_that_stays_too_slow_keeps_nothing_from_being_withdrawn_that_needs_no_answer(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(sent)
    quick(sent)
    # What an earlier look has left.
    refusing, other = some(sent, 2, 3)
    refused = of_patients(sent, [refusing])
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    fault = sent.control.add_fault("down")
    assert quick(sent).problems
    sent.control.remove_fault(fault)
    ((looked_at,),) = sent.read_ledger("SELECT looked_at FROM ledger.watch WHERE name = %s", [watches.CONSENT])
    limit = 0
    with monkeypatch.context() as patch:
        asked = slow_medlock(patch, "changed_appointments", lambda most, **_: most > limit)
        # Of this one nobody can tell, and this clinic is seen to be switched off.
        also = of_patients(sent, [other]) - refused
        assert also
        sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(also)])
        sent.edit(SWITCHES["switched off"])
        switched_off = of_clinic(sent, 2)
        result = quick(sent, Few, clock=in_minutes())
        assert [type(error) for error in result.problems] == [MedlockSlowError]
        assert not refused & shown_ids(sent)
        assert switched_off not in {lpu_id for lpu_id, _ in sent.control.records()}
        assert also <= shown_ids(sent)
        assert [more["most"] for more in asked] == [1001, 1001, 101]
        # Nothing is taken for looked at, and each look asks for less.
        watch = "SELECT looked_at FROM ledger.watch WHERE name = %s"
        assert sent.read_ledger(watch, [watches.CONSENT]) == [(looked_at,)]
        assert quick(sent, Few, clock=in_minutes(2)).problems
        assert [more["most"] for more in asked[3:]] == [11, 2]
        limit = 2
        result = quick(sent, Few, clock=in_minutes(3))
        assert result.problems == []
        assert [more["most"] for more in asked[5:]] == [2, 1]
        assert result.sweep_is_due
    quick(sent, clock=in_minutes(4))
    assert not also & shown_ids(sent)


def test_a_far_look_that_takes_too_long_is_one_over_ten_minutes_and_is_tried_again_later(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(sent)
    gone = of_patients(sent, some(sent, 1))
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(gone)])
    an_hour = timedelta(hours=1)
    asked = slow_medlock(
        monkeypatch, "changed_appointments", lambda edited_since, **_: datetime.now(UTC) - edited_since > an_hour
    )
    assert quick(sent).total("withdrawn") == len(gone)
    # Nothing else is wrong: neither is less asked for, nor is anything left to a sweep.
    assert len(asked) == 2
    assert sent.read_ledger("SELECT 1 FROM ledger.watch WHERE name = ANY(%s)", [[watches.SLOW, watches.FAR]]) == [(1,)]
    assert sent.read_ledger("SELECT 1 FROM ledger.watch WHERE name = %s", [watches.SLOW]) == []
    assert sent.read_ledger("SELECT 1 FROM ledger.watch WHERE name = %s", [watches.SWEEP_ASKED]) == []
    for minutes, is_tried in ((14, False), (16, True), (40, False), (47, True)):
        number = len(asked)
        assert quick(sent, clock=in_minutes(minutes)).problems == []
        assert len(asked) - number == 1 + is_tried


@pytest.mark.parametrize("table", ["appointment", "patient", "doctor"])
def test_more_changed_rows_than_a_look_reads_are_left_to_a_sweep(
    sent: World, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """Though few of them say no: somebody may do so behind all those who do not."""
    asked: list[timedelta] = []
    original = Medlock.changed_appointments

    def watched(self: Medlock, since: Any, **more: Any) -> Any:
        asked.append(datetime.now(UTC) - since[f"{table}s"])
        return original(self, since, **more)

    monkeypatch.setattr(Medlock, "changed_appointments", watched)

    class One(Withdrawer):
        most_edits = 1

    withdraw(sent)
    permits = {
        "appointment": "NOT is_anonymous",
        "patient": "NOT (refused_personal_data OR refused_notifications OR refused_marketing)",
        "doctor": "NOT medflex_banned",
    }
    sent.edit(
        "INSERT INTO medlock.doctor (id, clinic_id, medflex_banned) SELECT -n, 1, false FROM generate_series(1, 11) n"
    )
    for name in permits:
        sent.edit(f"UPDATE medlock.{name} SET updated_at = now() - interval '3 days'")
    quick(sent)
    # Such a look takes long, so that the next ones go over the edits of ten minutes.
    write_ledger(sent, "UPDATE ledger.watch SET value = '{\"seconds\": 600}' WHERE name = %s", [watches.FAR])
    ids = [row[0] for row in sent.read(f"SELECT id FROM medlock.{table} WHERE {permits[table]} LIMIT 11")]
    for number, is_due in ((10, False), (11, True)):
        # Longer ago than that, and not longer than a look goes back for what says no.
        touch = f"UPDATE medlock.{table} SET updated_at = now() - interval '1 hour' WHERE id = ANY(%s)"
        assert sent.edit(touch, [ids[:number]]) == number
        assert quick(sent, One, clock=in_minutes(0.1)).sweep_is_due is is_due
        # And nothing as old as what lies behind them is asked for.
        assert (asked[-1] < timedelta(minutes=61)) is is_due


def test_a_large_rest_is_brought_over_in_parts_and_before_others_are_looked_for(sent: World) -> None:
    class Little(Withdrawer):
        live_rows = 1
        narrowed_rows = 10

    withdraw(sent)
    # Not processed for certain.
    fault = sent.control.add_fault("down")
    sent.edit(SWITCHES["switched off"])
    assert quick(sent, Little).total("withdraw_to_retry") > 20
    write_ledger(sent, "UPDATE ledger.clinic_seen SET changed_at = changed_at - interval '1 day'")
    sent.control.remove_fault(fault)
    sent.edit(SWITCHES["switched off"].replace("= 2", "= 1"))
    refused = of_patients(sent, some(sent, 1, 3))
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    result = quick(sent, Little)
    assert result.is_cut_short
    # Besides those, what has a stamp of the last two hours.
    assert 10 + len(refused) <= result.total("withdrawn") < 30 + len(refused)
    assert not refused & shown_ids(sent)
    looks = 0
    while quick(sent, Little).is_cut_short:
        looks += 1
        assert looks < 100
    assert {lpu_id for lpu_id, _ in sent.control.records()} == {of_clinic(sent, 3)}


def test_a_change_without_a_stamp_counts_from_when_it_was_noticed_also_for_clinics_whose_turn_comes_later(
    sent: World,
) -> None:
    withdraw(sent)
    sent.edit("UPDATE medlock.clinic_partner SET enabled = false")
    start = datetime.now(UTC)
    for minutes in (1, 3, 5):
        quick(sent, OneClinicAtATime, clock=FakeClock(start + timedelta(minutes=minutes)))
    assert shown_ids(sent) == set()
    since = sent.read_ledger(
        "SELECT DISTINCT item.since FROM ledger.batch CROSS JOIN unnest(revoked_at) AS item (since)"
        " WHERE operation = 'withdraw'"
    )
    assert since == [(start + timedelta(minutes=1),)]


def test_absences_that_another_lane_is_about_to_withdraw_count_towards_the_question(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 16)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[:8]])
    # Not processed for certain.
    fault = sent.control.add_fault("down")
    write_ledger(sent, "DELETE FROM ledger.watch WHERE name = %s", [watches.SWEEP])
    assert sweep(sent).total("withdraw_to_retry") == 8
    sent.control.remove_fault(fault)
    # The other eight have lost their patients, and somebody has touched them.
    sent.edit(
        "DELETE FROM medlock.patient WHERE id IN (SELECT patient_id FROM medlock.appointment WHERE id = ANY(%s))",
        [ids[8:]],
    )
    sent.edit("UPDATE medlock.appointment SET updated_at = now() WHERE id = ANY(%s)", [ids[8:]])
    result = quick(sent)
    assert result.total("held") >= 8
    assert result.asked == 1


def test_a_clock_that_was_ahead_keeps_nothing_from_being_found(sent: World) -> None:
    ahead = FakeClock(datetime.now(UTC) + timedelta(days=1))
    withdraw(sent, clock=ahead)
    quick(sent, Busy, clock=ahead)
    gone = delete(sent, 1)
    result = quick(sent)
    assert result.sweep_is_due
    (moved,) = some(sent, 1, 2)
    sent.edit(
        "UPDATE medlock.appointment SET starts_at = now() + interval '60 days', updated_at = now() - interval '1 hour'"
        " WHERE id = %s",
        [moved],
    )
    assert quick(sent, clock=in_minutes()).total("withdrawn") == 1
    assert set(*sweep(sent).revoked.values()) == gone


def test_a_far_look_that_fails_is_not_tried_again_at_once_so_that_refusals_are_found(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw(sent)
    gone = of_patients(sent, some(sent, 1))
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(gone)])
    asked: list[timedelta] = []
    original = Medlock.changed_appointments

    def slow(self: Medlock, since: Any, *, edited_since: datetime, **more: Any) -> Any:
        asked.append(datetime.now(UTC) - edited_since)
        if asked[-1] > timedelta(hours=1):
            raise MedlockUnavailableError("Medlock broke off.")
        return original(self, since, edited_since=edited_since, **more)

    monkeypatch.setattr(Medlock, "changed_appointments", slow)
    with pytest.raises(MedlockUnavailableError):
        quick(sent)
    assert gone <= shown_ids(sent)
    assert quick(sent).total("withdrawn") == len(gone)
    assert not gone & shown_ids(sent)
    # Some time later it is tried once more, and then after twice that time.
    for minutes, is_tried in ((14, False), (16, True), (40, False), (47, True)):
        with pytest.raises(MedlockUnavailableError) if is_tried else nullcontext():
            quick(sent, clock=in_minutes(minutes))
    monkeypatch.setattr(Medlock, "changed_appointments", original)
    # What was left out is covered: an edit that was committed while none came to its end, with an old stamp.
    (moved,) = some(sent, 1, 2)
    sent.edit(
        "UPDATE medlock.appointment SET starts_at = now() + interval '60 days', updated_at = now() - interval '1 hour'"
        " WHERE id = %s",
        [moved],
    )
    assert quick(sent, clock=in_minutes(110)).total("withdrawn") == 1


def test_records_that_another_lane_withdraws_at_this_moment_are_not_counted_twice_and_held(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 9)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])

    class Overtaken(Withdrawer):
        def _enter_run(self, found: Any) -> None:
            assert withdraw(sent, [1]).total("withdrawn") == 9
            super()._enter_run(found)

    write_ledger(sent, "DELETE FROM ledger.watch WHERE name = %s", [watches.SWEEP])
    result = sweep(sent, Overtaken, in_minutes())
    # Nine of them are no reason to ask, nine and nine would be.
    assert (result.total("held"), result.total("withdrawn")) == (0, 9)
    assert sent.read_ledger("SELECT 1 FROM ledger.hold") == []


def test_a_question_that_another_lane_has_asked_meanwhile_stays(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 25)

    class Overtaken(Withdrawer):
        def _enter_run(self, found: Any) -> None:
            sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
            assert withdraw(sent, [1]).asked == 1
            super()._enter_run(found)

    write_ledger(sent, "DELETE FROM ledger.watch WHERE name = %s", [watches.SWEEP])
    assert numbers(sweep(sent, Overtaken)) == {}
    assert sent.read_ledger("SELECT state FROM ledger.hold") == [("open",)]


def test_a_clinic_that_permits_more_is_not_looked_at_whole(sent: World) -> None:
    """A partner that comes to all clinics would make each look of ten minutes one at everything."""
    withdraw(sent)
    sent.edit("UPDATE medlock.clinic_partner SET enabled = true WHERE clinic_id = 2")
    links = sent.edit(
        "INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled) SELECT 2, id, true FROM medlock.partner"
        " ON CONFLICT DO NOTHING"
    )
    assert links > 0
    again = write_ledger(sent, "UPDATE ledger.clinic_seen SET changed_at = changed_at - interval '1 day'")
    assert again == 3
    quick(sent)
    looked: list[int] = []

    class Watched(Withdrawer):
        def _sweep(self, clinic_ids: Any, *args: Any, **more: Any) -> Any:
            looked.extend(clinic_ids)
            return super()._sweep(clinic_ids, *args, **more)

    quick(sent, Watched)
    assert looked == []
    sent.edit(SWITCHES["switched off"])
    quick(sent)
    quick(sent, Watched)
    assert looked == [2]
    # What has permitted less a moment ago has only just changed, also when it permits more again.
    ((partner_id,),) = sent.read("SELECT min(partner_id) FROM medlock.clinic_partner WHERE clinic_id = 3 AND enabled")
    for enabled in (False, True):
        sent.edit(
            "UPDATE medlock.clinic_partner SET enabled = %s WHERE clinic_id = 3 AND partner_id = %s",
            [enabled, partner_id],
        )
        quick(sent)
    looked.clear()
    quick(sent, Watched)
    assert sorted(looked) == [2, 3]


def test_what_an_older_version_noted_of_its_last_sweep_holds(sent: World) -> None:
    withdraw(sent)
    noted = progress(sent)
    assert noted is not None
    old = {name: noted[name] for name in ("deleted", "seconds")}
    write_ledger(sent, "UPDATE ledger.watch SET value = %s WHERE name = %s", [Jsonb(old), watches.SWEEP])
    assert not quick(sent, clock=in_minutes(60)).sweep_is_due
    gone = delete(sent, 2)
    assert quick(sent, clock=in_minutes(60)).sweep_is_due
    assert set(*sweep(sent, clock=in_minutes(60)).revoked.values()) == gone


def test_clinics_that_permit_less_are_withdrawn_one_look_after_the_other_where_they_are_many(sent: World) -> None:
    """A partner that goes takes all clinics with it; refusals of others do not wait until all are looked at."""
    withdraw(sent)
    refused = of_patients(sent, some(sent, 1, 3))
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    for clinic_id in (1, 2, 3):
        sent.edit(SWITCHES["switched off"].replace("= 2", f"= {clinic_id}"))
    result = quick(sent, OneClinicAtATime)
    assert result.is_cut_short
    # The others' turn has not come; a refusal among them is found all the same.
    assert {lpu_id for lpu_id, _ in sent.control.records()} == {of_clinic(sent, 2), of_clinic(sent, 3)}
    assert not refused & shown_ids(sent)
    result = quick(sent, OneClinicAtATime)
    assert result.is_cut_short
    assert {lpu_id for lpu_id, _ in sent.control.records()} == {of_clinic(sent, 3)}
    result = quick(sent, OneClinicAtATime)
    assert not result.is_cut_short
    assert shown_ids(sent) == set()


def test_a_clinic_that_has_only_just_changed_is_looked_at_in_each_look_however_little_time_there_is(
    sent: World,
) -> None:
    withdraw(sent)
    for clinic_id in (1, 2, 3):
        sent.edit(SWITCHES["switched off"].replace("= 2", f"= {clinic_id}"))
    withdrawn = WithdrawResult()
    for _ in range(3):
        withdrawn = joined(withdrawn, quick(sent, OneClinicAtATime))
    assert withdrawn.total("withdrawn") > 100
    # As if somebody who had looked before that had sent once more: nothing in Medlock has a stamp of it.
    again = write_ledger(sent, "UPDATE ledger.record SET state = 'sent' WHERE state = 'withdrawn'")
    assert quick(sent, OneClinicAtATime).total("withdrawn") == again == withdrawn.total("withdrawn")


def test_the_leases_of_some_clinics_are_let_go_before_those_of_others_are_taken(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another lane's refusals of a clinic wait while its lease is held."""
    monkeypatch.setattr("medflex.airflow.withdrawing._LEASED_REQUESTS", 1)
    withdraw(sent)
    held: list[list[int]] = []

    class Watched(Withdrawer):
        def _write_held(self) -> None:
            rows = sent.read_ledger("SELECT clinic_id FROM ledger.lease WHERE holder IS NOT NULL ORDER BY 1")
            held.append([clinic_id for (clinic_id,) in rows])
            super()._write_held()

    gone = delete(sent, 1, 2, 3)
    assert sweep(sent, Watched, in_minutes()).total("withdrawn") == len(gone) == 3
    assert held == [[1], [2], [3]]


def test_one_clinic_that_another_withdrawal_holds_keeps_only_itself_waiting(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medflex.airflow.withdrawing._LEASED_REQUESTS", 1)
    withdraw(sent)
    gone = delete(sent, 1, 2, 3)
    with sent.parts() as (_, ledger, _):
        ledger.acquire([2], "another withdrawal", purpose="withdraw")
    result = sweep(sent, clock=in_minutes())
    assert numbers(result) == {"revoked": 3, "withdrawn": 2, "withdraw_to_retry": 1}
    assert len(gone & shown_ids(sent)) == 1


class Busy(Withdrawer):
    """A clock that runs while appointments are judged: by so many seconds, if there are any."""

    def _judge(self, live: Any, now: datetime) -> Any:
        if len(live):
            self._clock.sleep(60.0)
        return super()._judge(live, now)


LATE_COMMIT = "updated_at = now() - interval '1 hour'"
"""The stamp is the time at which the transaction began."""


def test_where_it_takes_long_edits_of_long_transactions_are_gone_over_seldom_and_refusals_always(sent: World) -> None:
    withdraw(sent)
    edited, anonymous, refused, other = some(sent, 4)
    start = datetime.now(UTC)
    # Something is always edited, so that each look takes a minute.
    sent.edit("UPDATE medlock.appointment SET updated_at = now() WHERE id = %s", some(sent, 1, 3))

    def look(minutes: float) -> set[int]:
        before = shown_ids(sent)
        quick(sent, Busy, clock=FakeClock(start + timedelta(minutes=minutes)))
        return before - shown_ids(sent)

    assert look(1) == set()
    moved = f"UPDATE medlock.appointment SET starts_at = now() + interval '60 days', {LATE_COMMIT} WHERE id = %s"
    sent.edit(moved, [edited])
    sent.edit(f"UPDATE medlock.appointment SET is_anonymous = true, {LATE_COMMIT} WHERE id = %s", [anonymous])
    gone = of_patients(sent, [refused]) - {anonymous}
    sent.edit(
        f"UPDATE medlock.patient SET refused_marketing = true, {LATE_COMMIT}"
        " WHERE id = (SELECT patient_id FROM medlock.appointment WHERE id = %s)",
        [refused],
    )
    # What says no is found at once. The last look far back was a minute's work.
    assert look(2) == {anonymous, *gone}
    assert look(10.9) == set()
    assert look(11) == {edited}
    # Far is far behind the last one that went far: what was committed since is among it, however long ago that is.
    assert look(12) == set()
    sent.edit(moved.replace("1 hour", "109 minutes"), [other])
    for minutes in range(13, 21):
        assert look(minutes) == set()
    assert look(21) == {other}
