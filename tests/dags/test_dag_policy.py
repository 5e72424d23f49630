"""Policy: what holds for each DAG of the product, and for the order of its tasks."""

from __future__ import annotations

import ast
import itertools
from datetime import timedelta

import pytest
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, AssetAlias, AssetOrTimeSchedule, CronTriggerTimetable, TriggerRule
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.definitions.mappedoperator import MappedOperator

from medflex.airflow.assets import APPOINTMENTS, CONSENT, GO_ON_ALIAS, HELD, HELD_ALIAS, SWEEP
from medflex.airflow.tasks.release import OPTIONS
from medflex.airflow.triggers.consent import ConsentChangeTrigger
from tests.airflow.dag_runs import ROOT, dag

DAG_IDS = {
    "medflex_transfer",
    "medflex_withdraw",
    "medflex_sweep",
    "medflex_partner_actions",
    "medflex_release",
    "medflex_reconcile",
    "medflex_housekeeping",
    "medflex_alerts",
}
SEVERAL_AT_ONCE = {"medflex_release": 16}
"""Its questions wait for days, and none may wait for another's answer."""
SENDING = {"shard.load"}
MAKERS = ("parts", "transfer", "withdraw", "release", "reconcile", "actions")
MAY_SPEAK_TO_MEDFLEX = {
    "parts.open_medflex",
    "transfer.load",
    "transfer.withdraw_revoked",
    "withdraw._withdraw",
    "release._withdraw",
    "reconcile.reconcile",
    "actions.read_actions",
    "actions.answer_actions",
    "actions.share_changes",
}


def all_dags() -> dict[str, object]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags"))
    assert not bag.import_errors
    return dict(bag.dags)


def setting(operator: object, name: str) -> object:
    """Return a setting of an operator, mapped or not."""
    return operator.partial_kwargs.get(name) if isinstance(operator, MappedOperator) else getattr(operator, name)


def test_exactly_these_dags_are_there() -> None:
    assert set(all_dags()) == DAG_IDS


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_each_dag_has_an_owner_tags_docs_and_no_catch_up(dag_id: str) -> None:
    found = dag(dag_id)
    assert {"medflex", "personal-data"} <= set(found.tags)
    assert found.catchup is False
    assert found.max_active_runs == SEVERAL_AT_ONCE.get(dag_id, 1)
    for section in ("Purpose", "Schedule", "Parameters", "When it fails", "Running again", "Never"):
        assert f"**{section}" in found.doc_md
    for operator in found.tasks:
        assert setting(operator, "owner") == "data-engineering", operator.task_id


RETRIES = {
    # The next run waits for this one, and does the same two minutes later.
    "medflex_partner_actions": 1,
    "medflex_alerts": 0,
}
EXCEPTIONS: dict[str, dict[str, object]] = {
    # They report: a second look at the same numbers tells nothing new.
    "medflex_withdraw/report_lateness": {"retries": 0},
    "medflex_reconcile/settle_comparison": {"retries": 0},
    # Another attempt would be another piece, and start the run's numbers anew.
    "medflex_sweep/sweep": {"retries": 0},
    # Nobody's answer is to wait for what it sends.
    "medflex_partner_actions/share_changes": {"retries": 0, "execution_timeout": timedelta(minutes=5)},
    # The gate may wait for a day; each of its looks is short. A person may take longer.
    "medflex_transfer/shard.wait_for_activation": {"execution_timeout": None},
    "medflex_release/hold.ask": {"execution_timeout": None},
}
TIMEOUTS = {
    "medflex_transfer": timedelta(hours=3),
    "medflex_withdraw": timedelta(minutes=30),
    "medflex_sweep": timedelta(minutes=30),
    "medflex_partner_actions": timedelta(minutes=20),
    "medflex_release": timedelta(hours=1),
    "medflex_reconcile": timedelta(hours=3),
    "medflex_housekeeping": timedelta(hours=1),
    "medflex_alerts": timedelta(minutes=5),
}


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_each_task_retries_what_may_pass_and_ends_some_time(dag_id: str) -> None:
    for operator in dag(dag_id).tasks:
        expected = {"retries": RETRIES.get(dag_id, 2), "execution_timeout": TIMEOUTS[dag_id]}
        expected |= EXCEPTIONS.get(f"{dag_id}/{operator.task_id}", {})
        assert {name: setting(operator, name) for name in expected} == expected, operator.task_id


def test_consent_and_validation_are_upstream_of_every_task_that_sends() -> None:
    found = dag("medflex_transfer")
    for task_id in SENDING:
        upstream = {operator.task_id for operator in found.get_task(task_id).get_flat_relatives(upstream=True)}
        assert {"shard.wait_for_activation", "shard.extract", "shard.withhold", "shard.validate"} <= upstream
        # Each behind the one before: a skipped gate or a failed validation must reach the sending task.
        chain = ["shard.wait_for_activation", "shard.extract", "shard.withhold", "shard.validate", "shard.plan_changes"]
        assert found.get_task(chain[0]).trigger_rule == TriggerRule.ALL_SUCCESS
        for before, behind in itertools.pairwise([*chain, task_id]):
            assert before in found.get_task(behind).upstream_task_ids
            assert found.get_task(behind).trigger_rule == TriggerRule.ALL_SUCCESS


def test_extract_waits_for_the_gate_and_for_the_end_of_the_withdrawals_whatever_it_was() -> None:
    found = dag("medflex_transfer")
    assert {"shard.wait_for_activation", "shard.withdrawals_ended"} <= found.get_task("shard.extract").upstream_task_ids
    ended = found.get_task("shard.withdrawals_ended")
    assert ended.trigger_rule == TriggerRule.ALL_DONE
    assert "shard.withdraw_revoked" in ended.upstream_task_ids


def test_only_these_tasks_use_the_connection_to_medflex() -> None:
    """``load`` and ``share_changes`` send, the others withdraw, compare, or speak of partner actions; nothing else of
    the product speaks to Medflex.
    """
    found = set()
    for path in (ROOT / "plugins/medflex/airflow/tasks").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and {"open_medflex", "MedflexClient"} & called(node):
                found.add(f"{path.stem}.{node.name}")
    assert found == MAY_SPEAK_TO_MEDFLEX


def test_whoever_holds_a_client_of_medflex_was_given_it() -> None:
    """Outside the tasks nobody makes one, so that the list above is all there is."""
    makers = {
        str(path.relative_to(ROOT / "plugins/medflex"))
        for path in (ROOT / "plugins/medflex").rglob("*.py")
        if {"open_medflex", "MedflexClient"} & called(ast.parse(path.read_text()))
    }
    assert makers == {f"airflow/tasks/{name}.py" for name in MAKERS}
    for path in (ROOT / "dags").glob("*.py"):
        assert not {"open_medflex", "MedflexClient"} & called(ast.parse(path.read_text())), path.name


def called(function: ast.AST) -> set[str]:
    """Return the names that are called somewhere inside."""
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {name.id for name in calls if isinstance(name, ast.Name)}


def test_staging_is_removed_after_failures_too_and_both_leaves_decide_the_run() -> None:
    found = dag("medflex_transfer")
    remove = found.get_task("remove_staging")
    assert remove.is_teardown
    assert remove.on_failure_fail_dagrun
    assert remove.trigger_rule == TriggerRule.ALL_DONE_SETUP_SUCCESS
    assert not remove.get_direct_relative_ids(upstream=False)
    assert not found.get_task("settle_run").get_direct_relative_ids(upstream=False)
    # Clearing one shard must not clear plan_shards: a teardown with a setup would see to that.
    assert not any(operator.is_setup for operator in found.tasks)


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_return_values_are_not_logged(dag_id: str) -> None:
    python = [operator for operator in dag(dag_id).tasks if getattr(operator, "python_callable", None)]
    assert python
    for operator in python:
        if isinstance(operator, MappedOperator):
            # As it runs: what comes from the DAG's defaults is not there before.
            operator = operator.unmap({"op_kwargs": dict.fromkeys(operator.op_kwargs_expand_input.value)})
        assert operator.show_return_value_in_logs is False, operator.task_id


def test_each_asset_is_the_outlet_of_who_changes_it() -> None:
    outlets = {
        (dag_id, operator.task_id): assets
        for dag_id in DAG_IDS
        for operator in dag(dag_id).tasks
        # Others are there for lineage and leave no event.
        if (assets := [outlet for outlet in operator.outlets if isinstance(outlet, Asset | AssetAlias)])
    }
    assert outlets == {
        ("medflex_transfer", "settle_run"): [APPOINTMENTS],
        # Through the alias, so that there is an event only when something was held.
        ("medflex_transfer", "shard.withdraw_revoked"): [HELD_ALIAS],
        ("medflex_withdraw", "withdraw_revoked_now"): [HELD_ALIAS],
        ("medflex_withdraw", "start_what_is_left"): [GO_ON_ALIAS],
        ("medflex_sweep", "sweep"): [HELD_ALIAS],
        ("medflex_sweep", "start_what_is_left"): [GO_ON_ALIAS],
        ("medflex_release", "list_holds"): [HELD_ALIAS],
        ("medflex_release", "hold.carry_out"): [HELD_ALIAS],
        ("medflex_reconcile", "reconcile"): [HELD_ALIAS],
    }


def test_nothing_stands_before_a_withdrawal() -> None:
    """Neither a closed gate nor a failed validation nor a rejected batch may hold it up."""
    transfer = dag("medflex_transfer").get_task("shard.withdraw_revoked")
    assert {operator.task_id for operator in transfer.get_flat_relatives(upstream=True)} <= {"plan_shards"}
    assert not dag("medflex_withdraw").get_task("withdraw_revoked_now").upstream_task_ids


def test_withdrawals_run_by_event_and_by_the_clock() -> None:
    timetable = dag("medflex_withdraw").timetable
    assert isinstance(timetable, AssetOrTimeSchedule)
    assert list(timetable.asset_condition.objects) == [CONSENT]
    (watcher,) = CONSENT.watchers
    assert isinstance(watcher.trigger, ConsentChangeTrigger)
    assert isinstance(timetable.timetable, CronTriggerTimetable)
    assert timetable.timetable.expression == "*/5 * * * *"
    # What takes long stands beside them, not before them.
    timetable = dag("medflex_sweep").timetable
    assert isinstance(timetable, AssetOrTimeSchedule)
    assert list(timetable.asset_condition.objects) == [SWEEP]
    assert isinstance(timetable.timetable, CronTriggerTimetable)
    assert timetable.timetable.expression == "*/5 * * * *"


def test_a_failed_withdrawal_and_a_late_one_both_fail_the_run() -> None:
    found = dag("medflex_withdraw")
    leaves = {operator.task_id: operator.trigger_rule for operator in found.tasks if not operator.downstream_task_ids}
    # The last one is there for the first task's outcome: it fails with it.
    assert leaves == {
        "report_lateness": TriggerRule.ALL_DONE,
        "start_what_is_left": TriggerRule.ALL_DONE,
        "withdrawn": TriggerRule.ALL_SUCCESS,
    }
    for task_id in leaves:
        assert found.get_task(task_id).upstream_task_ids == {"withdraw_revoked_now"}
    found = dag("medflex_sweep")
    leaves = {operator.task_id: operator.trigger_rule for operator in found.tasks if not operator.downstream_task_ids}
    assert leaves == {"start_what_is_left": TriggerRule.ALL_DONE, "swept": TriggerRule.ALL_SUCCESS}
    for task_id in leaves:
        assert found.get_task(task_id).upstream_task_ids == {"sweep"}


def test_a_reconciliation_lets_the_transfer_send_and_a_shard_that_failed_keeps_nobody() -> None:
    found = dag("medflex_reconcile")
    leaves = {operator.task_id for operator in found.tasks if not operator.downstream_task_ids}
    assert leaves == {"settle_comparison", "transfer"}
    for task_id in ("settle_comparison", "transfer_parameters"):
        assert found.get_task(task_id).upstream_task_ids == {"reconcile"}
        assert found.get_task(task_id).trigger_rule == TriggerRule.ALL_DONE
    transfer = found.get_task("transfer")
    assert isinstance(transfer, TriggerDagRunOperator)
    assert transfer.trigger_dag_id == "medflex_transfer"
    # It waits for nothing: the transfer may have to wait for the one that runs.
    assert transfer.wait_for_completion is False
    assert transfer.upstream_task_ids == {"transfer_parameters"}
    assert isinstance(found.timetable, CronTriggerTimetable)


def test_partner_actions_go_on_with_what_is_there_and_no_answer_waits_for_what_is_shared() -> None:
    found = dag("medflex_partner_actions")
    assert isinstance(found.timetable, CronTriggerTimetable)
    assert found.timetable.expression == "*/2 * * * *"
    assert found.get_task("apply_actions").upstream_task_ids == {"read_actions"}
    for task_id in ("answer_actions", "share_changes"):
        assert found.get_task(task_id).upstream_task_ids == {"apply_actions"}
    for task_id in ("apply_actions", "answer_actions", "share_changes"):
        assert found.get_task(task_id).trigger_rule == TriggerRule.ALL_DONE
    # Any one's failure fails the run, also where all that comes behind it goes well.
    (leaf,) = (operator for operator in found.tasks if not operator.downstream_task_ids)
    assert leaf.trigger_rule == TriggerRule.ALL_SUCCESS
    assert leaf.upstream_task_ids == set(found.task_ids) - {leaf.task_id}


def test_housekeeping_is_four_tasks_of_which_none_waits_for_another() -> None:
    found = dag("medflex_housekeeping")
    assert set(found.task_ids) == {"prune_ledger", "prune_journal", "remove_old_staging", "prune_data_docs"}
    assert not [operator for operator in found.tasks if operator.upstream_task_ids]


def test_a_question_waits_for_ever_and_nothing_answers_it_but_a_person() -> None:
    found = dag("medflex_release")
    assert list(found.timetable.asset_condition.objects) == [HELD]
    ask = found.get_task("hold.ask")
    assert isinstance(ask, HITLOperator)
    assert ask.response_timeout is None
    assert ask.defaults is None
    assert ask.options == OPTIONS
    assert found.dagrun_timeout is None
    carry_out = found.get_task("hold.carry_out")
    assert carry_out.trigger_rule == TriggerRule.ALL_SUCCESS
    assert "hold.ask" in carry_out.upstream_task_ids
    assert ask.get_closest_mapped_task_group() is carry_out.get_closest_mapped_task_group() is not None


def test_parsing_reads_no_connection_and_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, 'plugins'); sys.path.insert(0, 'dags');"
        f"import {', '.join(sorted(DAG_IDS))};"
        "heavy = {'pandas', 'great_expectations', 'pyarrow', 'requests', 'adbc_driver_postgresql', 'psycopg'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_end_of_a_transfer_waits_for_all_that_may_be_cleared_without_what_is_between() -> None:
    found = dag("medflex_transfer")
    assert found.get_task("settle_run").upstream_task_ids == {
        "publish_quality_report", "shard.load", "shard.withdraw_revoked"
    }  # fmt: skip
    assert found.get_task("remove_staging").upstream_task_ids == {"publish_quality_report", "shard.load"}


@pytest.mark.parametrize("dag_id", sorted(path.stem for path in (ROOT / "dags").glob("medflex_*.py")))
def test_what_judges_the_present_takes_no_backfill(dag_id: str) -> None:
    """Its runs come beside max_active_runs, and take over from each other what they hold."""
    allowed = dag(dag_id).allowed_run_types
    if dag_id == "medflex_transfer":
        assert allowed is None
    else:
        assert set(DagRunType) - allowed == {DagRunType.BACKFILL}
