"""R6: which starts lie in the window of a day, by each clinic's local calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.window import Window, clinic_windows, local_day, window_of_day, zone_or_none
from tests.domain.frames import NOW, clinics

MOSCOW = ZoneInfo("Europe/Moscow")
ZONES = st.sampled_from(sorted(available_timezones() - {"localtime", "posixrules", "Factory"}))
SECOND = timedelta(seconds=1)


def test_r6_window_is_75_local_days_and_today_half_open() -> None:
    window = window_of_day(date(2026, 3, 15), MOSCOW)
    assert window.starts_from == datetime(2026, 1, 29, tzinfo=MOSCOW)  # 45 days back
    assert window.starts_before == datetime(2026, 4, 15, tzinfo=MOSCOW)  # the 30th day ahead is 14 April, whole
    assert window.starts_from == datetime(2026, 1, 28, 21, tzinfo=UTC)
    assert window.starts_before - window.starts_from == timedelta(days=76)
    assert window.starts_from.tzinfo is window.starts_before.tzinfo is UTC


@pytest.mark.parametrize(
    ("zone", "day", "starts_from", "starts_before"),
    [
        # Moscow left out an hour for good on 2011-03-27 and got one back on 2014-10-26.
        ("Europe/Moscow", date(2011, 3, 27), "2011-02-09T21:00", "2011-04-26T20:00"),
        ("Europe/Moscow", date(2014, 10, 26), "2014-09-10T20:00", "2014-11-25T21:00"),
        # Days that start at 01:00, since clocks jumped over midnight: 2018-11-04 and 2024-03-31.
        ("America/Sao_Paulo", date(2018, 12, 19), "2018-11-04T03:00", "2019-01-19T02:00"),
        ("America/Sao_Paulo", date(2018, 10, 4), "2018-08-20T03:00", "2018-11-04T03:00"),
        ("Asia/Beirut", date(2024, 2, 29), "2024-01-14T22:00", "2024-03-30T22:00"),
        # Apia had no 2011-12-30; the window that ends before that day ends where the 31st begins.
        ("Pacific/Apia", date(2011, 11, 29), "2011-10-15T10:00", "2011-12-30T10:00"),
        # 00:00 twice: Havana put clocks back from 01:00 on 2025-11-02; the earlier one counts.
        ("America/Havana", date(2025, 12, 17), "2025-11-02T04:00", "2026-01-17T05:00"),
        # Toronto jumped from 23:30 to 00:30 in 1919, so the day began half an hour late.
        ("America/Toronto", date(1919, 5, 15), "1919-03-31T04:30", "1919-06-15T04:00"),
    ],
)
def test_r6_window_where_clocks_change(zone: str, day: date, starts_from: str, starts_before: str) -> None:
    window = window_of_day(day, ZoneInfo(zone))
    assert window.starts_from == datetime.fromisoformat(starts_from).replace(tzinfo=UTC)
    assert window.starts_before == datetime.fromisoformat(starts_before).replace(tzinfo=UTC)


@given(zone=ZONES, day=st.dates(date(1900, 1, 1), date(2100, 1, 1)))
def test_r6_window_begins_and_ends_with_local_days_in_every_zone(zone: str, day: date) -> None:
    place = ZoneInfo(zone)
    window = window_of_day(day, place)
    for edge, first_day in (
        (window.starts_from, day - timedelta(days=45)),
        (window.starts_before, day + timedelta(31)),
    ):
        assert edge.astimezone(place).date() >= first_day
        assert (edge - SECOND).astimezone(place).date() < first_day
        local = edge.astimezone(place)
        skipped = (edge - SECOND).astimezone(place).utcoffset() != local.utcoffset()
        assert local.time() == time.min or skipped


def test_r6_local_day_is_the_clinics_own() -> None:
    instant = datetime(2026, 3, 15, 22, 30, tzinfo=UTC)
    assert local_day(instant, MOSCOW) == date(2026, 3, 16)
    assert local_day(instant, ZoneInfo("Europe/London")) == date(2026, 3, 15)
    assert local_day(instant.astimezone(ZoneInfo("Asia/Tokyo")), MOSCOW) == date(2026, 3, 16)


def test_an_instant_without_a_zone_is_refused() -> None:
    naive = datetime(2026, 3, 15)  # noqa: DTZ001 - that is what is refused
    with pytest.raises(ValueError, match="without a zone"):
        local_day(naive, MOSCOW)
    with pytest.raises(ValueError, match="without a zone"):
        Window(naive, NOW)


def test_window_bounds_are_kept_in_utc() -> None:
    window = Window(datetime(2026, 3, 15, 3, tzinfo=MOSCOW), datetime(2026, 3, 16, 3, tzinfo=MOSCOW))
    assert window.starts_from.isoformat() == "2026-03-15T00:00:00+00:00"


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.integers(0, 50))
def test_intersection_holds_what_both_hold(hours: list[int], hour: int) -> None:
    instants = [NOW + timedelta(hours=hour) for hour in hours]
    one, other = Window(*instants[:2]), Window(*instants[2:])
    both = one.intersect(other)
    instant = NOW + timedelta(hours=hour)

    def holds(window: Window) -> bool:
        return window.starts_from <= instant < window.starts_before

    assert holds(both) == (holds(one) and holds(other))
    assert both.starts_from <= both.starts_before
    assert both == other.intersect(one) or (both.is_empty and other.intersect(one).is_empty)


@pytest.mark.parametrize(
    "name",
    [
        *(
            None,
            float("nan"),
            pd.NA,
            3,
            b"UTC",
            "",
            " ",
            "Moon/Base",
            "posixrules",
            "localtime",
            "Factory",
            "tzdata.zi",
        ),
        *(
            "../Europe/Moscow",
            "/etc/localtime",
            "Europe",
            "Europe/",
            "Europe/Moscow ",
            "europe/moscow",
            "MSK+3",
            "UTC+3",
        ),
        *("zone.tab", "right/Europe/Moscow", "posix/Europe/Moscow", "Europe/Moscow\x00", "C:\\zone"),
    ],
)
def test_r17_unknown_zone_names_are_no_zone(name: object) -> None:
    assert zone_or_none(name) is None


def test_a_zone_is_read_from_its_file_once_however_many_there_are() -> None:
    names = sorted(available_timezones())[:40]
    zones = [zone_or_none(name) for name in names]
    kept = [id(zone) for zone in zones]
    zones.clear()  # What nobody holds but the memo.
    assert [id(zone_or_none(name)) for name in names] == kept


def test_r17_known_zone_names_are_zones() -> None:
    for name in ("Europe/Moscow", "Europe/Kaliningrad", "Asia/Kamchatka", "UTC", "America/Argentina/Ushuaia"):
        zone = zone_or_none(name)
        assert zone is not None
        assert zone.key == name


def test_r6_each_clinic_has_the_window_of_its_own_day() -> None:
    anchor = datetime(2026, 3, 15, 20, tzinfo=UTC)  # 23:00 in Moscow, the 16th in Kamchatka
    windows = clinic_windows(
        clinics({"clinic_id": 9}, {"timezone": "Asia/Kamchatka"}, {"timezone": "Moon/Base"}, {"timezone": None}),
        anchor=anchor,
        now=anchor,
        cut_to_today=False,
    )
    assert windows["clinic_id"].tolist() == [9, 2, 3, 4]
    assert [str(type_) for type_ in windows.dtypes] == ["int64", "datetime64[us, UTC]", "datetime64[us, UTC]"]
    assert [instant.isoformat() for instant in windows["starts_from"]] == [
        "2026-01-28T21:00:00+00:00",
        "2026-01-29T12:00:00+00:00",
        "2026-01-29T00:00:00+00:00",  # R17: unknown zones get UTC days, so that their rows are seen and counted
        "2026-01-29T00:00:00+00:00",
    ]
    assert windows["starts_before"][1] == datetime(2026, 4, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(("days_back", "days_left"), [(0, 76), (1, 75), (30, 46), (75, 1), (76, 0), (400, 0)])
def test_r6_backfill_is_cut_to_what_today_allows(days_back: int, days_left: int) -> None:
    windows = clinic_windows(clinics({}), anchor=NOW - timedelta(days=days_back), now=NOW, cut_to_today=True)
    starts_from, starts_before = windows.loc[0, ["starts_from", "starts_before"]]
    assert starts_before - starts_from == timedelta(days=days_left)
    today = window_of_day(date(2026, 3, 15), MOSCOW)
    assert starts_from >= today.starts_from
    assert starts_before <= today.starts_before or days_left == 0

    uncut = clinic_windows(clinics({}), anchor=NOW - timedelta(days=days_back), now=NOW, cut_to_today=False)
    assert (uncut["starts_before"] - uncut["starts_from"])[0] == timedelta(days=76)


def test_windows_of_no_clinic_are_none() -> None:
    windows = clinic_windows(clinics(), anchor=NOW, now=NOW, cut_to_today=True)
    assert len(windows) == 0
    assert str(windows["starts_from"].dtype) == "datetime64[us, UTC]"
