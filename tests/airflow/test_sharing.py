"""What partners changed goes to Medflex at once, under the rules and guards of every sending."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from medflex.airflow import sharing
from medflex.airflow.sharing import ChangeSharer, Shared
from medflex.clock import Clock, SystemClock
from medflex.errors import MedflexUnavailableError, ValidationFailedError
from medflex.ledger.store import Ledger
from sandbox.medflex.faults import Match
from tests.airflow.acting import act, target
from tests.airflow.test_loading import load, planned, totals
from tests.airflow.test_withdrawing import sent  # noqa: F401 - a fixture
from tests.airflow.world import DIGEST_KEY, World

SENDING = Match(path_prefix="/appointments/batch/")
REFUSE = "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() WHERE id = (SELECT patient_id FROM"
_runs = itertools.count()


def share(world: World, most: int = sharing.MOST, clock: Clock | None = None, **settings: Any) -> Shared:
    """Share what partners changed, as one run of the task does."""
    with world.parts(**settings) as (medlock, ledger, client):
        return ChangeSharer(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=clock or SystemClock(),
            digest_key=DIGEST_KEY.encode(),
            holder=f"run {next(_runs)}/share",
        ).share(most)


def numbers(result: Shared) -> dict[str, int]:
    """Return those of the numbers that are not zero."""
    return {name: number for name, number in result.numbers.items() if number}


def confirm(world: World, clinic_id: int = 1, nth: int = 0) -> tuple[int, int]:
    """Let a partner confirm an appointment, with success; return its lpu_id and id."""
    found = target(world, clinic_id, nth=nth)
    assert act(world, {**found, "type": "confirm"}) == [(204, "done")]
    return found["lpu_id"], found["appointment_id"]


def confirm_all(world: World, clinic_id: int, number: int) -> list[tuple[int, int]]:
    """Let partners confirm appointments of so many patients of a clinic; return their lpu_ids and ids."""
    found: dict[int, dict[str, Any]] = {}
    for nth in itertools.count():
        item = target(world, clinic_id, nth=nth)
        ((patient_id,),) = world.read(
            "SELECT patient_id FROM medlock.appointment WHERE id = %s", [item["appointment_id"]]
        )
        found.setdefault(patient_id, item)
        if len(found) == number:
            break
    assert set(act(world, *({**item, "type": "confirm"} for item in found.values()))) == {(204, "done")}
    return [(item["lpu_id"], item["appointment_id"]) for item in found.values()]


def unshared(world: World) -> set[int]:
    """Return the appointments whose change is not on its way to Medflex."""
    rows = world.read_ledger("SELECT appointment_id FROM ledger.partner_action WHERE is_effect AND shared_at IS NULL")
    return {row[0] for row in rows}


def touch(world: World, change: str, appointment_id: int) -> None:
    """Change an appointment as the clinic would."""
    assert world.edit(f"UPDATE medlock.appointment SET {change}, updated_at = now() WHERE id = %s", [appointment_id])


def test_what_partners_changed_is_sent_and_nothing_else(sent: World) -> None:  # noqa: F811
    before = sent.control.records()
    confirmed, cancelled = confirm(sent, 1), target(sent, 2)
    told = target(sent, 3)
    assert act(
        sent,
        {**cancelled, "type": "cancel"},
        {**told, "type": "notification", "scenario": "greeting"},
        {**cancelled, "type": "confirm"},
    ) == [(204, "done"), (204, "recorded"), (409, "finished")]
    # What the clinic changed itself is a matter of the daily transfer.
    touch(sent, "status = 'confirmed'", told["appointment_id"])
    assert sent.control.records() == before

    result = share(sent)
    assert not result.problems
    assert numbers(result) == {"changed": 2, "sent": 2}
    after = sent.control.records()
    changed = {
        confirmed: ("confirmed", before[confirmed]["version"] + 1),
        (cancelled["lpu_id"], cancelled["appointment_id"]): ("canceled", cancelled["base_version"] + 1),
    }
    assert {key: (after[key]["status"], after[key]["version"]) for key in after if after[key] != before[key]} == changed
    assert after.keys() == before.keys()
    # Once is enough, and a run with nothing to share asks neither Medlock nor Medflex.
    requests = len(sent.control.request_log())
    assert numbers(share(sent)) == {}
    assert len(sent.control.request_log()) == requests
    assert sent.read_ledger("SELECT count(*) FROM ledger.run") == [(0,)]
    # Whose data it is and who may see it is written down with it, so that it can be withdrawn.
    (shown,) = sent.read_ledger(
        "SELECT state, patient_id IS NOT NULL, partner_ids FROM ledger.record WHERE appointment_id = %s",
        [confirmed[1]],
    )
    assert shown == ("sent", True, after[confirmed]["partners"])


def test_what_may_not_be_shared_any_more_is_not_sent_and_not_looked_at_again(
    sent: World,  # noqa: F811
) -> None:
    kept, *ids = [key[1] for key in confirm_all(sent, 1, 7)]
    closed = confirm(sent, 3)[1]
    refused, banned, anonymous, unreadable, moved, deleted = ids
    before = sent.control.records()
    touch(sent, "is_anonymous = true", anonymous)
    # Out of the window: nothing but that stands against it.
    touch(sent, "starts_at = starts_at + interval '90 days', ends_at = ends_at + interval '90 days'", moved)
    sent.edit(f"{REFUSE} medlock.appointment WHERE id = %s)", [refused])
    sent.edit(
        "UPDATE medlock.patient SET phone = 'nobody knows', updated_at = now() WHERE id = (SELECT patient_id FROM"
        " medlock.appointment WHERE id = %s)",
        [unreadable],
    )
    # A doctor of its own: a ban must not hit the one that may be sent.
    sent.edit(
        "INSERT INTO medlock.doctor SELECT (SELECT max(id) + 1 FROM medlock.doctor), clinic_id, full_name, speciality,"
        " true, now() FROM medlock.doctor WHERE clinic_id = 1 LIMIT 1"
    )
    touch(sent, "doctor_id = (SELECT max(id) FROM medlock.doctor)", banned)
    sent.edit("DELETE FROM medlock.appointment WHERE id = %s", [deleted])
    sent.edit("UPDATE medlock.medflex_access SET enabled = false, changed_at = now() WHERE clinic_id = 3")
    assert unshared(sent) == {kept, *ids, closed}

    result = share(sent)
    assert not result.problems
    of_same_patient = sent.read(
        "SELECT id FROM medlock.appointment WHERE id = %s AND patient_id IN (SELECT patient_id FROM"
        " medlock.appointment WHERE id = ANY(%s))",
        [kept, [refused, unreadable]],
    )
    assert not of_same_patient, "the test's data: the appointment that may be sent needs a patient of its own"
    assert numbers(result) == {"changed": 8, "sent": 1, "not_shared": 7}
    after = sent.control.records()
    assert [key[1] for key in after if after[key] != before[key]] == [kept]
    assert unshared(sent) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE medlock.medflex_access SET enabled = false, changed_at = now()",
        "DELETE FROM medlock.appointment",
        "UPDATE medlock.clinic SET timezone = 'Nowhere/Land'",
        "; ".join(
            f"DELETE FROM medlock.{table}"
            for table in ("medflex_access", "clinic_partner", "smart_care_scenario", "staff", "clinic")
        ),
    ],
    ids=["closed", "deleted", "zone", "gone"],
)
def test_where_nothing_at_all_is_left_to_be_shared_the_run_is_quiet(sent: World, statement: str) -> None:  # noqa: F811
    confirm(sent)
    for part in statement.split("; "):
        sent.edit(part)
    before = sent.sent()
    result = share(sent)
    assert not result.problems
    assert numbers(result) == {"changed": 1, "not_shared": 1}
    assert sent.sent() == before
    assert unshared(sent) == set()


def test_what_turns_after_it_was_judged_is_held_back_by_the_last_look(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = confirm(sent)
    before = sent.control.records()
    validate = sharing.require_valid

    def meanwhile(*arguments: Any) -> int:
        sent.edit(f"{REFUSE} medlock.appointment WHERE id = %s)", [key[1]])
        return validate(*arguments)

    monkeypatch.setattr(sharing, "require_valid", meanwhile)
    result = share(sent)
    assert not result.problems
    assert numbers(result) == {"changed": 1, "waiting": 1}
    assert sent.control.records() == before
    assert numbers(share(sent)) == {"changed": 1, "not_shared": 1}
    assert unshared(sent) == set()


def test_what_partners_do_while_it_is_sent_is_left_to_the_next_run(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    action = target(sent)
    assert act(sent, {**action, "type": "confirm"}) == [(204, "done")]
    validate = sharing.require_valid

    def meanwhile(*arguments: Any) -> int:
        assert act(sent, {**action, "type": "cancel"}) == [(204, "done")]
        return validate(*arguments)

    monkeypatch.setattr(sharing, "require_valid", meanwhile)
    assert numbers(share(sent)) == {"changed": 1, "sent": 1}
    monkeypatch.undo()
    assert unshared(sent) == {action["appointment_id"]}
    assert numbers(share(sent)) == {"changed": 1, "sent": 1}
    assert sent.shown() == sent.expected()


def test_a_clinic_that_another_run_writes_for_is_left_to_the_next_run_at_once(sent: World) -> None:  # noqa: F811
    held, free = confirm(sent, 1), confirm(sent, 2)
    with Ledger(sent.ledger) as ledger:
        ledger.begin_writing("transfer")
        epochs = ledger.acquire([1], "transfer", purpose="send")
        started = time.monotonic()
        result = share(sent)
        assert time.monotonic() - started < sharing.LONGEST.total_seconds()
        assert not result.problems
        assert numbers(result) == {"changed": 2, "sent": 1, "waiting": 1}
        shown = sent.control.records()
        assert (shown[held]["status"], shown[free]["status"]) == ("relevant", "confirmed")
        assert unshared(sent) == {held[1]}
        assert ledger.renew(epochs, "transfer") == 1
        ledger.release(epochs, "transfer")
    assert numbers(share(sent)) == {"changed": 1, "sent": 1}
    assert sent.control.records()[held]["status"] == "confirmed"


def test_an_older_copy_of_a_transfer_does_not_undo_it_and_what_a_transfer_has_sent_is_not_sent_again(
    sent: World,  # noqa: F811
) -> None:
    read_at = datetime.now(UTC)
    read_before = planned(sent)
    key = confirm(sent)
    assert numbers(share(sent)) == {"changed": 1, "sent": 1}
    loaded = load(sent, read_before, holder="transfer", extracted_at=read_at)
    assert totals(loaded)["dropped"] == 1
    assert sent.control.records()[key]["status"] == "confirmed"
    # The other way round: the transfer was quicker.
    other = confirm(sent)
    load(sent, planned(sent), holder="transfer", extracted_at=datetime.now(UTC))
    version = sent.control.records()[other]["version"]
    assert sent.control.records()[other]["status"] == "confirmed"
    assert numbers(share(sent)) == {"changed": 1, "unchanged": 1}
    assert sent.control.records()[other]["version"] == version
    assert unshared(sent) == set()


def test_there_and_back_again_is_sent_so_that_the_copy_in_between_does_not_stay(sent: World) -> None:  # noqa: F811
    key = confirm(sent)
    read_at = datetime.now(UTC)
    read_between = planned(sent)
    touch(sent, "status = 'unconfirmed'", key[1])
    result = share(sent)
    assert numbers(result) == {"changed": 1, "sent": 1}
    load(sent, read_between, holder="transfer", extracted_at=read_at)
    assert sent.shown() == sent.expected()
    assert sent.control.records()[key]["status"] == "relevant"


def test_trouble_with_medflex_is_told_and_the_next_run_goes_on(sent: World) -> None:  # noqa: F811
    (_, first), (_, second) = confirm_all(sent, 1, 2)
    fault = sent.control.add_fault("status", match=SENDING, status=503)
    result = share(sent, attempts=1)
    assert [type(problem) for problem in result.problems] == [MedflexUnavailableError]
    assert numbers(result) == {"changed": 2, "waiting": 2}
    assert unshared(sent) == {first, second}
    sent.control.remove_fault(fault)
    # A reply that is lost: nobody knows whether it has arrived. It is sent again, as a newer version.
    sent.control.add_fault("status", match=SENDING, status=500, when="after", times=1)
    assert numbers(share(sent, attempts=1)) == {"changed": 2, "waiting": 2}
    assert numbers(share(sent, attempts=1)) == {"changed": 2, "sent": 2}
    assert unshared(sent) == set()
    # What Medflex rejects it will reject in two minutes, too; the daily transfer tries it again.
    key = confirm(sent, 2)
    sent.control.add_fault("reject_records", match=SENDING, fraction=1.0, times=1)
    rejected = share(sent)
    assert not rejected.problems
    assert numbers(rejected) == {"changed": 1, "rejected": 1}
    assert sum(rejected.rejected_fields.values()) > 0
    assert unshared(sent) == set()
    assert sent.control.records()[key]["status"] == "relevant"
    load(sent, planned(sent), holder="transfer", extracted_at=datetime.now(UTC))
    assert sent.shown() == sent.expected()


def test_a_process_that_dies_behind_medflexs_yes_sends_nothing_twice(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = confirm(sent)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "mark_shared", die)
    with pytest.raises(KeyboardInterrupt):
        share(sent)
    monkeypatch.undo()
    version = sent.control.records()[key]["version"]
    assert numbers(share(sent)) == {"changed": 1, "unchanged": 1}
    assert sent.control.records()[key]["version"] == version


def test_a_critical_failure_sends_nothing_and_quotes_nothing(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = [confirm(sent, 1), confirm(sent, 2)]
    before = sent.sent()
    build = sharing.build_payload

    def with_a_bug(*arguments: Any) -> Any:
        payload = build(*arguments)
        payload.loc[payload["clinic_id"] == 2, "first_name"] = "  Нехорошо"
        return payload

    monkeypatch.setattr(sharing, "build_payload", with_a_bug)
    with pytest.raises(ValidationFailedError, match=r"first_name_trimmed\), so no appointment that partners") as raised:
        share(sent)
    assert "Нехорошо" not in str(raised.value) + caplog.text
    assert sent.sent() == before
    assert unshared(sent) == {key[1] for key in keys}


def test_great_expectations_is_asked_only_when_there_is_something_to_send(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = confirm(sent)
    sent.edit(f"{REFUSE} medlock.appointment WHERE id = %s)", [key[1]])

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sharing, "validate_outgoing", never)
    assert numbers(share(sent)) == {"changed": 1, "not_shared": 1}


def test_a_run_takes_a_bounded_number_oldest_first_and_stops_before_it_holds_up_the_next_one(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = confirm(sent, 2), confirm(sent, 1), confirm(sent, 3)
    assert numbers(share(sent, most=1)) == {"changed": 1, "sent": 1}
    assert unshared(sent) == {second[1], third[1]}
    assert sent.control.records()[first]["status"] == "confirmed"
    monkeypatch.setattr(sharing, "CLINICS_AT_ONCE", 1)
    monkeypatch.setattr(sharing, "LONGEST", timedelta(0))
    # Not so soon that nothing would ever leave.
    assert numbers(share(sent)) == {"changed": 2, "sent": 1, "waiting": 1}
    monkeypatch.setattr(sharing, "LONGEST", timedelta(minutes=5))
    assert numbers(share(sent)) == {"changed": 1, "sent": 1}
    assert sent.shown() == sent.expected()
    # What is older than a day has gone out with a transfer.
    fourth = confirm(sent)
    monkeypatch.setattr(sharing, "WITHIN", timedelta(0))
    assert numbers(share(sent)) == {}
    assert unshared(sent) == {fourth[1]}


def test_however_long_it_takes_to_prepare_the_time_to_send_is_what_it_is(
    sent: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confirm(sent, 1), confirm(sent, 2)
    late = timedelta(0)

    class Late(SystemClock):
        def now(self) -> datetime:
            return super().now() + late

    validate = sharing.require_valid

    def slowly(*arguments: Any) -> int:
        nonlocal late
        late += 2 * sharing.LONGEST
        return validate(*arguments)

    monkeypatch.setattr(sharing, "require_valid", slowly)
    monkeypatch.setattr(sharing, "CLINICS_AT_ONCE", 1)
    assert numbers(share(sent, clock=Late())) == {"changed": 2, "sent": 2}
