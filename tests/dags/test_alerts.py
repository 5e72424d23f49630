"""The DAG of alerts, and the deadline of the daily run, by Airflow's own parts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import CronTriggerTimetable
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.execution_time.callback_supervisor import execute_callback

from medflex.airflow.deadline import DailyRunQueued
from medflex.ledger.store import Ledger
from tests.airflow.dag_runs import ROOT, dag, run_dag, task_states
from tests.airflow.receiver import SECRET, receiving


@pytest.mark.usefixtures("airflow_db")
@pytest.mark.timeout(120)
def test_an_alert_goes_through_airflows_notifier_and_a_channel_that_fails_fails_the_run_only(
    ledger_db: str, monkeypatch: pytest.MonkeyPatch, log_text: Callable[[], str]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    with Ledger(ledger_db) as ledger, receiving() as receiver:
        ledger.note_contact("refused")
        monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
        receiver.status = 500
        run = run_dag("medflex_alerts")
        assert (run.state, set(task_states(run).values())) == ("failed", {"failed"})
        text = log_text()
        assert "AlertNotToldError: The notifier medflex_alerts HttpNotifier failed with" in text
        assert len(ledger.untold()) == 1
        receiver.status = 200
        assert run_dag("medflex_alerts").state == "success"
        assert receiver.told() == [("token_refused", "raised")]
        assert ledger.untold() == []
    assert SECRET not in text + log_text()


def test_alerts_are_judged_by_the_clock_whatever_else_runs() -> None:
    found = dag("medflex_alerts")
    assert isinstance(found.timetable, CronTriggerTimetable)
    assert found.timetable.expression == "*/2 * * * *"
    (task,) = found.tasks
    assert task.task_id == "tell_alerts"
    assert found.max_active_runs == 1


# -- the deadline of the daily run


def test_the_daily_run_has_a_deadline_whose_callback_is_found_by_its_path(
    ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deadline,) = dag("medflex_transfer").deadline
    assert isinstance(deadline.reference, DailyRunQueued)
    assert deadline.interval == timedelta(hours=3)
    assert isinstance(deadline.callback, SyncCallback)
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    # As Airflow gives it to the process of a callback.
    dag_run = {"dag_id": "medflex_transfer", "dag_run_id": "scheduled__1", "run_type": "scheduled", "conf": {}}
    done = execute_callback(
        deadline.callback.path,
        {**deadline.callback.kwargs, "context": {"dag_run": dag_run, "deadline": {"id": "1"}}},
        "medflex_transfer.py",
        ROOT / "dags",
        _Log(),
    )
    assert done == (True, None)
    with Ledger(ledger_db) as ledger:
        assert ledger.alert_facts(_limits()).missed_at is not None


@pytest.mark.usefixtures("airflow_db")
def test_airflow_makes_the_deadline_with_the_run_and_gives_the_callback_what_it_needs() -> None:
    """By the scheduler's own code: a run is queued, its deadline passes, the callback is queued with its context."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.models.deadline import Deadline
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.taskinstance import clear_task_instances
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from sqlalchemy import select

    now = datetime.now(UTC)
    with create_session() as session:
        manager = DagBundlesManager()
        manager.sync_bundles_to_db(session=session)
        session.commit()
        (bundle,) = manager.get_all_dag_bundles()
        bag = BundleDagBag(ROOT / "dags" / "medflex_transfer.py", bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, None, session=session)
        session.commit()
        stored: Any = SerializedDagModel.get_dag("medflex_transfer", session=session)
        run = stored.create_dagrun(
            run_id="scheduled__deadline",
            run_type=DagRunType.SCHEDULED,
            logical_date=now - timedelta(hours=5),  # The scheduler was down.
            run_after=now,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.QUEUED,
            session=session,
        )
        session.flush()
        deadline = session.scalars(select(Deadline).where(Deadline.dagrun_id == run.id)).one()
        assert deadline.deadline_time == run.queued_at + timedelta(hours=3)
        assert abs(run.queued_at - now) < timedelta(minutes=1)
        # In Airflow 3.3.2 that fails with its own deadline that counts from when a run was queued.
        clear_task_instances(run.task_instances, session)
        by_hand = stored.create_dagrun(
            run_id="manual__deadline",
            run_type=DagRunType.MANUAL,
            logical_date=now,
            run_after=now,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.QUEUED,
            session=session,
        )
        session.flush()
        assert not session.scalars(select(Deadline).where(Deadline.dagrun_id == by_hand.id)).all()
        deadline.handle_miss(session)
        given = deadline.callback.data["kwargs"]["context"]["dag_run"]
        assert (given["dag_id"], given["dag_run_id"], given["run_type"]) == (
            "medflex_transfer",
            "scheduled__deadline",
            "scheduled",
        )
        assert deadline.callback.data["path"] == "medflex.airflow.tasks.alerts.note_missed_deadline"
        session.rollback()


def test_dag_test_still_cannot_end_a_run_with_a_deadline() -> None:
    """It takes the DAG as serialized, where a deadline is not yet the id of a row. When it can,
    tests/airflow/dag_runs.py need not take the deadline off.
    """
    from airflow.serialization.serialized_objects import DagSerialization

    stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag("medflex_transfer")))
    assert [type(item) for item in stored.deadline] == [dict]


class _Log:
    def debug(self, *_: object, **__: object) -> None:
        pass

    info = exception = debug


def _limits() -> Any:
    from medflex.domain.alerts import Limits

    return Limits()
