"""When DAGs run, and which instant decides the day of a run of the daily transfer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from medflex.airflow.environment import number, setting
from medflex.errors import BadParameterError

CRON = "0 3 * * *"
ACTIONS_CRON = setting("MEDFLEX_PARTNER_ACTIONS_CRON", "*/2 * * * *")
"""How often partner actions are read; every two minutes unless the environment says otherwise."""
ALERTS_CRON = setting("MEDFLEX_ALERTS_CRON", "*/2 * * * *")
"""How often it is judged whether somebody has to be told something."""
DAILY_DEADLINE_HOURS = 3.0
"""So long may the daily run take before somebody is alerted; clinics that wait for their 24 hours do not count."""
DAILY = "scheduled"
"""Airflow's kind of the runs that the schedule has made, of which the transfer's is the daily one."""
TIMEZONE = "Europe/Moscow"
"""03:00 in Moscow: it is the same calendar day in all of Russia then, Kaliningrad (02:00) to Kamchatka (12:00)."""


def next_slot(after: datetime) -> datetime:
    """Return the first scheduled start strictly after ``after`` (aware), in UTC."""
    # Imported here: it takes part of a second, and most tasks never ask.
    from croniter import croniter

    local = after.astimezone(ZoneInfo(TIMEZONE))
    return croniter(CRON, local).get_next(datetime).astimezone(UTC)


def longest_wait_for_actions(now: datetime) -> timedelta:
    """Return the longest time between two slots at which partner actions are read, of those around the last week.

    A cron expression that cannot be read counts as no time: nothing reads by it.
    """
    from croniter import croniter

    since = (now - timedelta(days=7)).astimezone(ZoneInfo(TIMEZONE))
    try:
        slots = croniter(ACTIONS_CRON, since)
        # From the slot before that week to the one after it, however seldom they are.
        before, longest = slots.get_prev(float), 0.0
        while before <= now.timestamp():
            slot = slots.get_next(float)
            before, longest = slot, max(longest, slot - before)
    except ValueError:
        return timedelta(0)
    return timedelta(seconds=longest)


def daily_deadline() -> timedelta:
    """Return how long the daily run may take (``MEDFLEX_DAILY_DEADLINE_HOURS``, default 3 hours)."""
    return timedelta(hours=number("MEDFLEX_DAILY_DEADLINE_HOURS", DAILY_DEADLINE_HOURS, most=24, unit="hours"))


def resolve_anchor(context: Mapping[str, Any]) -> datetime:
    """Return the instant whose local day is the run's day D in each clinic's zone (R6): aware, UTC.

    It is the end of the data interval; where the run has none, the day of its partition key at the schedule's hour;
    where it has neither, the time it was asked for (``run_after``): a run triggered without a logical date has no
    interval and no ``ds`` at all (Airflow 3.3).

    Args:
        context: Airflow's task context, of which ``data_interval_end`` and ``dag_run`` are looked at.

    Raises:
        BadParameterError: the partition key does not begin with a date.
    """
    interval_end = context.get("data_interval_end")
    if interval_end is not None:
        return _utc(interval_end)
    dag_run = context["dag_run"]
    key = getattr(dag_run, "partition_key", None)
    if key:
        try:
            day = datetime.fromisoformat(str(key)[:10]).date()
        except ValueError:
            raise BadParameterError("The partition key of this run is no date: give it as YYYY-MM-DD.") from None
        hour = int(CRON.split()[1])
        return datetime.combine(day, time(hour), ZoneInfo(TIMEZONE)).astimezone(UTC)
    return _utc(dag_run.run_after)


def is_of_today(anchor: datetime, now: datetime) -> bool:
    """Tell whether a run looks at the window of today: no slot has passed since its anchor, and it is not ahead."""
    return anchor <= now + timedelta(minutes=5) and now < next_slot(anchor)


def _utc(instant: datetime) -> datetime:
    # Airflow hands over pendulum's datetimes; the product speaks the standard library's.
    return datetime.fromtimestamp(instant.timestamp(), UTC)
