"""Partner actions, run by Airflow's own task runner against real parts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from sandbox.medflex.faults import Match
from sandbox.postgres import Cluster
from tests.airflow.acting import read, target
from tests.airflow.dag_runs import run_dag, task_states
from tests.airflow.leaks import database_text, found_canaries
from tests.airflow.test_loading import load, planned
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]

DAG = "medflex_partner_actions"
TASKS = ("read_actions", "apply_actions", "answer_actions", "share_changes")
GREEN = dict.fromkeys([*TASKS, "acted"], "success")


@pytest.fixture
def shared(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex."""
    assert not load(filled_world, planned(filled_world), extracted_at=datetime.now(UTC)).problems
    return filled_world


def states(run: Any) -> dict[str, str]:
    return {task: state for (task, _), state in task_states(run).items()}


def red(*failed: str) -> dict[str, str]:
    """Return the states of a run in which these tasks fail: the others do what can be done."""
    return GREEN | dict.fromkeys(failed, "failed") | {"acted": "upstream_failed"}


def status_of(world: World, action: dict[str, Any]) -> str:
    return str(world.read("SELECT status FROM medlock.appointment WHERE id = %s", [action["appointment_id"]])[0][0])


def shown_of(world: World, action: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = world.control.records()[action["lpu_id"], action["appointment_id"]]
    return found


def no_canary(world: World, airflow: Cluster, text: str) -> None:
    assert found_canaries([("logs", text)]) == []
    assert found_canaries(database_text(airflow.uri("airflow"))) == []
    assert found_canaries(database_text(world.ledger)) == []
    with psycopg.connect(world.medlock) as connection:
        journal = str(connection.execute("SELECT * FROM medlock.partner_action").fetchall())
    assert found_canaries([("journal", journal)]) == []
    # The search is worth something: the same canaries are in what Medflex shows.
    assert found_canaries([("medflex", str(world.shown()))]) != []


def test_what_partners_ask_for_ends_in_medlock_they_are_answered_and_medflex_shows_it(
    shared: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    # Of everybody, canaries included, so that their names and phones go through all the tasks.
    actions = [
        {
            "lpu_id": lpu_id, "appointment_id": id_, "partner_id": record["partners"][0],
            "base_version": record["version"], "type": "confirm",
        }
        for (lpu_id, id_), record in shared.control.records().items()
    ]  # fmt: skip
    wanted = {**target(shared, 1), "type": "confirm"}
    told = {**target(shared, 2), "type": "notification", "scenario": "greeting"}
    ids = shared.control.add_actions([*actions, told])
    run = run_dag(DAG)
    assert states(run) == GREEN
    assert status_of(shared, wanted) == "confirmed"
    after = shown_of(shared, wanted)
    assert after["status"] == "confirmed"
    assert after["version"] > wanted["base_version"]
    results = shared.control.results()
    assert set(results) == set(ids)
    assert {result["status_code"] for result in results.values()} == {204, 409}
    assert shared.shown() == shared.expected()
    counts = {
        item.task_id: item.xcom_pull(task_ids=item.task_id, run_id=run.run_id) for item in run.get_task_instances()
    }
    done = counts["apply_actions"]["confirm/done"]
    assert done > 10
    assert counts["read_actions"] == {"entries": len(ids), "new": len(ids)}
    assert counts["answer_actions"] == {"taken": len(ids)}
    assert counts["share_changes"]["sent"] == counts["share_changes"]["changed"] == done

    # With nothing to do a run is green, asks for actions once, and sends nothing.
    shared.control.forget_request_log()
    idle = run_dag(DAG)
    assert states(idle) == GREEN
    assert [(item["method"], item["path"]) for item in shared.control.request_log()] == [("GET", "/actions/")]
    assert shared.read_ledger("SELECT count(*) FROM ledger.run") == [(0,)]
    no_canary(shared, airflow_db, log_text())


def test_where_reading_fails_what_was_read_is_worked_off_and_the_run_is_red(
    shared: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    shared.connect_medflex(attempts=1)
    first, second = ({**target(shared, 1, nth=nth), "type": "confirm"} for nth in range(2))
    shared.control.add_actions([first])
    read(shared)
    shared.control.add_actions([second])
    shared.control.add_fault("status", match=Match(method="GET", path_prefix="/actions/"), status=503)
    run = run_dag(DAG)
    assert run.state == "failed"
    assert states(run) == red("read_actions")
    assert (status_of(shared, first), status_of(shared, second)) == ("confirmed", "unconfirmed")
    assert shown_of(shared, first)["status"] == "confirmed"
    assert len(shared.control.results()) == 1
    assert "Medflex could not be reached or kept failing (HTTP 503)" in log_text()
    shared.control.clear_faults()
    healed = run_dag(DAG)
    assert states(healed) == GREEN
    assert status_of(shared, second) == "confirmed"
    assert len(shared.control.results()) == 2
    assert shared.shown() == shared.expected()


def test_medflex_down_at_every_step_loses_nothing(
    shared: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    """What is decided stays decided, though nobody can be told and nothing can be sent."""
    shared.connect_medflex(attempts=1)
    action = {**target(shared), "type": "cancel"}
    shared.control.add_actions([action])
    read(shared)
    before = shown_of(shared, action)
    shared.control.add_fault("status", status=503)
    run = run_dag(DAG)
    assert states(run) == red("read_actions", "answer_actions", "share_changes")
    assert status_of(shared, action) == "cancelled"
    shared.control.clear_faults()
    assert shown_of(shared, action) == before
    assert shared.control.results() == {}
    healed = run_dag(DAG)
    assert states(healed) == GREEN
    assert [result["status_code"] for result in shared.control.results().values()] == [204]
    assert shown_of(shared, action)["status"] == "canceled"
    no_canary(shared, airflow_db, log_text())


def test_where_sharing_fails_the_answer_is_given_all_the_same_and_the_run_is_red(
    shared: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    """By Medflex, and by a bug that would send something wrong."""
    shared.connect_medflex(attempts=1)
    first, second = ({**target(shared, 1, nth=nth), "type": "confirm"} for nth in range(2))
    shared.control.add_actions([first])
    fault = shared.control.add_fault("status", match=Match(path_prefix="/appointments/batch/"), status=503)
    assert states(run_dag(DAG)) == red("share_changes")
    assert [result["status_code"] for result in shared.control.results().values()] == [204]
    assert status_of(shared, first) == "confirmed"
    shared.control.remove_fault(fault)

    from medflex.airflow import sharing

    build = sharing.build_payload
    shared.control.add_actions([second])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "build_payload", lambda *given: build(*given).assign(first_name="  Канарейка"))
        requests = shared.sent()
        assert states(run_dag(DAG)) == red("share_changes")
        # Nothing but the answer.
        assert shared.sent() == requests + 1
    text = log_text()
    assert "ValidationFailedError: 1 critical expectations failed (first_name_trimmed), so no appointment that" in text
    assert "Канарейка" not in text
    assert {result["status_code"] for result in shared.control.results().values()} == {204}
    assert states(run_dag(DAG)) == GREEN
    assert shared.shown() == shared.expected()
    no_canary(shared, airflow_db, text + log_text())
