"""The product as `make demo` runs it: Airflow's own scheduler, executor and triggerer, Postgres, Medflex over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from medflex.airflow.schedule import next_slot
from medflex.airflow.tasks.transfer import HAND_OVER
from medflex.ledger.report import funnel_text
from sandbox.medflex.control import Control
from sandbox.stack import Stack
from tests.airflow.leaks import database_text, folder_text, found_canaries
from tests.domain.oracles.loop import expected_records

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG_ID = "medflex_transfer"
GATE = "shard.wait_for_activation"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("clone") / "stack")
    made.start(appointments=3000)
    yield made
    made.stop()


def instances(stack: Stack, run_id: str) -> list[tuple[str, int, str | None, str | None]]:
    """Return task id, map index, state and rendered map label of a run's task instances, from Airflow's database."""
    with psycopg.connect(stack.cluster.uri("airflow", "airflow")) as connection:
        return connection.execute(
            "SELECT task_id, map_index, state, rendered_map_index FROM task_instance WHERE dag_id = %s AND run_id = %s",
            [DAG_ID, run_id],
        ).fetchall()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    """Poll until the condition holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < deadline:
        if found := condition():
            return found
        pause.wait(0.5)
    pytest.fail(f"Waited {seconds} s in vain for: {what}")


def edit(stack: Stack, sql: str, parameters: list[Any]) -> None:
    with psycopg.connect(stack.medlock_owner()) as connection:
        connection.execute(sql.encode(), parameters)


def shown_and_expected(stack: Stack, run_id: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return what Medflex shows and what it should after this run, by the independent loop."""
    with psycopg.connect(stack.ledger()) as connection:
        (anchor,) = connection.execute("SELECT anchor FROM ledger.run WHERE run_id = %s", [run_id]).fetchone() or ()
    with psycopg.connect(stack.medlock_owner()) as connection:
        now = datetime.now(UTC)
        expected = expected_records(connection, now=now, day=anchor)
        # Shortly after midnight in a clinic the run has yesterday's day: it sends what is in today's window, too.
        today = expected_records(connection, now=now, day=now)
    expected = {key: record for key, record in expected.items() if key in today}
    with Control(stack.control_url) as control:
        shown = control.records()
    return {
        key: {name: value for name, value in record.items() if name != "version"} for key, record in shown.items()
    }, expected


def test_the_daily_run_waits_without_a_worker_sends_exactly_what_may_be_sent_and_leaks_nothing(stack: Stack) -> None:
    slow_start = timedelta(seconds=75)
    edit(
        stack,
        "UPDATE medlock.medflex_access SET changed_at = now() - interval '24 hours' + %s WHERE clinic_id = 6",
        [slow_start],
    )
    opens_at = datetime.now(UTC) + slow_start
    run_id = stack.run_day(None)

    def waiting() -> bool:
        found = instances(stack, run_id)
        gates = sorted(str(state) for task, _, state, _ in found if task == GATE)
        loaded = [state for task, _, state, _ in found if task == "shard.load" and state == "success"]
        busy = [task for task, _, state, _ in found if state in ("queued", "running")]
        # Everybody else is done, and the waiting gate holds no worker slot.
        return "deferred" in gates and len(loaded) >= 1 and not busy

    if next_slot(datetime.now(UTC)) - datetime.now(UTC) < HAND_OVER + timedelta(minutes=4):
        # For some minutes of the day a clinic that opens soon is left to the next run; the rest holds all the same.
        assert stack.follow(run_id) == "success"
        shown, expected = shown_and_expected(stack, run_id)
        assert {key: record for key, record in expected.items() if key[0] != _lpu_id(stack, 6)} == shown
        return
    wait_for(waiting, "the gate alone to wait, deferred, while the others are loaded")
    assert datetime.now(UTC) < opens_at
    with Control(stack.control_url) as control:
        assert not [key for key in control.records() if key[0] == _lpu_id(stack, 6)]
    assert stack.follow(run_id) == "success"
    assert datetime.now(UTC) >= opens_at
    shown, expected = shown_and_expected(stack, run_id)
    assert shown == expected
    assert [key for key in shown if key[0] == _lpu_id(stack, 6)]
    labels = {label for task, _, _, label in instances(stack, run_id) if task == "shard.load"}
    assert "clinic 6 waiting" in labels

    text = funnel_text(stack.ledger(), run_id)
    assert f"{len(expected):,}" in text
    assert found_canaries([("funnel", text)]) == []
    assert found_canaries(database_text(stack.cluster.uri("airflow", "airflow"))) == []
    assert found_canaries(database_text(stack.ledger())) == []
    logs = list(folder_text(stack.folder / "airflow" / "logs"))
    assert any("Extracted" in text for _, text in logs)
    assert found_canaries(logs) == []
    assert found_canaries(folder_text(stack.folder / "data-docs")) == []
    staging = stack.folder / "staging"
    assert not staging.exists() or not [path for path in staging.rglob("*") if path.is_file()]


def _lpu_id(stack: Stack, clinic_id: int) -> int:
    with psycopg.connect(stack.medlock_owner()) as connection:
        row = connection.execute("SELECT lpu_id FROM medlock.clinic WHERE id = %s", [clinic_id]).fetchone()
    assert row is not None
    return int(row[0])


def test_a_backfill_of_two_days_beside_a_run_by_hand_ends_green_and_as_if_there_had_been_the_run_only(
    stack: Stack,
) -> None:
    airflow = stack.airflow()
    newest = next_slot(datetime.now(UTC)) - timedelta(days=2)
    oldest = newest - timedelta(days=1)
    made = airflow.call(
        "POST",
        "/backfills",
        body={
            "dag_id": DAG_ID,
            "from_date": oldest.isoformat(),
            "to_date": newest.isoformat(),
            "max_active_runs": 2,
            "reprocess_behavior": "none",
        },
    )
    by_hand = airflow.call("POST", f"/dags/{DAG_ID}/dagRuns", body={"logical_date": None})

    def runs() -> list[tuple[str, str, str]]:
        with psycopg.connect(stack.cluster.uri("airflow", "airflow")) as connection:
            return connection.execute(
                "SELECT run_id, run_type, state FROM dag_run WHERE dag_id = %s"
                " AND (backfill_id = %s OR run_id = %s) AND state IN ('success', 'failed')",
                [DAG_ID, made["id"], by_hand["dag_run_id"]],
            ).fetchall()

    ended = wait_for(lambda: found if len(found := runs()) == 3 else None, "two backfill runs and one by hand", 300)
    assert {(run_type, state) for _, run_type, state in ended} == {("backfill", "success"), ("manual", "success")}
    shown, expected = shown_and_expected(stack, by_hand["dag_run_id"])
    assert shown == expected
    with psycopg.connect(stack.ledger()) as connection:
        types = connection.execute("SELECT run_type, count(*) FROM ledger.run GROUP BY 1 ORDER BY 1").fetchall()
    assert ("backfill", 2) in types
