"""How the gate waits: in the triggerer, never longer than until its next look, and not at all for a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk.exceptions import TaskDeferred

from medflex.airflow.sensors.activation import SHORTEST_DEFERRAL, ActivationSensor

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECHECK = timedelta(minutes=10)


def deferred(until: datetime) -> datetime:
    """Return the moment that the triggerer is to wake the sensor at."""
    sensor = ActivationSensor(task_id="gate", shard={"shard": 0, "label": "clinic 2 waiting"}, recheck=RECHECK)
    with pytest.raises(TaskDeferred) as raised:
        sensor._wait(until, NOW)
    trigger = raised.value.trigger
    assert isinstance(trigger, DateTimeTrigger)
    # Into Airflow's database goes a time stamp and nothing else.
    assert set(trigger.serialize()[1]) == {"moment", "end_from_trigger"}
    assert raised.value.method_name == "execute"
    return trigger.moment


@pytest.mark.parametrize("wait", [SHORTEST_DEFERRAL, timedelta(minutes=1), RECHECK])
def test_it_sleeps_in_the_triggerer_until_the_clinic_opens(wait: timedelta) -> None:
    assert deferred(NOW + wait) == NOW + wait


def test_it_looks_at_the_switch_again_before_a_long_wait_is_over() -> None:
    assert deferred(NOW + timedelta(hours=20)) == NOW + RECHECK


@pytest.mark.parametrize("wait", [timedelta(milliseconds=20), timedelta(0), -timedelta(seconds=5)])
def test_a_moment_is_waited_for_on_the_worker(wait: timedelta) -> None:
    """The scheduler can mark a task failed that defers and is resumed within seconds (Airflow 3.3.2)."""
    sensor = ActivationSensor(task_id="gate", shard={"shard": 0, "label": "clinic 2 waiting"})
    before = datetime.now(UTC)
    sensor._wait(NOW + wait, NOW)
    assert datetime.now(UTC) - before >= wait
    assert timedelta(seconds=10) <= SHORTEST_DEFERRAL < RECHECK
