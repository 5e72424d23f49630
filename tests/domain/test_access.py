"""R1, R2, R3, R16: which clinics are open, which wait for their 24 hours, which are closed and why."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.access import HOLD, AccessState, ClosedReason, judge_access
from tests.domain.frames import NOW, clinics

STEP = timedelta(microseconds=1)
NEVER = {"access_enabled": None, "access_changed_at": None, "access_changed_by_role": None}


def _judge_one(now: datetime = NOW, **changes: Any) -> pd.Series:
    return judge_access(clinics(changes), now).iloc[0]


def test_r1_switch_on_for_long_is_open() -> None:
    judged = _judge_one()
    assert judged["state"] == AccessState.OPEN
    assert pd.isna(judged["closed_reason"])
    assert judged["opens_at"] == NOW - timedelta(days=9)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (NEVER, ClosedReason.NEVER_CONFIGURED),
        ({"access_enabled": None}, ClosedReason.SWITCH_UNKNOWN),
        ({"access_enabled": False}, ClosedReason.SWITCHED_OFF),
        # Off is off, whoever turned it and whenever.
        ({"access_enabled": False, "access_changed_by_role": "registrar"}, ClosedReason.SWITCHED_OFF),
        ({"access_enabled": False, "access_changed_at": None}, ClosedReason.SWITCHED_OFF),
        ({"access_changed_at": None}, ClosedReason.NO_TIME_STAMP),
        ({"access_changed_at": NOW + STEP}, ClosedReason.TIME_STAMP_IN_FUTURE),
        ({"access_changed_by_role": None}, ClosedReason.UNKNOWN_PERSON),
        ({"access_changed_by_role": "administrator"}, ClosedReason.NOT_SWITCHED_BY_HEAD),
        ({"access_changed_by_role": "Head"}, ClosedReason.NOT_SWITCHED_BY_HEAD),
        ({"access_changed_by_role": ""}, ClosedReason.NOT_SWITCHED_BY_HEAD),
        ({"lpu_id": None}, ClosedReason.NO_LPU_ID),
    ],
)
def test_r1_r2_r16_doubt_about_the_switch_is_closed_and_told(changes: dict[str, Any], reason: ClosedReason) -> None:
    judged = _judge_one(**changes)
    assert judged["state"] == AccessState.CLOSED
    assert judged["closed_reason"] == reason
    assert pd.isna(judged["opens_at"])


def test_every_closed_reason_is_reached_by_the_cases_above() -> None:
    mark = test_r1_r2_r16_doubt_about_the_switch_is_closed_and_told.pytestmark[0]  # type: ignore[attr-defined]
    # A clinic that is gone has no row to judge: who misses it says so.
    assert {reason for _, reason in mark.args[1]} == set(ClosedReason) - {ClosedReason.CLINIC_GONE}


@pytest.mark.parametrize(
    ("on_for", "state"),
    [
        (timedelta(0), AccessState.WAITING),
        (HOLD - timedelta(seconds=1), AccessState.WAITING),
        (HOLD - STEP, AccessState.WAITING),
        (HOLD, AccessState.OPEN),
        (HOLD + STEP, AccessState.OPEN),
    ],
)
def test_r3_opens_24_hours_after_activation_not_a_second_before(on_for: timedelta, state: AccessState) -> None:
    judged = _judge_one(access_changed_at=NOW - on_for)
    assert judged["state"] == state
    assert judged["opens_at"] == NOW - on_for + timedelta(hours=24)


def test_r3_the_24_hours_are_seconds_on_the_clock_whatever_the_zone_does() -> None:
    # Berlin's clocks went forward at 02:00 on 2026-03-29, so 24 hours after 12:00 it is 13:00 there.
    berlin = ZoneInfo("Europe/Berlin")
    switched_on = datetime(2026, 3, 28, 12, tzinfo=berlin)
    for now, state in (
        (datetime(2026, 3, 29, 12, 59, 59, tzinfo=berlin), AccessState.WAITING),
        (datetime(2026, 3, 29, 13, 0, 0, tzinfo=berlin), AccessState.OPEN),
    ):
        assert _judge_one(now, access_changed_at=switched_on, timezone="Europe/Berlin")["state"] == state


@given(st.timedeltas(timedelta(0), timedelta(days=3)), st.timedeltas(timedelta(0), timedelta(days=3)))
def test_r3_open_exactly_when_24_hours_are_full(since: timedelta, later: timedelta) -> None:
    judged = _judge_one(NOW + later, access_changed_at=NOW - since)
    assert (judged["state"] == AccessState.OPEN) == (since + later >= timedelta(seconds=86_400))


def test_r1_clinics_are_judged_each_by_its_own_switch_and_stay_as_they_are() -> None:
    given_ = clinics({"access_enabled": False}, {}, NEVER, {"access_changed_at": NOW})
    before = given_.copy(deep=True)
    judged = judge_access(given_, NOW)
    assert judged["state"].tolist() == ["closed", "open", "closed", "waiting"]
    assert judged["closed_reason"].fillna("-").tolist() == ["switched_off", "-", "never_configured", "-"]
    assert str(judged["opens_at"].dtype) == "datetime64[us, UTC]"
    pd.testing.assert_frame_equal(given_, before)
    pd.testing.assert_frame_equal(judged[list(before.columns)], before)


def test_no_clinic_is_judged_to_none() -> None:
    assert judge_access(clinics(), NOW)["state"].tolist() == []


def test_a_clock_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="without a zone"):
        judge_access(clinics({}), NOW.replace(tzinfo=None))
