"""The closed list of reason codes: why a record is not sent."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a record is not sent. The order is the order of reports: the first one that holds is the first reason."""

    REFUSED_PERSONAL_DATA = "refused_personal_data"
    REFUSED_NOTIFICATIONS = "refused_notifications"
    REFUSED_MARKETING = "refused_marketing"
    ANONYMOUS_APPOINTMENT = "anonymous_appointment"
    DOCTOR_BANNED = "doctor_banned"
    NO_PARTNER = "no_partner"
    CLINIC_NOT_ACTIVE = "clinic_not_active"
    PHONE_MISSING = "phone_missing"
    PHONE_UNREADABLE = "phone_unreadable"
    NAME_MISSING = "name_missing"
    TIMES_INVERTED = "times_inverted"
    UNKNOWN_TIMEZONE = "unknown_timezone"
    REFERENCE_BROKEN = "reference_broken"
    ENTRY_UNKNOWN = "entry_unknown"

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _DESCRIPTIONS[self]


REASONS: tuple[Reason, ...] = tuple(Reason)
WITHHOLDING: tuple[Reason, ...] = REASONS[: REASONS.index(Reason.PHONE_MISSING)]
"""Somebody said no, or did not say yes (R1–R4, R7–R10, R16)."""
QUARANTINE: tuple[Reason, ...] = REASONS[len(WITHHOLDING) :]
"""The data cannot be trusted until somebody mends it in Medlock (R17)."""

_DESCRIPTIONS: dict[Reason, str] = {
    Reason.REFUSED_PERSONAL_DATA: "The patient refused processing of personal data, or the flag is unknown.",
    Reason.REFUSED_NOTIFICATIONS: "The patient refused all notifications, or the flag is unknown.",
    Reason.REFUSED_MARKETING: "The patient refused advertising mailings, or the flag is unknown.",
    Reason.ANONYMOUS_APPOINTMENT: "The appointment is anonymous, or the flag is unknown.",
    Reason.DOCTOR_BANNED: "The doctor has a ban on sending data, or the flag is unknown.",
    Reason.NO_PARTNER: "The clinic has no enabled integration with a partner.",
    Reason.CLINIC_NOT_ACTIVE: "The clinic's access switch is not on, or its 24 hours are not over.",
    Reason.PHONE_MISSING: "The patient has no phone number.",
    Reason.PHONE_UNREADABLE: "The phone is not exactly one valid number.",
    Reason.NAME_MISSING: "The patient has no first name.",
    Reason.TIMES_INVERTED: "The appointment does not end after it starts, or a time is missing.",
    Reason.UNKNOWN_TIMEZONE: "The clinic's time zone is missing or not in the tz database.",
    Reason.REFERENCE_BROKEN: "The patient or the doctor is missing or another clinic's, or an id is not usable.",
    Reason.ENTRY_UNKNOWN: "The entry channel is neither direct nor online.",
}
