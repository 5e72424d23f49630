"""Which day a run is about: every way in which Airflow makes one, with the run's own timetable objects."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pendulum
import pytest
from airflow.timetables.base import DagRunInfo, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronPartitionTimetable, CronTriggerTimetable

from medflex.airflow import schedule
from medflex.airflow.schedule import CRON, TIMEZONE, is_of_today, next_slot, resolve_anchor
from medflex.domain.window import clinic_windows
from medflex.errors import BadParameterError

KALININGRAD, MOSCOW, KAMCHATKA = "Europe/Kaliningrad", "Europe/Moscow", "Asia/Kamchatka"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def scheduled(timetable: Any) -> dict[str, Any]:
    """Return the context of the newest run that this timetable schedules before NOW."""
    restriction = TimeRestriction(earliest=pendulum.instance(NOW - timedelta(days=3)), latest=None, catchup=True)
    last: DagRunInfo | None = None
    interval = None
    while True:
        info = timetable.next_dagrun_info(last_automated_data_interval=interval, restriction=restriction)
        if info is None or info.run_after > NOW:
            break
        last, interval = info, info.data_interval
    assert last is not None
    return context(run_after=last.run_after, interval_end=last.data_interval.end)


def manual(timetable: Any, logical_date: datetime | None) -> dict[str, Any]:
    """Return the context of a run made by hand; without a logical date it has no interval, whatever the timetable."""
    if logical_date is None:
        return context(run_after=NOW)
    interval = timetable.infer_manual_data_interval(run_after=pendulum.instance(logical_date))
    return context(run_after=NOW, interval_end=interval.end)


def context(
    *, run_after: datetime, interval_end: datetime | None = None, partition_key: str | None = None
) -> dict[str, Any]:
    made: dict[str, Any] = {"dag_run": SimpleNamespace(run_after=run_after, partition_key=partition_key)}
    if interval_end is not None:
        made["data_interval_end"] = interval_end
    return made


def days(anchor: datetime) -> dict[str, date]:
    """Return the run's day D in three zones, read back from the windows that the anchor yields."""
    zones = [KALININGRAD, MOSCOW, KAMCHATKA]
    clinics = pd.DataFrame({"clinic_id": range(3), "timezone": zones})
    windows = clinic_windows(clinics, anchor, NOW, cut_to_today=False)
    found = {}
    for zone, start, before in zip(zones, windows["starts_from"], windows["starts_before"], strict=True):
        first, last = start.tz_convert(zone), before.tz_convert(zone)
        assert (first.hour, first.minute, last.hour, last.minute) == (0, 0, 0, 0)
        assert last.date() - first.date() == timedelta(days=76)
        found[zone] = first.date() + timedelta(days=45)
    return found


DAILY = CronTriggerTimetable("@daily", timezone="UTC")
LOCAL_DAYS = CronDataIntervalTimetable("@daily", timezone="Europe/Berlin")
WITH_INTERVAL = CronTriggerTimetable("0 6 * * *", timezone="UTC", interval=timedelta(days=1))
OURS = CronTriggerTimetable(CRON, timezone=TIMEZONE)
FIFTEENTH = datetime(2026, 11, 15, 12, tzinfo=UTC)

# Each row of the table of ways to make a run: context -> D in Kaliningrad, Moscow, Kamchatka.
ROWS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "@daily, scheduled: an interval of no length": (scheduled(DAILY), (22, 22, 22)),
    "local days as intervals, scheduled: ends at 21 Nov 23:00 UTC": (scheduled(LOCAL_DAYS), (22, 22, 22)),
    "a trigger with an interval of a day, scheduled: ends when it runs": (scheduled(WITH_INTERVAL), (22, 22, 22)),
    "partitioned, scheduled: the day of the key": (
        context(run_after=NOW, partition_key="2026-11-19T00:00:00"),
        (19, 19, 19),
    ),
    "by hand without a logical date: now": (manual(DAILY, None), (22, 22, 23)),
    "by hand without a logical date, interval timetable: now": (manual(LOCAL_DAYS, None), (22, 22, 23)),
    "by hand with a logical date, interval timetable: the last whole day before it": (
        manual(LOCAL_DAYS, FIFTEENTH),
        (15, 15, 15),
    ),
    "@daily by hand with a logical date: that instant": (manual(DAILY, FIFTEENTH), (15, 15, 16)),
    "triggered by an asset: now": (context(run_after=NOW), (22, 22, 23)),
    "ours, scheduled": (scheduled(OURS), (22, 22, 22)),
    "ours, by hand or backfilled for a day": (manual(OURS, datetime(2026, 11, 9, 0, tzinfo=UTC)), (9, 9, 9)),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_way_to_make_a_run_yields_its_window(row: str) -> None:
    """R6: at 12:00 UTC it is past midnight in Kamchatka already, so there D is the next day."""
    made, (kaliningrad, moscow, kamchatka) = ROWS[row]
    november = {
        KALININGRAD: date(2026, 11, kaliningrad),
        MOSCOW: date(2026, 11, moscow),
        KAMCHATKA: date(2026, 11, kamchatka),
    }
    assert days(resolve_anchor(made)) == november


def test_a_partition_timetable_of_airflow_gives_a_key_we_can_read() -> None:
    timetable = CronPartitionTimetable("@daily", timezone="UTC")
    restriction = TimeRestriction(earliest=pendulum.instance(NOW - timedelta(days=3)), latest=None, catchup=True)
    info = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=restriction)
    assert info is not None
    assert info.data_interval is None
    anchor = resolve_anchor(context(run_after=info.run_after, partition_key=info.partition_key))
    assert anchor.date().isoformat() == str(info.partition_key)[:10]


def test_a_partition_key_that_is_no_date_is_refused() -> None:
    with pytest.raises(BadParameterError, match="partition key"):
        resolve_anchor(context(run_after=NOW, partition_key="north"))


def test_the_next_slot_is_strictly_later() -> None:
    at_three = datetime(2026, 11, 22, 0, tzinfo=UTC)
    assert next_slot(at_three - timedelta(seconds=1)) == at_three
    assert next_slot(at_three) == at_three + timedelta(days=1)


@pytest.mark.parametrize(
    ("cron", "longest"),
    [
        ("*/2 * * * *", timedelta(minutes=2)),
        ("0 * * * *", timedelta(hours=1)),
        ("*/2 9-17 * * *", timedelta(hours=15, minutes=2)),
        ("0 9 * * 1-5", timedelta(days=3)),
        ("0 9 * * 1", timedelta(days=7)),
        ("0 9 1 * *", timedelta(days=30)),
        # The DAG cannot be read either, and other alerts have to be told all the same.
        ("every hour", timedelta(0)),
        ("0 0 30 2 *", timedelta(0)),
    ],
)
@pytest.mark.parametrize("now", [NOW + timedelta(hours=5 * part) for part in range(5)])
def test_the_longest_wait_for_actions_is_that_of_the_schedule_at_any_time(
    monkeypatch: pytest.MonkeyPatch, cron: str, longest: timedelta, now: datetime
) -> None:
    monkeypatch.setattr(schedule, "ACTIONS_CRON", cron)
    assert schedule.longest_wait_for_actions(now) == longest


def test_a_run_is_of_today_until_the_next_slot() -> None:
    anchor = datetime(2026, 11, 22, 0, tzinfo=UTC)
    assert is_of_today(anchor, anchor)
    assert is_of_today(anchor, anchor + timedelta(hours=23, minutes=59))
    assert not is_of_today(anchor, anchor + timedelta(days=1))
    assert not is_of_today(anchor, anchor - timedelta(hours=1))
