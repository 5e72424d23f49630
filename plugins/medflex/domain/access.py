"""Whether a clinic's data may flow at all, by its access switch (R1, R2, R3, R16)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.window import INSTANT, as_utc, utc_instants

HOLD = timedelta(hours=24)
"""R3: 24 × 60 × 60 seconds on the clock after activation, whatever the zone does."""

HEAD = "head"


class AccessState(StrEnum):
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


class ClosedReason(StrEnum):
    """Why a clinic is closed; the first one that holds is told."""

    NEVER_CONFIGURED = "never_configured"
    SWITCH_UNKNOWN = "switch_unknown"
    SWITCHED_OFF = "switched_off"
    NO_TIME_STAMP = "no_time_stamp"
    TIME_STAMP_IN_FUTURE = "time_stamp_in_future"
    UNKNOWN_PERSON = "unknown_person"
    NOT_SWITCHED_BY_HEAD = "not_switched_by_head"
    NO_LPU_ID = "no_lpu_id"
    CLINIC_GONE = "clinic_gone"

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS: dict[ClosedReason, str] = {
    ClosedReason.NEVER_CONFIGURED: "The access switch was never set.",
    ClosedReason.SWITCH_UNKNOWN: "The access switch is neither on nor off, which counts as off.",
    ClosedReason.SWITCHED_OFF: "The access switch is off.",
    ClosedReason.NO_TIME_STAMP: "The access switch is on, but it is not known since when, which counts as off.",
    ClosedReason.TIME_STAMP_IN_FUTURE: "The access switch is on since a time in the future, which counts as off.",
    ClosedReason.UNKNOWN_PERSON: "The access switch was turned on by nobody known in this clinic, which counts as off.",
    ClosedReason.NOT_SWITCHED_BY_HEAD: "The access switch was not turned on by the head of the clinic: counts as off.",
    ClosedReason.NO_LPU_ID: "The clinic has no lpu_id, so Medflex does not know it.",
    ClosedReason.CLINIC_GONE: "The clinic has disappeared from Medlock since the run began.",
}


def judge_access(clinics: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Tell for each clinic whether it is open, still waiting for its 24 hours, or closed and why.

    clinics: CLINICS. now: the clock, aware. Returns a copy with ``state`` (str, an AccessState),
    ``closed_reason`` (str, a ClosedReason; missing unless closed) and ``opens_at`` (datetime64[us, UTC]; NaT when
    closed). A clinic is open from the instant on which its 24 hours are full. Whether it has partners is not judged
    here but by R4. Raises ValueError when ``now`` has no zone.
    """
    # By plain arrays: there are few clinics, and each batch asks for its own one right before it leaves.
    instant = np.datetime64(as_utc(now).replace(tzinfo=None), "us")
    on, unknown = flags(clinics["access_enabled"])
    changed_at = utc_instants(clinics["access_changed_at"])
    unstamped = np.isnat(changed_at)
    role = clinics["access_changed_by_role"]
    nobody = role.isna().to_numpy()

    holds: dict[ClosedReason, np.ndarray] = {
        ClosedReason.NEVER_CONFIGURED: unknown & unstamped & nobody,
        ClosedReason.SWITCH_UNKNOWN: unknown,
        ClosedReason.SWITCHED_OFF: ~on,
        ClosedReason.NO_TIME_STAMP: unstamped,
        ClosedReason.TIME_STAMP_IN_FUTURE: changed_at > instant,
        ClosedReason.UNKNOWN_PERSON: nobody,
        ClosedReason.NOT_SWITCHED_BY_HEAD: ~role.eq(HEAD).to_numpy(dtype=bool, na_value=False),
        ClosedReason.NO_LPU_ID: clinics["lpu_id"].isna().to_numpy(),
    }
    closed = np.logical_or.reduce(list(holds.values()))
    opens_at = np.where(closed, np.datetime64("NaT", "us"), changed_at) + np.timedelta64(HOLD)
    waiting = opens_at > instant

    state = np.select([closed, waiting], [AccessState.CLOSED.value, AccessState.WAITING.value], AccessState.OPEN.value)
    reasons = np.array([*(reason.value for reason in holds), None], dtype=object)
    first = np.where(closed, np.argmax(list(holds.values()), axis=0), -1)
    return clinics.assign(
        state=pd.array(state, dtype="str"),
        closed_reason=pd.array(reasons[first], dtype="str"),
        opens_at=pd.array(opens_at, dtype=INSTANT),
    )


def permissions(clinics: pd.DataFrame) -> dict[int, Mapping[str, Any]]:
    """Return what of each clinic decides on all of its records at once (R1-R4).

    clinics: CLINICS as judged by ``judge_access``. Returns clinic → ``lpu_id`` (int or None), ``is_open`` (bool),
    ``partner_ids`` (list of int).
    """
    columns = (
        clinics["clinic_id"].tolist(),
        clinics["lpu_id"].tolist(),
        clinics["state"].eq(AccessState.OPEN).tolist(),
        clinics["partner_ids"].tolist(),
    )
    return {
        int(clinic_id): {
            "lpu_id": None if pd.isna(lpu_id) else int(lpu_id),
            "is_open": bool(is_open),
            "partner_ids": [int(item) for item in partner_ids],
        }
        for clinic_id, lpu_id, is_open, partner_ids in zip(*columns, strict=True)
    }


def unknown_partner(clinic_ids: pd.Series, partner_ids: pd.Series, clinics: pd.DataFrame) -> np.ndarray:
    """Tell which records are shown to a partner with whom their clinic has no enabled integration (R4).

    clinic_ids: int64. partner_ids: comma-joined ids in the same order; one that is empty or missing names nobody.
    clinics: CLINICS; one that is not given has no integration. Returns an array of bool.
    """
    allowed = {int(key): set(ids) for key, ids in zip(clinics["clinic_id"], clinics["partner_ids"], strict=True)}
    of_clinic, clinic_keys = pd.factorize(clinic_ids.to_numpy("int64"))
    of_text, texts = pd.factorize(partner_ids.array)
    # As numbers: pairs of a number and a text take fifty times as long. A missing text has the code −1.
    codes, pairs = pd.factorize(of_clinic * (len(texts) + 1) + of_text + 1)
    named = ["", *texts]
    unknown = []
    for pair in pairs.tolist():
        clinic, text = divmod(pair, len(named))
        ids = {int(item) for item in named[text].split(",") if item}
        unknown.append(not ids <= allowed.get(int(clinic_keys[clinic]), set()))
    return np.array(unknown, dtype=bool)[codes]


def flags(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Where a flag is true, and where it is unknown, as boolean arrays."""
    nullable = column if isinstance(column.dtype, pd.BooleanDtype) else column.astype("boolean")
    return nullable.to_numpy(dtype=bool, na_value=False), nullable.isna().to_numpy()
