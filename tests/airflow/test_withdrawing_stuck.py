"""What Medflex does not take keeps nothing else from being withdrawn, however much there is of it.

Against a real ledger, a real Medlock and the real sandbox Medflex.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime
from typing import Any

import pytest

from medflex.airflow import withdrawing, writing
from medflex.airflow.hooks.medlock import Medlock
from medflex.airflow.withdrawing import Withdrawer
from medflex.errors import MedflexRefusedError
from medflex.ledger import watches
from sandbox.medflex.faults import Match
from tests.airflow.test_loading import FakeClock, fails_on, load, planned, watched
from tests.airflow.test_reconciling import of_clinic
from tests.airflow.test_sweeping import OneClinicAtATime, in_minutes, sweep, write_ledger
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


class Little(Withdrawer):
    narrowed_rows = 10


@pytest.fixture
def sent(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex, and were looked at."""
    assert not load(filled_world, planned(filled_world)).problems
    withdraw(filled_world)
    return filled_world


@pytest.fixture
def many(world: World) -> World:
    """The same with more clinics."""
    world.fill(900, clinics=30)
    assert not load(world, planned(world)).problems
    withdraw(world, _clinics(world))
    quick(world)
    return world


def _clinics(world: World) -> list[int]:
    """The clinics of which Medflex shows something."""
    return [row[0] for row in world.read_ledger("SELECT DISTINCT clinic_id FROM ledger.record ORDER BY 1")]


def _shown(world: World) -> set[int]:
    """Of which clinics, by lpu_id."""
    return {lpu_id for lpu_id, _ in world.control.records()}


def _stuck(world: World) -> list[list[int]]:
    rows = world.read_ledger("SELECT value FROM ledger.watch WHERE name = %s", [watches.STUCK])
    return rows[0][0]["of"] if rows else []


def _renumber(world: World, clinic_id: int, *, lpu_id: int = 4711) -> int:
    """Give a clinic another number, of which Medflex takes no withdrawals under the old one; return that."""
    old = of_clinic(world, clinic_id)
    world.edit("UPDATE medlock.clinic SET lpu_id = %s WHERE id = %s", [lpu_id, clinic_id])
    world.introduce_clinics()
    world.control.remove_clinics([old])
    return old


@pytest.mark.parametrize("kind", [Little, OneClinicAtATime])
def test_a_rest_that_medflex_never_takes_keeps_no_other_clinic_from_being_switched_off(
    sent: World, kind: type[Withdrawer]
) -> None:
    old = _renumber(sent, 1)
    looks = 0
    while quick(sent, kind).is_cut_short:
        looks += 1
        assert looks < 5
    assert _stuck(sent) == [[1, old]]
    sent.edit(SWITCHES["switched off"])
    result = quick(sent, kind)
    assert of_clinic(sent, 2) not in _shown(sent)
    # And nobody is made to look again at once for what cannot be done.
    assert not result.is_cut_short


def test_of_what_medflex_does_not_take_one_request_is_tried_in_each_look(sent: World) -> None:
    for table in ("appointment", "patient", "doctor"):
        sent.edit(f"UPDATE medlock.{table} SET updated_at = now() - interval '3 days'")
    old = _renumber(sent, 1)
    assert quick(sent, batch_size=5).total("withdraw_to_retry") > 20
    assert _stuck(sent) == [[1, old]]
    # A clinic that has only just changed is looked at whole.
    result = quick(sent, batch_size=5, clock=in_minutes(11))
    assert numbers(result) == {"revoked": 5, "withdraw_to_retry": 5}


def test_what_medflex_takes_again_is_brought_over_at_once(sent: World) -> None:
    lpu_id = of_clinic(sent, 2)
    fault = sent.control.add_fault("status", match={"lpu_id": lpu_id}, status=404)
    sent.edit(SWITCHES["switched off"])
    assert quick(sent, batch_size=10).total("withdraw_to_retry") > 20
    assert not quick(sent, batch_size=10, clock=in_minutes(11)).is_cut_short
    sent.control.remove_fault(fault)
    # Looks of the clock are far apart; this one says that another has to follow it.
    assert quick(sent, batch_size=10, clock=in_minutes(12)).is_cut_short
    ((noted,),) = sent.read_ledger("SELECT value FROM ledger.watch WHERE name = %s", [watches.CONSENT])
    assert "cut_short_since" in noted
    assert quick(sent, batch_size=10, clock=in_minutes(12.1)).total("withdrawn") > 10
    assert lpu_id not in _shown(sent)
    assert _stuck(sent) == []


def test_where_nobody_gets_through_no_clinic_counts_as_one_that_medflex_does_not_take(sent: World) -> None:
    sent.control.add_fault("down")
    sent.edit(SWITCHES["switched off"])
    assert quick(sent).problems
    assert _stuck(sent) == []


def test_clinics_that_fail_are_behind_the_others_in_the_next_look(many: World) -> None:
    """However many they are: three in a row end a look."""
    clinic_ids = _clinics(many)
    assert len(clinic_ids) >= 8
    bad, good = clinic_ids[:5], clinic_ids[5:]
    for clinic_id in bad:
        many.control.add_fault("status", match={"lpu_id": of_clinic(many, clinic_id)}, status=500)
    many.edit("UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = ANY(%s)", [clinic_ids])
    for _ in range(3):
        quick(many, attempts=1, parallel=1)
    assert _shown(many) == {of_clinic(many, clinic_id) for clinic_id in bad}
    assert good


@pytest.mark.parametrize("status", [429, 503])
def test_requests_that_are_turned_away_now_and_then_do_not_end_a_look(many: World, status: int) -> None:
    many.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=status, every=2)
    many.edit("UPDATE medlock.medflex_access SET enabled = false")
    # Each second batch is turned away at its only attempt.
    result = quick(many, attempts=1, parallel=1)
    assert result.total("withdrawn") > 0
    assert len(_shown(many)) <= len(_clinics(many)) / 2 + 1


@pytest.mark.parametrize("is_known", [True, False])
def test_of_patients_who_were_all_touched_those_who_refused_last_are_found(
    sent: World, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """An import that sets each patient's stamp anew: the look comes to its end, and the sweep does the rest."""

    class Few(Withdrawer):
        most_edits = 10

    asked: list[int] = []
    original = Medlock.changed_appointments

    def counted(self: Medlock, since: Any, **more: Any) -> Any:
        found = original(self, since, **more)
        asked.append(len(found))
        return found

    monkeypatch.setattr(Medlock, "changed_appointments", counted)
    refusing = sent.edit("UPDATE medlock.patient SET updated_at = now() WHERE refused_marketing IS NOT FALSE")
    assert refusing > Few.most_edits
    refused = of_patients(sent, some(sent, 2, 3))
    sent.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    if not is_known:
        # As of records from before the ledger kept whose they are.
        write_ledger(sent, "UPDATE ledger.record SET patient_id = NULL")
    result = quick(sent, Few, clock=in_minutes())
    assert max(asked) <= Few.most_edits + 1
    assert not refused & shown_ids(sent)
    assert numbers(result)["withdrawn"] == len(refused)
    assert result.sweep_is_due
    ((looked_at,),) = sent.read_ledger("SELECT looked_at FROM ledger.watch WHERE name = %s", [watches.CONSENT])
    assert looked_at >= in_minutes(0.5).now()


def test_a_sweep_that_was_asked_for_while_one_was_under_way_follows_it(sent: World) -> None:
    class Few(Withdrawer):
        most_edits = 20

    clock = in_minutes()
    sent.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [some(sent, 1)])
    assert sweep(sent, OneClinicAtATime, clock).sweep_is_due
    clock.sleep(1)
    # Behind the first clinic, of which the sweep under way has seen enough.
    (moved,) = some(sent, 1)
    sent.edit("UPDATE medlock.appointment SET updated_at = now()")
    sent.edit("UPDATE medlock.appointment SET starts_at = now() + interval '60 days' WHERE id = %s", [moved])
    assert quick(sent, Few, clock=clock).sweep_is_due
    clock.sleep(1)
    while sweep(sent, OneClinicAtATime, clock).sweep_is_due:
        clock.sleep(1)
    assert moved in shown_ids(sent)
    clock.sleep(1)
    assert sweep(sent, clock=clock).total("withdrawn") == 1
    assert not quick(sent, clock=in_minutes(200)).sweep_is_due


def test_clinics_with_few_records_that_medflex_takes_again_are_all_brought_over_at_once(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few of them are tried in one look."""
    monkeypatch.setattr(withdrawing, "_PROBES", 2)
    clinic_ids = _clinics(many)
    faults = [
        many.control.add_fault("status", match={"lpu_id": of_clinic(many, clinic_id)}, status=404)
        for clinic_id in clinic_ids
    ]
    many.edit("UPDATE medlock.medflex_access SET enabled = false")
    quick(many)
    assert len(_stuck(many)) == len(clinic_ids) > 4
    for fault in faults:
        many.control.remove_fault(fault)
    looks = 1
    while quick(many, clock=in_minutes(10 + looks)).is_cut_short:
        looks += 1
        assert looks < 20
    assert _shown(many) == set()
    assert looks == -(-len(clinic_ids) // 2)
    assert _stuck(many) == []


def test_batches_that_fail_for_long_end_a_look_also_where_others_are_answered_in_between(many: World) -> None:
    class Impatient(Withdrawer):
        failing_seconds = 90.0

    path = Match(path_prefix="/appointments/withdraw/")
    many.control.add_fault("status", match=path, status=500, every=2)
    many.edit("UPDATE medlock.medflex_access SET enabled = false")

    class Waiting(FakeClock):
        def now(self) -> datetime:
            return self.time

    clock = Waiting()
    before = len(many.control.request_log())
    with withdrawer(many, Impatient, clock=clock, attempts=1, parallel=1) as writer:
        post = writer._client.post_batch

        def slowly(*arguments: Any) -> Any:
            clock.sleep(60.0)
            return post(*arguments)

        writer._client.post_batch = slowly  # type: ignore[assignment]
        writer.quick()
    # One that is answered, one that fails, another that is answered, and the second one that fails.
    assert len([item for item in many.control.request_log()[before:] if item["method"] == "POST"]) == 4


def test_a_sweep_that_was_asked_for_is_due_when_the_last_one_allows_it(sent: World) -> None:
    class Few(Withdrawer):
        most_edits = 20

    write_ledger(
        sent,
        "UPDATE ledger.watch SET value = value || '{\"seconds\": 60.0}', looked_at = %s WHERE name = %s",
        [in_minutes(0).now(), watches.SWEEP],
    )
    sent.edit("UPDATE medlock.appointment SET updated_at = now()")
    assert not quick(sent, Few, clock=in_minutes(1)).sweep_is_due
    assert quick(sent, clock=in_minutes(11)).sweep_is_due


def test_appointments_with_several_causes_count_once_towards_too_many_edits(sent: World) -> None:
    class Few(Withdrawer):
        most_edits = 20

    ids = [row[0] for row in sent.read("SELECT id FROM medlock.appointment ORDER BY id LIMIT 21")]
    # One of them has no clinic any more.
    sent.edit("UPDATE medlock.appointment SET clinic_id = NULL WHERE id = %s", [ids[0]])
    # As ever long ago but for these, which are found as edited and as anonymous.
    for table in ("appointment", "patient", "doctor"):
        sent.edit(f"UPDATE medlock.{table} SET updated_at = now() - interval '3 days'")
    for number, is_due in ((20, False), (21, True)):
        sent.edit(
            "UPDATE medlock.appointment SET updated_at = now(), is_anonymous = true WHERE id = ANY(%s)", [ids[:number]]
        )
        assert quick(sent, Few, clock=in_minutes(0.1)).sweep_is_due is is_due


def test_a_clinic_that_medflex_takes_again_is_gone_on_with_also_where_a_look_ends_early_for_others(many: World) -> None:
    class ByChance(Withdrawer):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            self._jitter = dice.random

    dice = random.Random(5)
    well, *sick = _clinics(many)[:5]
    for clinic_id in sick:
        many.control.add_fault("status", match={"lpu_id": of_clinic(many, clinic_id)}, status=500)
    lpu_id = of_clinic(many, well)
    fault = many.control.add_fault("status", match={"lpu_id": lpu_id}, status=404)
    many.edit("UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = ANY(%s)", [[well, *sick]])
    for minutes in (0, 1, 2):
        quick(many, ByChance, attempts=1, parallel=1, batch_size=2, clock=in_minutes(minutes))
    assert len(_stuck(many)) == 5
    many.control.remove_fault(fault)
    before = len([id_ for lpu, id_ in many.control.records() if lpu == lpu_id])
    assert before > 4
    looks = 0
    while len([id_ for lpu, id_ in many.control.records() if lpu == lpu_id]) == before:
        assert quick(many, ByChance, attempts=1, parallel=1, batch_size=2, clock=in_minutes(15 + looks)).problems
        looks += 1
        assert looks < 30
    assert [well, lpu_id] not in _stuck(many)
    assert len(_stuck(many)) == 4


def test_clinics_of_which_medflex_rejects_each_withdrawal_keep_no_others_from_their_turn(sent: World) -> None:
    sent.control.add_fault("reject_records", match={"lpu_id": of_clinic(sent, 1)}, fraction=1.0)
    for clinic_id in (1, 2):
        sent.edit(SWITCHES["switched off"].replace("= 2", f"= {clinic_id}"))
    looks = 0
    while quick(sent, Little).is_cut_short:
        looks += 1
        assert looks < 10
    assert _stuck(sent) == [[1, of_clinic(sent, 1)]]
    assert of_clinic(sent, 2) not in _shown(sent)


@pytest.mark.parametrize("status", [500, 413])
@pytest.mark.parametrize("parallel", [4, 1])
def test_a_record_on_which_medflex_fails_keeps_no_other_of_its_clinic_from_being_withdrawn(
    sent: World, monkeypatch: pytest.MonkeyPatch, status: int, parallel: int
) -> None:
    ids = [id_ for lpu_id, id_ in sent.control.records() if lpu_id == of_clinic(sent, 2)]
    assert 60 < len(ids) < 500
    (bad,) = some(sent, 1, 2)
    requests = watched(monkeypatch)
    fails_on(sent, bad, status=status)
    sent.edit(SWITCHES["switched off"])
    settings: dict[str, Any] = {"parallel": parallel, "attempts": 2}
    first = quick(sent, **settings)
    assert first.problems
    assert set(ids) <= shown_ids(sent)
    looks, minutes = 0, 0
    while set(ids) & shown_ids(sent) != {bad}:
        looks += 1
        assert looks <= 3
        requests.clear()
        minutes += 15
        result = quick(sent, clock=in_minutes(minutes), **settings)
        assert result.problems
        # What fails is not tried again in the same look.
        assert sum(bad in request for request in requests) == 1
    # That one stays open, tells so, and costs one request a look. Others of the clinic do not wait for it.
    for _ in range(2):
        requests.clear()
        minutes += 15
        result = quick(sent, clock=in_minutes(minutes), **settings)
        assert result.problems
        assert requests == [[bad]]
        assert not result.is_cut_short
    with sent.parts() as (_, ledger, _):
        assert ledger.late_revocations(0).records == 1
    requests.clear()
    assert withdraw(sent, [1, 2, 3], **settings).problems
    assert requests == [[bad]]
    sent.control.clear_faults()
    quick(sent, clock=in_minutes(minutes + 15))
    assert of_clinic(sent, 2) not in _shown(sent)
    assert _stuck(sent) == []


def test_a_sweep_goes_on_where_looks_have_found_what_medflex_fails_on(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bad,) = some(sent, 1, 2)
    requests = watched(monkeypatch)
    fails_on(sent, bad)
    sent.edit(SWITCHES["switched off"])
    quick(sent, attempts=1)
    of_it = len(requests[0])
    requests.clear()
    result = withdraw(sent, [2], attempts=1)
    assert result.total("withdrawn") > of_it * 0.7
    assert result.total("withdraw_unknown") + result.total("withdraw_to_retry") == of_it - result.total("withdrawn")


def test_records_on_which_medflex_fails_do_not_keep_others_from_their_turn_by_their_numbers(
    sent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with the lowest ids, more than may fail in one look."""
    ids = sorted(id_ for lpu_id, id_ in sent.control.records() if lpu_id == of_clinic(sent, 2))
    requests = watched(monkeypatch)
    fails_on(sent, *ids[:6])
    sent.edit(SWITCHES["switched off"])
    for look in range(60):
        requests.clear()
        quick(sent, attempts=1, batch_size=20, clock=in_minutes(15 * look))
        # However many they are.
        assert sum(bool({*request} & {*ids[:6]}) for request in requests) <= 3 + 4
        if set(ids) & shown_ids(sent) == set(ids[:6]):
            break
    assert set(ids) & shown_ids(sent) == set(ids[:6])


def test_a_medflex_that_fails_on_everything_gets_few_requests_in_each_look(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = watched(monkeypatch)
    many.control.add_fault("status", status=500, match=Match(path_prefix="/appointments/withdraw/"))
    many.edit("UPDATE medlock.medflex_access SET enabled = false")
    for look in range(5):
        requests.clear()
        quick(many, attempts=1, clock=in_minutes(15 * look))
        # Three clinics, of each as many as may fail, and what is under way beside these.
        assert len(requests) <= 3 * 3 + 3 * 4


@pytest.mark.parametrize("lane", ["quick", "sweep"])
def test_clinics_that_medflex_forbids_keep_no_others_from_being_withdrawn(many: World, lane: str) -> None:
    """However many they are, and though they have the fewest records, so that their turn comes first."""
    shown = defaultdict[int, list[int]](list)
    for lpu_id, id_ in sorted(many.control.records()):
        shown[lpu_id].append(id_)
    bad = set(sorted(shown)[:5])
    assert len(shown) >= 8
    for lpu_id in bad:
        many.control.add_fault("unauthorized", match={"lpu_id": lpu_id}, status=403)
    refused = {id_ for lpu_id, ids in shown.items() for id_ in (ids[:1] if lpu_id in bad else ids)}
    many.edit(REFUSE.format("refused_marketing", "true"), [sorted(refused)])
    clinic_ids = None if lane == "quick" else _clinics(many)
    result = withdraw(many, clinic_ids, parallel=1)
    # It is told at once all the same.
    assert {type(problem) for problem in result.problems} == {MedflexRefusedError}
    assert {lpu_id for lpu_id, id_ in many.control.records() if id_ in refused} == bad
    if lane == "quick":
        assert {lpu_id for _, lpu_id in _stuck(many)} == bad


def test_a_token_that_medflex_forbids_everything_is_not_tried_for_each_clinic(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_FORBIDDEN_CLINICS", 4)
    assert len(_clinics(many)) > 8
    fault = many.control.add_fault("unauthorized", match={"path_prefix": "/appointments/withdraw/"}, status=403)
    many.edit("UPDATE medlock.medflex_access SET enabled = false")
    before = many.sent()
    result = withdraw(many, _clinics(many), parallel=1)
    assert [type(problem) for problem in result.problems] == [MedflexRefusedError]
    assert many.sent() == before + 4
    # One that it serves in between tells that the token is a good one.
    many.control.remove_fault(fault)
    many.control.add_fault("unauthorized", match={"path_prefix": "/appointments/withdraw/"}, status=403, every=2)
    withdraw(many, _clinics(many), parallel=1)
    assert len(_shown(many)) <= len(_clinics(many)) / 2 + 1
