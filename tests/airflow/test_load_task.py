"""Tasks of the transfer without a scheduler: whether a failure is tried again or final, and what it says."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from medflex.airflow.tasks import transfer
from medflex.airflow.tasks.parts import TransientFailure
from medflex.arrow import UngroupedError
from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.errors import MedlockSchemaError
from sandbox.medflex.faults import Match
from tests.airflow.world import World

SHARD = {"shard": 0, "label": "open-01 · 3 clinics"}
CLINICS = (1, 2, 3)


@pytest.fixture
def planned(filled_world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A run whose only shard has been brought as far as its plan, without a scheduler."""
    context = {"dag_run": SimpleNamespace(dag_id="medflex_transfer", run_id="r"), "ti": SimpleNamespace(try_number=1)}
    monkeypatch.setattr(transfer, "get_current_context", lambda: context)
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
    transfer.plan_changes(SHARD)
    filled_world.connect_medflex(attempts=1)
    return filled_world


def lpu_id(world: World, clinic_id: int) -> int:
    return int(world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0][0])


def test_what_may_pass_is_tried_again_even_beside_what_will_not(planned: World) -> None:
    """One clinic is unknown to Medflex, which no attempt heals; with another one Medflex fails for a while."""
    planned.control.remove_clinics([lpu_id(planned, 1)])
    fault = planned.control.add_fault("status", match=Match(lpu_id=lpu_id(planned, 2)), status=503)
    with pytest.raises(TransientFailure):
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


def test_rows_of_clinics_that_were_not_asked_for_are_the_querys_fault() -> None:
    sentence = r"appointments\.sql returns rows of clinics"
    with pytest.raises(MedlockSchemaError, match=sentence), transfer._of_asked_clinics():
        raise UngroupedError("The clinic_id of a row is in no group.")
