"""A small Medlock that is kept twice: as rows in Postgres, which the product reads, and in memory, for the judge.

The judge's view of the rules is written down here once more, in plain Python; it shares no code with the product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

TABLES = ("clinic", "staff", "medflex_access", "partner", "clinic_partner", "doctor", "patient", "appointment")
STAMPED = frozenset({"doctor", "patient", "appointment"})
FLAGS = ("refused_personal_data", "refused_notifications", "refused_marketing")
JUNK_PHONES = ("123", "нет", "8 900 111-22-3", "", None)
STATUSES = {
    "unconfirmed": "relevant",
    "confirmed": "confirmed",
    "arrived": "arrived",
    "completed": "arrived",
    "cancelled": "canceled",
    "no_show": "failure",
    "postponed": "undefined",
}
PARTNERS = (1, 2, 3)
KEYS = {"medflex_access": ("clinic_id",), "clinic_partner": ("clinic_id", "partner_id")}

Row = dict[str, Any]
Key = tuple[int, int]
"""Where a record is shown: (lpu_id, appointment id)."""


@dataclass(frozen=True)
class Clinic:
    """How a clinic begins: open for three days, linked with ``partners``, all its people agreeing.

    appointments: (number of the patient, of the doctor, hours from the beginning to the start).
    """

    appointments: tuple[tuple[int, int, int], ...]
    partners: tuple[int, ...] = (1, 2)
    patients: int = 3
    doctors: int = 2
    zone: str = "Europe/Moscow"


def digits_of(patient_id: int, number: int = 0) -> str:
    """The phone of a patient as Medflex wants it; another ``number`` is another phone."""
    return f"7901{number % 10}{patient_id:06d}"


def typed(digits: str, form: int) -> str:
    """A phone as somebody types it."""
    area, rest = digits[1:4], digits[4:]
    return (
        f"8 ({area}) {rest[:3]}-{rest[3:5]}-{rest[5:]}",
        f"+7 {area} {rest[:3]} {rest[3:5]} {rest[5:]}",
        f"7{area}{rest}",
    )[form % 3]


class Medlock:
    """The rows, and what follows from them. Every change is committed in Postgres when the method returns."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.rows: dict[str, dict[Any, Row]] = {}
        self.graves: dict[tuple[str, Any], Row] = {}
        self.history: dict[int, list[tuple[int | None, Row]]] = {}
        self.phones: dict[str | None, str | None] = {}
        self.patients_named: dict[int, str] = {}

    # -- writing -----------------------------------------------------------------------------------------------------

    def fill(self, clinics: Sequence[Clinic], now: datetime) -> None:
        """Forget everything and begin with these clinics, numbered from 1."""
        self.rows = {table: {} for table in TABLES}
        self.graves, self.history, self.phones = {}, {}, dict.fromkeys(JUNK_PHONES)
        long_ago = now - timedelta(days=3)
        for partner in PARTNERS:
            self._keep("partner", id=partner, name=f"partner {partner}", kind="mailing")
        for clinic_id, clinic in enumerate(clinics, 1):
            self._keep("clinic", id=clinic_id, lpu_id=7000 + clinic_id, name="clinic", timezone=clinic.zone)
            for number, role in ((1, "head"), (2, "registrar")):
                id_ = clinic_id * 10 + number
                self._keep("staff", id=id_, clinic_id=clinic_id, full_name="person", login=f"p{id_}", role=role)
            self._keep(
                "medflex_access", clinic_id=clinic_id, enabled=True, changed_at=long_ago, changed_by=clinic_id * 10 + 1
            )
            for partner in clinic.partners:
                self._keep("clinic_partner", clinic_id=clinic_id, partner_id=partner, enabled=True)
            for number in range(clinic.doctors):
                self._keep(
                    "doctor",
                    id=doctor_id(clinic_id, number),
                    clinic_id=clinic_id,
                    full_name="doctor",
                    medflex_banned=False,
                    updated_at=long_ago,
                )
            for number in range(clinic.patients):
                self._keep("patient", **self.new_patient(clinic_id, number), updated_at=long_ago)
            for number, (patient, doctor, hours) in enumerate(clinic.appointments):
                row = self.new_appointment(clinic_id, number, patient, doctor, now + timedelta(hours=hours))
                self._keep("appointment", **row, created_at=long_ago, updated_at=long_ago)
        statements = [f"DELETE FROM medlock.{table}" for table in reversed(TABLES)]
        for table, rows in self.rows.items():
            if rows:
                columns = list(next(iter(rows.values())))
                values = ", ".join(f"({', '.join(_literal(row[name]) for name in columns)})" for row in rows.values())
                statements.append(f"INSERT INTO medlock.{table} ({', '.join(columns)}) VALUES {values}")
        with self._connection.transaction():
            self._connection.execute(";\n".join(statements).encode())
        self._count_deleted()
        self._remember(self.rows["appointment"])

    def new_patient(self, clinic_id: int, number: int) -> Row:
        """A patient who agrees to everything."""
        id_ = patient_id(clinic_id, number)
        phone = typed(digits_of(id_), number)
        self.phones[phone] = digits_of(id_)
        patronymic = None if number % 3 == 2 else f"Отчествович{id_}"
        return {
            "id": id_,
            "clinic_id": clinic_id,
            "last_name": f"Фамилин{id_}",
            "first_name": f"Имярек{id_}",
            "patronymic": patronymic,
            "phone": phone,
            **dict.fromkeys(FLAGS, False),
        }

    def new_appointment(self, clinic_id: int, number: int, patient: int, doctor: int, starts_at: datetime) -> Row:
        """An appointment of half an hour."""
        return {
            "id": appointment_id(clinic_id, number),
            "clinic_id": clinic_id,
            "patient_id": patient_id(clinic_id, patient),
            "doctor_id": doctor_id(clinic_id, doctor),
            "starts_at": starts_at,
            "ends_at": starts_at + timedelta(minutes=30),
            "status": "unconfirmed",
            "is_anonymous": False,
            "entry": "online" if number % 2 else "direct",
        }

    def set(self, table: str, key: Any, stamp: datetime | None = None, **values: Any) -> bool:
        """Change a row, if it is there; ``stamp`` is what the change leaves in ``updated_at``."""
        row = self.rows[table].get(key)
        if row is None:
            return False
        if table in STAMPED:
            values["updated_at"] = stamp
        row.update(values)
        names = KEYS.get(table, ("id",))
        keys = key if isinstance(key, tuple) else (key,)
        sets = ", ".join(f"{name} = %s" for name in values)
        where = " AND ".join(f"{name} = %s" for name in names)
        self._connection.execute(
            f"UPDATE medlock.{table} SET {sets} WHERE {where}".encode(), [*values.values(), *keys], prepare=True
        )
        self._remember(self._touched(table, key))
        return True

    def add(self, table: str, **values: Any) -> bool:
        """Put a row in, unless its key is taken."""
        names = KEYS.get(table, ("id",))
        key = tuple(values[name] for name in names)
        if (key if len(key) > 1 else key[0]) in self.rows[table]:
            return False
        key = self._keep(table, **values)
        marks = ", ".join(["%s"] * len(values))
        self._connection.execute(
            f"INSERT INTO medlock.{table} ({', '.join(values)}) VALUES ({marks})".encode(), list(values.values())
        )
        self._remember(self._touched(table, key))
        return True

    def delete(self, table: str, keys: Iterable[Any]) -> int:
        """Take rows out; they can be brought back."""
        gone = [key for key in keys if key in self.rows[table]]
        for key in gone:
            self.graves[table, key] = self.rows[table].pop(key)
        if gone:
            self._connection.execute(f"DELETE FROM medlock.{table} WHERE id = ANY(%s)".encode(), [gone])
            self._count_deleted()
        return len(gone)

    def bring_back(self, stamp: datetime) -> int:
        """Put all rows that were taken out in again, as they were; only their stamp is new."""
        graves, self.graves = self.graves, {}
        for (table, _), row in graves.items():
            self.add(table, **{**row, "updated_at": stamp})
        return len(graves)

    def _count_deleted(self) -> None:
        """Postgres counts deleted rows with a delay of a second, for which no fake clock waits."""
        self._connection.execute("SELECT pg_stat_force_next_flush()")

    def _keep(self, table: str, **values: Any) -> Any:
        names = KEYS.get(table, ("id",))
        key = tuple(values[name] for name in names)
        self.rows[table][key if len(key) > 1 else key[0]] = values
        return key if len(key) > 1 else key[0]

    def _touched(self, table: str, key: Any) -> list[int]:
        appointments = self.rows["appointment"]
        if table == "appointment":
            return [key]
        if table == "patient":
            return [id_ for id_, row in appointments.items() if row["patient_id"] == key]
        if table == "doctor":
            return [id_ for id_, row in appointments.items() if row["doctor_id"] == key]
        return []

    def _remember(self, ids: Iterable[int]) -> None:
        """Keep what each of these appointments would show, so that a record can be told from one that never was."""
        for id_ in ids:
            content = self.content(id_)
            if content is not None:
                patient = self.rows["appointment"][id_]["patient_id"]
                past = self.history.setdefault(id_, [])
                if (patient, content) not in past:
                    past.append((patient, content))

    # -- judging -----------------------------------------------------------------------------------------------------

    def people(self, row: Row) -> tuple[Row | None, Row | None]:
        """The appointment's patient and doctor, as far as they exist in its clinic."""
        patient = self.rows["patient"].get(row["patient_id"])
        doctor = self.rows["doctor"].get(row["doctor_id"])
        return (
            patient if patient and patient["clinic_id"] == row["clinic_id"] else None,
            doctor if doctor and doctor["clinic_id"] == row["clinic_id"] else None,
        )

    def partners(self, clinic_id: int) -> set[int]:
        """Whom the clinic shares data with (R4)."""
        links = self.rows["clinic_partner"].values()
        return {row["partner_id"] for row in links if row["clinic_id"] == clinic_id and row["enabled"] is True}

    def is_open(self, clinic_id: int, now: datetime) -> bool:
        """R1-R3."""
        switch = self.rows["medflex_access"].get(clinic_id)
        if switch is None or switch["enabled"] is not True or self.rows["clinic"][clinic_id]["lpu_id"] is None:
            return False
        person = self.rows["staff"].get(switch["changed_by"])
        if person is None or person["clinic_id"] != clinic_id or person["role"] != "head":
            return False
        return bool(now - switch["changed_at"] >= timedelta(hours=24))

    def refused(self, id_: int) -> bool:
        """R7-R10, R16: somebody who is there says no, or does not say yes."""
        row = self.rows["appointment"].get(id_)
        if row is None:
            return False
        patient, doctor = self.people(row)
        return (
            row["is_anonymous"] is not False
            or (patient is not None and any(patient[flag] is not False for flag in FLAGS))
            or (doctor is not None and doctor["medflex_banned"] is not False)
        )

    def absent(self, id_: int) -> bool:
        """A row is gone, or what it says cannot be trusted (R17)."""
        return self.content(id_) is None

    def content(self, id_: int) -> Row | None:
        """What would be shown of an appointment, without version and partners; nothing if it is in doubt."""
        row = self.rows["appointment"].get(id_)
        if row is None:
            return None
        patient, doctor = self.people(row)
        if patient is None or doctor is None or row["ends_at"] <= row["starts_at"]:
            return None
        phone = self.phones[patient["phone"]]
        if phone is None or not patient["first_name"]:
            return None
        zone = ZoneInfo(self.rows["clinic"][row["clinic_id"]]["timezone"])
        start = row["starts_at"].astimezone(zone)
        return {
            "id": id_,
            "doctor_id": row["doctor_id"],
            "dt_start": f"{start:%Y-%m-%d %H:%M}",
            "dt_end": f"{row['ends_at'].astimezone(zone):%Y-%m-%d %H:%M}",
            "time_offset": int(start.utcoffset().total_seconds() // 60),  # type: ignore[union-attr]
            "status": STATUSES[row["status"]],
            "mis_status": row["status"],
            "entry": row["entry"],
            "client": {
                "first_name": patient["first_name"],
                "second_name": patient["patronymic"],
                "mobile_phone": phone,
            },
        }

    def days_ahead(self, id_: int, now: datetime) -> int:
        """In how many local days the appointment starts (R6)."""
        row = self.rows["appointment"][id_]
        zone = ZoneInfo(self.rows["clinic"][row["clinic_id"]]["timezone"])
        day: date = row["starts_at"].astimezone(zone).date()
        return (day - now.astimezone(zone).date()).days

    def permitted(self, id_: int, now: datetime) -> bool:
        """Whether this appointment may be shared at all, in the window or not."""
        row = self.rows["appointment"].get(id_)
        if row is None or self.refused(id_) or self.absent(id_):
            return False
        return self.is_open(row["clinic_id"], now) and bool(self.partners(row["clinic_id"]))

    def expected(self, now: datetime) -> dict[Key, Row]:
        """What Medflex has to show after a quiet run, without versions."""
        result = {}
        for id_, row in self.rows["appointment"].items():
            if -45 <= self.days_ahead(id_, now) <= 30 and self.permitted(id_, now):
                content = self.content(id_)
                assert content is not None
                lpu_id = self.rows["clinic"][row["clinic_id"]]["lpu_id"]
                result[lpu_id, id_] = {**content, "partners": sorted(self.partners(row["clinic_id"]))}
        return result


def patient_id(clinic_id: int, number: int) -> int:
    """The id of a clinic's patient."""
    return clinic_id * 1000 + 100 + number


def doctor_id(clinic_id: int, number: int) -> int:
    """The id of a clinic's doctor."""
    return clinic_id * 1000 + 200 + number


def appointment_id(clinic_id: int, number: int) -> int:
    """The id of a clinic's appointment."""
    return clinic_id * 1000 + 500 + number


def clinic_of(id_: int) -> int:
    """The clinic that a patient, doctor or appointment belongs to."""
    return id_ // 1000


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return "'" + text.replace("'", "''") + "'"
