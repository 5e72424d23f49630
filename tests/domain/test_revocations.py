"""What is taken back: each reason alone, their order, since when, what waits for a person, and a plain loop (R12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from medflex.domain.access import judge_access
from medflex.domain.last_look import Turned
from medflex.domain.reasons import QUARANTINE, REASONS, WITHHOLDING, Reason
from medflex.domain.revocations import (
    ABSENCE,
    REVOCATION_COLUMNS,
    Revoked,
    aged,
    describe,
    empty_revocations,
    find_revocations,
    held_back,
    positions,
)
from medflex.domain.window import clinic_windows
from tests.domain.frames import NOW, clinics, rows

HUGE = 2**53 + 1
"""The first whole number that a float cannot hold."""
WRITTEN = NOW - timedelta(days=3)
"""When the records that Medflex shows were written."""
CHANGED = NOW - timedelta(hours=1)
"""When everything in Medlock was changed last."""
STARTS_FROM = datetime(2026, 1, 28, 21, tzinfo=UTC)
"""R6: 45 days before NOW's day, 00:00 in Moscow."""
STARTS_BEFORE = datetime(2026, 4, 14, 21, tzinfo=UTC)
"""R6: 31 days after NOW's day, 00:00 in Moscow."""

LIVE_TYPES = {
    **dict.fromkeys(("clinic_id", "appointment_id", "lpu_id", "version"), "int64"),
    "state": "str",
    "patient_id": "Int64",
    "partner_ids": "str",
    **dict.fromkeys(("changed_at", "extracted_at"), "datetime64[us, UTC]"),
}


def live(*changes: dict[str, Any]) -> pd.DataFrame:
    """LIVE: one settled record of an open clinic per argument, with these changes; ids 100, 101, … unless changed."""
    record: dict[str, Any] = {"clinic_id": 1, "lpu_id": 1001, "version": 4, "state": "sent", "patient_id": 7}
    record |= {"partner_ids": "3,17", "changed_at": WRITTEN, "extracted_at": WRITTEN}
    made = [record | {"appointment_id": 100 + number} | change for number, change in enumerate(changes)]
    frame = pd.DataFrame(made, columns=list(LIVE_TYPES), dtype=object)
    return pd.DataFrame({name: frame[name].astype(type_) for name, type_ in LIVE_TYPES.items()})


STAMPS = ("patient_updated_at", "doctor_updated_at")


def present(*changes: dict[str, Any]) -> pd.DataFrame:
    """ROWS of the same appointments as appointments_now.sql gives them: nothing stands against them, unless changed."""
    stamps = [{name: change.get(name, CHANGED) for name in STAMPS} for change in changes]
    of_rows = [{"updated_at": CHANGED} | {k: v for k, v in change.items() if k not in STAMPS} for change in changes]
    added = {name: pd.Series([item[name] for item in stamps], dtype="datetime64[us, UTC]") for name in STAMPS}
    return rows(*of_rows).assign(**added)


def find(shown: pd.DataFrame, now: pd.DataFrame, *of_clinics: dict[str, Any], none: bool = False) -> pd.DataFrame:
    """Find revocations; clinic 1 is open and as it was unless changed. none: Medlock knows no clinic at all."""
    judged = judge_access(clinics() if none else clinics(*(of_clinics or ({},))), NOW)
    return find_revocations(shown, now, judged, clinic_windows(judged, NOW, NOW, cut_to_today=False))


def reasons(found: pd.DataFrame) -> list[str]:
    return found["reason"].tolist()


def test_what_may_be_shared_stays() -> None:
    assert reasons(find(live({}, {}), present({}, {}))) == []


LIVE_RECORD, ROW, CLINIC = "live", "row", "clinic"
GONE = "gone"
Case = tuple[str, dict[str, Any]]
# R-number and reason → what stands against a record, in each way in which it can.
CASES: list[tuple[str, str, Case]] = [
    ("R7", Reason.REFUSED_PERSONAL_DATA, (ROW, {"refused_personal_data": True})),
    ("R7 R16", Reason.REFUSED_PERSONAL_DATA, (ROW, {"refused_personal_data": None})),
    ("R8", Reason.REFUSED_NOTIFICATIONS, (ROW, {"refused_notifications": True})),
    ("R8 R16", Reason.REFUSED_NOTIFICATIONS, (ROW, {"refused_notifications": None})),
    ("R8", Reason.REFUSED_MARKETING, (ROW, {"refused_marketing": True})),
    ("R8 R16", Reason.REFUSED_MARKETING, (ROW, {"refused_marketing": None})),
    ("R9", Reason.ANONYMOUS_APPOINTMENT, (ROW, {"is_anonymous": True})),
    ("R9 R16", Reason.ANONYMOUS_APPOINTMENT, (ROW, {"is_anonymous": None})),
    ("R10", Reason.DOCTOR_BANNED, (ROW, {"doctor_banned": True})),
    ("R10 R16", Reason.DOCTOR_BANNED, (ROW, {"doctor_banned": None})),
    ("R4", Reason.NO_PARTNER, (CLINIC, {"partner_ids": []})),
    ("R1", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_enabled": False})),
    ("R1 R16", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_enabled": None})),
    ("R2", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_changed_by_role": "administrator"})),
    ("R2 R16", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_changed_by_role": None})),
    ("R3", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_changed_at": NOW - timedelta(hours=24) + timedelta(seconds=1)})),
    ("R1", Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"lpu_id": None})),
    ("R12", Turned.LPU_CHANGED, (CLINIC, {"lpu_id": 2002})),
    ("R12", Turned.PERSON_CHANGED, (ROW, {"patient_id": 8})),
    ("R12", Turned.PERSON_CHANGED, (LIVE_RECORD, {"patient_id": None, "state": "sending"})),
    ("R12", Turned.PERSON_CHANGED, (LIVE_RECORD, {"patient_id": None, "state": "rejected"})),
    ("R4", Turned.PARTNER_GONE, (CLINIC, {"partner_ids": [3]})),
    ("R4", Turned.PARTNER_GONE, (LIVE_RECORD, {"partner_ids": "3,17,99"})),
    ("R6", Turned.MOVED_OUT_OF_WINDOW, (ROW, {"starts_at": STARTS_BEFORE, "ends_at": STARTS_BEFORE.replace(hour=22)})),
    ("R12", Revoked.WITHDRAWAL_UNFINISHED, (LIVE_RECORD, {"state": "withdrawing"})),
    ("R12", Turned.APPOINTMENT_GONE, (GONE, {})),
    ("R12", Revoked.CLINIC_GONE, (CLINIC, {"clinic_id": 2})),
    ("R17", Reason.PHONE_MISSING, (ROW, {"phone": None})),
    ("R17", Reason.PHONE_UNREADABLE, (ROW, {"phone": "12"})),
    ("R17", Reason.NAME_MISSING, (ROW, {"first_name": " "})),
    ("R17", Reason.TIMES_INVERTED, (ROW, {"ends_at": NOW})),
    ("R17", Reason.UNKNOWN_TIMEZONE, (CLINIC, {"timezone": "Europe/Atlantis"})),
    ("R17", Reason.REFERENCE_BROKEN, (ROW, {"patient_found": False})),
    ("R17", Reason.REFERENCE_BROKEN, (ROW, {"doctor_found": False})),
    ("R17", Reason.ENTRY_UNKNOWN, (ROW, {"entry": "phone"})),
]


def found_with(*cases: Case) -> pd.DataFrame:
    """Find revocations of one record against which all of these stand."""
    changes: dict[str, dict[str, Any]] = {LIVE_RECORD: {}, ROW: {}, CLINIC: {}, GONE: {}}
    for what, change in cases:
        changes[what] |= change
    now = present() if any(what == GONE for what, _ in cases) else present(changes[ROW])
    return find(live(changes[LIVE_RECORD]), now, changes[CLINIC])


@pytest.mark.parametrize(("rule", "reason", "case"), CASES, ids=[f"{rule} {reason}" for rule, reason, _ in CASES])
def test_each_reason_takes_a_record_back(rule: str, reason: str, case: Case) -> None:
    found = found_with(case)
    assert list(found.columns) == list(REVOCATION_COLUMNS)
    assert found[["clinic_id", "appointment_id", "lpu_id", "version"]].to_numpy().tolist() == [[1, 100, 1001, 4]]
    assert reasons(found) == [reason]
    # R12: rules are about what somebody said; what is only missing, or cannot be read, is no one's no.
    absent = {Turned.APPOINTMENT_GONE, Revoked.CLINIC_GONE, *QUARANTINE}
    assert found["by_absence"].tolist() == [reason in absent]
    assert describe(reason).endswith(".")
    assert describe(reason) != reason


def test_every_reason_is_looked_at() -> None:
    # OVERTAKEN is told by the ledger.
    known = {*REASONS, *Turned, *Revoked} - {Turned.OVERTAKEN}
    assert {reason for _, reason, _ in CASES} == known
    assert set(ABSENCE) == {reason for _, reason, case in CASES if found_with(case)["by_absence"].all()}


ORDER = [
    *WITHHOLDING,
    Turned.LPU_CHANGED,
    Turned.PERSON_CHANGED,
    Turned.PARTNER_GONE,
    Turned.MOVED_OUT_OF_WINDOW,
    Revoked.WITHDRAWAL_UNFINISHED,
    Revoked.CLINIC_GONE,
    Turned.APPOINTMENT_GONE,
    Reason.REFERENCE_BROKEN,
    Reason.PHONE_MISSING,
    Reason.PHONE_UNREADABLE,
    Reason.NAME_MISSING,
    Reason.TIMES_INVERTED,
    Reason.UNKNOWN_TIMEZONE,
    Reason.ENTRY_UNKNOWN,
]
"""Which reason is told when several hold. What somebody said stands before what is missing."""


def test_the_first_reason_is_told_and_an_explicit_no_beats_absence() -> None:
    """Everything at once that can stand against one record; the first is taken away, and so on."""
    standing = [
        (Reason.REFUSED_PERSONAL_DATA, (ROW, {"refused_personal_data": True})),
        (Reason.REFUSED_NOTIFICATIONS, (ROW, {"refused_notifications": None})),
        (Reason.REFUSED_MARKETING, (ROW, {"refused_marketing": True})),
        (Reason.ANONYMOUS_APPOINTMENT, (ROW, {"is_anonymous": True})),
        (Reason.DOCTOR_BANNED, (ROW, {"doctor_banned": True})),
        (Reason.NO_PARTNER, (CLINIC, {"partner_ids": []})),
        (Reason.CLINIC_NOT_ACTIVE, (CLINIC, {"access_enabled": False})),
        (Turned.LPU_CHANGED, (CLINIC, {"lpu_id": 2002})),
        (Turned.PERSON_CHANGED, (ROW, {"patient_id": 8})),
        (Turned.PARTNER_GONE, (LIVE_RECORD, {"partner_ids": "3,17,99"})),
        (Turned.MOVED_OUT_OF_WINDOW, (ROW, {"starts_at": STARTS_BEFORE + timedelta(days=1)})),
        (Revoked.WITHDRAWAL_UNFINISHED, (LIVE_RECORD, {"state": "withdrawing"})),
        (Reason.PHONE_MISSING, (ROW, {"phone": None})),
        (Reason.NAME_MISSING, (ROW, {"first_name": None})),
        (Reason.TIMES_INVERTED, (ROW, {"ends_at": NOW - timedelta(days=1)})),
        (Reason.UNKNOWN_TIMEZONE, (CLINIC, {"timezone": None})),
        (Reason.ENTRY_UNKNOWN, (ROW, {"entry": None})),
    ]
    told = [reasons(found_with(*(case for _, case in standing[start:]))) for start in range(len(standing))]
    assert told == [[reason] for reason, _ in standing]
    in_order = [reason for reason in ORDER if reason in dict(standing)]
    assert [reason for reason, _ in standing] == in_order


@pytest.mark.parametrize("absence", [(GONE, {}), (CLINIC, {"clinic_id": 2}), (ROW, {"patient_found": False})])
def test_no_absence_hides_what_is_known_without_the_row(absence: Case) -> None:
    unfinished = (LIVE_RECORD, {"state": "withdrawing"})
    assert reasons(found_with(absence, unfinished)) == [Revoked.WITHDRAWAL_UNFINISHED]
    if absence[0] != CLINIC:
        assert reasons(found_with(absence, (CLINIC, {"access_enabled": False}))) == [Reason.CLINIC_NOT_ACTIVE]
        assert reasons(found_with(absence, (CLINIC, {"partner_ids": []}))) == [Reason.NO_PARTNER]
        assert reasons(found_with(absence, (CLINIC, {"lpu_id": 4711}))) == [Turned.LPU_CHANGED]


def test_a_refusal_flows_although_the_clinic_is_gone() -> None:
    case = (ROW, {"refused_marketing": True})
    assert reasons(found_with(case, (CLINIC, {"clinic_id": 2}))) == [Reason.REFUSED_MARKETING]


def test_who_is_not_there_has_refused_nothing() -> None:
    """A lost table must not look like a thousand refusals: flags of a patient or doctor who is gone are no answer."""
    nobody = dict.fromkeys(("refused_personal_data", "refused_notifications", "refused_marketing", "phone"))
    patient = present({**nobody, "patient_found": False, "first_name": None})
    doctor = present({"doctor_found": False, "doctor_banned": None})
    unknown = present({**nobody, "patient_found": None, "doctor_found": None, "doctor_banned": None})
    for now in (patient, doctor, unknown):
        found = find(live({}), now)
        assert reasons(found) == [Reason.REFERENCE_BROKEN]
        assert found["by_absence"].all()
    # The one who is there has.
    found = find(live({}), present({"patient_found": False, "doctor_banned": True}))
    assert reasons(found) == [Reason.DOCTOR_BANNED]


def patients(*changes: dict[str, Any]) -> pd.DataFrame:
    """PATIENTS: one who permits everything per argument, with these changes."""
    patient: dict[str, Any] = {"patient_id": 7, "updated_at": CHANGED}
    patient |= {"refused_personal_data": False, "refused_notifications": False, "refused_marketing": False}
    frame = pd.DataFrame([patient | change for change in changes], columns=list(patient), dtype=object)
    flags = dict.fromkeys(("refused_personal_data", "refused_notifications", "refused_marketing"), "boolean")
    return frame.astype({"patient_id": "int64", **flags, "updated_at": "datetime64[us, UTC]"})


@pytest.mark.parametrize("value", [True, None])
@pytest.mark.parametrize("flag", ["refused_personal_data", "refused_notifications", "refused_marketing"])
@pytest.mark.parametrize("lost", [present(), present({"patient_found": False, "patient_id": None})])
def test_what_a_patient_says_holds_though_no_appointment_leads_to_them(
    lost: pd.DataFrame, flag: str, value: bool | None
) -> None:
    """R7, R8, R16: the row is gone and somebody may have to decide about that; the refusal waits for nobody."""
    judged = judge_access(clinics({}), NOW)
    windows = clinic_windows(judged, NOW, NOW, cut_to_today=False)
    shown = live({}, {"appointment_id": 200, "patient_id": 8}, {"appointment_id": 201, "patient_id": None})
    refusing = patients({"patient_id": 9, flag: True}, {flag: value}, {"patient_id": 8})
    found = find_revocations(shown, lost, judged, windows, patients=refusing)
    absent = Reason.REFERENCE_BROKEN if len(lost) else Turned.APPOINTMENT_GONE
    told = found[["appointment_id", "reason"]].to_numpy().tolist()
    assert told == [[100, flag], [200, Turned.APPOINTMENT_GONE], [201, Turned.APPOINTMENT_GONE]]
    assert found["by_absence"].tolist() == [False, True, True]
    assert found["revoked_at"].iloc[0] == CHANGED
    permitting = find_revocations(shown.head(1), lost, judged, windows, patients=patients({}))
    assert reasons(permitting) == [absent]
    gone_too = find_revocations(shown.head(1), lost, judged, windows, patients=patients())
    assert reasons(gone_too) == [absent]
    # Of whom an appointment leads to, the row speaks.
    there = find_revocations(shown.head(1), present({}), judged, windows, patients=patients({flag: True}))
    assert reasons(there) == []


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_where_clinics_have_patients_of_one_id_any_ones_no_counts(order: list[int]) -> None:
    """The record tells an id only; and such a clinic must not keep all others' refusals from being found."""
    judged = judge_access(clinics({}), NOW)
    windows = clinic_windows(judged, NOW, NOW, cut_to_today=False)
    namesakes = patients(
        {"updated_at": CHANGED - timedelta(days=9), "refused_marketing": True},
        {"updated_at": pd.NaT, "refused_notifications": None},
        {},
    ).iloc[order]
    shown = live({}, {"appointment_id": 200, "patient_id": 8})
    found = find_revocations(
        shown, present(), judged, windows, patients=pd.concat([namesakes, patients({"patient_id": 8})])
    )
    assert reasons(found) == [Reason.REFUSED_NOTIFICATIONS, Turned.APPOINTMENT_GONE]
    assert found["by_absence"].tolist() == [False, True]
    assert found["revoked_at"].iloc[0] == CHANGED


def elsewhere(*changes: dict[str, Any]) -> pd.DataFrame:
    """ELSEWHERE: one appointment to which nobody says no per argument, with these changes."""
    nothing = {"is_anonymous": False, "doctor_banned": False, "updated_at": CHANGED, "doctor_updated_at": CHANGED}
    made = [nothing | {"appointment_id": 100 + number} | change for number, change in enumerate(changes)]
    frame = pd.DataFrame(made, columns=["appointment_id", *nothing], dtype=object)
    stamps = dict.fromkeys(("updated_at", "doctor_updated_at"), "datetime64[us, UTC]")
    flags = dict.fromkeys(("is_anonymous", "doctor_banned"), "boolean")
    return frame.astype({"appointment_id": "int64", **flags, **stamps})


@pytest.mark.parametrize(
    ("flag", "reason", "stamp"),
    [
        ("is_anonymous", Reason.ANONYMOUS_APPOINTMENT, "updated_at"),
        ("doctor_banned", Reason.DOCTOR_BANNED, "doctor_updated_at"),
    ],
)
def test_what_is_said_of_an_appointment_holds_in_whichever_clinic_it_is_now(
    flag: str, reason: Reason, stamp: str
) -> None:
    """R9, R10: its row is gone from here, and nobody is asked about a no."""
    judged = judge_access(clinics({}), NOW)
    windows = clinic_windows(judged, NOW, NOW, cut_to_today=False)
    shown = live({}, {}, {}, {})
    since = NOW - timedelta(minutes=5)
    # The first is said no to, the second not, the third does not exist, and of the last its own row speaks.
    now = present({}).assign(appointment_id=103)
    there = elsewhere({flag: True, stamp: since}, {}, {"appointment_id": 103, flag: True})
    found = find_revocations(shown, now, judged, windows, elsewhere=there)
    gone = Turned.APPOINTMENT_GONE
    assert found[["appointment_id", "reason"]].to_numpy().tolist() == [[100, reason], [101, gone], [102, gone]]
    assert found["by_absence"].tolist() == [False, True, True]
    assert found["revoked_at"].iloc[0] == since
    assert found["revoked_at"].iloc[1:].isna().all()


def test_r10_a_ban_holds_though_the_doctor_is_another_clinics_by_now() -> None:
    moved = {"doctor_found": False}
    now = present({**moved, "doctor_banned": True}, {**moved, "doctor_banned": False}, {**moved, "doctor_banned": None})
    found = find(live({}, {}, {}), now)
    assert reasons(found) == [Reason.DOCTOR_BANNED, Reason.REFERENCE_BROKEN, Reason.REFERENCE_BROKEN]
    assert found["by_absence"].tolist() == [False, True, True]


def test_what_was_moved_far_back_shows_another_time_and_is_withdrawn() -> None:
    """R6, R12: by time alone an appointment is never so long before the moment at which it was read."""
    read = [NOW - timedelta(days=days) for days in (1, 1, 90, 90)]
    starts = [read[0] - timedelta(days=47), read[1] - timedelta(days=46), read[2] - timedelta(days=46), read[3]]
    shown = live(*({"extracted_at": at} for at in read), {"extracted_at": None})
    now = present(*({"starts_at": at, "ends_at": NOW} for at in starts), {"starts_at": starts[0], "ends_at": NOW})
    found = find(shown, now)
    assert found[["appointment_id", "reason"]].to_numpy().tolist() == [[100, Turned.MOVED_OUT_OF_WINDOW]]
    assert found["revoked_at"].tolist() == [CHANGED]


def test_an_appointment_without_a_patient_is_a_broken_reference_and_no_other_persons() -> None:
    now = present({"patient_id": None, "patient_found": False})
    assert reasons(find(live({}), now)) == [Reason.REFERENCE_BROKEN]


@pytest.mark.parametrize("state", ["sent", "aged_out"])
def test_settled_records_from_before_the_ledger_knew_patients_stay(state: str) -> None:
    assert reasons(find(live({"patient_id": None, "partner_ids": None, "state": state}), present({}))) == []


def test_what_lies_before_the_window_stays_and_is_revoked_all_the_same() -> None:
    long_ago = {"starts_at": NOW - timedelta(days=400), "ends_at": NOW - timedelta(days=399)}
    record = {"state": "aged_out", "extracted_at": NOW - timedelta(days=380)}
    assert reasons(find(live(record), present(long_ago))) == []
    refused = present(long_ago | {"refused_marketing": True})
    assert reasons(find(live(record), refused)) == [Reason.REFUSED_MARKETING]


def test_the_window_ends_before_the_first_instant_of_its_last_day() -> None:
    instant = STARTS_BEFORE - timedelta(microseconds=1)
    assert reasons(find(live({}), present({"starts_at": instant, "ends_at": STARTS_BEFORE}))) == []


def test_more_partners_than_before_take_nothing_back() -> None:
    assert reasons(find(live({}), present({}), {"partner_ids": [1, 3, 17, 99]})) == []
    # Whole numbers, not pieces of text.
    assert reasons(find(live({"partner_ids": "7"}), present({}), {"partner_ids": [17]})) == [Turned.PARTNER_GONE]


def test_a_row_of_another_clinic_is_nobodys_appointment() -> None:
    found = find(live({}), present({"clinic_id": 2, "refused_marketing": True}), {}, {})
    assert reasons(found) == [Turned.APPOINTMENT_GONE]


def test_several_records_of_one_appointment_under_two_lpu_ids_are_judged_one_by_one() -> None:
    shown = live({"appointment_id": 100}, {"appointment_id": 100, "lpu_id": 900, "version": 9}, {"appointment_id": 101})
    found = find(shown, present({"appointment_id": 100}, {"appointment_id": 101}))
    assert found[["appointment_id", "lpu_id", "version"]].to_numpy().tolist() == [[100, 900, 9]]
    assert reasons(found) == [Turned.LPU_CHANGED]
    refused = present({"appointment_id": 100, "refused_personal_data": True}, {"appointment_id": 101})
    assert find(shown, refused)[["lpu_id", "reason"]].to_numpy().tolist() == [
        [1001, Reason.REFUSED_PERSONAL_DATA],
        [900, Reason.REFUSED_PERSONAL_DATA],
    ]


def test_ids_beyond_what_a_float_can_hold_are_told_apart() -> None:
    shown = live(
        {"appointment_id": HUGE, "patient_id": HUGE, "lpu_id": HUGE, "version": HUGE, "partner_ids": str(HUGE)},
        {"appointment_id": HUGE - 1, "lpu_id": HUGE, "patient_id": None, "partner_ids": None},
    )
    now = present({"appointment_id": 5, "patient_id": None}, {"appointment_id": HUGE, "patient_id": HUGE})
    found = find(shown, now, {"lpu_id": HUGE, "partner_ids": [HUGE]}, {"lpu_id": None})
    assert found[["appointment_id", "reason"]].to_numpy().tolist() == [[HUGE - 1, Turned.APPOINTMENT_GONE]]
    other = find(shown, now.assign(patient_id=now["patient_id"] - 1), {"lpu_id": HUGE - 1, "partner_ids": [HUGE - 1]})
    assert reasons(other) == [Turned.LPU_CHANGED] * 2
    assert other["version"].tolist() == [HUGE, 4]


@pytest.mark.parametrize(
    ("nothing", "now"), [(live(), present()), (live(), present({})), (empty_revocations(), present())]
)
def test_nothing_shown_has_nothing_to_take_back(nothing: pd.DataFrame, now: pd.DataFrame) -> None:
    found = find(nothing, now)
    assert found.dtypes.to_dict() == empty_revocations().dtypes.to_dict()
    assert len(found) == 0


def test_what_was_found_has_the_types_that_are_promised() -> None:
    assert find(live({}), present()).dtypes.to_dict() == empty_revocations().dtypes.to_dict()


def test_an_empty_extract_is_all_absence_and_an_empty_medlock_is_so_too() -> None:
    assert set(reasons(find(live({}, {}), present()))) == {Turned.APPOINTMENT_GONE}
    nothing = find(live({}, {}), present(), none=True)
    assert set(reasons(nothing)) == {Revoked.CLINIC_GONE}
    assert nothing["by_absence"].all()


# -- since when


STAMP_OF: dict[str, str] = {
    Reason.REFUSED_PERSONAL_DATA: "patient_updated_at",
    Reason.REFUSED_NOTIFICATIONS: "patient_updated_at",
    Reason.REFUSED_MARKETING: "patient_updated_at",
    Reason.ANONYMOUS_APPOINTMENT: "updated_at",
    Reason.DOCTOR_BANNED: "doctor_updated_at",
    Turned.PERSON_CHANGED: "updated_at",
    Turned.MOVED_OUT_OF_WINDOW: "updated_at",
    Reason.CLINIC_NOT_ACTIVE: "access_changed_at",
}
INSTANTS = {
    "updated_at": NOW - timedelta(hours=2),
    "patient_updated_at": NOW - timedelta(hours=3),
    "doctor_updated_at": NOW - timedelta(hours=4),
    "access_changed_at": NOW - timedelta(days=2),
}


@pytest.mark.parametrize(("reason", "case"), {reason: case for _, reason, case in reversed(CASES)}.items())
def test_it_holds_since_its_own_change_stamp(reason: str, case: Case) -> None:
    what, change = case
    stamps = {name: instant for name, instant in INSTANTS.items() if name != "access_changed_at"}
    now = present() if what == GONE else present(stamps | (change if what == ROW else {}))
    clinic = {"access_changed_at": INSTANTS["access_changed_at"]} | (change if what == CLINIC else {})
    (since,) = find(live(change if what == LIVE_RECORD else {}), now, clinic)["revoked_at"]
    if reason in STAMP_OF:
        assert since == INSTANTS[STAMP_OF[reason]]
    else:
        assert pd.isna(since)


@pytest.mark.parametrize(
    ("change", "is_known"),
    [
        ({"access_enabled": False}, True),
        ({"access_changed_at": NOW - timedelta(hours=1)}, True),  # Off and on again: it waits.
        ({"access_changed_by_role": "administrator"}, False),  # The head is head no more.
        ({"lpu_id": None}, False),
    ],
)
def test_a_clinic_is_closed_since_its_switch_was_turned_if_that_is_what_closes_it(
    change: dict[str, Any], is_known: bool
) -> None:
    clinic = {"access_changed_at": NOW - timedelta(days=2)} | change
    found = find(live({}), present({}), clinic)
    assert reasons(found) == [Reason.CLINIC_NOT_ACTIVE]
    assert (found["revoked_at"].iloc[0] == clinic["access_changed_at"]) is is_known
    assert pd.isna(found["revoked_at"].iloc[0]) is not is_known


def test_it_never_holds_since_before_the_record_was_written() -> None:
    """When it was written the last look found it permitted: an older stamp tells of something else."""
    written = NOW - timedelta(minutes=1)
    (since,) = find(live({"changed_at": written}), present({"refused_marketing": True}))["revoked_at"]
    assert since == written
    (since,) = find(live({"changed_at": written}), present())["revoked_at"]
    assert pd.isna(since)
    missing = present({"refused_marketing": True, "patient_updated_at": None})
    assert pd.isna(find(live({}), missing)["revoked_at"].iloc[0])


def test_each_record_has_its_own_instant_whatever_the_index() -> None:
    shown = live({}, {}, {}).set_axis([7, 7, 3])
    now = present({}, {"refused_marketing": True, "patient_updated_at": NOW}, {"doctor_banned": True})
    found = find(shown, now.iloc[::-1])
    assert found["appointment_id"].tolist() == [101, 102]
    assert found["revoked_at"].tolist() == [NOW, CHANGED]


# -- what waits for a person


def absences(number: int, clinic_id: int = 1, *, by_absence: bool = True) -> pd.DataFrame:
    frame = find(live(*({"appointment_id": id_} for id_ in range(number))), present())
    return frame.assign(clinic_id=clinic_id, by_absence=by_absence)


@pytest.mark.parametrize(
    ("gone", "shown", "today", "is_held"),
    [
        (10, 500, 0, False),
        (11, 500, 0, True),
        (10, 10, 0, False),  # A whole small clinic.
        (11, 11, 0, True),
        (100, 5_000, 0, False),  # 2 %.
        (101, 5_000, 0, True),
        (4, 494, 6, False),  # Six went today already, of 500.
        (4, 493, 7, True),
        (40, 4_940, 60, False),
        (41, 4_940, 60, True),
        (1, 0, 10, True),
    ],
)
def test_absence_is_held_above_ten_records_or_two_percent_within_a_day(
    gone: int, shown: int, today: int, is_held: bool
) -> None:
    held = held_back(absences(gone), {1: shown}, {1: today} if today else {})
    assert held.tolist() == [is_held] * gone


def test_each_clinic_is_measured_alone_and_what_somebody_said_is_never_held() -> None:
    found = pd.concat([absences(11, 1), absences(10, 2), absences(300, 1, by_absence=False)]).set_axis(range(5, 326))
    held = held_back(found, {1: 500, 2: 500}, {2: 0, 3: 50})
    assert held.index.tolist() == found.index.tolist()
    assert held.tolist() == [True] * 11 + [False] * 310
    assert held_back(empty_revocations(), {}, {}).tolist() == []
    assert held_back(absences(300, by_absence=False), {1: 300}, {1: 300}).tolist() == [False] * 300


# -- what has left the window by time


def test_what_left_the_window_by_time_is_aged_if_it_is_settled() -> None:
    behind = {"starts_at": STARTS_FROM - timedelta(microseconds=1)}
    now = present(behind, {"starts_at": STARTS_FROM}, {"starts_at": STARTS_BEFORE}, behind, behind, behind)
    shown = live({}, {}, {}, {"state": "aged_out"}, {"state": "sending"}, {"state": "rejected"}, {})
    judged = judge_access(clinics({}), NOW)
    left = aged(shown, now, clinic_windows(judged, NOW, NOW, cut_to_today=False))
    # The last one is gone altogether: nobody can tell when it was.
    assert left["appointment_id"].tolist() == [100]


def test_an_appointment_under_two_lpu_ids_ages_under_both() -> None:
    shown = live({"appointment_id": 100}, {"appointment_id": 100, "lpu_id": 900})
    windows = clinic_windows(judge_access(clinics({}), NOW), NOW, NOW, cut_to_today=False)
    left = aged(shown, present({"starts_at": NOW - timedelta(days=100)}), windows)
    assert left["lpu_id"].tolist() == [1001, 900]


def test_of_a_clinic_that_is_gone_nothing_ages() -> None:
    windows = clinic_windows(judge_access(clinics(), NOW), NOW, NOW, cut_to_today=False)
    assert len(aged(live({}), present({"starts_at": NOW - timedelta(days=100)}), windows)) == 0


# -- a plain loop


LONG_AGO = NOW - timedelta(days=60)
FLAG = st.sampled_from([False, False, False, False, True, None])
RECORD = st.fixed_dictionaries(
    {
        "clinic_id": st.sampled_from([1, 2, 3]),
        "appointment_id": st.sampled_from([100, 101, 102, 103]),
        "lpu_id": st.sampled_from([1001, 1002, 1003]),
        "state": st.sampled_from(["sent", "sent", "aged_out", "sending", "rejected", "withdrawing"]),
        "patient_id": st.sampled_from([7, 7, 8, None]),
        "partner_ids": st.sampled_from(["3,17", "3", "99", None]),
        "changed_at": st.sampled_from([WRITTEN, NOW]),
        "extracted_at": st.sampled_from([WRITTEN, LONG_AGO, None]),
    }
)
START = st.sampled_from(
    [NOW, NOW, STARTS_FROM - timedelta(hours=1), LONG_AGO - timedelta(days=40), STARTS_BEFORE, None]
)
APPOINTMENT = st.fixed_dictionaries(
    {
        "clinic_id": st.sampled_from([1, 2, 3]),
        "appointment_id": st.sampled_from([100, 101, 102, 103]),
        "patient_id": st.sampled_from([7, 7, 7, 8, None]),
        "refused_personal_data": FLAG,
        "refused_notifications": FLAG,
        "refused_marketing": FLAG,
        "is_anonymous": FLAG,
        "doctor_banned": FLAG,
        "patient_found": st.sampled_from([True, True, True, False, None]),
        "doctor_found": st.sampled_from([True, True, True, False, None]),
        "starts_at": START,
        "ends_at": st.sampled_from([STARTS_BEFORE + timedelta(hours=1), NOW, None]),
        "phone": st.sampled_from(["+7 900 111-22-33", "12", None]),
        "first_name": st.sampled_from(["Анна", " ", None]),
        "entry": st.sampled_from(["direct", "online", "fax", None]),
        "patient_updated_at": st.sampled_from([CHANGED, WRITTEN - timedelta(days=1), None]),
    }
)
A_CLINIC = st.fixed_dictionaries(
    {
        "lpu_id": st.sampled_from([1001, 1001, 1002, None]),
        "access_enabled": st.sampled_from([True, True, True, False]),
        "partner_ids": st.sampled_from([[3, 17], [3], []]),
        "timezone": st.sampled_from(["Europe/Moscow", "Europe/Moscow", "nowhere"]),
    }
)
Row = Mapping[str, Any]


def key(item: Row) -> tuple[int, int]:
    return item["clinic_id"], item["appointment_id"]


@settings(max_examples=120)
@given(
    st.lists(RECORD, max_size=6, unique_by=lambda item: (*key(item), item["lpu_id"])),
    st.lists(APPOINTMENT, max_size=6, unique_by=key),
    st.dictionaries(st.sampled_from([1, 2]), A_CLINIC),
)
def test_a_plain_loop_finds_the_same(shown: list[Row], now: list[Row], of: dict[int, Row]) -> None:
    of = {clinic_id: {**clinic, "clinic_id": clinic_id} for clinic_id, clinic in sorted(of.items())}
    records = live(*map(dict, shown))
    found = find(records, present(*map(dict, now)), *map(dict, of.values()), none=not of)
    expected = []
    rows_by_key = {key(row): row for row in now}
    for record in shown:
        reason, since = slow(record, rows_by_key.get(key(record)), of.get(record["clinic_id"]))
        if reason:
            expected.append([*key(record), record["lpu_id"], 4, reason, reason in ABSENCE, since])
    told = found.astype(object).where(found.notna(), None).to_numpy().tolist()
    assert told == expected


@settings(max_examples=25)
@given(
    st.lists(RECORD, min_size=1, max_size=6, unique_by=lambda item: (*key(item), item["lpu_id"])),
    st.lists(APPOINTMENT, max_size=6, unique_by=key),
)
def test_where_each_row_is_may_have_been_asked_before(shown: list[Row], now: list[Row]) -> None:
    records, rows = live(*map(dict, shown)), present(*map(dict, now))
    judged = judge_access(clinics({}, {}), NOW)
    windows = clinic_windows(judged, NOW, NOW, cut_to_today=False)
    at = positions(records, rows)
    found = find_revocations(records, rows, judged, windows)
    assert_frame_equal(find_revocations(records, rows, judged, windows, at=at), found)
    assert_frame_equal(aged(records, rows, windows, at), aged(records, rows, windows))
    # Asked once more it would be found here all the same.
    nowhere = find_revocations(records, rows, judged, windows, at=np.full(len(records), -1))
    assert_frame_equal(nowhere, find_revocations(records, rows.iloc[:0], judged, windows))


def slow(record: Row, row: Row | None, clinic: Row | None) -> tuple[str, datetime | None]:
    """Judge one record, question by question."""
    for reason in ORDER:
        if QUESTIONS[reason](record, row, clinic):
            return reason, _slow_since(reason, record, row, clinic)
    return "", None


def _slow_since(reason: str, record: Row, row: Row | None, clinic: Row | None) -> datetime | None:
    name = STAMP_OF.get(reason)
    if name is None or (row is None and name != "access_changed_at"):
        return None
    if name == "access_changed_at":
        # A switch that is on tells nothing of a clinic without an lpu_id.
        since = None if clinic is None or clinic["access_enabled"] else NOW - timedelta(days=10)
    else:
        since = (row or {}).get(name, CHANGED)
    return None if since is None else max(since, record["changed_at"])


Question = Callable[[Row, Row | None, Row | None], bool]


def _flag(name: str, whose: str | None = None) -> Question:
    """Only an exact no permits; a flag of somebody who is not there says nothing."""
    return lambda record, row, clinic: bool(row and (whose is None or row[whose]) and row[name] is not False)


def _other_person(record: Row, row: Row | None, clinic: Row | None) -> bool:
    if row is None:
        return False
    if record["patient_id"] is None:
        return record["state"] not in ("sent", "aged_out")
    return row["patient_id"] is not None and row["patient_id"] != record["patient_id"]


def _partner_gone(record: Row, row: Row | None, clinic: Row | None) -> bool:
    seen_by = [int(item) for item in (record["partner_ids"] or "").split(",") if item]
    return clinic is not None and any(partner not in clinic["partner_ids"] for partner in seen_by)


def _banned(record: Row, row: Row | None, clinic: Row | None) -> bool:
    """Of a doctor who is not found an exact yes is another clinic's, and holds."""
    return row is not None and (
        row["doctor_banned"] is not False if row["doctor_found"] else bool(row["doctor_banned"])
    )


def _moved(record: Row, row: Row | None, clinic: Row | None) -> bool:
    if row is None or row["starts_at"] is None:
        return False
    if record["extracted_at"] is not None and row["starts_at"] < record["extracted_at"] - timedelta(days=47):
        return True
    # A window by the UTC's days, where nobody knows the clinic's zone, ends later than that of Moscow.
    return clinic is not None and clinic["timezone"] != "nowhere" and row["starts_at"] >= STARTS_BEFORE


def _inverted(record: Row, row: Row | None, clinic: Row | None) -> bool:
    if row is None:
        return False
    return row["starts_at"] is None or row["ends_at"] is None or row["ends_at"] <= row["starts_at"]


QUESTIONS: dict[str, Question] = {
    Reason.REFUSED_PERSONAL_DATA: _flag("refused_personal_data", "patient_found"),
    Reason.REFUSED_NOTIFICATIONS: _flag("refused_notifications", "patient_found"),
    Reason.REFUSED_MARKETING: _flag("refused_marketing", "patient_found"),
    Reason.ANONYMOUS_APPOINTMENT: _flag("is_anonymous"),
    Reason.DOCTOR_BANNED: _banned,
    Reason.NO_PARTNER: lambda record, row, clinic: clinic is not None and not clinic["partner_ids"],
    Reason.CLINIC_NOT_ACTIVE: lambda record, row, clinic: (
        clinic is not None and (not clinic["access_enabled"] or clinic["lpu_id"] is None)
    ),
    Turned.LPU_CHANGED: lambda record, row, clinic: (
        clinic is not None and clinic["lpu_id"] is not None and clinic["lpu_id"] != record["lpu_id"]
    ),
    Turned.PERSON_CHANGED: _other_person,
    Turned.PARTNER_GONE: _partner_gone,
    Turned.MOVED_OUT_OF_WINDOW: _moved,
    Revoked.WITHDRAWAL_UNFINISHED: lambda record, row, clinic: record["state"] == "withdrawing",
    Revoked.CLINIC_GONE: lambda record, row, clinic: clinic is None,
    Turned.APPOINTMENT_GONE: lambda record, row, clinic: row is None,
    Reason.REFERENCE_BROKEN: lambda record, row, clinic: (
        row is not None and not (row["patient_found"] and row["doctor_found"])
    ),
    Reason.PHONE_MISSING: lambda record, row, clinic: row is not None and row["phone"] is None,
    Reason.PHONE_UNREADABLE: lambda record, row, clinic: row is not None and row["phone"] == "12",
    Reason.NAME_MISSING: lambda record, row, clinic: row is not None and row["first_name"] != "Анна",
    Reason.TIMES_INVERTED: _inverted,
    Reason.UNKNOWN_TIMEZONE: lambda record, row, clinic: (
        row is not None and clinic is not None and clinic["timezone"] == "nowhere"
    ),
    Reason.ENTRY_UNKNOWN: lambda record, row, clinic: row is not None and row["entry"] not in ("direct", "online"),
}
