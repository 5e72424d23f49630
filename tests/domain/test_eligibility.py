"""R4, R7–R11, R16, R17: which rows are withheld, which quarantined, and how that is counted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflex.domain.access import judge_access
from medflex.domain.eligibility import ALL_RULES, CONSENT_RULES, Verdict, judge
from medflex.domain.reasons import QUARANTINE, WITHHOLDING, Reason
from tests.domain.frames import NOW, clinics, rows

FLAGS = {
    "refused_personal_data": Reason.REFUSED_PERSONAL_DATA,  # R7
    "refused_notifications": Reason.REFUSED_NOTIFICATIONS,  # R8
    "refused_marketing": Reason.REFUSED_MARKETING,  # R8
    "is_anonymous": Reason.ANONYMOUS_APPOINTMENT,  # R9
    "doctor_banned": Reason.DOCTOR_BANNED,  # R10
}
CHANNELS = ("direct", "online")


def _judge(row: dict[str, Any], clinic: dict[str, Any] | None = None) -> Verdict:
    return judge(rows(row), judge_access(clinics(clinic or {}), NOW))


def _held(verdict: Verdict) -> set[str]:
    return {reason for reason in verdict.reasons.columns if verdict.reasons[reason].iloc[0]}


def _first(verdict: Verdict) -> list[str]:
    return ["-" if pd.isna(reason) else str(reason) for reason in verdict.first_reason]


@pytest.mark.parametrize("entry", CHANNELS)
def test_r11_a_permitted_appointment_is_eligible_by_either_channel(entry: str) -> None:
    verdict = _judge({"entry": entry})
    assert _held(verdict) == set()
    assert verdict.eligible.tolist() == [True]
    assert verdict.first_reason.isna().tolist() == [True]


def _flag_test(flag: str, entry: str) -> None:
    for value, withheld in ((True, True), (None, True), (False, False)):  # R16: None is unknown, so refused
        verdict = _judge({flag: value, "entry": entry})
        assert _held(verdict) == ({FLAGS[flag]} if withheld else set())
        assert verdict.withheld.tolist() == [withheld]
        assert verdict.quarantined.tolist() == [False]


@pytest.mark.parametrize("entry", CHANNELS)
def test_r7_r11_r16_refused_personal_data_is_withheld(entry: str) -> None:
    _flag_test("refused_personal_data", entry)


@pytest.mark.parametrize("entry", CHANNELS)
def test_r8_r11_r16_refused_all_notifications_is_withheld(entry: str) -> None:
    _flag_test("refused_notifications", entry)


@pytest.mark.parametrize("entry", CHANNELS)
def test_r8_r11_r16_refused_marketing_is_withheld(entry: str) -> None:
    _flag_test("refused_marketing", entry)


@pytest.mark.parametrize("entry", CHANNELS)
def test_r9_r11_r16_anonymous_appointment_is_withheld(entry: str) -> None:
    _flag_test("is_anonymous", entry)


@pytest.mark.parametrize("entry", CHANNELS)
def test_r10_r11_r16_appointment_of_a_banned_doctor_is_withheld(entry: str) -> None:
    _flag_test("doctor_banned", entry)


@pytest.mark.parametrize("entry", CHANNELS)
def test_r4_r11_clinic_without_partner_sends_nothing(entry: str) -> None:
    assert _held(_judge({"entry": entry}, {"partner_ids": []})) == {Reason.NO_PARTNER}
    assert _held(_judge({"entry": entry}, {"partner_ids": np.array([], dtype="int64")})) == {Reason.NO_PARTNER}
    assert _held(_judge({"entry": entry}, {"partner_ids": [3]})) == set()


@pytest.mark.parametrize("entry", CHANNELS)
@pytest.mark.parametrize(
    ("rule", "changes", "active"),
    [
        ("R1", {"access_enabled": False}, False),
        ("R1 R16", {"access_enabled": None}, False),
        ("R2", {"access_changed_by_role": "administrator"}, False),
        ("R2", {"access_changed_by_role": None}, False),
        ("R3", {"access_changed_at": NOW - timedelta(hours=24) + timedelta(microseconds=1)}, False),
        ("R3", {"access_changed_at": NOW - timedelta(hours=24)}, True),
    ],
)
def test_r1_r2_r3_r11_clinic_that_is_not_open_sends_nothing(
    rule: str, changes: dict[str, Any], active: bool, entry: str
) -> None:
    assert _held(_judge({"entry": entry}, changes)) == (set() if active else {Reason.CLINIC_NOT_ACTIVE})


def test_r16_a_clinic_that_is_not_given_counts_as_not_active() -> None:
    assert _held(_judge({"clinic_id": 99})) == {Reason.CLINIC_NOT_ACTIVE}
    assert judge(rows({}, {}), judge_access(clinics(), NOW)).withheld.tolist() == [True, True]


def test_r1_each_row_is_judged_by_its_own_clinic() -> None:
    open_and_closed = judge_access(clinics({"clinic_id": 8, "access_enabled": False}, {"clinic_id": 2}), NOW)
    verdict = judge(rows({"clinic_id": 2}, {"clinic_id": 8}, {"clinic_id": 5}, {"clinic_id": 2}), open_and_closed)
    assert verdict.eligible.tolist() == [True, False, False, True]


@pytest.mark.parametrize("entry", CHANNELS)
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"phone": None}, Reason.PHONE_MISSING),
        ({"phone": ""}, Reason.PHONE_MISSING),
        ({"phone": " \u00a0\u200b"}, Reason.PHONE_MISSING),
        ({"phone": "123"}, Reason.PHONE_UNREADABLE),
        ({"first_name": None}, Reason.NAME_MISSING),
        ({"first_name": " \t\u00a0"}, Reason.NAME_MISSING),
        ({"ends_at": NOW}, Reason.TIMES_INVERTED),
        ({"ends_at": NOW - timedelta(minutes=1)}, Reason.TIMES_INVERTED),
        ({"ends_at": None}, Reason.TIMES_INVERTED),
        ({"starts_at": None}, Reason.TIMES_INVERTED),
        ({"patient_found": False}, Reason.REFERENCE_BROKEN),
        ({"patient_found": None}, Reason.REFERENCE_BROKEN),
        ({"doctor_found": False}, Reason.REFERENCE_BROKEN),
        ({"doctor_found": None}, Reason.REFERENCE_BROKEN),
    ],
)
def test_r17_r11_doubt_about_data_is_quarantined(row: dict[str, Any], reason: Reason, entry: str) -> None:
    verdict = _judge({**row, "entry": entry})
    assert _held(verdict) == {reason}
    assert verdict.quarantined.tolist() == [True]
    assert verdict.withheld.tolist() == [False]


@pytest.mark.parametrize("entry", [None, "", "Online", "phone", "online "])
def test_r17_an_unknown_entry_channel_is_quarantined(entry: str | None) -> None:
    assert _held(_judge({"entry": entry})) == {Reason.ENTRY_UNKNOWN}


@pytest.mark.parametrize("timezone", [None, "", "Moon/Base", "posixrules", "../Europe/Moscow"])
def test_r17_an_unknown_zone_quarantines_all_of_the_clinic(timezone: str | None) -> None:
    judged = judge_access(clinics({"timezone": timezone}, {}), NOW)
    verdict = judge(rows({}, {}, {"clinic_id": 2}), judged)
    assert verdict.reasons[Reason.UNKNOWN_TIMEZONE].tolist() == [True, True, False]
    assert verdict.eligible.tolist() == [False, False, True]


def test_r17_an_end_one_microsecond_after_the_start_is_not_inverted() -> None:
    assert _held(_judge({"ends_at": NOW + timedelta(microseconds=1)})) == set()


@pytest.mark.parametrize("status", ["postponed", "", None, "no_show"])
def test_r6_no_status_keeps_an_appointment_back(status: str | None) -> None:
    assert _judge({"status": status}).eligible.tolist() == [True]


def test_a_record_both_withheld_and_quarantined_counts_as_withheld() -> None:
    verdict = _judge({"refused_marketing": True, "phone": None})
    assert verdict.withheld.tolist() == [True]
    assert verdict.quarantined.tolist() == [False]


def test_counts_tell_each_reason_and_separately_the_first() -> None:
    judged = judge_access(clinics({}, {"partner_ids": []}), NOW)
    verdict = judge(
        rows(
            {},
            {"refused_marketing": None, "refused_personal_data": True, "phone": "1"},
            {"refused_marketing": True},
            {"phone": "1", "first_name": ""},
            {"clinic_id": 2, "is_anonymous": True},
        ),
        judged,
    )
    told = [tuple(row) for row in verdict.counts().itertuples(index=False)]
    assert told == [
        (1, "refused_personal_data", 1, 1),
        (1, "refused_marketing", 2, 1),
        (1, "phone_unreadable", 2, 1),
        (1, "name_missing", 1, 0),
        (2, "anonymous_appointment", 1, 1),
        (2, "no_partner", 1, 0),
    ]
    assert _first(verdict) == [
        "-",
        "refused_personal_data",
        "refused_marketing",
        "phone_unreadable",
        "anonymous_appointment",
    ]


def test_last_look_asks_the_consent_rules_only_and_needs_no_personal_data() -> None:
    flags = rows({}, {"doctor_banned": True})[["clinic_id", *FLAGS]]
    verdict = judge(flags, judge_access(clinics({}), NOW), CONSENT_RULES)
    assert tuple(verdict.reasons.columns) == WITHHOLDING
    assert verdict.eligible.tolist() == [True, False]
    assert _first(verdict)[1] == "doctor_banned"


def test_one_rule_alone_can_be_asked() -> None:
    rule = {Reason.NAME_MISSING: ALL_RULES[Reason.NAME_MISSING]}
    verdict = judge(rows({"first_name": ""}, {"phone": ""}), judge_access(clinics({}), NOW), rule)
    assert _first(verdict) == ["name_missing", "-"]
    assert verdict.counts()["first"].tolist() == [1]


def test_a_clinic_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        judge(rows({}), judge_access(clinics({"clinic_id": 1}, {"clinic_id": 1}), NOW))


def test_no_rows_have_no_verdict() -> None:
    verdict = judge(rows(), judge_access(clinics({}), NOW))
    assert verdict.eligible.tolist() == []
    assert list(verdict.counts().columns) == ["clinic_id", "reason", "any", "first"]
    assert len(verdict.counts()) == 0


ROW = st.fixed_dictionaries(
    {
        "clinic_id": st.sampled_from([1, 2, 3]),
        **{flag: st.sampled_from([False, False, False, True, None]) for flag in FLAGS},
        "phone": st.sampled_from(["8 900 111-22-33", None, "1"]),
        "first_name": st.sampled_from(["Анна", "Анна", ""]),
        "entry": st.sampled_from(["direct", "online", None]),
        "ends_at": st.sampled_from([NOW + timedelta(hours=1), NOW]),
        "patient_found": st.sampled_from([True, True, None, False]),
    }
)


@settings(max_examples=40)
@given(st.lists(ROW, max_size=12))
def test_every_row_is_in_exactly_one_part_and_counted_once(made: list[dict[str, Any]]) -> None:
    judged = judge_access(clinics({}, {"access_enabled": None}), NOW)
    frame = rows(*made)
    verdict = judge(frame, judged)
    parts = verdict.eligible.astype(int) + verdict.withheld.astype(int) + verdict.quarantined.astype(int)
    assert (parts == 1).all()
    counts = verdict.counts()
    assert counts["first"].sum() == len(frame) - verdict.eligible.sum()
    assert (counts["first"] <= counts["any"]).all()
    assert counts["any"].sum() == verdict.reasons.to_numpy().sum()
    firsts = verdict.first_reason
    assert (pd.Series(firsts).isin(WITHHOLDING).to_numpy() == verdict.withheld).all()
    assert (pd.Series(firsts).isin(QUARANTINE).to_numpy() == verdict.quarantined).all()
    assert (firsts.isna() == verdict.eligible).all()


@settings(max_examples=40)
@given(st.lists(ROW, min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_a_row_is_judged_alike_wherever_it_stands(made: list[dict[str, Any]], random: Any) -> None:
    judged = judge_access(clinics({}, {"access_enabled": None}), NOW)
    frame = rows(*made)
    order = list(range(len(frame)))
    random.shuffle(order)
    straight, shuffled = judge(frame, judged).reasons, judge(frame.iloc[order], judged).reasons
    pd.testing.assert_frame_equal(straight.iloc[order], shuffled)


@settings(max_examples=40)
@given(ROW, st.sampled_from(sorted(FLAGS)), st.sampled_from([True, None]))
def test_r16_turning_a_flag_never_lets_a_row_through(row: dict[str, Any], flag: str, value: bool | None) -> None:
    judged = judge_access(clinics({}, {}, {}), NOW)
    verdict = judge(rows(row, {**row, flag: value}), judged)
    assert not verdict.eligible[1]
    assert verdict.withheld[1]


def test_r11_the_channel_changes_no_verdict() -> None:
    judged = judge_access(clinics({}, {"partner_ids": []}), NOW)
    made = [{flag: value, "clinic_id": clinic} for flag in FLAGS for value in (True, None, False) for clinic in (1, 2)]
    direct, online = (judge(rows(*({**row, "entry": entry} for row in made)), judged) for entry in CHANNELS)
    pd.testing.assert_frame_equal(direct.reasons, online.reasons)
