"""What was sent, or may have been, and may no longer be shared (R12): one function for every lane that withdraws."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pandas as pd

from medflex.domain.access import AccessState, ClosedReason, flags, unknown_partner
from medflex.domain.eligibility import ALL_RULES, Rule, judge
from medflex.domain.last_look import Turned
from medflex.domain.places import Places, places_of
from medflex.domain.reasons import QUARANTINE, Reason
from medflex.domain.window import DAYS_BACK

MOST_ABSENT = 10
"""So many records of a clinic may vanish within a day before a person is asked, whatever their share …"""
MOST_ABSENT_SHARE = 0.02
"""… or this share of what Medflex shows of the clinic, if that is more."""

REVOCATION_COLUMNS = ("clinic_id", "appointment_id", "lpu_id", "version", "reason", "by_absence", "revoked_at")
"""The columns of REVOCATIONS."""


class Revoked(StrEnum):
    """Why a record is withdrawn, besides the reasons for which one is not sent."""

    CLINIC_GONE = "clinic_gone"
    WITHDRAWAL_UNFINISHED = "withdrawal_unfinished"

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Revoked.CLINIC_GONE: "The clinic has disappeared from Medlock.",
    Revoked.WITHDRAWAL_UNFINISHED: "A withdrawal was begun and not acknowledged; one that is begun is finished.",
}

ABSENCE: frozenset[str] = frozenset({Turned.APPOINTMENT_GONE, Revoked.CLINIC_GONE, *QUARANTINE})
"""Reasons that are no one's no: a row is gone, or its data cannot be trusted. Above a threshold a person is asked."""

_LONGEST_BEHIND = timedelta(days=DAYS_BACK + 1, hours=2)
"""So long before the moment at which it is read an appointment in the window begins at most: local days have up to 25
hours, and so much more where clocks differ."""
_OF_PATIENT = frozenset({Reason.REFUSED_PERSONAL_DATA, Reason.REFUSED_NOTIFICATIONS, Reason.REFUSED_MARKETING})
_STAMPS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_OF_PATIENT, "patient_updated_at"),
        Reason.DOCTOR_BANNED: "doctor_updated_at",
        Reason.ANONYMOUS_APPOINTMENT: "updated_at",
        Turned.PERSON_CHANGED: "updated_at",
        Turned.MOVED_OUT_OF_WINDOW: "updated_at",
    }
)
"""Which change stamp tells since when a reason holds; that of a switch is the clinic's."""


def find_revocations(
    live: pd.DataFrame,
    present: pd.DataFrame,
    clinics: pd.DataFrame,
    windows: pd.DataFrame,
    rules: Mapping[Reason, Rule] = ALL_RULES,
    patients: pd.DataFrame | None = None,
    elsewhere: pd.DataFrame | None = None,
    at: Places | None = None,
) -> pd.DataFrame:
    """Find everything that may no longer be shared (R1, R2, R4, R7-R10, R12, R16, R17).

    Args:
        live: LIVE, what Medflex shows or may show, inside the window or not: ``clinic_id``, ``appointment_id``,
            ``lpu_id``, ``version`` (int64), ``state`` (str, never ``withdrawn``), ``patient_id``
            (Int64, missing: in doubt), ``partner_ids`` (comma-joined, missing: not known), ``changed_at`` and
            ``extracted_at`` (datetime64[us, UTC], the latter missing: not known); one row per record and lpu_id.
        present: ROWS of these appointments as committed now, with ``patient_updated_at`` and ``doctor_updated_at``;
            none for an appointment that does not exist, or belongs to another clinic. ``doctor_banned`` also tells of
            the ban on a doctor who belongs to another clinic (``doctor_found`` is false then).
        clinics: CLINICS judged by ``judge_access`` now; a clinic that is not given has disappeared.
        windows: the clinics' windows of today: ``clinic_id``, ``starts_from``, ``starts_before``.
        rules: which rules to ask.
        patients: PATIENTS, as committed now: the flags of patients whose data is shown and whom no appointment leads to
            any more: ``patient_id`` (int64), ``refused_personal_data``, ``refused_notifications``,
            ``refused_marketing`` (boolean), ``updated_at``. What they have said holds though the row is gone.
        elsewhere: ELSEWHERE, as committed now: what is said of appointments that are not in their clinic any more:
            ``appointment_id`` (int64), ``is_anonymous``, ``doctor_banned`` (boolean; a flag that is not exactly false
            is true), ``updated_at``, ``doctor_updated_at``.
        at: what ``positions`` tells of ``live`` and ``present``, if it was asked already.

    Returns:
        REVOCATIONS: ``clinic_id``, ``appointment_id``, ``lpu_id``, ``version`` as in ``live``; ``reason`` (str, the
        first that holds); ``by_absence`` (bool, see ``ABSENCE``); ``revoked_at`` (datetime64[us, UTC]: since when, as
        far as Medlock's change stamps tell, never before the record was last written; missing if nothing tells).

    Only what is *there* can say no: a patient who does not exist has refused nothing, so that a lost table is not taken
    for a thousand refusals. A permission that is not there (flag, switch, link) counts as a no (R16).
    """
    if not len(live):
        return empty_revocations()
    at = positions(live, present) if at is None else at
    gone = at < 0
    rows = _rows_of(live, present, at)
    verdict = judge(rows, clinics, rules)
    patient_found = rows["patient_found"].to_numpy(bool, na_value=False) & ~gone
    doctor_found = rows["doctor_found"].to_numpy(bool, na_value=False) & ~gone

    clinic = clinics.set_index("clinic_id")
    clinic_ids = live["clinic_id"]
    clinic_gone = ~clinic_ids.isin(clinic.index).to_numpy()
    lpu_now = _of_clinic(clinic["lpu_id"], clinic_ids).astype("Int64")
    lpu_changed = (lpu_now.notna() & (lpu_now != live["lpu_id"])).to_numpy(bool, na_value=False)
    before = _of_clinic(windows.set_index("clinic_id")["starts_before"], clinic_ids)
    ahead = (rows["starts_at"].reset_index(drop=True) >= before.reset_index(drop=True)).to_numpy(dtype=bool)

    said = _said(live, patients)
    rows["patient_updated_at"] = rows["patient_updated_at"].where(patient_found, said["updated_at"])
    no = np.zeros(len(live), dtype=bool)
    away: dict[str, np.ndarray[Any, Any]] = {Reason.ANONYMOUS_APPOINTMENT: no, Reason.DOCTOR_BANNED: no}
    if elsewhere is not None:
        there = elsewhere.set_index("appointment_id").reindex(live["appointment_id"]).reset_index(drop=True)
        away = {
            reason: gone & flags(there[name])[0]
            for reason, name in zip(away, ("is_anonymous", "doctor_banned"), strict=True)
        }
        for stamp in ("updated_at", "doctor_updated_at"):
            rows[stamp] = rows[stamp].where(~gone, there[stamp])
    holds: dict[str, np.ndarray[Any, Any]] = {}
    for reason in verdict.reasons.columns:
        held = verdict.reasons[reason].to_numpy(dtype=bool)
        if reason in _OF_PATIENT:
            held = (held & patient_found) | (said[reason].to_numpy(dtype=bool) & ~patient_found)
        elif reason == Reason.DOCTOR_BANNED:
            # Of a doctor who is another clinic's the ban is known, of one who does not exist it is not.
            held = (held & (doctor_found | (flags(rows["doctor_banned"])[0] & ~gone))) | away[reason]
        elif reason == Reason.ANONYMOUS_APPOINTMENT:
            held = (held & ~gone) | away[reason]
        elif reason in (Reason.CLINIC_NOT_ACTIVE, Reason.NO_PARTNER):
            held = held & ~clinic_gone
        else:
            held = held & ~gone
        holds[reason] = held
    explicit: dict[str, np.ndarray[Any, Any]] = {
        **{reason: held for reason, held in holds.items() if reason not in ABSENCE},
        Turned.LPU_CHANGED: lpu_changed,
        Turned.PERSON_CHANGED: ~gone & _other_patient(live, rows),
        Turned.PARTNER_GONE: ~clinic_gone & unknown_partner(live["clinic_id"], live["partner_ids"], clinics),
        Turned.MOVED_OUT_OF_WINDOW: ~gone & (ahead | _moved_back(live, rows)),
        Revoked.WITHDRAWAL_UNFINISHED: (live["state"] == "withdrawing").to_numpy(dtype=bool),
    }
    absent: dict[str, np.ndarray[Any, Any]] = {
        Revoked.CLINIC_GONE: clinic_gone,
        Turned.APPOINTMENT_GONE: gone,
        # A patient who is not there has no phone, either: that is not what is wrong.
        Reason.REFERENCE_BROKEN: holds.pop(Reason.REFERENCE_BROKEN, no),
        **{reason: held for reason, held in holds.items() if reason in ABSENCE},
    }
    # What somebody said stands before what is missing: it is never held.
    ordered = {**explicit, **absent}
    matrix = np.array(list(ordered.values()))
    revoked = np.asarray(matrix.any(axis=0))
    # Texts only of those that are: most are not.
    first = np.array([str(reason) for reason in ordered])[matrix[:, revoked].argmax(axis=0)]
    found = live.loc[revoked, ["clinic_id", "appointment_id", "lpu_id", "version"]].copy()
    found["reason"] = pd.array(first, dtype="str")
    found["by_absence"] = np.isin(first, sorted(ABSENCE))
    stamps = rows.loc[revoked, sorted(set(_STAMPS.values()))].reset_index(drop=True)
    found["revoked_at"] = _since(live[revoked], stamps, clinic, first)
    return found.reset_index(drop=True)


def aged(live: pd.DataFrame, present: pd.DataFrame, windows: pd.DataFrame, at: Places | None = None) -> pd.DataFrame:
    """Return the records of LIVE whose appointments have left the window by the passing of time, and are settled.

    They stay at Medflex, and stay subject to R12. Arguments as for ``find_revocations``.
    """
    rows = _rows_of(live, present[["starts_at"]], positions(live, present) if at is None else at)
    starts_from = _of_clinic(windows.set_index("clinic_id")["starts_from"], live["clinic_id"]).reset_index(drop=True)
    behind = (rows["starts_at"] < starts_from).to_numpy(dtype=bool)
    return live[behind & (live["state"] == "sent").to_numpy(dtype=bool)]


def positions(live: pd.DataFrame, present: pd.DataFrame) -> Places:
    """For each record of LIVE, which row of ``present`` is its appointment; −1 if none is."""
    clinic_ids, appointment_ids = (live[name].to_numpy("int64") for name in ("clinic_id", "appointment_id"))
    return places_of(clinic_ids, appointment_ids, present)


def empty_revocations() -> pd.DataFrame:
    """Return REVOCATIONS without a row."""
    types = {"reason": "str", "by_absence": "bool", "revoked_at": "datetime64[us, UTC]"}
    return pd.DataFrame(
        {name: pd.array([], dtype=cast("Any", types.get(name, "int64"))) for name in REVOCATION_COLUMNS}
    )


def held_back(revocations: pd.DataFrame, live: Mapping[int, int], withdrawn_today: Mapping[int, int]) -> pd.Series:
    """Tell which revocations by absence have to wait for a person.

    Args:
        revocations: REVOCATIONS.
        live: clinic → number of records that Medflex shows or may show of it and that have not left the window: those
            that have grow in number for ever, and a share of them would one day be the whole window.
        withdrawn_today: clinic → records that were withdrawn by absence within the last 24 hours. They count, so that
            what vanishes bit by bit is treated like what vanishes at once.

    Returns:
        bool, with the index of ``revocations``: all of a clinic's absences, or none. What somebody said no to is never
        held, at any volume.
    """
    absent = revocations["by_absence"].to_numpy(dtype=bool)
    numbers = revocations.loc[absent, "clinic_id"].value_counts()
    too_many = []
    for key, number in numbers.items():
        clinic_id = int(key)
        gone = int(number) + withdrawn_today.get(clinic_id, 0)
        shown = live.get(clinic_id, 0) + withdrawn_today.get(clinic_id, 0)
        if gone > max(MOST_ABSENT, MOST_ABSENT_SHARE * shown):
            too_many.append(clinic_id)
    return revocations["clinic_id"].isin(too_many) & absent


def describe(reason: str) -> str:
    """Return one line about why a record is withdrawn."""
    for kind in (Reason, Turned, Revoked):
        if reason in set(kind):
            return kind(reason).description
    return reason


def _of_clinic(values: pd.Series, clinic_ids: pd.Series) -> pd.Series:
    """What is known of each record's clinic, missing where nothing is; with the index of ``clinic_ids``."""
    # Not Series.map: with not one clinic left it fails on instants (pandas 3.1).
    return values.reindex(clinic_ids).set_axis(clinic_ids.index)


def _rows_of(live: pd.DataFrame, present: pd.DataFrame, at: Places) -> pd.DataFrame:
    """ROWS in the order of ``live``; where the appointment is gone everything but the clinic's id is missing."""
    if (at >= 0).all():
        rows = present.take(at).reset_index(drop=True)
    else:
        # Missing in every column, so that no rule ever sees another appointment's values for one that is gone.
        rows = present.reset_index(drop=True).reindex(np.where(at < 0, len(present), at)).reset_index(drop=True)
    rows["clinic_id"] = live["clinic_id"].to_numpy("int64")
    return rows


def _said(live: pd.DataFrame, patients: pd.DataFrame | None) -> pd.DataFrame:
    """What the patients whose data is shown say, by ``PATIENTS``: a column per reason, and ``updated_at``.

    In the order of ``live``; of a patient who is not in ``patients`` nobody knows a no. Where clinics have patients of
    one id, any one's no counts, with the latest stamp: whose data is shown, the record does not tell.
    """
    if patients is None:
        nobody = pd.DataFrame(False, index=range(len(live)), columns=sorted(_OF_PATIENT))
        return nobody.assign(updated_at=pd.Series(pd.NaT, index=range(len(live)), dtype="datetime64[us, UTC]"))
    ids = live["patient_id"].astype("Int64").fillna(-1).astype("int64")
    # Only a flag that is exactly false permits (R16).
    noes = {reason: ~patients[str(reason)].eq(False).fillna(False).astype("bool") for reason in sorted(_OF_PATIENT)}
    each = pd.DataFrame(noes).groupby(patients["patient_id"]).any()
    stamps = patients.groupby("patient_id")["updated_at"].max()
    place = each.index.get_indexer(pd.Index(ids))
    # Position −1, patient not there, is the appended one.
    said = {reason: np.append(each[reason].to_numpy(dtype=bool), False)[place] for reason in noes}
    return pd.DataFrame(said).assign(updated_at=stamps.array.take(place, allow_fill=True))


def _moved_back(live: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """The appointment lies before the window of the day on which it was read, so it was moved there since: what is
    shown of it is another time. By what was in the window then, and has left it by time, nothing is withdrawn.
    """
    read_at = live["extracted_at"].reset_index(drop=True)
    return (rows["starts_at"] < read_at - _LONGEST_BEHIND).to_numpy(dtype=bool)


def _other_patient(live: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """The data shown is another patient's, or it is in doubt whose: that patient may have refused since."""
    shown = live["patient_id"].astype("Int64").reset_index(drop=True)
    now = rows["patient_id"].astype("Int64")
    known = shown.notna().to_numpy()
    # An appointment without a patient is a broken reference: nobody has said anything.
    differs = (shown != now).to_numpy(bool, na_value=False)
    # Records from before the ledger knew patients are settled and have none.
    in_doubt = ~known & (live["state"] != "sent").to_numpy(dtype=bool) & (live["state"] != "aged_out").to_numpy(bool)
    return (known & differs) | in_doubt


def _since(live: pd.DataFrame, stamps: pd.DataFrame, clinic: pd.DataFrame, first: np.ndarray[Any, Any]) -> pd.Series:
    """Since when each record's first reason holds, as far as a change stamp tells."""
    since = pd.Series(pd.NaT, index=range(len(live)), dtype="datetime64[us, UTC]")
    for stamp in stamps:
        reasons = [str(reason) for reason, name in _STAMPS.items() if name == stamp]
        since = since.mask(np.isin(first, reasons), stamps[stamp].astype("datetime64[us, UTC]"))
    # A switch that stands to on as before is closed by something else (its head is head no more), and nothing tells
    # since when.
    turned = (clinic["closed_reason"] == ClosedReason.SWITCHED_OFF) | (clinic["state"] == AccessState.WAITING)
    switched = _of_clinic(clinic["access_changed_at"].where(turned), live["clinic_id"])
    switched = switched.astype("datetime64[us, UTC]").reset_index(drop=True)
    since = since.mask(first == Reason.CLINIC_NOT_ACTIVE, switched)
    written = live["changed_at"].astype("datetime64[us, UTC]").reset_index(drop=True)
    # When it was written the last look found it permitted: a stamp from before tells of something else.
    since = since.mask(since < written, written)
    return since.set_axis(live.index)
