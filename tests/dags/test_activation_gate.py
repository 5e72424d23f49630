"""R1-R3: the gate in front of a clinic's first sending, run by Airflow's own task runner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from medflex.airflow.schedule import next_slot
from medflex.airflow.tasks import transfer
from medflex.errors import MedlockUnavailableError
from tests.airflow.dag_runs import run_transfer, task_states
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]

GATE = "shard.wait_for_activation"
CLINIC = 2


def switch(world: World, clinic_id: int, ago: timedelta, *, enabled: bool = True) -> None:
    """Turn a clinic's switch, by its head, that long ago."""
    world.edit(
        "UPDATE medlock.medflex_access SET enabled = %s, changed_at = now() - %s WHERE clinic_id = %s",
        [enabled, ago, clinic_id],
    )


def lpu_ids_shown(world: World) -> set[int]:
    return {lpu_id for lpu_id, _ in world.control.records()}


def lpu_id(world: World, clinic_id: int = CLINIC) -> int:
    return int(world.read("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id])[0][0])


def gate_states(run: Any) -> list[str]:
    return sorted(state for (task, _), state in task_states(run).items() if task == GATE)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch, airflow_db: object) -> None:
    """The next scheduled run is far away, whatever the time of day, and none is queued that another test triggered."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(DagRun).where(DagRun.state == "queued").delete()
    monkeypatch.setattr(transfer, "next_slot", lambda after: after + timedelta(hours=20))


@pytest.mark.usefixtures("noon")
def test_the_gate_opens_by_itself_and_notices_what_happens_to_the_switch_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clinic 1 is open; the others are short of their 24 hours, and three of them do not stay as they are."""
    world.fill(1000, clinics=5)
    for clinic_id in (2, 3, 4, 5):
        switch(world, clinic_id, timedelta(hours=23))
    look, opens_at = transfer.look_at_gate, datetime.max.replace(tzinfo=UTC)

    def look_and_meddle(context: Any, shard: int) -> Any:
        """However long the run has taken until it waits for the first time, the clinic opens soon after that."""
        nonlocal opens_at
        outlook = look(context, shard)
        if outlook.wait_until is None or outlook.wait_until - outlook.now < timedelta(minutes=30):
            return outlook
        opens_at = datetime.now(UTC) + timedelta(seconds=15)
        switch(world, 2, timedelta(hours=24) - timedelta(seconds=15))
        switch(world, 3, timedelta(0), enabled=False)
        # Off and on again starts the 24 hours anew, and those end after the next run: that one takes over.
        switch(world, 4, timedelta(0))
        world.edit(
            "UPDATE medlock.medflex_access SET changed_by = (SELECT min(id) FROM medlock.staff"
            " WHERE clinic_id = 5 AND role = 'administrator') WHERE clinic_id = 5"
        )
        return look(context, shard)

    monkeypatch.setattr(transfer, "look_at_gate", look_and_meddle)
    run = run_transfer()
    assert run.state == "success"
    assert gate_states(run) == ["skipped", "skipped", "skipped", "success", "success"]
    assert lpu_ids_shown(world) == {lpu_id(world, 1), lpu_id(world, 2)}
    assert world.shown() == world.expected()
    sent_at = world.read_ledger("SELECT min(created_at) FROM ledger.batch WHERE clinic_id = 2")[0][0]
    assert sent_at >= opens_at - timedelta(seconds=1)
    skipped = world.read_ledger("SELECT skipped_because FROM ledger.run_shard WHERE stage = 'skipped' ORDER BY shard")
    assert "The access switch is off." in skipped[0][0]
    assert "takes it over" in skipped[1][0]
    assert "was not turned on by the head" in skipped[2][0]


def test_a_clinic_that_is_off_or_not_on_by_its_head_is_no_shard_and_its_reason_is_kept(filled_world: World) -> None:
    world = filled_world
    switch(world, CLINIC, timedelta(days=2), enabled=False)
    run = run_transfer()
    assert run.state == "success"
    assert lpu_id(world) not in lpu_ids_shown(world)
    rows = world.read_ledger(
        "SELECT access_state, closed_reason, shard FROM ledger.run_clinic WHERE clinic_id = %s", [CLINIC]
    )
    assert rows == [("closed", "switched_off", None)]


def test_behind_a_gate_that_fails_nothing_of_its_shard_is_read_or_sent(
    filled_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails for one shard by a patch: what a real fault takes from the gate, it takes from its neighbours, too."""
    world = filled_world
    monkeypatch.setattr(transfer, "TARGET_ROWS", 1)  # One shard per clinic.
    look, failing = transfer.look_at_gate, 1

    def look_or_fail(context: Any, shard: int) -> Any:
        if shard == failing:
            raise MedlockUnavailableError("Medlock's database does not answer.")
        return look(context, shard)

    monkeypatch.setattr(transfer, "look_at_gate", look_or_fail)
    run = run_transfer()
    assert run.state == "failed"
    states = task_states(run)
    stopped = ["shard.extract", "shard.withhold", "shard.validate", "shard.plan_changes", "shard.load"]
    assert states[GATE, failing] == "failed"
    assert {states[task, failing] for task in stopped} == {"upstream_failed"}
    assert states["shard.withdraw_revoked", failing] == "success"
    others = {index for task, index in states if task == GATE} - {failing}
    assert len(others) == 2
    assert {states[task, index] for task in stopped for index in others} == {"success"}
    of_failing = {row[0] for row in world.read_ledger("SELECT clinic_id FROM ledger.run_clinic WHERE shard = 1")}
    kept_back = {lpu_id(world, clinic_id) for clinic_id in of_failing}
    assert len(kept_back) == 1
    assert world.shown() == {key: record for key, record in world.expected().items() if key[0] not in kept_back}


# -- the clock at the gate, to the second


class FixedClock:
    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now


SWITCHED_AT = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@pytest.fixture
def waiting_shard(filled_world: World) -> World:
    """A run in the ledger, started 22 h 30 min after the switch, whose only shard is the waiting clinic."""
    filled_world.edit(
        "UPDATE medlock.medflex_access SET enabled = true, changed_at = %s WHERE clinic_id = %s", [SWITCHED_AT, CLINIC]
    )
    _start(filled_world, "transfer", "scheduled")
    return filled_world


def _start(world: World, mode: str, run_type: str) -> None:
    from medflex.domain.access import AccessState
    from medflex.domain.packing import Shard

    clinic = {"clinic_id": CLINIC, "lpu_id": 1, "access_state": "waiting", "closed_reason": None, "opens_at": None}
    with world.parts() as (_, ledger, _):
        ledger.start_run(
            dag_id="medflex_transfer",
            run_id="r",
            run_type=run_type,
            mode=mode,
            anchor=SWITCHED_AT + timedelta(hours=22),
            clinic_ids=None,
            started_at=datetime(2026, 11, 21, 8, tzinfo=UTC),
            shards=[Shard("w", (CLINIC,), AccessState.WAITING)],
            clinics=[clinic],
        )


def look(now: datetime, queued: int = 0, monkeypatch: pytest.MonkeyPatch | None = None) -> transfer.Outlook:
    """Look through the gate at that moment; of Airflow only the number of queued runs is played."""
    assert monkeypatch is not None
    monkeypatch.setattr(transfer, "CLOCK", FixedClock(now))
    context: Any = {
        "dag_run": SimpleNamespace(dag_id="medflex_transfer", run_id="r"),
        "ti": SimpleNamespace(get_dr_count=lambda **_: queued, get_task_states=lambda **_: {}),
    }
    return transfer.look_at_gate(context, 0)


def test_open_from_the_second_on_which_the_24_hours_are_full(
    waiting_shard: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = SWITCHED_AT + timedelta(hours=24)
    early = look(opens - timedelta(minutes=1), monkeypatch=monkeypatch)
    assert (early.is_open, early.wait_until) == (False, opens)
    assert look(opens - timedelta(microseconds=1), monkeypatch=monkeypatch).is_open is False
    assert look(opens, monkeypatch=monkeypatch).is_open is True


def test_it_gives_way_to_a_run_that_is_queued(waiting_shard: World, monkeypatch: pytest.MonkeyPatch) -> None:
    outlook = look(SWITCHED_AT + timedelta(hours=23), queued=1, monkeypatch=monkeypatch)
    assert (outlook.is_open, outlook.wait_until) == (False, None)
    assert "another run is queued" in outlook.sentence


def test_it_never_waits_past_the_next_scheduled_run(waiting_shard: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off and on again at 23:00 of the run's day: open the next day at 23:00, after the run of 00:00 UTC."""
    waiting_shard.edit(
        "UPDATE medlock.medflex_access SET changed_at = %s WHERE clinic_id = %s",
        [datetime(2026, 11, 21, 9, tzinfo=UTC), CLINIC],
    )
    outlook = look(datetime(2026, 11, 21, 10, tzinfo=UTC), monkeypatch=monkeypatch)
    assert (outlook.is_open, outlook.wait_until) == (False, None)
    assert f"{next_slot(datetime(2026, 11, 21, 8, tzinfo=UTC)):%Y-%m-%d %H:%M} UTC takes it over" in outlook.sentence


def test_a_clinic_that_opens_just_before_the_next_run_does_not_delay_it(
    waiting_shard: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switched on a minute before the run's slot, it opens a minute before the next one."""
    slot = next_slot(datetime(2026, 11, 21, 8, tzinfo=UTC))
    for minutes, waits in ((1, False), (9, False), (11, True)):
        waiting_shard.edit(
            "UPDATE medlock.medflex_access SET changed_at = %s WHERE clinic_id = %s",
            [slot - timedelta(hours=24, minutes=minutes), CLINIC],
        )
        outlook = look(datetime(2026, 11, 21, 10, tzinfo=UTC), monkeypatch=monkeypatch)
        assert (outlook.wait_until is not None) is waits, minutes


@pytest.mark.parametrize(("mode", "run_type"), [("plan", "manual"), ("transfer", "backfill")])
def test_a_plan_and_a_backfill_do_not_wait(
    waiting_shard: World, mode: str, run_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(waiting_shard, mode, run_type)
    outlook = look(SWITCHED_AT + timedelta(hours=23), monkeypatch=monkeypatch)
    assert (outlook.is_open, outlook.wait_until) == (False, None)
