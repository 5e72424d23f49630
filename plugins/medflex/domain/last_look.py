"""The last look: whether a record that is about to leave may still leave."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import pandas as pd

from medflex.domain.eligibility import CONSENT_RULES, judge

PERMITTED = ""


class Turned(StrEnum):
    """What, besides the withholding reasons, can have turned since a record was prepared."""

    APPOINTMENT_GONE = "appointment_gone"
    PERSON_CHANGED = "person_changed"
    PARTNER_GONE = "partner_gone"
    LPU_CHANGED = "lpu_changed"
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
    Turned.OVERTAKEN: "Another run has sent a copy of the record that was read later than this one.",
    Turned.REFERENCE_BROKEN: "The patient or the doctor has been deleted or moved to another clinic.",
}


def last_look(prepared: pd.DataFrame, present: pd.DataFrame, clinics: pd.DataFrame) -> list[str]:
    """Judge records that are about to leave by what Medlock says now (R1-R4, R7-R10, R16).

    Args:
        prepared: ``clinic_id``, ``id``, ``doctor_id``, ``patient_id``, ``partners`` (comma-joined ids), ``lpu_id``;
            one row per record.
        present: rows of consent_now.sql: the flags as they are committed now.
        clinics: CLINICS as judged by ``judge_access`` now.

    Returns:
        For each record the first reason that forbids it (a ``Reason`` or a ``Turned``), or ``PERMITTED``. The flags are
        those of the *present* patient and doctor, so a record prepared for another person never passes.
    """
    position = pd.Index(present["appointment_id"].to_numpy("int64")).get_indexer(prepared["id"].to_numpy("int64"))
    gone = position < 0
    if len(present) == 0:
        return [Turned.APPOINTMENT_GONE.value] * len(prepared)
    now = present.iloc[np.where(gone, 0, position)].reset_index(drop=True)

    verdict = judge(now, clinics, CONSENT_RULES)
    first = np.where(verdict.withheld, np.asarray(verdict.first_reason, dtype=object), PERMITTED)

    clinic = clinics.set_index("clinic_id")
    allowed = dict(zip(clinics["clinic_id"].tolist(), map(set, clinics["partner_ids"]), strict=True))
    partner_gone = np.array(
        [
            not {int(item) for item in partners.split(",")} <= allowed.get(int(clinic_id), set())
            for clinic_id, partners in zip(prepared["clinic_id"], prepared["partners"], strict=True)
        ],
        dtype=bool,
    )
    lpu_now = prepared["clinic_id"].map(clinic["lpu_id"])
    turned = [
        (Turned.APPOINTMENT_GONE, gone | (now["clinic_id"].to_numpy() != prepared["clinic_id"].to_numpy())),
        (
            Turned.PERSON_CHANGED,
            _differs(now["patient_id"], prepared["patient_id"]) | _differs(now["doctor_id"], prepared["doctor_id"]),
        ),
        (
            Turned.REFERENCE_BROKEN,
            ~(now["patient_found"].to_numpy(bool, na_value=False) & now["doctor_found"].to_numpy(bool, na_value=False)),
        ),
        (Turned.PARTNER_GONE, partner_gone),
        (Turned.LPU_CHANGED, _differs(lpu_now, prepared["lpu_id"])),
    ]
    for reason, holds in turned:
        first[(first == PERMITTED) & holds] = reason.value
    # Whose flags were read does not matter where the appointment itself is gone.
    first[gone] = Turned.APPOINTMENT_GONE.value
    return [str(reason) for reason in first]


def _differs(now: pd.Series, then: pd.Series) -> np.ndarray:
    """Tell where two id columns differ; a missing id differs from everything."""
    left = now.astype("Int64").to_numpy("int64", na_value=-1)
    right = then.astype("Int64").to_numpy("int64", na_value=-2)
    return left != right
