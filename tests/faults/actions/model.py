"""What has to become of each partner action, in dictionaries: written from docs/partner-actions.md and domain.md.

It shares no code with the product and reads nothing of it. It is told what the clinics do, what Medflex shows and when
an action is judged, and says what must come out of it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg

from tests.faults.medlock import KEYS, STAMPED, Medlock, Row

CODES = {
    "malformed": 400,
    "too_old": 409,
    "unknown_clinic": 404,
    "unknown_appointment": 404,
    "not_shared": 404,
    "other_partner": 404,
    "partner_closed": 404,
    "revoked": 404,
    "recorded": 204,
    "already_so": 204,
    "finished": 409,
    "past": 409,
    "status_unknown": 409,
    "version_unknown": 409,
    "changed": 409,
    "no_such_time": 416,
    "outside_schedule": 416,
    "slot_taken": 423,
    "patient_busy": 409,
    "done": 204,
}
OVER = ("cancelled", "arrived", "completed", "no_show")
AHEAD = ("unconfirmed", "confirmed")
FREE = ("cancelled", "no_show")
BIGGEST = 2**63 - 1
SECRET = ("unknown_clinic", "unknown_appointment", "not_shared", "other_partner", "partner_closed", "revoked")
"""What a partner must not be able to tell apart."""
PRODUCT = "medlock_actions"
CLINIC = "medlock_owner"

Shape = dict[str, Any]
Who = tuple[int, int, int]
"""(clinic, appointment, partner)"""


@dataclass(frozen=True)
class Shown:
    """What Medflex shows of an appointment: under which version, when its copy was read, whose data it is."""

    version: int
    content: Shape
    read_at: datetime
    patient_id: int


@dataclass(frozen=True)
class Made:
    """What a partner has made of an appointment, coming from which version, and when."""

    base_version: int
    content: Shape
    at: datetime


@dataclass(frozen=True)
class Look:
    """What somebody who judges saw when he looked at more than the appointment: Medflex's records, partners' own."""

    shown: Mapping[tuple[int, int], Shown]
    made: Mapping[Who, tuple[Made, ...]]
    there: frozenset[tuple[int, int]] = frozenset()
    clinic_of: Mapping[int, int] = field(default_factory=dict)
    edits: int = 0


@dataclass(frozen=True)
class Prediction:
    """What must come out of an action, and what it makes of the appointment.

    shape: what would be shown behind it, as of the moment of judgement. times: of a reschedule, whose slot is judged a
    moment later.
    """

    reason: str
    values: Row = field(default_factory=dict)
    shape: Shape | None = None
    times: tuple[datetime, datetime] | None = None


@dataclass(frozen=True)
class Decision:
    """The final word about an action."""

    code: int
    reason: str
    at: datetime


class Clinics(Medlock):
    """The clinics' own work in Medlock: in Postgres first, in memory if Postgres has taken it.

    Attributes:
        log: appointment → what was done to it by whom, in order; deleted ones, too.
        edits: how many changes of appointments there were; touched: appointment → which of them was its last.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection)
        self.log: dict[int, list[tuple[str, str, Row]]] = defaultdict(list)
        self.schedule: dict[int, list[tuple[int, datetime, datetime]]] = defaultdict(list)
        self.edits = 0
        self.touched: dict[int, int] = {}

    def set(self, table: str, key: Any, stamp: datetime | None = None, **values: Any) -> bool:
        """Change a row; ``False`` if it is not there, or somebody else holds it."""
        if table in STAMPED:
            values["updated_at"] = stamp
        if key not in self.rows[table] or not self._try(*self._update(table, key, values)):
            return False
        self.told(table, key, values)
        return True

    def told(self, table: str, key: Any, values: Row) -> None:
        """A row was changed in Postgres."""
        self.rows[table][key].update(values)
        if table == "appointment":
            self._log(key, "UPDATE", values)

    def add(self, table: str, **values: Any) -> bool:
        added = super().add(table, **values)
        if added and table == "appointment":
            self._log(values["id"], "INSERT", values)
        return added

    def delete(self, table: str, keys: Iterable[Any]) -> int:
        gone = 0
        for key in keys:
            if key in self.rows[table] and self._try(f"DELETE FROM medlock.{table} WHERE id = %s", [key]):
                self.graves[table, key] = self.rows[table].pop(key)
                gone += 1
                if table == "appointment":
                    self._log(key, "DELETE", {})
        if gone:
            self._count_deleted()
        return gone

    def work(self, doctor_id: int, clinic_id: int, starts_at: datetime, ends_at: datetime) -> None:
        """The doctor works from then to then."""
        self._connection.execute(
            "INSERT INTO medlock.doctor_schedule SELECT coalesce(max(id), 0) + 1, %s, %s, %s, %s"
            " FROM medlock.doctor_schedule",
            [clinic_id, doctor_id, starts_at, ends_at],
        )
        self.schedule[doctor_id].append((clinic_id, starts_at, ends_at))

    def _log(self, id_: int, operation: str, values: Row) -> None:
        self.log[id_].append((CLINIC, operation, values))
        self.edits += 1
        self.touched[id_] = self.edits

    def _update(self, table: str, key: Any, values: Row) -> tuple[str, list[Any]]:
        names = KEYS.get(table, ("id",))
        keys = key if isinstance(key, tuple) else (key,)
        sets = ", ".join(f"{name} = %s" for name in values)
        where = " AND ".join(f"{name} = %s" for name in names)
        return f"UPDATE medlock.{table} SET {sets} WHERE {where}", [*values.values(), *keys]

    def _try(self, statement: str, parameters: list[Any]) -> bool:
        try:
            self._connection.execute(statement.encode(), parameters)
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    def _remember(self, ids: Iterable[int]) -> None:
        """What a record once showed is no matter here."""

    # -- what follows from the rows ----------------------------------------------------------------------------------

    def shape(self, id_: int) -> Shape | None:
        """What would be shown of an appointment, with its partners."""
        content = self.content(id_)
        return content and {**content, "partners": sorted(self.partners(self.rows["appointment"][id_]["clinic_id"]))}

    def works(self, clinic_id: int, doctor_id: int, starts_at: datetime, ends_at: datetime) -> bool:
        """Whether one stretch of the doctor's working time holds all of this."""
        return any(
            clinic == clinic_id and begins <= starts_at and ends_at <= ends
            for clinic, begins, ends in self.schedule[doctor_id]
        )

    def meets(self, id_: int, starts_at: datetime, ends_at: datetime, **whose: int) -> bool:
        """Whether another appointment that takes its time overlaps."""
        return any(
            other["id"] != id_
            and all(other[name] == value for name, value in whose.items())
            and other["starts_at"] < ends_at
            and starts_at < max(other["ends_at"], other["starts_at"] + timedelta(minutes=1))
            and other["status"] not in FREE
            for other in self.rows["appointment"].values()
        )


class Model:
    """The decisions, as they have to be.

    Attributes:
        shown: what Medflex shows, by (lpu_id, appointment).
        made: what partners have made of appointments themselves.
        decided: action → the final word about it.
        moves: the appointments that partners have moved, in order.
    """

    def __init__(self, clinics: Clinics) -> None:
        self.clinics = clinics
        self.shown: dict[tuple[int, int], Shown] = {}
        self.made: dict[Who, tuple[Made, ...]] = {}
        self.decided: dict[UUID, Decision] = {}
        self.effects = 0
        self.moves: list[int] = []

    # -- what is known to those who judge ----------------------------------------------------------------------------

    def clinic_of(self) -> dict[int, int]:
        """lpu_id → clinic."""
        return {row["lpu_id"]: id_ for id_, row in self.clinics.rows["clinic"].items()}

    def there(self) -> frozenset[tuple[int, int]]:
        """All (clinic, appointment) that exist."""
        return frozenset((row["clinic_id"], id_) for id_, row in self.clinics.rows["appointment"].items())

    def published(self, records: Mapping[tuple[int, int], Shape], read_at: datetime) -> None:
        """Medflex shows these from now on; what is new among them was read at ``read_at``."""
        fresh: dict[tuple[int, int], Shown] = {}
        for key, record in records.items():
            known = self.shown.get(key)
            if known is None or known.version != record["version"]:
                content = {name: value for name, value in record.items() if name != "version"}
                patient_id = self.clinics.rows["appointment"][key[1]]["patient_id"]
                known = Shown(record["version"], content, read_at, patient_id)
            fresh[key] = known
        self.shown = fresh

    # -- judging -----------------------------------------------------------------------------------------------------

    def judge(self, raw: Mapping[str, Any], look: Look, now: datetime) -> Prediction:
        """Say what must come out of an action now; of a reschedule only :meth:`judge_slot` says the last word."""
        told = read(raw)
        if told is None or told.created_at - now >= timedelta(days=1):
            return Prediction("malformed")
        if now - told.created_at >= timedelta(days=400):
            return Prediction("too_old")
        if (reason := self._out_of_sight(told, look, now)) is not None:
            return Prediction(reason)
        if told.type == "notification":
            return Prediction("recorded")
        row = self.clinics.rows["appointment"][told.appointment_id]
        if (reason := self._of_state(told, row, now) or self._of_version(told, row, look)) is not None:
            return Prediction(reason)
        if told.type != "reschedule":
            return self._done(row["id"], {"status": {"confirm": "confirmed", "cancel": "cancelled"}[told.type]})
        times = self._instants(told, row["clinic_id"])
        if times is None or times[0] <= now or times[1] <= times[0]:
            return Prediction("no_such_time")
        return self._done(row["id"], {"starts_at": times[0], "ends_at": times[1]}, times)

    def _out_of_sight(self, told: Told, look: Look, now: datetime) -> str | None:
        """Why a partner may not even know of the appointment."""
        clinic_id, id_ = look.clinic_of.get(told.lpu_id), told.appointment_id
        if clinic_id is None:
            return "unknown_clinic"
        if (clinic_id, id_) not in look.there:
            return "unknown_appointment"
        shown = look.shown.get((told.lpu_id, id_))
        # A partner that was not shown it is told so without a look behind a lock.
        if shown is None:
            return "not_shared"
        if told.partner_id not in shown.content["partners"]:
            return "other_partner"
        row = self.clinics.rows["appointment"].get(id_)
        if row is None or row["clinic_id"] != clinic_id:
            return "unknown_appointment"
        if told.partner_id not in self.clinics.partners(clinic_id):
            return "partner_closed"
        return "revoked" if self._is_revoked(row, shown, told.lpu_id, now) else None

    def _of_state(self, told: Told, row: Row, now: datetime) -> str | None:
        """Why nothing is to be changed, or can be any more."""
        if self._is_so_already(told, row):
            return "already_so"
        if row["status"] in OVER:
            return "finished"
        if row["starts_at"] <= now:
            return "past"
        return None if row["status"] in AHEAD else "status_unknown"

    def _done(self, id_: int, values: Row, times: tuple[datetime, datetime] | None = None) -> Prediction:
        row = self.clinics.rows["appointment"][id_]
        self.clinics.rows["appointment"][id_] = row | values
        shape = self.clinics.shape(id_)
        self.clinics.rows["appointment"][id_] = row
        return Prediction("done", values, shape, times)

    def judge_slot(self, id_: int, prediction: Prediction) -> Prediction:
        """Say whether the time of a reschedule is free."""
        if prediction.times is None:
            return prediction
        row = self.clinics.rows["appointment"][id_]
        starts_at, ends_at = prediction.times
        if not self.clinics.works(row["clinic_id"], row["doctor_id"], starts_at, ends_at):
            return Prediction("outside_schedule")
        if self.clinics.meets(id_, starts_at, ends_at, doctor_id=row["doctor_id"]):
            return Prediction("slot_taken")
        if self.clinics.meets(id_, starts_at, ends_at, patient_id=row["patient_id"], clinic_id=row["clinic_id"]):
            return Prediction("patient_busy")
        return prediction

    def decide(
        self, action_id: UUID, raw: Mapping[str, Any], prediction: Prediction, at: datetime, stamp: datetime | None
    ) -> None:
        """The decision is committed; ``stamp`` is when its effect took place."""
        self.decided[action_id] = Decision(CODES[prediction.reason], prediction.reason, at)
        if not prediction.values:
            return
        self.effects += 1
        id_ = raw["appointment_id"]
        row, values = self.clinics.rows["appointment"][id_], {**prediction.values, "updated_at": stamp}
        row.update(values)
        if prediction.times is not None:
            self.moves.append(id_)
        self.clinics.log[id_].append((PRODUCT, "UPDATE", values))
        assert prediction.shape is not None
        who = row["clinic_id"], id_, raw["partner_id"]
        self.made[who] = (*self.made.get(who, ()), Made(raw["base_version"], prediction.shape, at))

    def collides(self, id_: int, others: Iterable[int]) -> bool:
        """Whether an appointment meets one of these, at its doctor or its patient."""
        rows = self.clinics.rows["appointment"]
        row = rows[id_]
        return any(
            other != id_
            and other in rows
            and (rows[other]["doctor_id"] == row["doctor_id"] or rows[other]["patient_id"] == row["patient_id"])
            and rows[other]["status"] not in FREE
            and rows[other]["starts_at"] < row["ends_at"]
            and row["starts_at"] < rows[other]["ends_at"]
            for other in others
        )

    def _is_revoked(self, row: Row, shown: Shown, lpu_id: int, now: datetime) -> bool:
        """Whether the record that Medflex shows may be shown no more (R12), to whomever it be."""
        return (
            not self.clinics.permitted(row["id"], now)
            or self.clinics.rows["clinic"][row["clinic_id"]]["lpu_id"] != lpu_id
            or row["patient_id"] != shown.patient_id
            or self.clinics.days_ahead(row["id"], now) > 30
        )

    def _is_so_already(self, told: Told, row: Row) -> bool:
        if told.type == "confirm":
            return bool(row["status"] == "confirmed")
        if told.type == "cancel":
            return bool(row["status"] == "cancelled")
        content = self.clinics.content(row["id"])
        assert content is not None
        return row["status"] in AHEAD and (content["dt_start"], content["dt_end"]) == (told.dt_start, told.dt_end)

    def _of_version(self, told: Told, row: Row, look: Look) -> str | None:
        """Why the partner did not know what it would have changed."""
        now_there, shown = self.clinics.shape(row["id"]), look.shown[told.lpu_id, row["id"]]
        made = look.made.get((row["clinic_id"], row["id"], told.partner_id), ())
        is_shown = told.base_version == shown.version
        # Who has changed it himself goes on from there, unless he has been shown a later state since.
        for own in made:
            later = is_shown and own.base_version < told.base_version and shown.read_at < own.at
            if own.content == now_there and (own.base_version == told.base_version or later):
                return None
        if not is_shown:
            return "version_unknown"
        if shown.content == now_there or row["updated_at"] < shown.read_at - timedelta(hours=1):
            return None
        return "changed"

    def _instants(self, told: Told, clinic_id: int) -> tuple[datetime, datetime] | None:
        zone = ZoneInfo(self.clinics.rows["clinic"][clinic_id]["timezone"])
        assert told.dt_start is not None
        assert told.dt_end is not None
        start, end = instants(told.dt_start, zone), instants(told.dt_end, zone)
        return (start[0], end[0]) if len(start) == len(end) == 1 else None


# -- reading what partners say ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a partner says, if it can be read."""

    lpu_id: int
    appointment_id: int
    partner_id: int
    base_version: int
    type: str
    created_at: datetime
    dt_start: str | None
    dt_end: str | None


def read(raw: Mapping[str, Any]) -> Told | None:
    """Read an action; nothing if a field that it needs is missing or unreadable."""
    numbers = [raw.get(name) for name in ("lpu_id", "appointment_id", "partner_id", "base_version")]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        return None
    if any(not 0 < number <= BIGGEST for number in numbers if isinstance(number, int)):
        return None
    kind, created_at = raw.get("type"), raw.get("created_at")
    if kind not in ("confirm", "cancel", "reschedule", "notification") or not isinstance(created_at, str):
        return None
    try:
        asked_at = datetime.fromisoformat(created_at)
    except ValueError:
        return None
    if asked_at.tzinfo is None:
        return None
    scenario = raw.get("scenario")
    if kind == "notification" and not (isinstance(scenario, str) and re.fullmatch("[a-z][a-z0-9_]{0,63}", scenario)):
        return None
    start, end = (raw.get("dt_start"), raw.get("dt_end")) if kind == "reschedule" else (None, None)
    if kind == "reschedule" and not (_is_minute(start) and _is_minute(end) and str(start) < str(end)):
        return None
    lpu_id, appointment_id, partner_id, base_version = numbers
    return Told(lpu_id, appointment_id, partner_id, base_version, kind, asked_at, start, end)  # type: ignore[arg-type]


def instants(local: str, zone: ZoneInfo) -> list[datetime]:
    """All instants at which the clocks of the zone show this: none, one or two."""
    shown = datetime.fromisoformat(local)
    around = [shown.replace(tzinfo=UTC) + timedelta(days=days) for days in (-2, 2)]
    offsets = {moment.astimezone(zone).utcoffset() for moment in around}
    candidates = [shown.replace(tzinfo=UTC) - offset for offset in offsets if offset is not None]
    return sorted(moment for moment in candidates if f"{moment.astimezone(zone):%Y-%m-%d %H:%M}" == local)


def _is_minute(text: Any) -> bool:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}", text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
