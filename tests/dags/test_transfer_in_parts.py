"""A shard that is staged in many parts: no task may lose, double or mix up records at their borders."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from medflex import arrow
from medflex.airflow.staging import PARTS, Staging
from medflex.airflow.tasks import transfer
from tests.airflow.dag_runs import run_transfer
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Make parts small; the number of parts that were staged, by kind."""
    monkeypatch.setattr(arrow, "BATCH_BYTES", 2048)
    monkeypatch.setattr(transfer, "SLICE_ROWS", 90)
    monkeypatch.setattr(transfer, "PART_ROWS", 20)
    monkeypatch.setattr(transfer, "GATHERED_ROWS", 7)
    monkeypatch.setattr(transfer, "VALIDATED_ROWS", 60)
    staged: Counter[str] = Counter()
    begun = Staging._begun

    def counting(self: Staging, shard: int, kind: str, part: int, schema: Any) -> Any:
        staged[kind] += 1
        staged[f"{kind} of later slices"] += part >= PARTS
        return begun(self, shard, kind, part, schema)

    monkeypatch.setattr(Staging, "_begun", counting)
    return staged


def test_many_parts_are_sent_and_compared_as_one(filled_world: World, parts: Counter[str]) -> None:
    world = filled_world
    assert run_transfer().state == "success"
    assert parts["extract"] == parts["eligible"] == parts["plan"] > 10
    assert parts["extract of later slices"] > 3
    assert world.shown() == world.expected()

    # One change, somewhere in the middle, and everything else as it was.
    ids = sorted(appointment_id for _, appointment_id in world.shown())
    changed = ids[len(ids) // 2]
    world.edit("UPDATE medlock.appointment SET status = 'перенос' WHERE id = %s", [changed])
    assert run_transfer().state == "success"
    assert world.shown() == world.expected()
    numbers = world.read_ledger(
        "SELECT sum(new), sum(changed), sum(again), sum(unchanged), sum(planned), sum(accepted)"
        " FROM ledger.run_clinic WHERE run_key = (SELECT max(run_key) FROM ledger.run)"
    )
    assert numbers == [(0, 1, 0, len(ids) - 1, 1, 1)]
    # Of what came last time, the plan expects as much again; slices are made by that.
    expected = world.read_ledger(
        "SELECT later.clinic_id, later.expected_rows, earlier.extracted FROM ledger.run_clinic AS later"
        " INNER JOIN ledger.run_clinic AS earlier USING (clinic_id)"
        " WHERE later.run_key = (SELECT max(run_key) FROM ledger.run)"
        " AND earlier.run_key = (SELECT min(run_key) FROM ledger.run) AND later.shard IS NOT NULL"
    )
    assert len(expected) > 1
    assert all(rows == extracted > 0 for _, rows, extracted in expected)
