"""The last look: whether a record that is about to leave may still leave."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.access import flags, unknown_partner
from medflex.domain.eligibility import CONSENT_RULES, judge
from medflex.domain.places import places_of
from medflex.domain.reasons import Reason
from medflex.domain.window import utc_instants

PERMITTED = ""
ERASED = (Reason.PHONE_MISSING, Reason.NAME_MISSING)
"""Of the reasons for quarantine those that are asked for again: what was read before must not leave when it is gone."""


class Turned(StrEnum):
    """What, besides the withholding reasons, can have turned since a record was prepared."""

    APPOINTMENT_GONE = "appointment_gone"
    PERSON_CHANGED = "person_changed"
    PARTNER_GONE = "partner_gone"
    LPU_CHANGED = "lpu_changed"
    MOVED_OUT_OF_WINDOW = "moved_out_of_window"
    REFERENCE_BROKEN = "reference_broken"
    OVERTAKEN = "overtaken"

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Turned.APPOINTMENT_GONE: "The appointment has been deleted or moved to another clinic.",
    Turned.PERSON_CHANGED: "The appointment has got another patient (before it is sent: or doctor).",
    Turned.PARTNER_GONE: "A partner that would see the record is no longer linked with the clinic.",
    Turned.LPU_CHANGED: "The clinic has got another lpu_id.",
    Turned.MOVED_OUT_OF_WINDOW: "The appointment was moved out of the days that are shared.",
    Turned.OVERTAKEN: "Another run has sent a copy of the record that was read later than this one.",
    Turned.REFERENCE_BROKEN: "The patient or the doctor has been deleted or moved to another clinic.",
}


def last_look(prepared: pd.DataFrame, present: pd.DataFrame, clinics: pd.DataFrame, windows: pd.DataFrame) -> list[str]:
    """Judge records that are about to leave by what Medlock says now (R1-R4, R6-R10, R16, R17).

    Args:
        prepared: ``clinic_id``, ``id``, ``doctor_id``, ``patient_id``, ``partners`` (comma-joined ids), ``lpu_id``;
            one row per record.
        present: rows of consent_now.sql: the flags as they are committed now.
        clinics: CLINICS as judged by ``judge_access`` now.
        windows: the clinics' windows of today: ``clinic_id``, ``starts_before``. Only what was moved beyond their end
            is held back: their beginning moves on with midnight, and what was near it stays subject to R12.

    Returns:
        For each record the first reason that forbids it (a ``Reason`` or a ``Turned``), or ``PERMITTED``. The flags are
        those of the *present* patient and doctor, so a record prepared for another person never passes.
    """
    if len(present) == 0:
        return [Turned.APPOINTMENT_GONE.value] * len(prepared)
    clinic_ids = prepared["clinic_id"].to_numpy("int64")
    position = places_of(clinic_ids, prepared["id"].to_numpy("int64"), present)
    gone = position < 0
    # What is found about the present rows is brought to the prepared ones; a frame of them costs more than the look.
    at = np.where(gone, 0, position)

    verdict = judge(present, clinics, CONSENT_RULES)
    first = np.full(len(prepared), PERMITTED, dtype=object)
    if verdict.withheld.any():
        names = np.array([*verdict.first_reason.categories, PERMITTED], dtype=object)
        first = np.where(verdict.withheld, names[verdict.first_reason.codes], PERMITTED)[at]

    of_clinic = pd.Index(clinics["clinic_id"].to_numpy("int64")).get_indexer(clinic_ids)
    lpu_now = np.append(_ids(clinics["lpu_id"], -1), -1)[of_clinic]  # Position −1, clinic not given, is the appended.
    found = flags(present["patient_found"])[0] & flags(present["doctor_found"])[0]
    turned = [
        (
            Turned.PERSON_CHANGED,
            # A missing id differs from everything, also from another missing one.
            (_ids(present["patient_id"], -1)[at] != _ids(prepared["patient_id"], -2))
            | (_ids(present["doctor_id"], -1)[at] != _ids(prepared["doctor_id"], -2)),
        ),
        (Turned.REFERENCE_BROKEN, ~found[at]),
        (Turned.PARTNER_GONE, unknown_partner(prepared["clinic_id"], prepared["partners"], clinics)),
        (Turned.LPU_CHANGED, lpu_now != _ids(prepared["lpu_id"], -2)),
        (Turned.MOVED_OUT_OF_WINDOW, ~_starts_before(present, windows)[at]),
        *(
            (reason, ~flags(present[name])[0][at])
            for reason, name in zip(ERASED, ("has_phone", "has_name"), strict=True)
        ),
    ]
    for reason, holds in turned:
        if holds.any():
            first[(first == PERMITTED) & holds] = reason.value
    # Whose flags were read does not matter where the appointment itself is gone.
    first[gone] = Turned.APPOINTMENT_GONE.value
    reasons: list[str] = first.tolist()
    return reasons


def _starts_before(present: pd.DataFrame, windows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which appointments start before the end of their clinic's window; none whose start or clinic is not known."""
    of_clinic = pd.Index(windows["clinic_id"].to_numpy("int64")).get_indexer(_ids(present["clinic_id"], -1))
    before = np.append(utc_instants(windows["starts_before"]).astype("int64"), _NEVER)[of_clinic]
    return np.asarray(_ids(present["starts"], _ALWAYS) < before)


_NEVER, _ALWAYS = np.iinfo("int64").min, np.iinfo("int64").max


def _ids(column: pd.Series, missing: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return column.to_numpy("int64", na_value=missing)
