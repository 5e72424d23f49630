"""The last look before sending: each reason alone, their order, and what must not disturb it (R1-R4, R7-R10, R16)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from medflex.domain.access import judge_access
from medflex.domain.last_look import PERMITTED, Turned, last_look
from medflex.domain.reasons import WITHHOLDING, Reason
from medflex.domain.window import clinic_windows
from tests.domain.frames import NOW, clinics

FLAGS = (
    "is_anonymous",
    "refused_personal_data",
    "refused_notifications",
    "refused_marketing",
    "doctor_banned",
    "patient_found",
    "doctor_found",
    "has_phone",
    "has_name",
)
STARTS = datetime(2026, 3, 20, 9, 30, tzinfo=UTC)
BEHIND = datetime(2026, 4, 14, 21, tzinfo=UTC)
HUGE = 2**53 + 1
"""The first whole number that a float cannot hold: beside a missing one, a careless frame would turn it into 2**53."""


def prepared(*changes: dict[str, Any]) -> pd.DataFrame:
    """Records about to leave; ids 100, 101, … unless changed."""
    record: dict[str, Any] = {"clinic_id": 1, "doctor_id": 5, "patient_id": 7, "partners": "3,17", "lpu_id": 1001}
    frame = pd.DataFrame([record | {"id": 100 + number} | change for number, change in enumerate(changes)])
    return frame.astype(dict.fromkeys(("clinic_id", "id", "doctor_id", "patient_id", "lpu_id"), "int64"))


def micros(instant: datetime) -> int:
    """Microseconds since 1970, as consent_now.sql tells a start."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def looked(records: pd.DataFrame, now: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """Look with the windows of today."""
    return last_look(records, now, known, clinic_windows(known, NOW, NOW, cut_to_today=False))


def present(*changes: dict[str, Any]) -> pd.DataFrame:
    """What consent_now.sql says of the same appointments: nothing stands against them, unless changed."""
    names = ("clinic_id", "appointment_id", "patient_id", "doctor_id", "starts", *FLAGS)
    row: dict[str, Any] = dict.fromkeys(FLAGS, False) | dict.fromkeys(FLAGS[-4:], True)
    row |= {"clinic_id": 1, "patient_id": 7, "doctor_id": 5, "starts": micros(STARTS)}
    made = [row | {"appointment_id": 100 + number} | change for number, change in enumerate(changes)]
    return pd.DataFrame(made, columns=list(names), dtype=object).astype(
        {
            "clinic_id": "int64",
            "appointment_id": "int64",
            "patient_id": "Int64",
            "doctor_id": "Int64",
            "starts": "Int64",
        }
        | dict.fromkeys(FLAGS, "boolean")
    )


def look(
    records: dict[str, Any] | None = None, now: dict[str, Any] | None = None, clinic: dict[str, Any] | None = None
) -> str:
    """Look at one record of an open clinic, with these changes."""
    (reason,) = looked(prepared(records or {}), present(now or {}), judge_access(clinics(clinic or {}), NOW))
    return reason


def test_what_nothing_stands_against_may_leave() -> None:
    assert look() == PERMITTED


CONSENT: list[tuple[Reason, dict[str, Any], dict[str, Any]]] = [
    (Reason.REFUSED_PERSONAL_DATA, {"refused_personal_data": True}, {}),
    (Reason.REFUSED_NOTIFICATIONS, {"refused_notifications": True}, {}),
    (Reason.REFUSED_MARKETING, {"refused_marketing": True}, {}),
    (Reason.ANONYMOUS_APPOINTMENT, {"is_anonymous": True}, {}),
    (Reason.DOCTOR_BANNED, {"doctor_banned": True}, {}),
    (Reason.NO_PARTNER, {}, {"partner_ids": []}),
    (Reason.CLINIC_NOT_ACTIVE, {}, {"access_enabled": False}),
    # R16: what is not known permits nothing.
    (Reason.REFUSED_PERSONAL_DATA, {"refused_personal_data": None}, {}),
    (Reason.REFUSED_NOTIFICATIONS, {"refused_notifications": None}, {}),
    (Reason.REFUSED_MARKETING, {"refused_marketing": None}, {}),
    (Reason.ANONYMOUS_APPOINTMENT, {"is_anonymous": None}, {}),
    (Reason.DOCTOR_BANNED, {"doctor_banned": None}, {}),
    (Reason.CLINIC_NOT_ACTIVE, {}, {"access_enabled": None}),
    (Reason.CLINIC_NOT_ACTIVE, {}, {"access_changed_by_role": "administrator"}),
    (Reason.CLINIC_NOT_ACTIVE, {}, {"lpu_id": None}),
    (Reason.CLINIC_NOT_ACTIVE, {}, {"access_changed_at": NOW - timedelta(hours=23, minutes=59, seconds=59)}),
]


@pytest.mark.parametrize(("reason", "now", "clinic"), CONSENT)
def test_each_withholding_reason_holds_a_record_back(
    reason: Reason, now: dict[str, Any], clinic: dict[str, Any]
) -> None:
    assert look(now=now, clinic=clinic) == reason


def test_every_withholding_reason_is_looked_at() -> None:
    assert {reason for reason, _, _ in CONSENT} == set(WITHHOLDING)


TURNED: list[tuple[Turned, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (Turned.APPOINTMENT_GONE, {}, {"appointment_id": 999}, {}),
    (Turned.APPOINTMENT_GONE, {"clinic_id": 1}, {"clinic_id": 2}, {}),
    (Turned.PERSON_CHANGED, {}, {"patient_id": 8}, {}),
    (Turned.PERSON_CHANGED, {}, {"doctor_id": 6}, {}),
    (Turned.PERSON_CHANGED, {}, {"patient_id": None}, {}),
    (Turned.PERSON_CHANGED, {}, {"doctor_id": None}, {}),
    (Turned.PERSON_CHANGED, {"patient_id": HUGE}, {"patient_id": HUGE - 1}, {}),
    (Turned.REFERENCE_BROKEN, {}, {"patient_found": False}, {}),
    (Turned.REFERENCE_BROKEN, {}, {"doctor_found": False}, {}),
    (Turned.REFERENCE_BROKEN, {}, {"patient_found": None}, {}),
    (Turned.PARTNER_GONE, {}, {}, {"partner_ids": [3]}),
    (Turned.PARTNER_GONE, {"partners": "17"}, {}, {"partner_ids": [1, 7]}),
    (Turned.PARTNER_GONE, {"partners": str(HUGE)}, {}, {"partner_ids": [HUGE - 1]}),
    (Turned.LPU_CHANGED, {}, {}, {"lpu_id": 2002}),
    (Turned.LPU_CHANGED, {"lpu_id": HUGE}, {}, {"lpu_id": HUGE - 1}),
    # The first instant behind the window of 15 March, in Moscow; a start that is not known is in no window.
    (Turned.MOVED_OUT_OF_WINDOW, {}, {"starts": micros(BEHIND)}, {}),
    (Turned.MOVED_OUT_OF_WINDOW, {}, {"starts": None}, {}),
]
ERASED: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.PHONE_MISSING, {"has_phone": False}),
    (Reason.PHONE_MISSING, {"has_phone": None}),
    (Reason.NAME_MISSING, {"has_name": False}),
    (Reason.NAME_MISSING, {"has_name": None}),
]


@pytest.mark.parametrize(("reason", "now"), ERASED)
def test_what_was_erased_since_it_was_read_does_not_leave(reason: Reason, now: dict[str, Any]) -> None:
    assert look({}, now) == reason


@pytest.mark.parametrize("starts", [BEHIND - timedelta(microseconds=1), STARTS - timedelta(days=400)])
def test_what_starts_before_the_end_of_the_window_may_leave(starts: datetime) -> None:
    """Its beginning passes with each midnight, and the run's day may be yesterday."""
    assert look({}, {"starts": micros(starts)}) == PERMITTED


@pytest.mark.parametrize(("turned", "records", "now", "clinic"), TURNED)
def test_what_has_turned_since_holds_a_record_back(
    turned: Turned, records: dict[str, Any], now: dict[str, Any], clinic: dict[str, Any]
) -> None:
    # Clinic 2 is open as well, so that only the clinic's number tells the two apart.
    both = judge_access(clinics({"clinic_id": 1} | clinic, {"clinic_id": 2}), NOW)
    assert looked(prepared(records), present(now), both) == [turned]


def test_every_turn_is_looked_at_and_has_its_line() -> None:
    # OVERTAKEN is told by the ledger, not by Medlock: the loader looks at it.
    assert {turned for turned, *_ in TURNED} == set(Turned) - {Turned.OVERTAKEN}
    assert all(turned.description.endswith(".") for turned in Turned)


def test_the_first_reason_is_told_in_the_order_of_reports() -> None:
    """Everything stands against the record; one after another is taken away."""
    now: dict[str, Any] = {
        "refused_personal_data": True,
        "refused_notifications": True,
        "refused_marketing": True,
        "is_anonymous": True,
        "doctor_banned": True,
        "patient_id": 8,
        "doctor_found": False,
        "starts": micros(BEHIND),
        "has_phone": False,
        "has_name": False,
    }
    clinic: dict[str, Any] = {"partner_ids": [], "access_enabled": False, "lpu_id": 2002}
    told = [look({}, now, clinic)]
    for name in (
        "refused_personal_data",
        "refused_notifications",
        "refused_marketing",
        "is_anonymous",
        "doctor_banned",
    ):
        now[name] = False
        told.append(look({}, now, clinic))
    clinic["partner_ids"] = [3]
    told.append(look({}, now, clinic))
    clinic["access_enabled"] = True
    told.append(look({}, now, clinic))
    now["patient_id"] = 7
    told.append(look({}, now, clinic))
    now["doctor_found"] = True
    told.append(look({}, now, clinic))
    clinic["partner_ids"] = [3, 17]
    told.append(look({}, now, clinic))
    clinic["lpu_id"] = 1001
    told.append(look({}, now, clinic))
    for name, value in (("starts", micros(STARTS)), ("has_phone", True), ("has_name", True)):
        now[name] = value
        told.append(look({}, now, clinic))
    assert told == [
        *WITHHOLDING,
        Turned.PERSON_CHANGED,
        Turned.REFERENCE_BROKEN,
        Turned.PARTNER_GONE,
        Turned.LPU_CHANGED,
        Turned.MOVED_OUT_OF_WINDOW,
        Reason.PHONE_MISSING,
        Reason.NAME_MISSING,
        PERMITTED,
    ]


def test_of_a_deleted_appointment_nothing_else_is_told() -> None:
    """Its row is missing, so the flags that stand in its place are another record's."""
    refusing = present({"appointment_id": 101, "refused_personal_data": True})
    assert looked(prepared({}, {}), refusing, judge_access(clinics({}), NOW)) == [
        Turned.APPOINTMENT_GONE,
        Reason.REFUSED_PERSONAL_DATA,
    ]


def test_nothing_left_in_medlock_means_that_all_are_gone() -> None:
    assert looked(prepared({}, {}), present(), judge_access(clinics({}), NOW)) == [Turned.APPOINTMENT_GONE] * 2


def test_no_records_have_no_reasons() -> None:
    nothing = prepared({}).iloc[:0]
    assert looked(nothing, present({}), judge_access(clinics({}), NOW)) == []
    assert looked(nothing, present(), judge_access(clinics({}), NOW)) == []


def test_a_clinic_that_is_gone_from_medlock_sends_nothing() -> None:
    assert looked(prepared({}), present({}), judge_access(clinics(), NOW)) == [Reason.CLINIC_NOT_ACTIVE]


def test_a_partner_that_has_come_since_does_not_hold_a_record_back() -> None:
    """The record names those it was prepared for; the new one gets it with the next change."""
    assert look(clinic={"partner_ids": [1, 3, 17, 99]}) == PERMITTED
    assert look({"partners": "3"}) == PERMITTED


def test_ids_beyond_what_a_float_can_hold_are_told_apart() -> None:
    """Beside a clinic without lpu_id and an appointment without doctor, which make floats of a careless frame."""
    records = prepared(
        {"id": HUGE, "patient_id": HUGE, "doctor_id": HUGE, "lpu_id": HUGE, "partners": str(HUGE)},
        {"id": HUGE - 1, "patient_id": HUGE, "doctor_id": HUGE, "lpu_id": HUGE, "partners": str(HUGE)},
    )
    now = present(
        {"appointment_id": 5, "doctor_id": None, "patient_id": None},
        {"appointment_id": HUGE, "patient_id": HUGE, "doctor_id": HUGE},
    )
    known = judge_access(clinics({"lpu_id": HUGE, "partner_ids": [HUGE]}, {"lpu_id": None}), NOW)
    assert looked(records, now, known) == [PERMITTED, Turned.APPOINTMENT_GONE]


def test_each_record_gets_its_own_reason_whatever_the_order() -> None:
    records = prepared({}, {}, {}, {"patient_id": 9}, {})
    now = present({}, {"doctor_banned": True}, {"appointment_id": 777}, {"patient_id": 8}, {})
    expected = [PERMITTED, Reason.DOCTOR_BANNED, Turned.APPOINTMENT_GONE, Turned.PERSON_CHANGED, PERMITTED]
    known = judge_access(clinics({}), NOW)
    assert looked(records, now, known) == expected
    assert looked(records, now.iloc[::-1], known) == expected
    assert looked(records.iloc[::-1], now, known) == expected[::-1]
