"""Metrics and lineage of real runs: over a real socket, into a real file, and without a person in them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from medflex.airflow import lineage, metrics
from medflex.airflow.tasks import actions, reconcile, withdraw
from medflex.airflow.tasks.parts import TransientFailure
from medflex.domain.funnel import NUMBERS
from sandbox.medlock import canaries
from tests.airflow.acting import target
from tests.airflow.dag_runs import run_dag, run_transfer, task_states
from tests.airflow.leaks import found_canaries
from tests.airflow.statsd import StatsD, airflow_sends_to, statsd
from tests.airflow.test_loading import load, planned
from tests.airflow.test_withdrawing import REFUSE, of_patients, some
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsD]:
    """A StatsD server that Airflow sends to."""
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        yield server


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A function that returns the OpenLineage events so far, by the file transport."""
    file = tmp_path / "lineage.jsonl"
    transport = {"type": "file", "log_file_path": str(file), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__NAMESPACE", "medflex-tests")
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD", "True")
    from airflow.providers.openlineage.plugins.listener import OpenLineageListener
    from airflow.sdk.listener import get_listener_manager

    listener = OpenLineageListener()
    get_listener_manager().add_listener(listener)
    yield lambda: [json.loads(line) for line in file.read_text().splitlines()]
    get_listener_manager().pm.unregister(listener)


def test_a_run_tells_its_numbers_and_its_data_sets_and_nobody(
    filled_world: World, received: StatsD, events: Callable[[], list[dict[str, Any]]]
) -> None:
    run = run_transfer()
    assert run.state == "success", task_states(run)
    received.settled()

    (row,) = filled_world.read_ledger(
        f"SELECT {', '.join(f'sum({name})::int' for name in NUMBERS)} FROM ledger.run_clinic"
    )
    of_run = {"mode": "transfer", "scope": "all"}
    told = {name: received.last("medflex.run.records", stage=name, **of_run) for name in NUMBERS}
    assert told == {name: number or 0 for name, number in zip(NUMBERS, row, strict=True)}
    assert told["accepted"] == len(filled_world.shown()) > 0
    reasons = dict(
        filled_world.read_ledger(
            "SELECT reason, sum(cardinality(appointment_ids))::int FROM ledger.run_decision, unnest(reasons) AS reason"
            " WHERE stage = 'withhold' GROUP BY reason"
        )
    )
    assert reasons
    for reason in metrics.REASONS_OF_STAGE["withhold"]:
        told_reason = received.last("medflex.run.reasons", at="withhold", reason=reason, **of_run)
        assert told_reason == reasons.get(reason, 0), reason
    assert received.last("medflex.run.clinics", state="open", **of_run) == 3
    assert received.last("medflex.run.problems", **of_run) == 0
    assert received.total("medflex.verdicts", operation="send", status_code="204") == told["accepted"]
    requests = received.total("medflex.requests", operation="send", status="200")
    assert (
        requests
        == filled_world.sent()
        == len(received.values["medflex.request.time", frozenset({("operation", "send")})])
    )

    found = events()
    tasks = {event["job"]["name"]: event for event in found if event["eventType"] == "COMPLETE"}
    load = tasks["medflex_transfer.shard.load"]
    assert names(load["outputs"]) >= {
        ("https://medflex_api", "api.appointments"),
        ("postgres://medflex_ledger", "ledger.record"),
    }
    assert ("postgres://medlock_db", "medlock.patient") in names(load["inputs"])
    assert names(tasks["medflex_transfer.shard.extract"]["inputs"]) == table_names(lineage.SOURCE)
    assert names(tasks["medflex_transfer.shard.extract"]["outputs"]) == table_names([lineage.STAGED_ROWS])
    settled = tasks["medflex_transfer.settle_run"]
    assert names(settled["outputs"]) == table_names([lineage.RUN])
    assert {"medflex_transfer.shard.wait_for_activation", "medflex_transfer.remove_staging"} <= set(tasks)

    text = json.dumps(found, ensure_ascii=False)
    assert found_canaries([("lineage", text), ("metrics", "\n".join(received.texts))]) == []
    for secret in (filled_world.medflex.token, str(filled_world.medflex.port), "medlock_app", "ledger_owner"):
        assert secret not in text
    # The search is worth something: the same canaries are in the bodies that Medflex got.
    assert found_canaries([("medflex", str(filled_world.shown()))]) != []


def test_a_failed_task_tells_lineage_its_sentence_and_nobody(
    world: World, events: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = sorted(canaries())[0]

    def an_error_that_quotes_a_row(*_: object) -> None:
        raise ValueError(f"invalid input: {canary}") from KeyError(canary)

    monkeypatch.setattr("medflex.airflow.withdrawing.Withdrawer.quick", an_error_that_quotes_a_row)
    assert run_dag("medflex_withdraw").state == "failed"
    found = events()
    failed = {event["job"]["name"]: event for event in found if event["eventType"] == "FAIL"}
    error = failed["medflex_withdraw.withdraw_revoked_now"]["run"]["facets"]["errorMessage"]
    assert "withdraw_revoked_now failed with ValueError in" in json.dumps(error)
    assert found_canaries([("lineage", json.dumps(found, ensure_ascii=False))]) == []
    assert canary not in json.dumps(found, ensure_ascii=False)


def names(datasets: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(item["namespace"], item["name"]) for item in datasets}


def table_names(tables: Any) -> set[tuple[str, str]]:
    return {(table.cluster, f"{table.database}.{table.name}") for table in tables}


def test_withdrawals_actions_and_reconciliation_tell_theirs(
    filled_world: World, received: StatsD, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task functions themselves, without a scheduler."""
    assert not load(filled_world, planned(filled_world), extracted_at=datetime.now(UTC)).problems
    run = SimpleNamespace(dag_id="medflex_test", run_id="r", run_type="manual", conf={})
    context = {"dag_run": run, "params": {}, "outlet_events": defaultdict(MagicMock), "triggering_asset_events": {}}
    for module in (actions, reconcile, withdraw):
        monkeypatch.setattr(module, "get_current_context", lambda: context)
    withdraw.withdraw_revoked_now()
    ids = some(filled_world, 2)
    gone = of_patients(filled_world, ids)
    filled_world.edit(REFUSE.format("refused_marketing", "true"), [ids])

    fault = filled_world.control.add_fault("status", status=503)
    filled_world.connect_medflex(attempts=1)
    with pytest.raises(TransientFailure):
        withdraw.withdraw_revoked_now()
    withdraw.report_lateness()
    filled_world.control.remove_fault(fault)
    withdraw.withdraw_revoked_now()
    wish = target(filled_world, clinic_id=2)
    filled_world.control.add_actions([{"type": "confirm", **wish}])
    for task in (actions.read_actions, actions.apply_actions, actions.answer_actions, actions.share_changes):
        task()
    (shard,) = reconcile.plan_comparison()
    reconcile.reconcile(shard)
    received.settled()

    told = received.total
    # What was open when somebody looked, and is no more.
    assert received.last("medflex.withdrawals.open") == len(gone)
    assert received.last("medflex.withdrawals.late") == 0
    assert 0 < received.last("medflex.withdrawals.oldest") < 60
    assert told("medflex.requests", operation="withdraw", status="503") == 1
    assert told("medflex.verdicts", operation="withdraw", status_code="204") == len(gone)
    # Of each request, as records that failed together are tried in smaller ones; none has taken longer than this test.
    times = received.values["medflex.withdrawals.time", frozenset({("cause", "explicit")})]
    assert len(times) == told("medflex.requests", operation="withdraw", status="200")
    assert {kind for kind, _ in times} == {"ms"}
    assert all(10 < milliseconds < 60_000 for _, milliseconds in times)
    assert told("medflex.actions.read") == told("medflex.actions.decided", type="confirm", decision="done") == 1
    assert told("medflex.actions.answered", answer="taken") == told("medflex.actions.shared", result="sent") == 1
    assert 0 < told("medflex.actions.time") < 60_000
    assert told("medflex.requests", operation="answer_action", status="204") == 1
    assert told("medflex.requests", operation="send", status="200") == 1
    assert told("medflex.requests", operation="read_actions", status="200") == 1
    assert told("medflex.reconcile.compared") >= len(filled_world.shown())
    assert told("medflex.requests", operation="read_visible", status="200") == 3
    assert {value for _, pairs in received.values for _, value in pairs} & {"other"} == set()
