"""Which appointments a run looks at: local calendar days of each clinic (R6)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pandas as pd

DAYS_BACK = 45
DAYS_AHEAD = 30

INSTANT = pd.DatetimeTZDtype("us", "UTC")
"""The type of every column of instants."""

# Entries of a zoneinfo folder which name no place: the machine's own zone, the default rules, "zone not set".
_NOT_A_PLACE = frozenset({"localtime", "posixrules", "Factory"})


@dataclass(frozen=True)
class Window:
    """Starts of appointments from ``starts_from`` up to, not including, ``starts_before``; both aware, kept in UTC.

    Raises ValueError when a bound has no zone.
    """

    starts_from: datetime
    starts_before: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts_from", as_utc(self.starts_from))
        object.__setattr__(self, "starts_before", as_utc(self.starts_before))

    @property
    def is_empty(self) -> bool:
        return self.starts_from >= self.starts_before

    def intersect(self, other: Window) -> Window:
        """What lies in both; empty, with both bounds equal, when nothing does."""
        starts_from = max(self.starts_from, other.starts_from)
        return Window(starts_from, max(starts_from, min(self.starts_before, other.starts_before)))


def as_utc(instant: datetime) -> datetime:
    """The same instant in UTC. Raises ValueError when it has no zone: guessing one moves windows and deadlines."""
    if instant.utcoffset() is None:
        raise ValueError("An instant without a zone was given to the domain: pass an aware datetime, such as now(UTC).")
    return instant.astimezone(UTC)


def utc_instants(column: pd.Series) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    """A column of instants as plain datetime64[us] in UTC, missing ones NaT. Raises TypeError for times without a zone.

    Such arrays are compared some ten times faster than columns with a zone while they are short.
    """
    aware = column if column.dtype == INSTANT else column.astype(INSTANT)
    return aware.to_numpy("datetime64[us]")


def zone_or_none(name: object) -> ZoneInfo | None:
    """The zone of that name in the tz database, or None: for junk, missing values, paths and names of mere files (R17).

    Names are taken letter for letter, as the tz database has them.
    """
    return _known_zone(name) if isinstance(name, str) else None


@lru_cache(maxsize=1024)  # ZoneInfo itself keeps eight, and reads the files of further ones again and again.
def _known_zone(name: str) -> ZoneInfo | None:
    return ZoneInfo(name) if name in _zone_names() else None


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) - _NOT_A_PLACE


def local_day(instant: datetime, zone: ZoneInfo) -> date:
    """The calendar day of that instant in the zone. Raises ValueError for an instant without a zone."""
    return as_utc(instant).astimezone(zone).date()


@lru_cache(maxsize=1024)  # A run asks for the same day of few zones, and again before each batch.
def window_of_day(day: date, zone: ZoneInfo) -> Window:
    """R6: from 00:00 of day − 45 up to, not including, 00:00 of day + 31, by the clocks of the zone."""
    return Window(
        _start_of_day(day - timedelta(days=DAYS_BACK), zone), _start_of_day(day + timedelta(days=DAYS_AHEAD + 1), zone)
    )


def _start_of_day(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of the local day, in UTC: 00:00, the earlier one if there are two, or where clocks jumped it.

    Clocks that jump over midnight (until 2018 in São Paulo, to this day in Beirut) make a day start at 01:00.
    """
    midnight = datetime.combine(day, time.min, tzinfo=zone)
    late = midnight.astimezone(UTC)
    if late.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return late
    early = midnight.replace(fold=1).astimezone(UTC)  # In a gap the offsets before and after it enclose the jump.
    while late - early > timedelta(seconds=1):
        middle = early + timedelta(seconds=(late - early) // timedelta(seconds=2))
        early, late = (early, middle) if middle.astimezone(zone).date() >= day else (middle, late)
    return late


def clinic_windows(clinics: pd.DataFrame, anchor: datetime, now: datetime, cut_to_today: bool) -> pd.DataFrame:
    """The window of each clinic (R6).

    clinics: CLINICS, one row per clinic with ``clinic_id`` and ``timezone``. anchor: the instant whose local day is
    the run's day D, the end of the data interval. now: the clock. cut_to_today: for a backfill, cut to what the
    window of today allows as well.

    Returns one row per clinic, in the same order: clinic_id int64, starts_from and starts_before datetime64[us, UTC];
    an empty window has both equal. A clinic with an unknown zone gets UTC days: its rows are all quarantined (R17), but
    they must be seen and counted. Raises ValueError when an instant has no zone.
    """
    zones = [zone_or_none(name) or ZoneInfo("UTC") for name in clinics["timezone"]]
    windows: dict[str, Window] = {}
    for zone in dict.fromkeys(zones):
        window = window_of_day(local_day(anchor, zone), zone)
        if cut_to_today:
            window = window.intersect(window_of_day(local_day(now, zone), zone))
        windows[zone.key] = window
    of_clinic = [windows[zone.key] for zone in zones]
    return pd.DataFrame(
        {
            "clinic_id": clinics["clinic_id"].to_numpy("int64"),
            "starts_from": pd.array([window.starts_from for window in of_clinic], dtype=INSTANT),
            "starts_before": pd.array([window.starts_before for window in of_clinic], dtype=INSTANT),
        }
    )
