"""What an attempt that was killed leaves held is let go by the next one, which has nothing else to do there."""

from __future__ import annotations

from medflex.airflow.reconciling import Reconciler
from medflex.airflow.withdrawing import Withdrawer
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.world import DIGEST_KEY, World


def held(world: World) -> list[tuple[int, str]]:
    return world.read_ledger("SELECT clinic_id, holder FROM ledger.lease WHERE holder IS NOT NULL ORDER BY clinic_id")


def test_an_attempt_killed_behind_its_last_acknowledgement_keeps_nobody_waiting(filled_world: World) -> None:
    world, clock = filled_world, FakeClock()
    with world.parts() as (medlock, ledger, client):
        ledger.acquire([1], "task", purpose="withdraw", token=ledger.begin_writing("task"))
        ledger.acquire([2], "another task", purpose="withdraw")
        # The second search is not due, and has nothing to look at.
        for lane in ("sweep", "quick", "sweep_further", "sweep_further"):
            again = Withdrawer(client=client, medlock=medlock, ledger=ledger, clock=clock, holder="task", run_key=None)
            result = getattr(again, lane)(*([[1]] if lane == "sweep" else []))
            assert not result.problems
            assert held(world) == [(2, "another task")]
            ledger.acquire([1], "task", purpose="withdraw")


def test_an_attempt_of_a_reconciliation_does_not_wait_for_the_withdrawals_of_a_killed_one(filled_world: World) -> None:
    world, clock = filled_world, FakeClock()
    assert not load(world, planned(world)).problems
    with world.parts() as (medlock, ledger, client):
        ledger.acquire([1, 2, 3], "task/withdraw", purpose="withdraw")
        result = Reconciler(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=clock,
            holder="task",
            run_key=None,
            digest_key=DIGEST_KEY.encode(),
        ).reconcile([1, 2, 3])
    assert not result.problems
    assert clock.slept == []
    assert held(world) == []
