"""What the clinics' people do in Medlock while partners act, by seeded dice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.faults.actions.model import Clinics
from tests.faults.medlock import FLAGS, JUNK_PHONES, PARTNERS, Clinic, Row, digits_of, doctor_id, patient_id, typed

LAGS = (0, 0, 0, 0, 20, 900)
"""Seconds by which the stamp of a change lies behind its commit: its transaction has taken so long."""
PATIENTS, DOCTORS, APPOINTMENTS = 25, 4, 45
# The clocks of Berlin and of Sydney are changed within the weeks that a storm covers.
ZONES = ("Europe/Moscow", "Europe/Berlin", "Australia/Sydney")
HOURS = ((9, 13), (14, 18))
"""When doctors work, by the clocks of their clinic."""
KINDS = {
    "status": 20,
    "move": 16,
    "move back": 10,
    "length": 2,
    "doctor": 4,
    "patient": 1,
    "comment": 6,
    "anonymous": 2,
    "refuse": 5,
    "phone": 6,
    "name": 2,
    "ban": 2,
    "link": 3,
    "switch": 1,
    "vanish": 2,
    "lpu": 0.15,
    "new": 16,
}
STATUSES = {
    "unconfirmed": 10,
    "confirmed": 5,
    "cancelled": 2,
    "arrived": 1,
    "completed": 1,
    "no_show": 1,
    "postponed": 1,
}


class Clinicians:
    """The clinics' people. What they close they open again after a while."""

    def __init__(self, dice: random.Random, clinics: Clinics, now: Callable[[], datetime]) -> None:
        self._dice, self._clinics, self._now = dice, clinics, now
        self._before: dict[int, tuple[datetime, datetime]] = {}
        self._new = 0

    def begin(self) -> None:
        """Fill Medlock: clinics, people, the doctors' hours, appointments of these days and of the next weeks."""
        clinics = self._clinics
        plan = [Clinic((), partners=(1, 2), patients=PATIENTS, doctors=DOCTORS, zone=zone) for zone in ZONES]
        clinics.fill(plan, self._now())
        for clinic_id, zone in enumerate(ZONES, 1):
            for number in range(DOCTORS):
                for day in range(-3, 45):
                    for begins, ends in HOURS:
                        times = self._at(zone, day, begins * 60), self._at(zone, day, ends * 60)
                        clinics.work(doctor_id(clinic_id, number), clinic_id, *times)
        for _ in range(APPOINTMENTS * len(ZONES)):
            self._edit_new({"clinic_id": self._dice.randint(1, len(ZONES))})

    def edit(self, wanted: Sequence[int]) -> str | None:
        """Do something, often to an appointment of which partners want something.

        Returns:
            What was done; ``None`` for nothing: somebody holds the row, or there was nothing to do.
        """
        kind = self._dice.choices(list(KINDS), list(KINDS.values()))[0]
        rows = self._clinics.rows["appointment"]
        there = [id_ for id_ in wanted if id_ in rows]
        id_ = self._dice.choice(there if there and self._dice.random() < 0.7 else list(rows))
        done = getattr(self, f"_edit_{kind.replace(' ', '_')}")(rows[id_])
        return kind if done else None

    def mend(self) -> int:
        """Open again some of what was closed, permit again some of what was refused; return how much."""
        rows, now = self._clinics.rows, self._now()
        mended: list[tuple[str, Any, Row]] = []
        for id_, row in rows["patient"].items():
            mended += [("patient", id_, {flag: False}) for flag in FLAGS if row[flag] is not False]
            if row["phone"] in JUNK_PHONES:
                mended.append(("patient", id_, {"phone": self._phone(id_, 0)}))
        for table, flag, good in (
            ("doctor", "medflex_banned", False),
            ("appointment", "is_anonymous", False),
            ("clinic_partner", "enabled", True),
        ):
            mended += [(table, key, {flag: good}) for key, row in rows[table].items() if row[flag] is not good]
        for id_ in rows["medflex_access"]:
            if not self._clinics.is_open(id_, now):
                # As if the head had done it two days ago, so that nobody waits for the 24 hours.
                on = {"enabled": True, "changed_at": now - timedelta(days=2), "changed_by": id_ * 10 + 1}
                mended.append(("medflex_access", id_, on))
        done = sum(
            self._clinics.set(table, key, now, **values) for table, key, values in mended if self._dice.random() < 0.5
        )
        if self._dice.random() < 0.3:
            done += self._clinics.bring_back(now)
        return done

    def opened(self, row: Row) -> Row:
        """What somebody is about to commit who has the appointment open on his screen."""
        step = timedelta(minutes=15)
        values: Row = self._dice.choice(
            (
                {"status": self._status()},
                {"starts_at": row["starts_at"] + step, "ends_at": row["ends_at"] + step},
                {"comment": "seen"},
            )
        )
        return {**values, "updated_at": self._now()}

    # -- one appointment ---------------------------------------------------------------------------------------------

    def _edit_status(self, row: Row) -> bool:
        return self._set(row, status=self._status())

    def _edit_move(self, row: Row) -> bool:
        # By 35 days: out of what is shared.
        step = timedelta(minutes=self._dice.choice((15, -15, 30, 60, 45, 1440, 2880, 35 * 1440)))
        before = row["starts_at"], row["ends_at"]
        done = self._set(row, starts_at=before[0] + step, ends_at=before[1] + step)
        if done:
            self._before[row["id"]] = before
        return done

    def _edit_move_back(self, row: Row) -> bool:
        rows = self._clinics.rows["appointment"]
        moved = [id_ for id_ in self._before if id_ in rows]
        if not moved:
            return False
        id_ = row["id"] if row["id"] in moved else self._dice.choice(moved[-5:])
        starts_at, ends_at = self._before[id_]
        return self._set(rows[id_], starts_at=starts_at, ends_at=ends_at) and bool(self._before.pop(id_))

    def _edit_length(self, row: Row) -> bool:
        # Now and then it ends before it begins: nobody is shown that.
        return self._set(row, ends_at=row["starts_at"] + timedelta(minutes=self._dice.choice((15, 30, 45, 60, -10))))

    def _edit_doctor(self, row: Row) -> bool:
        return self._set(row, doctor_id=doctor_id(row["clinic_id"], self._dice.randrange(DOCTORS)))

    def _edit_patient(self, row: Row) -> bool:
        return self._set(row, patient_id=patient_id(row["clinic_id"], self._dice.randrange(PATIENTS)))

    def _edit_comment(self, row: Row) -> bool:
        return self._set(row, comment=f"a remark {self._dice.randrange(100)}")

    def _edit_anonymous(self, row: Row) -> bool:
        return self._set(row, is_anonymous=self._dice.choice((True, None)))

    def _edit_vanish(self, row: Row) -> bool:
        return self._clinics.delete("appointment", [row["id"]]) > 0

    def _edit_new(self, row: Row) -> bool:
        dice, clinic_id = self._dice, row["clinic_id"]
        day = dice.choice((-1, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 9, 12, 18, 33))
        doctor, patient = dice.randrange(DOCTORS), dice.randrange(PATIENTS)
        minutes = 15 * dice.choice([*range(36, 51), *range(56, 71)])
        starts_at = self._at(ZONES[clinic_id - 1], day, minutes)
        made = self._clinics.new_appointment(clinic_id, 0, patient, doctor, starts_at)
        made |= {"id": 100_000 + self._new, "status": self._status() if day < 0 else "unconfirmed", "comment": None}
        self._new += 1
        if self._clinics.meets(made["id"], made["starts_at"], made["ends_at"], doctor_id=made["doctor_id"]):
            return False
        return self._clinics.add("appointment", **made, created_at=self._now(), updated_at=self._stamp())

    # -- people and permissions --------------------------------------------------------------------------------------

    def _edit_refuse(self, row: Row) -> bool:
        no = {self._dice.choice(FLAGS): self._dice.choice((True, True, None))}
        return self._clinics.set("patient", row["patient_id"], self._stamp(), **no)

    def _edit_phone(self, row: Row) -> bool:
        junk = self._dice.random() < 0.2
        phone = self._dice.choice(JUNK_PHONES) if junk else self._phone(row["patient_id"], self._dice.randrange(6))
        return self._clinics.set("patient", row["patient_id"], self._stamp(), phone=phone)

    def _edit_name(self, row: Row) -> bool:
        name = f"Имярек{row['patient_id']}" + "ович" * self._dice.randrange(3)
        return self._clinics.set("patient", row["patient_id"], self._stamp(), first_name=name)

    def _edit_ban(self, row: Row) -> bool:
        banned = self._dice.choice((True, None))
        return self._clinics.set("doctor", row["doctor_id"], self._stamp(), medflex_banned=banned)

    def _edit_link(self, row: Row) -> bool:
        clinic_id, partner_id = row["clinic_id"], self._dice.choice(PARTNERS)
        if (clinic_id, partner_id) not in self._clinics.rows["clinic_partner"]:
            return self._clinics.add("clinic_partner", clinic_id=clinic_id, partner_id=partner_id, enabled=True)
        return self._clinics.set("clinic_partner", (clinic_id, partner_id), enabled=False)

    def _edit_switch(self, row: Row) -> bool:
        clinic_id, head = row["clinic_id"], row["clinic_id"] * 10 + 1
        # Turned on by the registrar it is as good as off.
        how = self._dice.choice(((False, head), (True, head + 1), (None, head)))
        return self._clinics.set("medflex_access", clinic_id, enabled=how[0], changed_by=how[1])

    def _edit_lpu(self, row: Row) -> bool:
        clinic_id = row["clinic_id"]
        there = self._clinics.rows["clinic"][clinic_id]["lpu_id"]
        return self._clinics.set("clinic", clinic_id, lpu_id=14_100 + 2 * clinic_id - there)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _set(self, row: Row, **values: Any) -> bool:
        return self._clinics.set("appointment", row["id"], self._stamp(), **values)

    def _stamp(self) -> datetime:
        return self._now() - timedelta(seconds=self._dice.choice(LAGS))

    def _status(self) -> str:
        return self._dice.choices(list(STATUSES), list(STATUSES.values()))[0]

    def _phone(self, id_: int, number: int) -> str:
        digits = digits_of(id_, number)
        phone = typed(digits, number)
        self._clinics.phones[phone] = digits
        return phone

    def _at(self, zone: str, day: int, minutes: int) -> datetime:
        midnight = (
            self._now().astimezone(ZoneInfo(zone)).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        )
        return (midnight + timedelta(days=day, minutes=minutes)).replace(tzinfo=ZoneInfo(zone))
