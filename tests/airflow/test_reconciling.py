"""Reconciliation against a real ledger, a real Medlock and the real sandbox Medflex that has gone its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from medflex.airflow.hooks.medflex import SEND_PATH, WITHDRAW_PATH
from medflex.airflow.reconciling import RESENT, Reconciler, ReconcileResult
from medflex.airflow.withdrawing import Withdrawer
from medflex.clock import SystemClock
from medflex.domain.drift import Drift
from medflex.errors import LeaseHeldError, MedflexContractError, MedflexRefusedError, MedflexUnavailableError
from tests.airflow.leaks import database_text
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.test_withdrawing import REFUSE, of_patients, shown_ids, some, withdraw
from tests.airflow.world import DIGEST_KEY, World

CLINICS = (1, 2, 3)
Key = tuple[int, int]


@pytest.fixture
def agreed(filled_world: World) -> World:
    """600 appointments of three open clinics; Medflex, Medlock and the ledger agree."""
    assert not load(filled_world, planned(filled_world)).problems
    return filled_world


def reconcile(world: World, clinic_ids: Sequence[int] = CLINICS, **settings: Any) -> ReconcileResult:
    """Reconcile with a new reconciler, as a task would."""
    clock = settings.pop("clock", None) or SystemClock()
    repair = settings.pop("repair", True)
    with world.parts(**settings) as (medlock, ledger, client):
        return Reconciler(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=clock,
            holder="test/reconcile",
            run_key=None,
            digest_key=DIGEST_KEY.encode(),
            jitter=lambda: 1.0,
        ).reconcile(clinic_ids, repair=repair)


def found(result: ReconcileResult) -> dict[str, set[Key]]:
    """Return what was found: kind → (lpu_id, id)."""
    kinds: dict[str, set[Key]] = {}
    for (_, lpu_id, kind), ids in result.findings.items():
        kinds.setdefault(kind, set()).update((lpu_id, id_) for id_ in ids)
    assert {kind: len(keys) for kind, keys in kinds.items()} == {kind: result.total(kind) for kind in kinds}
    return kinds


def transfer(world: World) -> int:
    """Send what a transfer would; return how many records left."""
    before = len(world.control.applied())
    assert not load(world, planned(world), extracted_at=datetime.now(UTC)).problems
    return len(world.control.applied()) - before


def behind_our_back(world: World, path: str, records: Iterable[dict[str, Any]], lpu_id: int) -> None:
    """Write to Medflex what no run of ours has, or has no more: a late delivery, a restored backup, a stray hand.

    Versions are ignored, as by a Medflex that does not know them.
    """
    records = list(records)
    fault = world.control.add_fault("ignore_versions")
    with world.parts() as (_, _, client):
        body = client.encode({"lpu_id": lpu_id, "records": records})
        reply = client.post_batch(path, body, str(uuid4()), {item["id"]: item["version"] for item in records})
    assert len(reply.accepted) == len(records)
    world.control.remove_fault(fault)


def vanish(world: World, keys: Iterable[Key]) -> None:
    """Let Medflex lose records."""
    for lpu_id, id_ in keys:
        behind_our_back(world, WITHDRAW_PATH, [{"id": id_, "version": 1, "reason": "appointment_gone"}], lpu_id)


def of_clinic(world: World, clinic_id: int) -> int:
    """Return a clinic's lpu_id."""
    return int(world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0][0])


def edit_status(world: World, ids: Iterable[int], status: str) -> None:
    world.edit("UPDATE medlock.appointment SET status = %s, updated_at = now() WHERE id = ANY(%s)", [status, list(ids)])


def agree(world: World) -> None:
    """Everything is as it should be, and nobody finds anything to do."""
    assert world.shown() == world.expected()
    before = world.sent()
    assert found(reconcile(world)) == {}
    assert transfer(world) == 0
    assert withdraw(world, list(CLINICS)).total("revoked") == 0
    assert world.sent() == before


def test_where_all_agree_nothing_is_found_over_many_pages_and_nothing_is_written(
    agreed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medflex.airflow.hooks.medflex.PAGE_SIZE", 25)
    before = agreed.sent()
    result = reconcile(agreed)
    assert (found(result), result.problems, result.compared) == ({}, [], len(agreed.shown()))
    assert sum(item["method"] == "GET" for item in agreed.control.request_log()) > 9
    # What differs on the first, a middle and the last page is found in its place.
    keys = sorted(key for key in agreed.shown() if key[0] == of_clinic(agreed, 1))
    picked = {keys[0], keys[len(keys) // 2], keys[-1]}
    assert agreed.sent() == before
    vanish(agreed, picked)
    assert found(reconcile(agreed)) == {"missing": picked}
    assert transfer(agreed) == 3
    agree(agreed)


def test_a_write_that_arrives_after_the_withdrawal_is_undone_where_versions_are_ignored(agreed: World) -> None:
    ids = some(agreed, 1)
    gone = of_patients(agreed, ids)
    edit_status(agreed, gone, "no_show")
    ignored = agreed.control.add_fault("ignore_versions")
    late = agreed.control.add_fault("late_delivery", match={"path_prefix": SEND_PATH}, seconds=3)
    result = load(agreed, planned(agreed), extracted_at=datetime.now(UTC), timeout=1.5, attempts=1)
    assert result.numbers[1]["unknown"] == len(gone)
    agreed.control.remove_fault(late)
    agreed.edit(REFUSE.format("refused_marketing", "true"), [ids])
    assert withdraw(agreed).total("withdrawn") == len(gone)
    assert not shown_ids(agreed) & gone
    assert agreed.control.deliver() == 1
    assert gone <= shown_ids(agreed)
    # No other lane can see that: the ledger says withdrawn.
    assert withdraw(agreed, list(CLINICS)).total("revoked") == 0

    result = reconcile(agreed)
    lpu_id = of_clinic(agreed, 1)
    assert found(result) == {"extra": {(lpu_id, id_) for id_ in gone}}
    assert result.withdrawals is not None
    assert {reason for _, reason in result.withdrawals.revoked} == {"refused_marketing"}
    agreed.control.remove_fault(ignored)
    agree(agreed)


def test_a_medflex_that_lost_everything_gets_it_all_again(agreed: World) -> None:
    before = agreed.shown()
    agreed.control.reset()
    agreed.introduce_clinics()
    assert agreed.shown() == {}
    assert transfer(agreed) == 0
    result = reconcile(agreed)
    assert found(result) == {"missing": set(before)}
    assert result.compared == 0
    assert transfer(agreed) == len(before)
    agree(agreed)


def test_what_is_missing_and_may_not_be_shared_any_more_is_withdrawn_to_be_sure(agreed: World) -> None:
    """A refusal that Medflex has forgotten by itself, and a record that has left the window."""
    (refused, old) = some(agreed, 2)
    lpu_id = of_clinic(agreed, 1)
    gone = of_patients(agreed, [refused])
    agreed.edit(REFUSE.format("refused_marketing", "true"), [[refused]])
    agreed.edit("UPDATE medlock.appointment SET starts_at = starts_at - interval '200 days' WHERE id = %s", [old])
    vanish(agreed, [(lpu_id, id_) for id_ in {*gone, old}])
    result = reconcile(agreed)
    assert found(result) == {"gone": {(lpu_id, id_) for id_ in {*gone, old}}}
    assert not set(found(result)) & set(RESENT)
    # It may only not have been listed.
    assert result.withdrawals is not None
    assert result.withdrawals.total("withdrawn") == len({*gone, old})
    agree(agreed)


def test_an_older_and_a_foreign_newer_record_are_withdrawn_and_sent_anew(agreed: World) -> None:
    lpu_id = of_clinic(agreed, 1)
    older, newer = some(agreed, 2)
    records = agreed.control.records()
    old_copy = records[lpu_id, older]
    edit_status(agreed, [older], "no_show")
    assert transfer(agreed) == 1
    # Medflex was restored from a backup; and somebody else wrote what we did not.
    behind_our_back(agreed, SEND_PATH, [old_copy], lpu_id)
    behind_our_back(agreed, SEND_PATH, [records[lpu_id, newer] | {"version": 9, "mis_status": "?"}], lpu_id)
    result = reconcile(agreed)
    assert found(result) == {"older": {(lpu_id, older)}, "newer": {(lpu_id, newer)}}
    assert result.withdrawals is not None
    assert result.withdrawals.total("withdrawn") == 2
    assert not shown_ids(agreed) & {older, newer}
    assert transfer(agreed) == 2
    assert agreed.control.records()[lpu_id, newer]["version"] == 11
    agree(agreed)


def test_records_that_nobody_sent_are_withdrawn(agreed: World) -> None:
    """Of an appointment that Medlock does not have, and of one that may not be shared."""
    lpu_id = of_clinic(agreed, 2)
    a_record = next(record for key, record in agreed.control.records().items() if key[0] == lpu_id)
    withheld = next(
        row[0]
        for row in agreed.read("SELECT id FROM medlock.appointment WHERE clinic_id = 2 ORDER BY id")
        if row[0] not in shown_ids(agreed)
    )
    behind_our_back(agreed, SEND_PATH, [a_record | {"id": 424_242}, a_record | {"id": withheld}], lpu_id)
    assert found(reconcile(agreed)) == {"extra": {(lpu_id, 424_242), (lpu_id, withheld)}}
    agree(agreed)


def test_what_is_to_be_withdrawn_is_so_also_where_the_reconciliation_is_killed_before_that(
    agreed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has changed in Medlock that would lead a quick look there."""
    lpu_id = of_clinic(agreed, 1)
    a_record = next(record for key, record in agreed.control.records().items() if key[0] == lpu_id)
    withdraw(agreed)
    behind_our_back(agreed, SEND_PATH, [a_record | {"id": 424_242}], lpu_id)

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Withdrawer, "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            reconcile(agreed)
    assert 424_242 in shown_ids(agreed)
    # Should nobody look, that is told.
    with agreed.parts() as (_, ledger, _):
        assert ledger.late_revocations(0).records == 1
    assert withdraw(agreed).total("withdrawn") == 1
    assert 424_242 not in shown_ids(agreed)
    with agreed.parts() as (_, ledger, _):
        assert ledger.late_revocations(0).records == 0
    agree(agreed)


@pytest.mark.parametrize("lost", [False, True], ids=["restored from a backup", "lost wholly"])
def test_a_ledger_that_is_behind_is_corrected_without_sending_anything(agreed: World, lost: bool) -> None:
    lpu_id = of_clinic(agreed, 1)
    edited, refused, regranted = some(agreed, 3)
    tables = ("record", "batch", "revocation", "clinic_seen", "watch")
    with agreed.parts() as (_, ledger, _), ledger._transaction() as cursor:
        for table in tables:
            cursor.execute(f"CREATE TABLE backup_{table} AS SELECT * FROM ledger.{table} {'LIMIT 0' if lost else ''}")
    edit_status(agreed, [edited], "no_show")
    gone = of_patients(agreed, [refused])
    back = of_patients(agreed, [regranted])
    agreed.edit(REFUSE.format("refused_marketing", "true"), [[refused, regranted]])
    assert withdraw(agreed).total("withdrawn") == len(gone | back)
    agreed.edit(REFUSE.format("refused_marketing", "false"), [[regranted]])
    assert transfer(agreed) == len({edited} | back)
    assert agreed.shown() == agreed.expected()
    with agreed.parts() as (_, ledger, _), ledger._transaction() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM ledger.{table}")
            cursor.execute(f"INSERT INTO ledger.{table} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{table}")

    before = agreed.sent()
    result = reconcile(agreed)
    behind = set(agreed.shown()) if lost else {(lpu_id, id_) for id_ in {edited, *back}}
    expected = {"ledger_behind": behind} | ({} if lost else {"gone": {(lpu_id, id_) for id_ in gone}})
    assert found(result) == expected
    # What Medflex does not show is withdrawn once more, to be sure.
    assert agreed.sent() == before + (0 if lost else 1)
    agree(agreed)
    # It is known again whose data Medflex shows, and to whom.
    agreed.edit(REFUSE.format("refused_personal_data", "true"), [[edited]])
    agreed.edit("DELETE FROM medlock.clinic_partner WHERE clinic_id = 3")
    withdraw(agreed, list(CLINICS))
    assert agreed.shown() == agreed.expected()


def test_what_may_not_be_shared_any_more_is_withdrawn_although_the_ledger_lost_it(agreed: World) -> None:
    ids = some(agreed, 1)
    gone = {(of_clinic(agreed, 1), id_) for id_ in of_patients(agreed, ids)}
    with agreed.parts() as (_, ledger, _), ledger._transaction() as cursor:
        cursor.execute("DELETE FROM ledger.record WHERE clinic_id = 1")
    agreed.edit(REFUSE.format("refused_marketing", "true"), [ids])
    result = found(reconcile(agreed))
    assert result["extra"] == gone
    assert set(result) == {"extra", "ledger_behind"}
    agree(agreed)


def test_an_old_lpu_id_is_emptied_and_forgotten_once_it_is(agreed: World) -> None:
    old = of_clinic(agreed, 1)
    copies = [record for key, record in agreed.control.records().items() if key[0] == old]
    agreed.edit("UPDATE medlock.clinic SET lpu_id = 4711 WHERE id = 1")
    agreed.introduce_clinics()
    result = reconcile(agreed)
    assert result.withdrawals is not None
    assert {reason for _, reason in result.withdrawals.revoked} == {"lpu_changed"}
    assert not [key for key in agreed.shown() if key[0] == old]
    assert transfer(agreed) == len(copies)
    # A late write brings two back at the old place.
    behind_our_back(agreed, SEND_PATH, copies[:2], old)
    result = reconcile(agreed)
    assert found(result) == {"extra": {(old, record["id"]) for record in copies[:2]}}
    assert not result.problems
    agree(agreed)
    # The token loses the old place: there is nothing left that anybody could care about.
    agreed.control.remove_clinics([old])
    assert reconcile(agreed).problems == []


def test_an_old_lpu_id_that_cannot_be_emptied_is_told_and_the_present_one_is_compared(agreed: World) -> None:
    old = of_clinic(agreed, 1)
    agreed.edit("UPDATE medlock.clinic SET lpu_id = 4711 WHERE id = 1")
    agreed.introduce_clinics()
    assert transfer(agreed) > 0
    agreed.control.remove_clinics([old])
    ours = sorted(key for key in agreed.shown() if key[0] == 4711)
    vanish(agreed, ours[:1])
    result = reconcile(agreed, repair=False)
    assert found(result) == {"missing": set(ours[:1])}
    assert [type(problem) for problem in result.problems] == [MedflexContractError]


def test_a_vanished_clinic_is_asked_about_and_nothing_of_it_is_taken_back(agreed: World) -> None:
    before = agreed.shown()
    for table in ("medflex_access", "clinic_partner", "smart_care_scenario", "staff"):
        agreed.edit(f"DELETE FROM medlock.{table} WHERE clinic_id = 2")
    agreed.edit("DELETE FROM medlock.clinic WHERE id = 2")
    result = reconcile(agreed, [2])
    assert result.withdrawals is not None
    assert (found(result), result.problems, result.withdrawals.asked) == ({}, [], 1)
    assert agreed.shown() == before
    assert agreed.read_ledger("SELECT state, live FROM ledger.hold") == [("open", result.compared)]


def test_a_dry_run_finds_the_same_and_writes_nothing(agreed: World) -> None:
    lpu_id = of_clinic(agreed, 1)
    missing, newer, refused = some(agreed, 3)
    vanish(agreed, [(lpu_id, missing)])
    foreign = agreed.control.records()[lpu_id, newer] | {"version": 9, "mis_status": "?"}
    behind_our_back(agreed, SEND_PATH, [foreign, foreign | {"id": 424_242}], lpu_id)
    agreed.edit(REFUSE.format("refused_marketing", "true"), [[refused]])
    ledger, requests = dict(database_text(agreed.ledger)), agreed.sent()
    foretold = reconcile(agreed, repair=False)
    assert agreed.sent() == requests
    assert dict(database_text(agreed.ledger)) == ledger
    assert foretold.withdrawals is None
    happened = reconcile(agreed)
    assert found(foretold) == found(happened)
    assert set(found(happened)) == {"missing", "newer", "extra"}
    assert foretold.compared == happened.compared
    assert transfer(agreed) == 2
    agree(agreed)


class Interrupting(FakeClock):
    """A clock on which, during the first sleep, something else happens."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens = [happens]

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self._happens:
            self._happens.pop()()


def test_a_withdrawal_takes_the_clinic_over_and_it_is_compared_once_more_behind_it(agreed: World) -> None:
    lpu_id = of_clinic(agreed, 1)
    (missing, refused) = some(agreed, 2)
    gone = of_patients(agreed, [refused])
    vanish(agreed, [(lpu_id, missing)])

    def refuse() -> None:
        agreed.edit(REFUSE.format("refused_marketing", "true"), [[refused]])
        assert withdraw(agreed, [1]).total("withdrawn") == len(gone)

    # Between reading the ledger and reading what Medflex shows.
    agreed.control.add_fault("rate_limited", times=1, retry_after=1, match={"lpu_id": lpu_id})
    result = reconcile(agreed, clock=Interrupting(refuse))
    assert not result.problems
    assert found(result) == {"missing": {(lpu_id, missing)}}
    assert result.compared == len(agreed.shown())
    assert transfer(agreed) == 1
    agree(agreed)


def test_a_clinic_that_another_run_keeps_is_left_alone_and_told(agreed: World) -> None:
    (missing,) = some(agreed, 1)
    vanish(agreed, [(of_clinic(agreed, 1), missing)])
    with agreed.parts() as (_, ledger, _):
        ledger.acquire([1], "a withdrawal", purpose="withdraw")
        result = reconcile(agreed, clock=FakeClock())
    assert found(result) == {}
    assert isinstance(result.problems[0], LeaseHeldError)
    of_others = {of_clinic(agreed, clinic_id) for clinic_id in (2, 3)}
    assert result.compared == sum(lpu_id in of_others for lpu_id, _ in agreed.shown())


@pytest.mark.parametrize(
    ("status", "error"), [(404, MedflexContractError), (503, MedflexUnavailableError), (403, MedflexRefusedError)]
)
def test_trouble_with_one_clinic_does_not_keep_the_others_from_being_compared(
    agreed: World, status: int, error: type[Exception]
) -> None:
    missing = {(of_clinic(agreed, clinic_id), some(agreed, 1, clinic_id)[0]) for clinic_id in CLINICS}
    vanish(agreed, missing)
    first = of_clinic(agreed, 1)
    fault = agreed.control.add_fault("status", match={"lpu_id": first, "method": "GET"}, status=status)
    result = reconcile(agreed, attempts=2)
    assert [type(problem) for problem in result.problems] == [error]
    assert found(result) == {"missing": {key for key in missing if key[0] != first}}
    agreed.control.remove_fault(fault)
    assert found(reconcile(agreed)) == {"missing": {key for key in missing if key[0] == first}}
    assert transfer(agreed) == 3
    agree(agreed)


def test_a_refused_token_stops_at_once_and_is_told_once(agreed: World) -> None:
    agreed.control.add_fault("unauthorized")
    agreed.control.forget_request_log()
    for repair in (False, True):
        result = reconcile(agreed, repair=repair)
        assert len(result.problems) == 1
        assert (found(result), result.compared) == ({}, 0)
    assert len(agreed.control.request_log()) == 2


@pytest.mark.parametrize("shrinks", [False, True], ids=["one page is shorter", "the last page is gone"])
def test_pages_that_change_while_they_are_read_are_read_again(
    agreed: World, monkeypatch: pytest.MonkeyPatch, shrinks: bool
) -> None:
    lpu_id = of_clinic(agreed, 1)
    keys = sorted(key for key in agreed.shown() if key[0] == lpu_id)
    # The last page holds one record, or is nearly full.
    size = len(keys) - 1 if shrinks else len(keys) // 2 + 1
    monkeypatch.setattr("medflex.airflow.hooks.medflex.PAGE_SIZE", size)
    # Without a second look, the first record of the second page would be taken for missing.
    clock = Interrupting(lambda: vanish(agreed, keys[:1]))
    result = reconcile(agreed, [1], clock=clock, rate_per_second=0.01)
    assert not result.problems
    assert found(result) == {"missing": set(keys[:1])}
    assert result.compared == len(keys) - 1
    assert transfer(agreed) == 1
    agree(agreed)


def test_every_kind_of_drift_is_met_in_this_file() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{drift.value}"' in text for drift in Drift)
