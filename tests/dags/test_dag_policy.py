"""Policy: what holds for each DAG of the product, and for the order of its tasks."""

from __future__ import annotations

import ast
from datetime import timedelta

import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.timetables.base import TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable

from medflex.airflow.assets import APPOINTMENTS, CONSENT, HELD, HELD_ALIAS
from medflex.airflow.tasks.release import OPTIONS
from tests.airflow.dag_runs import ROOT, dag

DAG_IDS = {"medflex_transfer", "medflex_withdraw", "medflex_release", "medflex_housekeeping"}
SEVERAL_AT_ONCE = {"medflex_release": 16}
"""Its questions wait for days, and none may wait for another's answer."""
SENDING = {"shard.load"}


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


def test_each_task_retries_what_may_pass_and_ends_some_time() -> None:
    for operator in dag("medflex_transfer").tasks:
        # settle_run reports: a second look at the same numbers tells nothing new.
        assert setting(operator, "retries") == (0 if operator.task_id == "settle_run" else 2), operator.task_id
        # The gate may wait for a day; each of its looks is short.
        expected = None if operator.task_id == "shard.wait_for_activation" else timedelta(hours=3)
        assert setting(operator, "execution_timeout") == expected, operator.task_id


def test_consent_and_validation_are_upstream_of_every_task_that_sends() -> None:
    found = dag("medflex_transfer")
    for task_id in SENDING:
        upstream = {operator.task_id for operator in found.get_task(task_id).get_flat_relatives(upstream=True)}
        assert {"shard.wait_for_activation", "shard.extract", "shard.withhold", "shard.validate"} <= upstream
        chain = ["shard.wait_for_activation", "shard.extract", "shard.withhold", "shard.validate", "shard.plan_changes"]
        for task in chain:
            # A skipped gate or a failed validation must reach the sending task.
            assert found.get_task(task).trigger_rule == TriggerRule.ALL_SUCCESS
    assert found.get_task("shard.load").trigger_rule == TriggerRule.ALL_SUCCESS


def test_only_the_sending_task_uses_the_connection_to_medflex() -> None:
    text = (ROOT / "plugins/medflex/airflow/tasks/transfer.py").read_text()
    functions = {part.split("(")[0]: part for part in text.split("\ndef ")[1:]}
    assert [name for name, body in functions.items() if "MedflexClient(" in body] == ["load"]


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


def test_return_values_are_not_logged_and_the_asset_is_an_outlet() -> None:
    found = dag("medflex_transfer")
    for operator in found.tasks:
        if operator.task_id != "shard.wait_for_activation":
            kwargs = operator.partial_kwargs if isinstance(operator, MappedOperator) else vars(operator)
            assert kwargs.get("show_return_value_in_logs") is False, operator.task_id
    assert found.get_task("settle_run").outlets == [APPOINTMENTS]


def test_parsing_reads_no_connection_and_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, 'plugins'); sys.path.insert(0, 'dags'); import medflex_transfer;"
        "heavy = {'pandas', 'great_expectations', 'pyarrow', 'requests', 'adbc_driver_postgresql'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
