"""The whole DAG, run by Airflow's own task runner against a real Postgres and the real sandbox Medflex."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.postgres import Cluster
from tests.airflow.dag_runs import run_transfer, task_states
from tests.airflow.leaks import database_text, folder_text, found_canaries
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]

FUNNEL = (
    "SELECT sum(extracted), sum(eligible), sum(withheld), sum(quarantined), sum(unchanged), sum(planned), sum(accepted)"
)


def funnel(world: World, run_id: str) -> tuple[int, ...]:
    """Return extracted, eligible, withheld, quarantined, unchanged, planned, accepted of a run."""
    (row,) = world.read_ledger(
        f"{FUNNEL} FROM ledger.run_clinic JOIN ledger.run USING (run_key) WHERE run_id = %s", [run_id]
    )
    return tuple(int(number or 0) for number in row)


def test_what_medflex_shows_is_what_an_independent_loop_computes(world: World) -> None:
    """Every kind of clinic and record of the demo data; then nothing to do; then exactly what was edited."""
    world.fill(4000)
    first = run_transfer()
    assert first.state == "success", task_states(first)
    expected = world.expected()
    assert world.shown() == expected
    assert len(expected) > 1000
    extracted, eligible, withheld, quarantined, unchanged, planned, accepted = funnel(world, first.run_id)
    assert extracted == eligible + withheld + quarantined
    assert (eligible, unchanged, planned, accepted) == (len(expected), 0, len(expected), len(expected))
    assert withheld > 0
    assert quarantined > 0
    assert not world.staging.exists() or not [path for path in world.staging.rglob("*") if path.is_file()]

    requests = world.sent()
    second = run_transfer()
    assert second.state == "success"
    assert world.sent() == requests
    assert funnel(world, second.run_id)[4:] == (len(expected), 0, 0)

    edited = [key[1] for key in list(expected)[:7]]
    assert world.edit("UPDATE medlock.appointment SET status = 'no_show' WHERE id = ANY(%s)", [edited]) == 7
    planned_only = run_transfer(mode="plan")
    assert planned_only.state == "success"
    assert world.sent() == requests
    changed = {key for key, record in world.expected().items() if record != expected.get(key)}
    before = world.control.records()
    third = run_transfer()
    assert third.state == "success"
    after = world.control.records()
    assert {key for key in after if after[key]["version"] != before[key]["version"]} == changed
    assert world.shown() == world.expected()
    # The plan's numbers were those of the next real run.
    assert funnel(world, planned_only.run_id)[:6] == funnel(world, third.run_id)[:6]


def test_a_green_run_leaves_no_personal_data_anywhere(
    filled_world: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    run = run_transfer()
    assert run.state == "success"
    text = log_text()
    assert "Extracted" in text
    assert found_canaries([("logs", text)]) == []
    assert found_canaries(database_text(airflow_db.uri("airflow"))) == []
    assert found_canaries(database_text(filled_world.ledger)) == []
    assert found_canaries(folder_text(filled_world.data_docs)) == []
    pages = list(filled_world.data_docs.rglob("*.html"))
    assert pages
    # The search is worth something: the same canaries are in the bodies that Medflex got.
    assert found_canaries([("medflex", str(filled_world.shown()))]) != []


def test_only_the_clinics_that_were_asked_for(filled_world: World) -> None:
    run = run_transfer(clinic_ids=[2])
    assert run.state == "success"
    (lpu_id,) = filled_world.read("SELECT lpu_id FROM medlock.clinic WHERE id = 2")[0]
    assert {key[0] for key in filled_world.control.records()} == {lpu_id}


def test_a_backfill_day_is_cut_down_to_what_may_be_sent_today(filled_world: World) -> None:
    """A day 50 days ago: its window's end overlaps with today's window by some days."""
    day = datetime.now(UTC) - timedelta(days=50)
    run = run_transfer(logical_date=day)
    assert run.state == "success"
    today, then = filled_world.expected(), filled_world.expected(day=day)
    both = {key: record for key, record in today.items() if key in then}
    assert filled_world.shown() == both
    assert 0 < len(both) < len(today)
    # However it came about, it is not the daily run that alerts wait for; the next one is.
    assert run_transfer().state == "success"
    assert filled_world.read_ledger("SELECT is_of_today FROM ledger.run ORDER BY run_key") == [(False,), (True,)]
    assert filled_world.read_ledger("SELECT count(*) FROM ledger.daily_run") == [(1,)]


def test_a_day_wholly_outside_is_green_and_says_so(filled_world: World, log_text: Callable[[], str]) -> None:
    run = run_transfer(logical_date=datetime.now(UTC) - timedelta(days=200))
    assert run.state == "success"
    assert filled_world.sent() == 0
    assert "lies wholly outside" in log_text()


def test_plan_reports_on_any_day_in_full(filled_world: World) -> None:
    day = datetime.now(UTC) - timedelta(days=50)
    run = run_transfer(logical_date=day, mode="plan")
    assert run.state == "success"
    assert filled_world.sent() == 0
    eligible = funnel(filled_world, run.run_id)[1]
    assert eligible == len(filled_world.expected(day=day))


def test_a_resync_sends_everything_again(filled_world: World) -> None:
    assert run_transfer().state == "success"
    assert run_transfer(mode="resync").state == "success"
    assert {record["version"] for record in filled_world.control.records().values()} == {2}


def test_a_critical_failure_in_one_clinic_stops_its_shard_only(
    filled_world: World, monkeypatch: pytest.MonkeyPatch, log_text: Callable[[], str]
) -> None:
    """Clinic 2 was never empty, and comes back empty: its shard stops, the other clinics' shards are sent."""
    from medflex.airflow.tasks import transfer

    for _ in range(3):
        assert run_transfer(mode="plan").state == "success"
    filled_world.edit("DELETE FROM medlock.appointment WHERE clinic_id = 2")
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "TARGET_ROWS", 1)  # One shard per clinic.
        run = run_transfer()
    assert run.state == "failed"
    judged = [state for (task, _), state in task_states(run).items() if task == "shard.validate"]
    assert sorted(judged) == ["failed", "success", "success"]
    text = log_text()
    assert "critical expectations failed" in text
    assert filled_world.shown() == filled_world.expected()
    assert len(filled_world.shown()) > 0
    problems = filled_world.read_ledger("SELECT problems FROM ledger.run WHERE outcome = 'failed'")
    assert "clinic 2" in str(problems)
    # What a failed validation saw is no measure: it fails again, until a person names the clinic and so takes it as is.
    assert run_transfer().state == "failed"
    assert run_transfer(clinic_ids=[2]).state == "success"
    assert run_transfer().state == "success"


def test_clinics_that_swap_their_lpu_ids_are_shown_under_the_right_one(filled_world: World) -> None:
    assert run_transfer().state == "success"
    filled_world.edit("ALTER TABLE medlock.clinic DROP CONSTRAINT clinic_lpu_id_key")
    filled_world.edit("UPDATE medlock.clinic SET lpu_id = 80003 - lpu_id WHERE id IN (1, 2)")
    assert run_transfer().state == "success"
    expected = filled_world.expected()
    shown = filled_world.shown()
    assert {key: shown.get(key) for key in expected} == expected
