"""Tasks of the transfer without a scheduler: whether a failure is tried again or final, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowFailException

from medflex.airflow import sharing
from medflex.airflow.tasks import transfer
from medflex.airflow.tasks.parts import TransientFailure
from medflex.arrow import UngroupedError
from medflex.clock import SystemClock
from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.errors import MedlockSchemaError, ValidationFailedError
from medflex.ledger.store import Ledger
from sandbox.medflex.faults import Match
from tests.airflow.test_loading import FakeClock, load
from tests.airflow.test_loading import planned as records_of
from tests.airflow.world import World

SHARD = {"shard": 0, "label": "open-01 · 3 clinics"}
CLINICS = (1, 2, 3)


@pytest.fixture
def planned(filled_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A run whose only shard has been brought as far as its plan, without a scheduler."""
    attempt(monkeypatch, 1)
    now = datetime.now(UTC)
    clinics = [
        {"clinic_id": clinic_id, "lpu_id": None, "access_state": "open", "closed_reason": None, "opens_at": None}
        for clinic_id in CLINICS
    ]
    with filled_world.parts() as (_, ledger, _):
        ledger.start_run(
            dag_id="medflex_transfer", run_id="r", run_type="manual", mode="transfer", anchor=now, clinic_ids=None,
            started_at=now, shards=[Shard(str(SHARD["label"]), CLINICS, AccessState.OPEN)], clinics=clinics,
        )  # fmt: skip
    transfer.extract(SHARD)
    transfer.withhold(SHARD)
    transfer.validate(SHARD)
    transfer.plan_changes(SHARD)
    filled_world.connect_medflex(attempts=1)
    return filled_world


def attempt(monkeypatch: pytest.MonkeyPatch, number: int, **states: str) -> None:
    """Go on as another attempt of whichever task comes next, beside tasks of the run in these states."""

    def task_states(dag_id: str, run_ids: list[str], task_ids: list[str] | None) -> dict[str, dict[str, str]]:
        known = {"at_work_0": "running"} | states
        wanted = None if task_ids is None else {*task_ids, *(f"{name}_0" for name in task_ids)}
        return {"r": {name: state for name, state in known.items() if wanted is None or name in wanted}}

    context = {
        "dag_run": SimpleNamespace(dag_id="medflex_transfer", run_id="r", conf={}),
        "ti": SimpleNamespace(task_id="at_work", map_index=0, try_number=number, get_task_states=task_states),
        "params": {},
    }
    monkeypatch.setattr(transfer, "get_current_context", lambda: context)


def overtaken_by(monkeypatch: pytest.MonkeyPatch, another: Callable[[], int]) -> None:
    """Let another attempt do all of the work as soon as the next one asks for its leases."""
    acquire = Ledger.acquire

    def wakes_up_late(ledger: Ledger, *arguments: Any, **named: Any) -> dict[int, int]:
        monkeypatch.setattr(Ledger, "acquire", acquire)
        assert another() > 0
        return acquire(ledger, *arguments, **named)

    monkeypatch.setattr(Ledger, "acquire", wakes_up_late)


def lpu_id(world: World, clinic_id: int) -> int:
    return int(world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0][0])


def test_what_stops_an_attempt_is_told_instead_of_what_stopped_the_one_before(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its staging is gone by then: nobody is to look for what is mended."""
    fault = planned.control.add_fault("status", status=401)
    with pytest.raises(AirflowFailException, match="MedflexRefusedError"):
        transfer.load(SHARD)
    planned.control.remove_fault(fault)
    attempt(monkeypatch, 2)
    transfer._staging(transfer.get_current_context()).remove()
    with pytest.raises(AirflowFailException, match="is gone"):
        transfer.load(SHARD)
    ((problem,),) = planned.read_ledger("SELECT problem FROM ledger.run_shard")
    assert "is gone" in problem
    assert "token" not in problem


def test_what_may_pass_is_tried_again_even_beside_what_will_not(planned: World) -> None:
    """One clinic is unknown to Medflex, which no attempt heals; with another one Medflex fails for a while."""
    planned.control.remove_clinics([lpu_id(planned, 1)])
    fault = planned.control.add_fault("status", match=Match(lpu_id=lpu_id(planned, 2)), status=503)
    # By its name, under which the runbook has it.
    with pytest.raises(TransientFailure, match=r"^MedflexUnavailableError: "):
        transfer.load(SHARD)
    (problem,) = planned.read_ledger("SELECT problem FROM ledger.run_shard")[0]
    assert "does not know this clinic's lpu_id" in problem
    assert "kept failing (HTTP 503)" in problem
    planned.control.remove_fault(fault)
    # The next attempt brings over what it can, and what is left is final.
    with pytest.raises(AirflowFailException, match="does not know this clinic's lpu_id"):
        transfer.load(SHARD)
    assert {key[0] for key in planned.control.records()} == {lpu_id(planned, 2), lpu_id(planned, 3)}


def test_an_attempt_without_trouble_returns_the_numbers_of_all(planned: World) -> None:
    numbers = transfer.load(SHARD)
    assert numbers["accepted"] == len(planned.shown()) > 0
    assert sum(numbers.values()) == numbers["accepted"]
    assert planned.shown() == planned.expected()


def test_a_load_that_is_killed_at_its_end_has_its_problems_written_down(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the run would be settled as if there had been none."""
    planned.control.add_fault("status", match=Match(lpu_id=lpu_id(planned, 2)), status=503)
    set_stage = Ledger.set_stage

    def killed(*arguments: Any, **named: Any) -> None:
        set_stage(*arguments, **named)
        raise SystemExit

    monkeypatch.setattr(Ledger, "set_stage", killed)
    with pytest.raises(SystemExit):
        transfer.load(SHARD)
    ((stage, problem),) = planned.read_ledger("SELECT stage, problem FROM ledger.run_shard")
    assert stage == "loaded"
    assert "kept failing (HTTP 503)" in problem


def test_rows_of_clinics_that_were_not_asked_for_are_the_querys_fault() -> None:
    sentence = r"appointments\.sql returns rows of clinics"
    with pytest.raises(MedlockSchemaError, match=sentence), transfer._of_asked_clinics():
        raise UngroupedError("The clinic_id of a row is in no group.")


def test_an_extract_that_was_cleared_alone_makes_its_rows_no_younger(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded was read before a partner moved the appointment, whatever was read since."""
    record = records_of(planned).iloc[0]
    planned.edit(
        "UPDATE medlock.appointment SET starts_at = starts_at + interval '1 hour',"
        " ends_at = ends_at + interval '1 hour' WHERE id = %s",
        [int(record["id"])],
    )
    moved = records_of(planned).query(f"id == {record['id']}")
    assert not load(planned, moved, extracted_at=datetime.now(UTC), holder="partner actions").problems
    attempt(monkeypatch, 2)
    transfer.extract(SHARD)
    assert transfer.load(SHARD)["dropped"] == 1
    shown = planned.control.records()[int(record["lpu_id"]), int(record["id"])]
    assert shown["dt_start"] == moved["dt_start"].iloc[0] != record["dt_start"]


def test_a_plan_of_rows_that_were_judged_anew_is_not_loaded(planned: World, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(monkeypatch, 2)
    transfer.withhold(SHARD)
    with pytest.raises(AirflowFailException, match="judged anew after its plan was made: clear it from extract on"):
        transfer.load(SHARD)
    assert not planned.control.records()
    transfer.validate(SHARD)
    transfer.plan_changes(SHARD)
    assert transfer.load(SHARD)["accepted"] == len(planned.shown()) > 0


def test_rows_that_were_not_validated_are_not_sent_whatever_validate_is_marked_as(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow clears what comes behind a task that somebody marks as successful, and it begins."""
    refusal = "as they were judged last, have not passed validation: clear it from extract on"
    attempt(monkeypatch, 2)
    transfer.withhold(SHARD)
    with pytest.raises(AirflowFailException, match=refusal):
        transfer.plan_changes(SHARD)
    transfer.validate(SHARD)
    transfer.plan_changes(SHARD)

    def failing(*_: object) -> int:
        raise ValidationFailedError("1 critical expectation failed.")

    attempt(monkeypatch, 3)
    # No data of this world's fails a critical expectation here; which do, tests/quality tells.
    with monkeypatch.context() as broken:
        broken.setattr(sharing, "require_valid", failing)
        with pytest.raises(AirflowFailException, match="1 critical expectation failed"):
            transfer.validate(SHARD)
    # The plan of the rows is there, from when they had passed.
    for task in (transfer.plan_changes, transfer.load):
        with pytest.raises(AirflowFailException, match=refusal):
            task(SHARD)
    assert not planned.control.records()
    assert planned.read_ledger("SELECT problem FROM ledger.run_shard") == [("1 critical expectation failed.",)]
    transfer.validate(SHARD)
    transfer.plan_changes(SHARD)
    assert transfer.load(SHARD)["accepted"] == len(planned.shown()) > 0


@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_a_task_that_is_cleared_alone_behind_the_runs_end_changes_nothing(
    planned: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Nobody would settle the run, or remove what is staged, behind it."""
    attempt(monkeypatch, 2, settle_run=state)
    before = planned.read_ledger("SELECT * FROM ledger.run_shard"), planned.read_ledger("SELECT * FROM ledger.run")
    tasks = (transfer.extract, transfer.withhold, transfer.validate, transfer.plan_changes, transfer.load)
    for task in (lambda _: transfer.plan_shards(), *tasks):
        with pytest.raises(
            AirflowFailException, match=r"cleared without those behind it: clear it once more with Down"
        ):
            task(SHARD)
    with pytest.raises(AirflowFailException, match="cleared without those behind it"):
        transfer.look_at_gate(transfer.get_current_context(), 0)
    assert before == (
        planned.read_ledger("SELECT * FROM ledger.run_shard"), planned.read_ledger("SELECT * FROM ledger.run")
    )  # fmt: skip
    assert not planned.control.records()
    # Cleared with those behind it, or while the run goes on.
    attempt(monkeypatch, 2, settle_run="scheduled")
    assert transfer.load(SHARD)["accepted"] > 0


def test_what_may_no_longer_be_shared_is_withdrawn_behind_the_runs_end_as_well(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.load(SHARD)
    patient = int(records_of(planned).iloc[0]["patient_id"])
    planned.edit("UPDATE medlock.patient SET refused_notifications = true WHERE id = %s", [patient])
    attempt(monkeypatch, 2, settle_run="success")
    context = transfer.get_current_context()
    context["outlet_events"] = {}
    assert transfer.withdraw_revoked(SHARD)["withdrawn"] > 0


def test_a_shards_task_makes_a_report_that_was_there_before_it_out_of_date(planned: World) -> None:
    with planned.parts() as (_, ledger, _):
        key = ledger.run("medflex_transfer", "r").run_key
        for task in (transfer.extract, transfer.withhold, transfer.validate, transfer.plan_changes, transfer.load):
            ledger.set_report(key, "file:///report")
            task(SHARD)
            assert ledger.report(key) is None


def test_rows_that_were_read_days_ago_are_not_sent(planned: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DAG was paused in between. Whether an appointment was moved or cancelled, the last look does not ask."""
    read_at = transfer._noted(transfer._staging(transfer.get_current_context()).read(0, "clinics", 0), "extracted_at")
    monkeypatch.setattr(transfer, "CLOCK", FakeClock(read_at + timedelta(days=1, seconds=1)))
    with pytest.raises(AirflowFailException, match="read from Medlock more than a day ago: clear it from extract on"):
        transfer.load(SHARD)
    assert not planned.control.records()
    monkeypatch.setattr(transfer, "CLOCK", SystemClock())
    assert transfer.load(SHARD)["accepted"] > 0


def test_an_attempt_that_was_thought_dead_says_nothing_about_the_shard(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes behind the attempt that has sent everything."""
    overtaken_by(monkeypatch, lambda: transfer.load(SHARD)["accepted"])
    with pytest.raises(TransientFailure, match="Another attempt of this task has taken over"):
        transfer.load(SHARD)
    assert planned.read_ledger("SELECT stage, problem FROM ledger.run_shard") == [("loaded", None)]
    ((accepted, to_retry),) = planned.read_ledger("SELECT sum(accepted), sum(to_retry) FROM ledger.run_clinic")
    assert (accepted, to_retry) == (len(planned.shown()), 0)


@pytest.mark.parametrize("task", [transfer.validate, transfer.load])
def test_what_another_version_has_staged_is_told(planned: World, task: Callable[..., object]) -> None:
    staging = transfer._staging(transfer.get_current_context())
    snapshot = staging.read(0, "clinics", 0)
    staging.write(0, "clinics", 0, snapshot.replace_schema_metadata({"unknown": "to us"}))
    with pytest.raises(AirflowFailException, match="from another version of the product: clear it from extract on"):
        task(SHARD)


def test_a_shard_that_was_not_extracted_since_its_plan_is_told(planned: World) -> None:
    """With nothing staged it would be taken for a shard without appointments."""
    with planned.parts() as (_, ledger, _), ledger._transaction() as cursor:
        cursor.execute("UPDATE ledger.run_shard SET extracted_at = NULL")
    with pytest.raises(AirflowFailException, match="has not been extracted since the run was planned: clear it from"):
        transfer.withhold(SHARD)


@pytest.mark.parametrize("task", [transfer.extract, transfer.withhold, transfer.load, transfer.withdraw_revoked])
def test_a_shard_that_the_plan_no_longer_has_is_told(planned: World, task: Callable[..., object]) -> None:
    with pytest.raises(AirflowFailException, match="The run has no shard 7 any more, since it was planned anew: clear"):
        task({"shard": 7, "label": "open-08 · 1 clinic"})


def test_numbers_of_clinics_stay_exact_beside_one_without(planned: World) -> None:
    with planned.parts() as (medlock, _, _):
        clinics = medlock.clinics(list(CLINICS), datetime.now(UTC))
    clinics["lpu_id"] = pd.array([2**53 + 1, None, 3], dtype="Int64")
    staged = pa.Table.from_pandas(clinics, preserve_index=False).replace_schema_metadata({"judged_at": "now"})
    assert transfer._clinics_frame(staged)["lpu_id"].tolist() == [2**53 + 1, pd.NA, 3]


def test_a_run_that_is_planned_anew_finds_nothing_of_its_namesakes_staging(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was deleted in Airflow, and is made again under its name, counts its attempts from one."""
    attempt(monkeypatch, 2)
    transfer.extract(SHARD)
    transfer.withhold(SHARD)
    transfer.validate(SHARD)
    transfer.plan_changes(SHARD)
    record = records_of(planned).iloc[0]
    planned.edit("UPDATE medlock.patient SET phone = '8 900 555-55-55' WHERE id = %s", [int(record["patient_id"])])
    now = datetime.now(UTC)
    run = SimpleNamespace(
        dag_id="medflex_transfer", run_id="r", run_type="manual", conf={}, logical_date=now, run_after=now,
        data_interval_start=now, data_interval_end=now,
    )  # fmt: skip
    attempt(monkeypatch, 1)
    context = transfer.get_current_context()
    context["dag_run"] = run  # type: ignore[typeddict-item]
    for shard in transfer.plan_shards():
        for task in (transfer.extract, transfer.withhold, transfer.validate, transfer.plan_changes, transfer.load):
            task(shard)
    assert planned.shown() == planned.expected()


def test_a_withdrawing_attempt_that_was_thought_dead_says_nothing_about_the_shard(
    planned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer.load(SHARD)
    patient = int(records_of(planned).iloc[0]["patient_id"])
    planned.edit("UPDATE medlock.patient SET refused_notifications = true WHERE id = %s", [patient])
    transfer.get_current_context()["outlet_events"] = {}  # type: ignore[typeddict-item]
    overtaken_by(monkeypatch, lambda: transfer.withdraw_revoked(SHARD)["withdrawn"])
    with pytest.raises(TransientFailure, match="Another attempt of this task has taken over"):
        transfer.withdraw_revoked(SHARD)
    assert planned.read_ledger("SELECT withdraw_stage, withdraw_problem FROM ledger.run_shard") == [("withdrawn", None)]
    assert planned.read_ledger("SELECT sum(revoked) = sum(withdrawn) FROM ledger.run_clinic") == [(True,)]


def test_a_task_that_meets_a_ledger_of_another_version_sends_nothing_and_says_so(planned: World) -> None:
    """It began before the ledger was migrated, or a migration has failed before it began."""
    with planned.parts() as (_, ledger, _), ledger._transaction() as cursor:
        cursor.execute("UPDATE ledger.schema_version SET version_num = '0009'")
    with pytest.raises((AirflowFailException, TransientFailure), match="LedgerOutdatedError"):
        transfer.load(SHARD)
    assert not planned.control.records()
