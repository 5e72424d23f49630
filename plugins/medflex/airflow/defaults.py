"""What the DAG files have in common: tags, start, the defaults of their tasks, the parameter ``clinic_ids``."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Param

TAGS = ("medflex", "personal-data")
NO_BACKFILL: Any = ("scheduled", "manual", "operator_triggered", "asset_triggered", "asset_materialization")
"""Kinds of runs that a DAG has which judges the present: a backfill's runs come beside ``max_active_runs``, and would
take over from each other what they hold."""
START = datetime(2026, 1, 1)  # noqa: DTZ001 - the timetable has the zone; runs that come with events need none


def task_defaults(
    execution_timeout: timedelta, *, retry_delay: timedelta = timedelta(seconds=30), backs_off: bool = True
) -> dict[str, Any]:
    """Return the ``default_args`` of a DAG.

    Args:
        execution_timeout: after which a task is taken for stuck.
        retry_delay: until a failed task is tried again, twice.
        backs_off: whether the second time comes later than that, for outages that last.
    """
    defaults: dict[str, Any] = {
        "owner": "data-engineering",
        "retries": 2,
        "retry_delay": retry_delay,
        "execution_timeout": execution_timeout,
        # Nothing of the data goes to the log, whatever a task may return one day.
        "show_return_value_in_logs": False,
    }
    if backs_off:
        defaults |= {"retry_exponential_backoff": True, "max_retry_delay": timedelta(minutes=10)}
    return defaults


def clinic_ids_param() -> Param:
    """Return the parameter that narrows a run down to some clinics."""
    return Param(
        None, type=["null", "array"], items={"type": "integer"}, description="Only these clinics; empty for all."
    )
