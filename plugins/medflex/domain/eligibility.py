"""One function per rule: which records are withheld and which are quarantined.

A rule takes ROWS (one row per appointment) and CLINICS as judged by ``judge_access`` and returns a boolean array, one
per row: True where its reason holds. Only a flag that is exactly False permits (R16). No rule looks at the entry
channel but the one that asks whether it is known, so direct and online entry are treated alike (R11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.access import AccessState, flags
from medflex.domain.phone import missing_phones, unreadable_phones
from medflex.domain.reasons import REASONS, WITHHOLDING, Reason
from medflex.domain.text import fold
from medflex.domain.window import utc_instants, zone_or_none

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Rule = Callable[[pd.DataFrame, pd.DataFrame], Mask]

ENTRY_CHANNELS = ("direct", "online")

# A day before the last one that "YYYY-MM-DD" can write, whatever the zone.
_END_OF_TIME = np.datetime64("9999-12-30", "us")


def refused_personal_data(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R7, R16: the patient refused processing of personal data, or it is not known that they did not."""
    return _not_false(rows["refused_personal_data"])


def refused_notifications(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R8, R16: the patient refused all notifications, or it is not known that they did not."""
    return _not_false(rows["refused_notifications"])


def refused_marketing(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R8, R16: the patient refused advertising mailings, or it is not known that they did not."""
    return _not_false(rows["refused_marketing"])


def anonymous_appointment(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R9, R16: the appointment is anonymous, or it is not known that it is not."""
    return _not_false(rows["is_anonymous"])


def doctor_banned(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R10, R16: the doctor has a ban on sending data, or it is not known that there is none."""
    return _not_false(rows["doctor_banned"])


def no_partner(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R4: the clinic has no enabled integration with a partner. Says nothing about a clinic that is not given."""
    return _of_clinic(rows, clinics, np.array([len(ids) == 0 for ids in clinics["partner_ids"]], dtype=bool), False)


def clinic_not_active(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R1, R2, R3: the clinic is not open at this moment; a clinic that is not given counts as not open (R16)."""
    return _of_clinic(rows, clinics, ~_is(clinics["state"], (AccessState.OPEN.value,)), True)


def phone_missing(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: no phone, or nothing but white space."""
    return missing_phones(rows["phone"])


def phone_unreadable(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: a phone which is not exactly one valid number."""
    return unreadable_phones(rows["phone"])


def as_read(phones: tuple[pd.Series, Mask, Mask]) -> dict[Reason, Rule]:
    """Return the rules about phones for rows whose phones were read already: phones, as ``normalise_phones`` says."""
    _, missing, unreadable = phones
    return {
        Reason.PHONE_MISSING: lambda rows, clinics: missing,
        Reason.PHONE_UNREADABLE: lambda rows, clinics: unreadable,
    }


def name_missing(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: no first name, or nothing but white space."""
    return fold(rows["first_name"]).isna().to_numpy()


def times_inverted(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: the end is not after the start, or one of them is missing, or has a year of more than four digits."""
    ends_at = utc_instants(rows["ends_at"])
    return ~((ends_at > utc_instants(rows["starts_at"])) & (ends_at < _END_OF_TIME))


def unknown_timezone(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: the clinic's zone is missing or not in the tz database. Says nothing about a clinic that is not given."""
    unknown = np.array([zone_or_none(name) is None for name in clinics["timezone"]], dtype=bool)
    return _of_clinic(rows, clinics, unknown, False)


def reference_broken(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: the patient or the doctor does not exist or belongs to another clinic, or an id is below one, of which
    Medflex takes none: with one such record it would refuse all that are sent together.
    """
    ids = [rows[name].to_numpy("int64", na_value=0) for name in ("appointment_id", "doctor_id")]
    return _not_true(rows["patient_found"]) | _not_true(rows["doctor_found"]) | (ids[0] < 1) | (ids[1] < 1)


def entry_unknown(rows: pd.DataFrame, clinics: pd.DataFrame) -> Mask:
    """R17: the entry channel is neither direct nor online."""
    return ~_is(rows["entry"], ENTRY_CHANNELS)


CONSENT_RULES: Mapping[Reason, Rule] = MappingProxyType(
    {
        Reason.REFUSED_PERSONAL_DATA: refused_personal_data,
        Reason.REFUSED_NOTIFICATIONS: refused_notifications,
        Reason.REFUSED_MARKETING: refused_marketing,
        Reason.ANONYMOUS_APPOINTMENT: anonymous_appointment,
        Reason.DOCTOR_BANNED: doctor_banned,
        Reason.NO_PARTNER: no_partner,
        Reason.CLINIC_NOT_ACTIVE: clinic_not_active,
    }
)
"""What the last look before sending asks again; needs the flags and the clinics, no name and no phone."""

QUARANTINE_RULES: Mapping[Reason, Rule] = MappingProxyType(
    {
        Reason.PHONE_MISSING: phone_missing,
        Reason.PHONE_UNREADABLE: phone_unreadable,
        Reason.NAME_MISSING: name_missing,
        Reason.TIMES_INVERTED: times_inverted,
        Reason.UNKNOWN_TIMEZONE: unknown_timezone,
        Reason.REFERENCE_BROKEN: reference_broken,
        Reason.ENTRY_UNKNOWN: entry_unknown,
    }
)

ALL_RULES: Mapping[Reason, Rule] = MappingProxyType({**CONSENT_RULES, **QUARANTINE_RULES})


@dataclass(frozen=True)
class Verdict:
    """Which reasons hold for which row, in the order of the rows that were judged.

    reasons: one boolean column per reason that was asked, named by its code, in the order of ``REASONS``, with the
    index of the rows. clinic_ids: int64, one per row.
    """

    reasons: pd.DataFrame
    clinic_ids: np.ndarray[Any, np.dtype[np.int64]]

    @cached_property
    def withheld(self) -> Mask:
        """Rows with a withholding reason."""
        withholding = [reason in WITHHOLDING for reason in self.reasons.columns]
        return np.asarray(self._matrix[withholding].any(axis=0))

    @cached_property
    def quarantined(self) -> Mask:
        """Rows with a quarantine reason and no withholding one."""
        return np.asarray(self._matrix.any(axis=0)) & ~self.withheld

    @cached_property
    def eligible(self) -> Mask:
        """Rows without any reason: these may be sent."""
        return ~(self.withheld | self.quarantined)

    @cached_property
    def first_reason(self) -> pd.Categorical[str]:
        """The first reason that holds, missing for eligible rows; categories are all reasons in order."""
        positions = np.array([_POSITIONS[reason] for reason in self.reasons.columns])
        codes = np.where(self._matrix.any(axis=0), positions[self._matrix.argmax(axis=0)], -1)
        return pd.Categorical.from_codes(codes, dtype=_FIRST_REASON)

    def counts(self) -> pd.DataFrame:
        """How many rows each reason holds for, per clinic; both tables of the report at once.

        Returns clinic_id int64, reason str, any int64 (rows for which it holds), first int64 (rows for which it is the
        first): one row per clinic and reason with any > 0, by clinic and in the order of the reasons. Summed over the
        reasons of a clinic, ``first`` is its withheld and quarantined rows.
        """
        clinics, codes = np.unique(self.clinic_ids, return_inverse=True)
        first = np.asarray(self.first_reason.codes)
        reasons = list(self.reasons.columns)
        holds, is_first = (np.zeros((len(clinics), len(reasons)), dtype=np.int64) for _ in range(2))
        for number, reason in enumerate(reasons):
            holds[:, number] = np.bincount(codes[self._matrix[number]], minlength=len(clinics))
            is_first[:, number] = np.bincount(codes[first == _POSITIONS[reason]], minlength=len(clinics))
        clinic, which = np.nonzero(holds)
        return pd.DataFrame(
            {
                "clinic_id": clinics[clinic],
                "reason": pd.array([str(reasons[item]) for item in which], dtype="str"),
                "any": holds[clinic, which],
                "first": is_first[clinic, which],
            }
        )

    @property
    def _matrix(self) -> Mask:
        """The reasons with one row per reason, as the frame keeps them."""
        return self.reasons.to_numpy(dtype=bool).T


_POSITIONS = {reason.value: position for position, reason in enumerate(REASONS)}
_FIRST_REASON: Any = pd.CategoricalDtype(list(_POSITIONS), ordered=True)


def judge(rows: pd.DataFrame, clinics: pd.DataFrame, rules: Mapping[Reason, Rule] = ALL_RULES) -> Verdict:
    """Ask the rules about each row.

    rows: ROWS, of any number of clinics. clinics: CLINICS as judged by ``judge_access`` at the moment that counts, one
    row per clinic; ValueError when one is there twice. rules: which to ask; CONSENT_RULES for the last look.
    """
    if not clinics["clinic_id"].is_unique:
        raise ValueError("A clinic is there twice among the clinics to judge by: the clinics query must give it once.")
    asked = [reason for reason in REASONS if reason in rules]
    # As one block: a frame of fourteen columns is put together ten times slower.
    matrix = np.array([rules[reason](rows, clinics) for reason in asked], dtype=bool).reshape(len(asked), len(rows))
    reasons = pd.DataFrame(matrix.T, index=rows.index, columns=[reason.value for reason in asked], copy=False)
    return Verdict(reasons=reasons, clinic_ids=rows["clinic_id"].to_numpy("int64"))


def _not_false(column: pd.Series) -> Mask:
    """R16: only exactly False permits."""
    true, unknown = flags(column)
    return true | unknown


def _not_true(column: pd.Series) -> Mask:
    return ~flags(column)[0]


def _is(texts: pd.Series, wanted: tuple[str, ...]) -> Mask:
    """Tell where a text is one of those; a missing one is not."""
    return np.asarray(texts.array.isin(list(wanted)), dtype=bool)


def _of_clinic(rows: pd.DataFrame, clinics: pd.DataFrame, holds: Mask, if_not_given: bool) -> Mask:
    """Spread what holds for each clinic over the rows."""
    if not if_not_given and not holds.any():
        return np.zeros(len(rows), dtype=bool)
    position = pd.Index(clinics["clinic_id"].to_numpy("int64")).get_indexer(rows["clinic_id"].to_numpy("int64"))
    return np.append(holds, if_not_given)[position]  # Position −1, clinic not given, is the appended one.
