"""What people do to runs of the transfer in Airflow's UI, by the API that the UI calls: clear, mark, backfill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox.airflow_api import AirflowError
from sandbox.medflex.control import Control
from sandbox.stack import Stack
from tests.e2e.test_daily_transfer import edit, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DAG_ID = "medflex_transfer"
ENDED_BY_HAND = ["It was ended by hand before all was done; what is left is sent and withdrawn by the next runs."]


class Runs:
    """Runs of the transfer in a whole Airflow, of clinics that are open."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.airflow = stack, stack.airflow()
        with psycopg.connect(stack.ledger()) as connection:
            rows = connection.execute("SELECT DISTINCT clinic_id FROM ledger.record ORDER BY 1 LIMIT 3").fetchall()
        self.clinic_ids = [clinic_id for (clinic_id,) in rows]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return self.airflow.call(method, f"/dags/{DAG_ID}{path}", body=body)

    def trigger(self, **conf: Any) -> str:
        run_id = self.airflow.trigger(DAG_ID, datetime.now(UTC), {"clinic_ids": self.clinic_ids} | conf)
        assert run_id
        return run_id

    def states(self, run_id: str) -> dict[str, str | None]:
        """The states of a run's tasks, of which there is one shard."""
        return {
            item["task_id"]: item["state"]
            for item in self.call("GET", f"/dagRuns/{run_id}/taskInstances")["task_instances"]
        }

    def mark(self, run_id: str, state: str) -> None:
        self.call("PATCH", f"/dagRuns/{run_id}", {"state": state})

    def mark_task(self, run_id: str, task_id: str, state: str) -> None:
        self.call("PATCH", f"/dagRuns/{run_id}/taskInstances/{task_id}/0", {"new_state": state})

    def clear(self, run_id: str, *task_ids: str, **how: bool) -> None:
        body: dict[str, Any] = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, **how}
        self.call(
            "POST", "/clearTaskInstances", body | ({"task_ids": [[item, 0] for item in task_ids]} if task_ids else {})
        )

    def log(self, run_id: str, task_id: str, attempt: int) -> str:
        """The log of an attempt at a mapped task."""
        path = f"/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}?map_index=0"
        return str(self.call("GET", path))

    def end(self, run_id: str) -> str:
        """Wait for the end of a run and of all of its tasks; return its state."""
        resting = {"success", "failed", "skipped", "upstream_failed", "removed"}

        def ended() -> str | None:
            state = self.airflow.run_state(DAG_ID, run_id)
            return state if state in resting and set(self.states(run_id).values()) <= resting else None

        return str(wait_for(ended, f"the end of {run_id}"))

    def account(self, run_id: str) -> tuple[str, list[str], str | None]:
        """What the ledger says of a run: outcome, problems, report."""
        with psycopg.connect(self.stack.ledger()) as connection:
            row = connection.execute(
                "SELECT outcome, problems, report FROM ledger.run WHERE dag_id = %s AND run_id = %s", [DAG_ID, run_id]
            ).fetchone()
        assert row
        return row

    def staged(self) -> list[Path]:
        return [path for path in (self.stack.folder / "staging").rglob("*") if path.is_file()]

    def shown(self) -> dict[tuple[int, int], int]:
        """The version of each record that Medflex shows."""
        with Control(self.stack.control_url) as control:
            return {key: record["version"] for key, record in control.records().items()}

    @contextmanager
    def held_in_validate(self, **conf: Any) -> Iterator[str]:
        """A run whose validate cannot come to its end meanwhile."""
        run_id = self.trigger(**conf)
        wait_for(lambda: self.states(run_id).get("plan_shards") == "success", "the plan")
        with psycopg.connect(self.stack.ledger()) as connection:
            connection.execute("LOCK TABLE ledger.run_validation IN ACCESS EXCLUSIVE MODE")
            wait_for(lambda: self.states(run_id).get("shard.validate") == "running", "validate")
            yield run_id


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    stack = Stack(tmp_path_factory.mktemp("clone") / "stack")
    stack.start(appointments=3000)
    try:
        first = stack.run_day(None)
        wait_for(lambda: stack.airflow().task_states(DAG_ID, first).get("shard.load", {}).get("success"), "a load")
        # The clinic that waits for its 24 hours would hold the others up.
        stack.airflow().call("PATCH", f"/dags/{DAG_ID}/dagRuns/{first}", body={"state": "success"})
        made = Runs(stack)
        made.end(first)
        yield made
    finally:
        stack.stop()


def test_a_shard_whose_validate_is_marked_as_successful_is_not_sent(runs: Runs) -> None:
    before = runs.shown()
    with runs.held_in_validate(mode="resync") as run_id:
        runs.mark_task(run_id, "shard.validate", "success")
        wait_for(lambda: runs.states(run_id).get("shard.plan_changes") == "failed", "plan_changes")
    assert runs.end(run_id) == "failed"
    assert runs.states(run_id)["shard.load"] == "upstream_failed"
    assert runs.shown() == before
    assert not runs.staged()
    # The same run, begun once more.
    runs.clear(run_id, "shard.extract", include_downstream=True)
    assert runs.end(run_id) == "success"
    assert runs.shown().keys() == before.keys()
    sent = [key for key, version in runs.shown().items() if version > before[key]]
    assert sent


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_run_that_is_marked_before_its_end_has_failed_says_so_and_leaves_nothing(runs: Runs, state: str) -> None:
    """Airflow skips what has not begun, whatever a run is marked as."""
    with runs.held_in_validate() as run_id:
        assert runs.staged()
        runs.mark(run_id, state)
    assert runs.end(run_id) == "failed"
    assert runs.account(run_id)[:2] == ("failed", ENDED_BY_HAND)
    assert not runs.staged()
    # Its skipped tasks are not among those that have failed.
    runs.clear(run_id, only_failed=True)
    assert runs.end(run_id) == "failed"
    assert runs.account(run_id)[0] == "failed"
    assert not runs.staged()
    runs.clear(run_id)
    assert runs.end(run_id) == "success"
    assert runs.account(run_id)[:2] == ("succeeded", [])
    # Marked in its second pass, as the first one had ended well.
    with psycopg.connect(runs.stack.ledger()) as connection:
        runs.clear(run_id, "shard.extract", include_downstream=True)
        connection.execute("LOCK TABLE ledger.run_validation IN ACCESS EXCLUSIVE MODE")
        wait_for(lambda: runs.states(run_id).get("shard.validate") == "running", "validate")
        runs.mark(run_id, state)
    assert runs.end(run_id) == "failed"
    assert runs.account(run_id)[:2] == ("failed", ENDED_BY_HAND)


def test_what_a_task_reads_when_its_run_was_ended_is_not_left_in_staging(runs: Runs) -> None:
    """Airflow lets it go on for some seconds, and removes in the first of them what the run has staged."""
    run_id = runs.trigger()
    assert runs.end(run_id) == "success"
    with psycopg.connect(runs.stack.medlock_owner()) as connection:
        connection.execute("LOCK TABLE medlock.appointment IN ACCESS EXCLUSIVE MODE")
        runs.clear(run_id, "shard.extract", include_downstream=True)
        with psycopg.connect(runs.stack.medlock_owner()) as other:
            waiting = "SELECT FROM pg_locks WHERE relation = 'medlock.appointment'::regclass AND NOT granted"
            wait_for(lambda: other.execute(waiting).fetchone() is not None, "extract")
        runs.mark(run_id, "failed")
        wait_for(lambda: runs.states(run_id).get("remove_staging") == "failed", "the removal")
    wait_for(lambda: "was ended while it wrote" in runs.log(run_id, "shard.extract", 2), "the end of extract")
    assert runs.end(run_id) == "failed"
    assert not runs.staged()
    runs.clear(run_id, "shard.extract", include_downstream=True)
    assert runs.end(run_id) == "success"


def test_a_run_that_is_cancelled_before_it_was_planned_has_failed(runs: Runs) -> None:
    with psycopg.connect(runs.stack.ledger()) as connection:
        connection.execute("LOCK TABLE ledger.run_validation IN ACCESS EXCLUSIVE MODE")
        run_id = runs.trigger()
        wait_for(lambda: runs.states(run_id).get("plan_shards") == "running", "plan_shards")
        runs.mark(run_id, "failed")
        assert runs.end(run_id) == "failed"


def test_where_only_a_withdrawal_has_failed_the_run_is_settled_behind_it(runs: Runs) -> None:
    """What sends had come to its end, so that nothing but the withdrawal was cleared before settle_run."""
    with psycopg.connect(runs.stack.ledger()) as connection:
        # Where a withdrawal's account goes; what sends does not write there.
        connection.execute("LOCK TABLE ledger.revocation IN ACCESS EXCLUSIVE MODE")
        run_id = runs.trigger()
        wait_for(lambda: runs.states(run_id).get("shard.withdraw_revoked") == "running", "withdraw_revoked")
        runs.mark_task(run_id, "shard.withdraw_revoked", "failed")
    assert runs.end(run_id) == "failed"
    assert {task for task, state in runs.states(run_id).items() if state == "failed"} == {
        "shard.withdraw_revoked", "settle_run"
    }  # fmt: skip
    runs.clear(run_id, only_failed=True)
    assert runs.end(run_id) == "success"
    assert runs.account(run_id)[:2] == ("succeeded", [])


def test_a_run_of_which_only_failed_tasks_are_cleared_comes_to_a_good_end(runs: Runs) -> None:
    edit(runs.stack, "REVOKE SELECT ON medlock.patient FROM medlock_app", [])
    try:
        run_id = runs.trigger()
        assert runs.end(run_id) == "failed"
    finally:
        edit(runs.stack, "GRANT SELECT ON medlock.patient TO medlock_app", [])
    before = runs.states(run_id)
    assert (before["shard.extract"], before["settle_run"]) == ("failed", "failed")
    assert before["publish_quality_report"] == before["remove_staging"] == "success"
    runs.clear(run_id, only_failed=True)
    assert runs.end(run_id) == "success"
    outcome, problems, report = runs.account(run_id)
    assert (outcome, problems) == ("succeeded", [])
    assert report
    assert not runs.staged()


def test_a_task_that_is_cleared_by_itself_behind_the_end_changes_nothing(runs: Runs) -> None:
    run_id = runs.trigger()
    assert runs.end(run_id) == "success"
    account = runs.account(run_id)
    for task_id in ("shard.extract", "shard.wait_for_activation"):
        runs.clear(run_id, task_id)
        runs.end(run_id)
        assert runs.states(run_id)[task_id] == "failed"
        assert runs.account(run_id) == account
        assert not runs.staged()
    runs.clear(run_id, "shard.wait_for_activation", include_downstream=True)
    assert runs.end(run_id) == "success"
    assert runs.account(run_id)[0] == "succeeded"


def test_what_judges_the_present_is_not_backfilled(runs: Runs) -> None:
    body = {"dag_id": "medflex_withdraw", "from_date": "2026-11-01T00:00:00Z", "to_date": "2026-11-02T00:00:00Z"}
    with pytest.raises(AirflowError, match="backfill"):
        runs.airflow.call("POST", "/backfills", body=body)
    with psycopg.connect(runs.stack.cluster.uri("airflow", "airflow")) as connection:
        assert connection.execute("SELECT count(*) FROM backfill").fetchone() == (0,)
    assert "backfill" not in runs.airflow.call("GET", "/dags/medflex_withdraw/details")["allowed_run_types"]
