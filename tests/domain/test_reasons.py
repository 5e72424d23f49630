"""The closed list of reasons is exactly that of the domain description, in its order."""

from __future__ import annotations

from medflex.domain.access import ClosedReason
from medflex.domain.eligibility import ALL_RULES, CONSENT_RULES, QUARANTINE_RULES
from medflex.domain.reasons import QUARANTINE, REASONS, WITHHOLDING, Reason

IN_ORDER = [
    "refused_personal_data",
    "refused_notifications",
    "refused_marketing",
    "anonymous_appointment",
    "doctor_banned",
    "no_partner",
    "clinic_not_active",
    "phone_missing",
    "phone_unreadable",
    "name_missing",
    "times_inverted",
    "unknown_timezone",
    "reference_broken",
    "entry_unknown",
]


def test_reasons_are_the_closed_list_in_order() -> None:
    assert [reason.value for reason in REASONS] == IN_ORDER
    assert (*WITHHOLDING, *QUARANTINE) == REASONS
    assert WITHHOLDING[-1] is Reason.CLINIC_NOT_ACTIVE


def test_each_reason_has_one_rule_and_one_description() -> None:
    assert tuple(CONSENT_RULES) == WITHHOLDING
    assert tuple(QUARANTINE_RULES) == QUARANTINE
    assert tuple(ALL_RULES) == REASONS
    assert len(set(ALL_RULES.values())) == len(REASONS)
    told = [reason.description for reason in (*REASONS, *ClosedReason)]
    assert len(set(told)) == len(told)
    assert all(text.endswith(".") and "\n" not in text for text in told)
    assert all(rule.__name__ == reason.value for reason, rule in ALL_RULES.items())
