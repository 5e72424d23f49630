"""What partners ask of an appointment, and what is decided about it (R13, R14): one table, docs/partner-actions.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

KEPT_DAYS = 400
"""So long a decision is remembered. What a partner asked for earlier than that may have been decided and forgotten."""
LONG_TRANSACTION = timedelta(hours=1)
"""A row's change stamp is the time at which its transaction began; a copy that was read up to so much later may lack
the change."""

FINISHED = frozenset({"arrived", "completed", "cancelled", "no_show"})
"""Medlock's statuses with which an appointment is over, one way or the other."""
LIVE = frozenset({"unconfirmed", "confirmed"})
"""Medlock's statuses with which an appointment is still to come."""

_LOCAL_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", re.ASCII)
_ACTION_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_SCENARIO = re.compile(r"(?!.*[0-9]{5})[a-z][a-z0-9_]{0,63}", re.ASCII)
"""Not with so many digits: that may be a phone."""
_BIGINT = 2**63
YEARS = (2, 9998)
"""A year's distance to the ends of the calendar: no zone leads out of it."""


class ActionType(StrEnum):
    """What a partner wants done, or has done."""

    CONFIRM = "confirm"
    CANCEL = "cancel"
    RESCHEDULE = "reschedule"
    NOTIFICATION = "notification"


STATUS_ASKED: Mapping[ActionType | None, str] = {ActionType.CONFIRM: "confirmed", ActionType.CANCEL: "cancelled"}
"""Medlock's status that a partner asks for."""


class Ruling(StrEnum):
    """Why an action was carried out or refused. The partner is told ``status_code`` and ``detail`` only."""

    DONE = "done"
    RECORDED = "recorded"
    ALREADY_SO = "already_so"
    MALFORMED = "malformed"
    TOO_OLD = "too_old"
    UNKNOWN_CLINIC = "unknown_clinic"
    UNKNOWN_APPOINTMENT = "unknown_appointment"
    NOT_SHARED = "not_shared"
    OTHER_PARTNER = "other_partner"
    PARTNER_CLOSED = "partner_closed"
    REVOKED = "revoked"
    FINISHED = "finished"
    PAST = "past"
    STATUS_UNKNOWN = "status_unknown"
    VERSION_UNKNOWN = "version_unknown"
    CHANGED = "changed"
    NO_SUCH_TIME = "no_such_time"
    OUTSIDE_SCHEDULE = "outside_schedule"
    SLOT_TAKEN = "slot_taken"
    PATIENT_BUSY = "patient_busy"

    @property
    def status_code(self) -> int:
        """The contract's code."""
        return _TOLD[self][0]

    @property
    def detail(self) -> str:
        """The sentence for the partner. Everything that is 404 reads alike: the difference would tell of a patient."""
        return _TOLD[self][1]

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _TOLD[self][2]

    @property
    def is_effect(self) -> bool:
        """Whether the appointment in Medlock was changed."""
        return self is Ruling.DONE


_UNKNOWN = "There is no such appointment."
_OVER = "The appointment is past or finished."
_CHANGED = "The appointment has changed since: read it again."
_NO_TIME = "The doctor does not see patients at that time."

_TOLD: Mapping[Ruling, tuple[int, str, str]] = {
    Ruling.DONE: (204, "", "The appointment was changed in Medlock."),
    Ruling.RECORDED: (204, "", "The notification was noted."),
    Ruling.ALREADY_SO: (204, "", "The appointment was in that state already; nothing was changed."),
    Ruling.MALFORMED: (400, "The action is malformed.", "A field is missing, or cannot be read."),
    Ruling.TOO_OLD: (
        409,
        "The action is too old.",
        f"It was asked for more than {KEPT_DAYS} days ago: whether it was decided before is not known any more.",
    ),
    Ruling.UNKNOWN_CLINIC: (404, _UNKNOWN, "Medlock has no clinic with this lpu_id."),
    Ruling.UNKNOWN_APPOINTMENT: (404, _UNKNOWN, "The clinic has no such appointment."),
    Ruling.NOT_SHARED: (404, _UNKNOWN, "The appointment is not shared with anybody, or not any more."),
    Ruling.OTHER_PARTNER: (404, _UNKNOWN, "The appointment was never shared with this partner."),
    Ruling.PARTNER_CLOSED: (404, _UNKNOWN, "The clinic has cut its link to this partner."),
    Ruling.REVOKED: (404, _UNKNOWN, "The appointment may no longer be shared; it is withdrawn, or about to be."),
    Ruling.FINISHED: (409, _OVER, "The appointment is finished: cancelled, or the patient came or did not come."),
    Ruling.PAST: (409, _OVER, "The appointment has begun already, or is over."),
    Ruling.STATUS_UNKNOWN: (409, _CHANGED, "The appointment has a status in Medlock that nobody has heard of."),
    Ruling.VERSION_UNKNOWN: (409, _CHANGED, "The partner acted on a version that it was not shown last."),
    Ruling.CHANGED: (409, _CHANGED, "The clinic has changed the appointment since the version the partner acted on."),
    Ruling.NO_SUCH_TIME: (416, _NO_TIME, "The time lies in the past, or does not exist or exists twice on that day."),
    Ruling.OUTSIDE_SCHEDULE: (416, _NO_TIME, "The time lies outside the doctor's working hours."),
    Ruling.SLOT_TAKEN: (423, "The time is taken.", "The doctor has another appointment at that time."),
    Ruling.PATIENT_BUSY: (409, "The patient is busy at that time.", "The patient has another appointment then."),
}


@dataclass(frozen=True)
class Action:
    """What a partner says; fields that cannot be read are ``None`` and named in ``malformed``.

    base_version: the version of the record on which the partner acted. dt_start, dt_end: ``YYYY-MM-DD hh:mm`` in the
    clinic's zone, of a reschedule. created_at: aware, UTC.
    """

    action_id: UUID
    lpu_id: int | None
    appointment_id: int | None
    partner_id: int | None
    type: ActionType | None
    base_version: int | None
    dt_start: str | None
    dt_end: str | None
    scenario: str | None
    created_at: datetime | None
    malformed: tuple[str, ...] = ()

    @property
    def may_change(self) -> bool:
        """Whether the appointment may be another one behind it."""
        return not self.malformed and self.type is not ActionType.NOTIFICATION


def read_action(item: Any) -> Action | None:
    """Read one entry of Medflex's list; ``None`` when it has no id by which it could be answered.

    Nothing that the contract does not know is kept, and of a field that breaks it only its name.
    """
    if not isinstance(item, Mapping):
        return None
    action_id = _uuid(item.get("id"))
    if action_id is None:
        return None
    kind = ActionType(item["type"]) if item.get("type") in list(ActionType) else None
    moves, tells = kind is ActionType.RESCHEDULE, kind is ActionType.NOTIFICATION
    values: dict[str, Any] = {
        **{name: _positive(item.get(name)) for name in ("lpu_id", "appointment_id", "partner_id", "base_version")},
        "type": kind,
        "dt_start": _local_text(item.get("dt_start")) if moves else None,
        "dt_end": _local_text(item.get("dt_end")) if moves else None,
        "scenario": _scenario(item.get("scenario")) if tells else None,
        "created_at": _instant(item.get("created_at")),
    }
    needed = {"lpu_id", "appointment_id", "partner_id", "base_version", "type", "created_at"}
    needed |= ({"dt_start", "dt_end"} if moves else set()) | ({"scenario"} if tells else set())
    malformed = {name for name in needed if values[name] is None}
    if moves and not malformed and values["dt_end"] <= values["dt_start"]:
        malformed.add("dt_end")
    return Action(action_id=action_id, **values, malformed=tuple(sorted(malformed)))


@dataclass(frozen=True)
class Version:
    """What Medflex shows, or may show, of an appointment under one version.

    digest: of its content, ``None`` if not known. read_at: the instant whose state of Medlock it shows, ``None`` if not
    known.
    """

    version: int
    digest: int | None
    read_at: datetime | None


@dataclass(frozen=True)
class Made:
    """What an earlier action of the same partner made of an appointment.

    base_version: the version it acted on. digest: of what would be sent behind it. decided_at: when (aware).
    """

    base_version: int
    digest: int
    decided_at: datetime


@dataclass(frozen=True)
class Standing:
    """What is known of the record that an action is about: what was shared, and with whom.

    own: what this partner's earlier actions made of the appointment.
    """

    partner_ids: frozenset[int] = frozenset()
    versions: tuple[Version, ...] = ()
    own: tuple[Made, ...] = ()


@dataclass(frozen=True)
class Appraisal:
    """The appointment as it is committed in Medlock now.

    revoked: whether it may no longer be shared, by the rules of every other lane. digest: of what would be sent of it
    now. digest_after: the same behind this action. starts_at, changed_at: aware; changed_at is its change stamp.
    """

    exists: bool
    revoked: bool = True
    linked_partners: frozenset[int] = frozenset()
    status: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    changed_at: datetime | None = None
    doctor_id: int | None = None
    patient_id: int | None = None
    digest: int | None = None
    digest_after: int | None = None
    new_times: tuple[datetime, datetime] | None = None
    timezone: str | None = None


def rule(action: Action, standing: Standing | None, now_there: Appraisal, now: datetime) -> Ruling:
    """Decide about an action, all but whether the time of a reschedule is free: docs/partner-actions.md, row by row.

    Args:
        action: not malformed.
        standing: ``None``: Medflex shows nothing of this appointment.
        now_there: read under a lock on the appointment's row.
        now: the clock, aware.

    Returns:
        ``DONE`` means: carry it out; for a reschedule, if :func:`rule_time` has nothing against it.
    """
    if not now_there.exists:
        return Ruling.UNKNOWN_APPOINTMENT
    if standing is None:
        return Ruling.NOT_SHARED
    if action.partner_id not in standing.partner_ids:
        return Ruling.OTHER_PARTNER
    if action.partner_id not in now_there.linked_partners:
        return Ruling.PARTNER_CLOSED
    if now_there.revoked:
        return Ruling.REVOKED
    if action.type is ActionType.NOTIFICATION:
        return Ruling.RECORDED
    if _already_so(action, now_there):
        return Ruling.ALREADY_SO
    if now_there.status in FINISHED:
        return Ruling.FINISHED
    if now_there.starts_at is None or now_there.starts_at <= now:
        return Ruling.PAST
    if now_there.status not in LIVE:
        return Ruling.STATUS_UNKNOWN
    return _rule_version(action, standing, now_there)


@dataclass(frozen=True)
class Slot:
    """What stands at a time to which an appointment is to be moved."""

    in_schedule: bool
    doctor_busy: bool
    patient_busy: bool


def rule_time(slot: Slot) -> Ruling:
    """Decide about the new time of a reschedule."""
    if not slot.in_schedule:
        return Ruling.OUTSIDE_SCHEDULE
    if slot.doctor_busy:
        return Ruling.SLOT_TAKEN
    return Ruling.PATIENT_BUSY if slot.patient_busy else Ruling.DONE


def new_times(action: Action, zone: ZoneInfo, now: datetime) -> tuple[datetime, datetime] | None:
    """Return start and end of a reschedule as instants in UTC; ``None`` where there is no such time ahead.

    A time that the clocks skip on that day is none, and one that comes twice could be either, so it is none either.
    """
    if action.dt_start is None or action.dt_end is None:
        return None
    start, end = _to_instant(action.dt_start, zone), _to_instant(action.dt_end, zone)
    return (start, end) if start and end and now < start < end else None


def is_too_old(action: Action, now: datetime) -> bool:
    """Tell whether an action may have been decided so long ago that this is forgotten."""
    return action.created_at is not None and now - action.created_at >= timedelta(days=KEPT_DAYS)


def is_from_the_future(action: Action, now: datetime) -> bool:
    """Tell whether an action claims to be asked for later than clocks can differ; it would outlive its decision."""
    return action.created_at is not None and action.created_at - now >= timedelta(days=1)


def _already_so(action: Action, now_there: Appraisal) -> bool:
    if action.type in STATUS_ASKED:
        return now_there.status == STATUS_ASKED[action.type]
    # By the clock on the wall and to the minute, as the partner sees it.
    zone = ZoneInfo(now_there.timezone) if now_there.timezone else None
    if now_there.status not in LIVE or zone is None or now_there.starts_at is None or now_there.ends_at is None:
        return False
    shown = [f"{time.astimezone(zone):%Y-%m-%d %H:%M}" for time in (now_there.starts_at, now_there.ends_at)]
    return shown == [action.dt_start, action.dt_end]


def _rule_version(action: Action, standing: Standing, now_there: Appraisal) -> Ruling:
    base = action.base_version or 0
    seen = [item for item in standing.versions if item.version == base]
    if any(made.digest == now_there.digest and _goes_on_from(made, base, seen) for made in standing.own):
        return Ruling.DONE
    if not seen:
        return Ruling.VERSION_UNKNOWN
    if any(_is_unchanged(item, now_there) for item in seen):
        return Ruling.DONE
    return Ruling.CHANGED


def _goes_on_from(made: Made, base: int, seen: list[Version]) -> bool:
    """Whoever has changed an appointment himself goes on from what he made of it: Medflex shows it only a little later.

    On the version that he acted on, or on one that was read before he did; a later copy may have shown him otherwise.
    """
    if made.base_version == base:
        return True
    return made.base_version < base and any(
        item.read_at is not None and item.read_at < made.decided_at for item in seen
    )


def _is_unchanged(seen: Version, now_there: Appraisal) -> bool:
    if seen.digest is not None and seen.digest == now_there.digest:
        return True
    # What differs need not be the appointment: a corrected phone, one more partner. Its own row tells.
    if seen.read_at is None or now_there.changed_at is None:
        return False
    return now_there.changed_at < seen.read_at - LONG_TRANSACTION


def _to_instant(text: str, zone: ZoneInfo) -> datetime | None:
    local = datetime.strptime(text, "%Y-%m-%d %H:%M")  # noqa: DTZ007 - the zone comes in the next line
    first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first if first == second else None


def _uuid(value: Any) -> UUID | None:
    # In the contract's form only: Python reads others, too, under which Medflex would not know the answer.
    return UUID(value) if isinstance(value, str) and _ACTION_ID.fullmatch(value) else None


def _positive(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value < _BIGINT else None


def _local_text(value: Any) -> str | None:
    if not isinstance(value, str) or not _LOCAL_TIME.fullmatch(value):
        return None
    try:
        parsed = datetime.strptime(value, "%Y-%m-%d %H:%M")  # noqa: DTZ007 - only whether the calendar has it
    except ValueError:
        return None
    return value if YEARS[0] <= parsed.year <= YEARS[1] else None


def _scenario(value: Any) -> str | None:
    return value if isinstance(value, str) and _SCENARIO.fullmatch(value) else None


def _instant(value: Any) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else None
        if parsed is None or parsed.utcoffset() is None or not YEARS[0] <= parsed.year <= YEARS[1]:
            return None
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
