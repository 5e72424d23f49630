"""Withdrawals at their edges: races between lanes, rows that vanish beside a no, lpu_ids that change hands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from medflex.airflow.hooks.medflex import SEND_PATH, MedflexClient
from medflex.airflow.hooks.medlock import Medlock
from medflex.airflow.loading import Loader
from medflex.airflow.triggers.consent import LOOK_BACK
from medflex.airflow.withdrawing import OVERLAP, Withdrawer
from medflex.domain.payload import to_records
from medflex.errors import LedgerUnavailableError
from medflex.ledger.store import Ledger
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.test_reconciling import found, of_clinic, reconcile, transfer
from tests.airflow.test_sweeping import OneClinicAtATime
from tests.airflow.test_withdrawing import (
    REFUSE,
    SWITCHES,
    numbers,
    of_patients,
    quick,
    shown_ids,
    some,
    withdraw,
    withdrawer,
)
from tests.airflow.world import World


@pytest.fixture
def sent(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex."""
    assert not load(filled_world, planned(filled_world)).problems
    return filled_world


def later() -> FakeClock:
    """A quarter of an hour from now: what has only just changed is no news then."""
    return FakeClock(datetime.now(UTC) + timedelta(minutes=15))


# Somebody's no, and a row that is not there


@pytest.mark.parametrize("lane", [[1, 2, 3], None], ids=["sweep", "quick"])
def test_a_refusal_flows_also_where_the_appointments_have_vanished(sent: World, lane: list[int] | None) -> None:
    withdraw(sent)
    ids = some(sent, 25)
    refused = of_patients(sent, ids[:2])
    sent.edit("DELETE FROM medlock.appointment WHERE clinic_id = 1")
    before = shown_ids(sent)
    assert withdraw(sent, [1, 2, 3]).total("withdrawn") == 0
    patients = [
        row[0]
        for row in sent.read_ledger(
            "SELECT DISTINCT patient_id FROM ledger.record WHERE appointment_id = ANY(%s)", [ids[:2]]
        )
    ]
    sent.edit("UPDATE medlock.patient SET refused_marketing = true, updated_at = now() WHERE id = ANY(%s)", [patients])
    # By itself: what is due besides would find it, too.
    result = quick(sent, clock=later()) if lane is None else withdraw(sent, lane, clock=later())
    assert before - shown_ids(sent) == refused
    assert {reason for _, reason in result.revoked} == {"refused_marketing"}


def test_what_a_person_is_asked_about_stays_until_it_is_asked(sent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed in between, or loses the ledger, leaves what was to be withdrawn; not neither."""
    withdraw(sent)
    # Not processed for certain.
    fault = sent.control.add_fault("down")
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [some(sent, 8)])
    assert withdraw(sent, [1]).total("withdraw_to_retry") == 8
    sent.control.remove_fault(fault)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [some(sent, 5)])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "save_hold", lost)
        with pytest.raises(LedgerUnavailableError):
            withdraw(sent, [1])
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(8,)]
    assert withdraw(sent, [1]).total("held") == 13
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(0,)]
    assert sent.read_ledger("SELECT cardinality(appointment_ids), state FROM ledger.hold") == [(13, "open")]


def lost(*_: Any, **__: Any) -> None:
    raise LedgerUnavailableError("The connection was lost.")


def test_a_refusal_flows_where_the_appointment_was_moved_to_another_clinic(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    gone = of_patients(sent, ids)
    sent.edit(
        "UPDATE medlock.appointment SET clinic_id = 2, updated_at = now() - interval '3 days' WHERE id = ANY(%s)",
        [list(gone)],
    )
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    withdraw(sent, clock=later())
    assert not gone & shown_ids(sent)


def test_an_appointment_moved_to_another_clinic_is_withdrawn_from_the_first_at_once(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    sent.edit("UPDATE medlock.appointment SET clinic_id = 2, updated_at = now() WHERE id = ANY(%s)", [ids])
    withdraw(sent, clock=later())
    assert not set(ids) & shown_ids(sent)


# What is permitted for a moment only

LINK_ALL = (
    "INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled) SELECT 2, id, true FROM medlock.partner"
    " ON CONFLICT DO NOTHING"
)
SWITCHED_ON = "UPDATE medlock.medflex_access SET changed_at = now() - interval '{} hours' WHERE clinic_id = 2"
MOMENTS = {
    "its 24 hours are full": (SWITCHED_ON.format(23), SWITCHED_ON.format(25), SWITCHES["switched off"]),
    "a partner is linked": (SWITCHES["one partner less"], LINK_ALL, SWITCHES["one partner less"]),
    "it has another lpu_id": (
        "UPDATE medlock.clinic SET lpu_id = 4712 WHERE id = 2",
        SWITCHES["another lpu_id"],
        "UPDATE medlock.clinic SET lpu_id = 4712 WHERE id = 2",
    ),
}


def some_time_ago(world: World) -> None:
    """Let what looks have seen of clinics be no news any more."""
    with psycopg.connect(world.ledger) as connection:
        connection.execute("UPDATE ledger.clinic_seen SET changed_at = changed_at - interval '1 day'")


def seen_some_time_ago(world: World) -> set[int]:
    """Let a look see all clinics as they are, so long ago that it is no news; return clinic 2's appointments."""
    withdraw(world)
    some_time_ago(world)
    return {row[0] for row in world.read("SELECT id FROM medlock.appointment WHERE clinic_id = 2")}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_was_sent_between_two_looks_is_withdrawn_when_it_is_no_longer_permitted(
    filled_world: World, moment: str
) -> None:
    """No look has seen the clinic permit it, so none can see it permit less."""
    world = filled_world
    before, meanwhile, after = MOMENTS[moment]
    world.edit(before)
    of_2 = seen_some_time_ago(world)
    world.edit(meanwhile)
    world.introduce_clinics()
    assert not load(world, planned(world)).problems
    shown = shown_ids(world)
    assert of_2 & shown
    world.edit(after)
    result = quick(world)
    assert not result.problems
    assert shown_ids(world) == shown - of_2


UNDER_WAY = {
    "its 24 hours are full": MOMENTS["its 24 hours are full"],
    "a partner is linked": MOMENTS["a partner is linked"],
    # What the sender notes is nothing new to the ledger: the look has not yet written down that it is gone.
    "a partner is linked again": (LINK_ALL, LINK_ALL, SWITCHES["one partner less"]),
}


@pytest.mark.parametrize("clinic_ids", [[1, 2, 3], None], ids=["sweep", "quick"])
@pytest.mark.parametrize("place", ["_clinics", "_decide"])
@pytest.mark.parametrize("moment", UNDER_WAY)
def test_a_look_under_way_does_not_hide_what_was_sent_meanwhile(
    filled_world: World, moment: str, place: str, clinic_ids: list[int] | None
) -> None:
    """Nor when the next look comes so late that nothing has only just changed."""
    world = filled_world
    before, meanwhile, after = UNDER_WAY[moment]
    world.edit(before)
    of_2 = seen_some_time_ago(world)
    if before == meanwhile:
        world.edit(after)

    with withdrawer(world) as slow:
        step = getattr(slow, place)

        def taking_long(*arguments: Any, **named: Any) -> Any:
            setattr(slow, place, step)
            done = step(*arguments, **named)
            world.edit(meanwhile)
            assert not load(world, planned(world)).problems
            return done

        setattr(slow, place, taking_long)
        slow.quick() if clinic_ids is None else slow.sweep(clinic_ids)
    shown = shown_ids(world)
    assert of_2 & shown
    world.edit(after)
    some_time_ago(world)
    quick(world)
    assert shown_ids(world) == shown - of_2


def test_a_long_sweep_leaves_a_clinic_that_permitted_less_meanwhile_one_that_has_just_changed(sent: World) -> None:
    """It was linked again before any other look, so that what it shows stays; then it is cut once more."""
    of_2 = seen_some_time_ago(sent)
    clock = FakeClock()
    with withdrawer(sent, clock=clock) as slow:
        clinics = slow._clinics

        def between(*arguments: Any) -> Any:
            sent.edit(SWITCHES["head is head no more"])
            found = clinics(*arguments)
            sent.edit("UPDATE medlock.staff SET role = 'head' WHERE clinic_id = 2")
            slow._clinics = clinics  # type: ignore[method-assign]
            clock.sleep(1200)
            return found

        slow._clinics = between  # type: ignore[method-assign]
        slow.sweep([1, 2, 3])
    shown = shown_ids(sent)
    assert of_2 & shown
    sent.edit(SWITCHES["head is head no more"])
    quick(sent, clock=clock)
    assert shown_ids(sent) == shown - of_2


def test_of_clinics_that_permit_less_another_one_comes_first_each_time(sent: World) -> None:
    """One that is being sent may be narrowed in each look, and there may be time for one only."""
    withdraw(sent)
    sent.edit("UPDATE medlock.medflex_access SET enabled = false, changed_at = now() WHERE clinic_id <> 3")
    of = dict(sent.read("SELECT clinic_id, array_agg(id) FROM medlock.appointment GROUP BY 1"))

    # Rows that were edited lately are looked at besides, whatever their clinic.
    for jitters, gone, left in (([0.9, 0.1], of[2], of[1]), ([0.9], of[1], of[3])):
        with withdrawer(sent, OneClinicAtATime) as look:
            drawn = iter(jitters)
            look._jitter = lambda drawn=drawn: next(drawn, 1.0)
            look.quick()
        assert not shown_ids(sent) & set(gone)
        assert shown_ids(sent) & set(left)


def test_what_was_revoked_ahead_of_the_clock_is_not_withdrawn_before_that(sent: World) -> None:
    withdraw(sent)
    sent.edit("UPDATE medlock.medflex_access SET changed_at = now() + interval '30 seconds' WHERE clinic_id = 2")
    assert quick(sent).total("withdrawn") > 20
    with sent.parts() as (_, ledger, _):
        assert ledger.times_to_withdraw(datetime(2026, 1, 1, tzinfo=UTC))["seconds"].min() >= 0


def test_a_look_whose_clock_is_behind_the_senders_withdraws_nothing_from_a_clinic_that_has_just_opened(
    filled_world: World,
) -> None:
    world = filled_world
    world.edit(SWITCHED_ON.format(25))
    records = planned(world)
    world.edit("UPDATE medlock.medflex_access SET changed_at = now() - interval '23:59:30' WHERE clinic_id = 2")
    of_2 = seen_some_time_ago(world)
    assert not load(world, records, clock=FakeClock(datetime.now(UTC) + timedelta(seconds=40))).problems
    shown = shown_ids(world)
    assert of_2 & shown
    for clinic_ids in (None, [1, 2, 3]):
        withdraw(world, clinic_ids)
        assert shown_ids(world) == shown
    # What it permits is none the less seen to be taken back.
    world.edit(SWITCHES["off and on again"])
    quick(world)
    assert shown_ids(world) == shown - of_2


def test_what_a_clinic_permits_is_noted_when_it_is_news_and_each_ten_seconds(filled_world: World) -> None:
    world, clock = filled_world, FakeClock()
    with world.parts() as (medlock, ledger, client):
        sender = Loader(
            client=client, medlock=medlock, ledger=ledger, clock=clock, holder="a sender", run_key=None,
            extracted_at=clock.now(),
        )  # fmt: skip

        def notes(seconds: float = 0) -> int:
            clock.sleep(seconds)
            sender._note_permissions(medlock.clinics([2], clock.now()))
            return int(ledger.clinics_seen()[2]["writes"])

        assert [notes(), notes(), notes(10)] == [1, 1, 1]
        assert [notes(1), notes()] == [2, 2]
        world.edit(LINK_ALL)
        world.edit(SWITCHES["one partner less"])
        assert [notes(), notes()] == [3, 3]
        # By whom it was switched on is not the head, for a moment.
        world.edit(SWITCHES["head is head no more"])
        assert notes() == 3
        world.edit("UPDATE medlock.staff SET role = 'head' WHERE clinic_id = 2")
        assert [notes(), notes()] == [4, 4]
        # A clock that is set back tells nothing.
        assert notes(-1) == 5


# lpu_ids that change hands


def test_reconciling_a_clinic_leaves_alone_who_has_its_old_lpu_id_now(sent: World) -> None:
    one, two = of_clinic(sent, 1), of_clinic(sent, 2)
    sent.edit("UPDATE medlock.clinic SET lpu_id = NULL WHERE id IN (1, 2)")
    sent.edit("UPDATE medlock.clinic SET lpu_id = CASE id WHEN 1 THEN %s ELSE %s END WHERE id IN (1, 2)", [two, one])
    withdraw(sent, [1, 2, 3])
    transfer(sent)
    assert sent.shown() == sent.expected()
    assert found(reconcile(sent)) == {}
    assert sent.shown() == sent.expected()


def test_appointments_that_move_with_their_lpu_id_to_another_clinic_end_up_right(sent: World) -> None:
    """A clinic is set up anew in Medlock under another id; the old one is withdrawn after the new one was sent."""
    (one,) = sent.read("SELECT lpu_id FROM medlock.clinic WHERE id = 1")[0]
    sent.edit("UPDATE medlock.clinic SET lpu_id = NULL WHERE id IN (1, 2)")
    sent.edit("UPDATE medlock.clinic SET lpu_id = %s WHERE id = 2", [one])
    for table in ("appointment", "patient", "doctor"):
        sent.edit(f"UPDATE medlock.{table} SET clinic_id = 2, updated_at = now() WHERE clinic_id = 1")
    for _ in range(2):
        load(sent, planned(sent), extracted_at=datetime.now(UTC))
    withdraw(sent, [1, 2, 3])
    load(sent, planned(sent), extracted_at=datetime.now(UTC))
    assert sent.shown() == sent.expected()


def test_what_is_withdrawn_for_a_clinics_old_id_while_the_new_one_sends_it_is_sent_again(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same content under the same version Medflex takes it as what it has already."""
    withdraw(sent)
    one = of_clinic(sent, 1)
    # The same partners see it.
    sent.edit("DELETE FROM medlock.clinic_partner WHERE clinic_id = 2")
    sent.edit("UPDATE medlock.clinic_partner SET clinic_id = 2 WHERE clinic_id = 1")
    sent.edit("UPDATE medlock.clinic SET lpu_id = NULL WHERE id IN (1, 2)")
    sent.edit(
        "UPDATE medlock.clinic SET lpu_id = %s, timezone = (SELECT timezone FROM medlock.clinic WHERE id = 1)"
        " WHERE id = 2",
        [one],
    )
    for table in ("appointment", "patient", "doctor"):
        sent.edit(f"UPDATE medlock.{table} SET clinic_id = 2, updated_at = now() WHERE clinic_id = 1")
    post, withdrawn = MedflexClient.post_batch, []

    def posting(client: MedflexClient, path: str, *arguments: Any) -> Any:
        reply = post(client, path, *arguments)
        if path == SEND_PATH and not withdrawn:
            withdrawn.append(withdraw(sent, [1]).total("withdrawn"))
        return reply

    monkeypatch.setattr(MedflexClient, "post_batch", posting)
    load(sent, planned(sent), extracted_at=datetime.now(UTC), parallel=1)
    assert withdrawn[0] > 50
    monkeypatch.undo()
    for _ in range(2):
        withdraw(sent, [1, 2, 3])
        load(sent, planned(sent), extracted_at=datetime.now(UTC))
    assert sent.shown() == sent.expected()


# Looks


def test_the_quick_look_goes_back_as_far_as_the_watch_does(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    # A transaction that ran for long: its stamp is from its beginning.
    sent.edit(REFUSE.format("refused_marketing", "true").replace("now()", "now() - interval '55 minutes'"), [ids])
    gone = of_patients(sent, ids)
    assert withdraw(sent, clock=later()).total("withdrawn") == len(gone)
    assert 2 * LOOK_BACK <= OVERLAP


class TurningMedlock(Medlock):
    """Somebody turns a switch just after the appointments were read."""

    turn: Any = None

    @contextmanager
    def stream_appointments_now(self, *arguments: Any) -> Iterator[Any]:
        with super().stream_appointments_now(*arguments) as answer:
            yield answer
        if self.turn:
            turn, self.turn = self.turn, None
            turn()


def test_a_switch_that_turns_during_a_long_sweep_is_found_by_the_next_quick_look(sent: World) -> None:
    withdraw(sent)
    clock = FakeClock()
    with sent.parts() as (_, ledger, client), TurningMedlock(sent.medlock_app) as medlock:

        def turn() -> None:
            sent.edit(SWITCHES["switched off"])
            clock.sleep(1200)

        medlock.turn = turn
        Withdrawer(client=client, medlock=medlock, ledger=ledger, clock=clock, holder="a sweep", run_key=None).sweep(
            [1, 2, 3]
        )
    assert withdraw(sent, clock=clock).total("withdrawn") > 20
    assert sent.shown() == sent.expected()


def test_a_sweep_does_not_forget_what_another_lane_has_found_meanwhile(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 1)
    gone = of_patients(sent, ids)
    with sent.parts() as (_, ledger, client), TurningMedlock(sent.medlock_app) as medlock:

        def turn() -> None:
            sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
            fault = sent.control.add_fault("status", status=503)
            withdraw(sent, attempts=1)
            sent.control.remove_fault(fault)

        medlock.turn = turn
        Withdrawer(
            client=client, medlock=medlock, ledger=ledger, clock=FakeClock(), holder="a sweep", run_key=None
        ).sweep([1, 2, 3])
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(len(gone),)]


def test_a_clinic_that_is_gone_is_looked_at_whole_only_as_long_as_that_is_new(sent: World) -> None:
    withdraw(sent)
    for table in ("medflex_access", "clinic_partner", "smart_care_scenario", "staff"):
        sent.edit(f"DELETE FROM medlock.{table} WHERE clinic_id = 2")
    sent.edit("DELETE FROM medlock.clinic WHERE id = 2")
    withdraw(sent)
    clock = FakeClock(datetime.now(UTC) + timedelta(hours=3))
    withdraw(sent, clock=clock)
    assert withdraw(sent, clock=clock).total("held") == 0


# The guard


def test_a_withdrawal_that_medflex_put_off_is_not_counted_twice_by_the_guard(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 8)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    fault = sent.control.add_fault("rate_limited", retry_after=0)
    assert withdraw(sent, [1], attempts=1).total("withdraw_to_retry") == 8
    sent.control.remove_fault(fault)
    assert numbers(withdraw(sent, [1])) == {"revoked": 8, "withdrawn": 8}


def test_what_a_person_is_asked_about_is_not_late(sent: World) -> None:
    withdraw(sent)
    ids = some(sent, 20)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[:8]])
    fault = sent.control.add_fault("rate_limited", retry_after=0)
    withdraw(sent, [1], attempts=1)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids[8:]])
    withdraw(sent, [1], attempts=1)
    sent.control.remove_fault(fault)
    assert withdraw(sent, [1]).total("held") == 20
    with sent.parts() as (_, ledger, _):
        assert ledger.late_revocations(0).records == 0


def test_the_share_that_may_vanish_is_one_of_what_is_in_the_window(sent: World) -> None:
    """After years most of what Medflex shows has left the window; that is no reason to let the window vanish."""
    ids = some(sent, 1)
    with psycopg.connect(sent.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest,"
            " patient_id, partner_ids, changed_at) SELECT 1, 1000000 + n, p.lpu_id, 1, 'aged_out', 1, n, p.patient_id,"
            " p.partner_ids, now() - interval '1 year' FROM generate_series(1, 20000) n, ledger.record p"
            " WHERE p.appointment_id = %s",
            ids,
        )
    sent.edit(
        "INSERT INTO medlock.appointment SELECT 1000000 + n, clinic_id, patient_id, doctor_id, starts_at - interval"
        " '1 year', ends_at - interval '1 year', status, is_anonymous, entry, comment, created_at, updated_at"
        " FROM generate_series(1, 20000) n, (SELECT * FROM medlock.appointment WHERE id = %s) a",
        ids,
    )
    sent.edit("DELETE FROM medlock.appointment WHERE clinic_id = 1 AND id < 1000000")
    result = withdraw(sent, [1])
    assert result.total("withdrawn") == 0
    assert result.total("held") > 100


# What is told


def test_a_head_who_is_head_no_more_makes_nothing_late(sent: World) -> None:
    withdraw(sent)
    with sent.parts() as (_, ledger, _), ledger._transaction() as cursor:
        cursor.execute("UPDATE ledger.record SET changed_at = now() - interval '20 days'")
    sent.edit("UPDATE medlock.medflex_access SET changed_at = now() - interval '10 days'")
    sent.edit(SWITCHES["head is head no more"])
    assert withdraw(sent).total("withdrawn") > 20
    with sent.parts() as (_, ledger, _):
        times = ledger.times_to_withdraw(datetime.now(UTC) - timedelta(hours=1))
    assert times["seconds"].max() < 600


def test_a_lease_of_another_withdrawal_does_not_keep_the_quick_look_for_minutes(sent: World) -> None:
    withdraw(sent)
    clock = FakeClock()
    sent.edit(REFUSE.format("refused_personal_data", "true"), [[*some(sent, 1, 1), *some(sent, 1, 2)]])
    with sent.parts() as (_, ledger, _):
        ledger.acquire([1], "another withdrawal", purpose="withdraw")
        began = clock.now()
        withdraw(sent, clock=clock)
    assert clock.now() - began < timedelta(seconds=60)


def test_revocations_are_written_in_parts_and_all_of_them(sent: World, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw(sent)
    monkeypatch.setattr("medflex.ledger.withdrawals._PART_ROWS", 7)
    sent.edit(SWITCHES["switched off"])
    fault = sent.control.add_fault("rate_limited", retry_after=0)
    number = withdraw(sent, attempts=1).total("revoked")
    sent.control.remove_fault(fault)
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(number,)]
    assert withdraw(sent).total("withdrawn") == number > 20


# What is under way


@pytest.mark.parametrize("moved", [False, True])
def test_a_quick_look_finds_what_a_killed_load_may_have_sent(filled_world: World, moved: bool) -> None:
    """The first version of a record is in an intent only. Its appointment moves, and its patient says no."""
    world = filled_world
    withdraw(world)
    one = planned(world).query("clinic_id == 1").head(1)
    record_id, lpu_id = int(one["id"].iloc[0]), int(one["lpu_id"].iloc[0])
    with world.parts() as (_, ledger, client):
        (epoch,) = ledger.acquire([1], "killed").values()
        intent = ledger.record_intent(
            run_key=None, clinic_id=1, lpu_id=lpu_id, operation="send", holder="killed", epoch=epoch,
            appointment_ids=[record_id], versions=[1], digests=one["digest"].tolist(), extracted_at=datetime.now(UTC),
            patient_ids=one["patient_id"].tolist(), partner_ids=[int(one["partners"].iloc[0].split(",")[0])],
        )  # fmt: skip
        assert intent is not None
        body = client.encode({"lpu_id": lpu_id, "records": to_records(one, [1])})
        assert client.post_batch(SEND_PATH, body, str(intent.idempotency_key), {record_id: 1}).accepted
    if moved:
        world.edit("UPDATE medlock.appointment SET clinic_id = 2, updated_at = now() WHERE id = %s", [record_id])
    world.edit(REFUSE.format("refused_personal_data", "true"), [[record_id]])
    # No clinic's permissions have changed of late: nothing is looked at whole.
    assert withdraw(world, clock=later()).total("withdrawn") == 1
    assert not world.control.records()


def test_what_is_permitted_again_is_counted_once_though_the_clinic_is_taken_over(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = some(sent, 6)
    gone = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    regranted = of_patients(sent, ids[:1])
    clock, write_down_really = FakeClock(), Ledger.record_intents
    turns = []

    def stolen(ledger: Ledger, batches: Any) -> Any:
        """Before the first batch is written down, another writer takes the clinic over and lets go of it."""
        if not turns:
            turns.append(1)
            with psycopg.connect(sent.ledger) as connection:
                connection.execute(
                    "UPDATE ledger.lease SET epoch = epoch + 1, holder = 'another', expires_at = now() - interval '1 s'"
                )
        return write_down_really(ledger, batches)

    monkeypatch.setattr(Ledger, "record_intents", stolen)
    under_lease_really = Withdrawer._write_held

    def late(writer: Withdrawer) -> None:
        if not turns:
            clock.sleep(61)
            sent.edit(REFUSE.format("refused_marketing", "false"), [ids[:1]])
        under_lease_really(writer)

    monkeypatch.setattr(Withdrawer, "_write_held", late)
    found = numbers(withdraw(sent, [1], clock=clock))
    assert turns
    assert found == {
        "revoked": len(gone), "withdrawn": len(gone) - len(regranted), "permitted_again": len(regranted)
    }  # fmt: skip


def test_a_no_stays_one_however_often_its_vanished_row_is_looked_at(sent: World) -> None:
    """Each look finds an absence by then; what the first one found must not be forgotten for it."""
    withdraw(sent)
    ids = some(sent, 25)
    sent.edit("UPDATE medlock.appointment SET is_anonymous = true, updated_at = now() WHERE id = ANY(%s)", [ids[:1]])
    # Not processed for certain, so that the record does not count as being withdrawn.
    fault = sent.control.add_fault("down")
    withdraw(sent, attempts=1)
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    for _ in range(2):
        assert withdraw(sent, [1], attempts=1).total("withdrawn") == 0
    kept = sent.read_ledger("SELECT reason, by_absence FROM ledger.revocation WHERE appointment_id = %s", [ids[0]])
    assert kept == [("anonymous_appointment", False)]
    sent.control.remove_fault(fault)
    assert withdraw(sent, [1]).total("held") == 24
    assert ids[0] not in shown_ids(sent)
    assert set(ids[1:]) <= shown_ids(sent)


@pytest.mark.parametrize("lane", [[1, 2, 3], None], ids=["sweep", "quick"])
@pytest.mark.parametrize("status", [None, 504], ids=["unknown", "silent"])
def test_an_old_lpu_id_that_medflex_knows_no_more_keeps_no_refusal_from_the_present_one(
    sent: World, lane: list[int] | None, status: int | None
) -> None:
    withdraw(sent)
    old = of_clinic(sent, 1)
    sent.edit("UPDATE medlock.clinic SET lpu_id = 4711 WHERE id = 1")
    sent.introduce_clinics()
    assert transfer(sent) > 0
    if status is None:
        sent.control.remove_clinics([old])
    else:
        sent.control.add_fault("status", match={"lpu_id": old}, status=status)
    refused = some(sent, 1)
    sent.edit(REFUSE.format("refused_marketing", "true"), [refused])
    assert (4711, refused[0]) in sent.control.records()
    # Many batches under the old number, and they come first.
    result = withdraw(sent, lane, clock=later(), batch_size=10, parallel=1, attempts=1)
    assert result.problems
    assert (4711, refused[0]) not in sent.control.records()
