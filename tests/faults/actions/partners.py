"""What partners ask for, made up as the storm goes on: honest, mistaken and hostile, by seeded dice."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from tests.faults.actions.model import AHEAD, Model, Shown
from tests.faults.medlock import PARTNERS, Row

Raw = dict[str, Any]
SCENARIOS = ("visit_reminder", "visit_confirmation", "greeting", "a_scenario_of_their_own")
_QUARTERS = (*range(36, 52), *range(56, 72))
"""Quarters of an hour within the doctors' hours."""
HOSTILE = (
    "stale version",
    "future version",
    "another partner",
    "nobody's partner",
    "made up",
    "another clinic",
    "no such clinic",
    "not shared",
    "past",
    "long ago",
    "from the future",
    "malformed",
)


class Partners:
    """Partners act on what Medflex shows to them.

    rush: how often several want the same time of a doctor at once.
    """

    def __init__(self, dice: random.Random, model: Model, now: Callable[[], datetime], rush: float) -> None:
        self._dice, self._model, self._now, self._rush_often = dice, model, now, rush

    def act(self, number: int) -> list[tuple[str, Raw]]:
        """So many actions, each with what is odd about it (``""`` for nothing), in the order of delivery."""
        made: list[tuple[str, Raw]] = []
        while len(made) < number:
            roll = self._dice.random()
            if roll < 0.62 - self._rush_often:
                made.append(("", self._action(self._any_shown(ahead=True))))
            elif roll < 0.73 - self._rush_often:
                made.extend(self._several())
            elif roll < 0.73:
                made.extend(self._rush())
            else:
                odd = self._dice.choice(HOSTILE)
                made.append((odd, self._odd(odd)))
        return made[:number]

    def again(self, raw: Raw) -> Raw:
        """Another action under the same id: the first one counts."""
        return {**self._action(self._any_shown(ahead=True)), "id": raw["id"]}

    # -- one action --------------------------------------------------------------------------------------------------

    def _several(self) -> list[tuple[str, Raw]]:
        """Several actions of a partner about one appointment, on one version, sometimes in the wrong order."""
        target = self._any_shown(ahead=True)
        first = self._action(target)
        more = [self._action(target) for _ in range(self._dice.randint(1, 2))]
        for raw in more:
            if self._dice.random() < 0.8:
                raw["partner_id"] = first["partner_id"]
        several = [first, *more]
        if self._dice.random() < 0.3:
            several.reverse()
        return [("", raw) for raw in several]

    def _rush(self) -> list[tuple[str, Raw]]:
        """Several appointments of one doctor are to be moved to the same time."""
        rows = self._model.clinics.rows["appointment"]
        first = self._any_shown(ahead=True)
        doctor_id = rows[first[1]]["doctor_id"] if first[1] in rows else 0
        others = [key for key in self._model.shown if rows.get(key[1], {}).get("doctor_id") == doctor_id]
        keys = self._dice.sample(others, min(len(others), 5))
        times = self._times(0, first[0])
        again = {"type": "reschedule", "dt_start": times[0], "dt_end": times[1], "scenario": None}
        return [("", self._action((*key, self._model.shown[key])) | again) for key in keys]

    def _action(self, target: tuple[int, int, Shown | None]) -> Raw:
        lpu_id, id_, shown = target
        kind = self._dice.choices(("confirm", "cancel", "reschedule", "notification"), (30, 14, 42, 14))[0]
        lag = self._dice.choice((0, 1, 20, 300, 7200))
        raw: Raw = {
            "id": str(UUID(int=self._dice.getrandbits(128), version=4)),
            "lpu_id": lpu_id,
            "appointment_id": id_,
            "partner_id": self._dice.choice(shown.content["partners"]) if shown else self._dice.choice(PARTNERS),
            "type": kind,
            "base_version": shown.version if shown else 1,
            "dt_start": None,
            "dt_end": None,
            "scenario": self._dice.choice(SCENARIOS) if kind == "notification" else None,
            "created_at": self._ago(timedelta(seconds=lag)),
        }
        if kind == "reschedule":
            raw["dt_start"], raw["dt_end"] = self._times(id_, lpu_id)
        return raw

    def _odd(self, odd: str) -> Raw:
        target = self._any_shown(ahead=self._dice.random() < 0.8)
        if odd == "past":
            begun = [key for key in self._model.shown if self._has_begun(key[1])]
            key = self._dice.choice(begun) if begun else None
            target = (*key, self._model.shown[key]) if key else self._any_shown(ahead=False)
        raw = self._action(target)
        dice = self._dice
        if odd == "malformed":
            self._spoil(raw)
            return raw
        changes: dict[str, Callable[[], Raw]] = {
            "stale version": lambda: {"base_version": max(1, raw["base_version"] - dice.randint(1, 3))},
            "future version": lambda: {"base_version": raw["base_version"] + dice.choice((1, 2, 999_999))},
            "another partner": lambda: {"partner_id": dice.choice(PARTNERS)},
            "nobody's partner": lambda: {"partner_id": dice.choice((99, 2**62))},
            "made up": lambda: {"appointment_id": dice.choice((1, 5_000_000_000, 2**63 - 1))},
            "another clinic": lambda: {"lpu_id": dice.choice(list(self._model.clinic_of()))},
            "no such clinic": lambda: {"lpu_id": dice.choice((1, 6999, 2**63 - 1))},
            "not shared": self._any_row,
            "long ago": lambda: {"created_at": self._ago(timedelta(days=dice.choice((399, 401, 5000))))},
            "from the future": lambda: {"created_at": self._ago(-timedelta(hours=dice.choice((23, 25, 9999))))},
            "past": dict,
        }
        return raw | changes[odd]()

    def _any_row(self) -> Raw:
        row = self._dice.choice(list(self._model.clinics.rows["appointment"].values()))
        return {"appointment_id": row["id"], "lpu_id": self._lpu_of(row["clinic_id"])}

    def _spoil(self, raw: Raw) -> None:
        dice = self._dice
        name = dice.choice(("lpu_id", "appointment_id", "partner_id", "base_version", "type", "created_at", "dt", "id"))
        if name in ("lpu_id", "appointment_id", "partner_id", "base_version"):
            raw[name] = dice.choice((None, 0, -1, "17", True, 1.5, 2**63, [1], {}))
        elif name == "type":
            raw[name] = dice.choice((None, "Confirm", "delete", 7, ""))
        elif name == "created_at":
            raw[name] = dice.choice((None, "yesterday", "2027-03-10T10:00:00", 1_800_000_000, "2027-13-01T00:00:00Z"))
        elif name == "dt":
            start, end = self._times(0, 0)
            wrong = (
                (start.replace(" ", "T"), end),
                (end, start),
                (start, start),
                (None, end),
                ("2027-02-30 10:00", end),
            )
            raw["type"] = "reschedule"
            raw["dt_start"], raw["dt_end"] = dice.choice(wrong)
        else:
            raw |= {"type": "notification", "scenario": dice.choice((None, "Hello, Ivan!", "", "x" * 65, 3))}
        if dice.random() < 0.3 and name != "id":
            raw.pop({"dt": "dt_end"}.get(name, name))

    # -- what it is about --------------------------------------------------------------------------------------------

    def _any_shown(self, *, ahead: bool) -> tuple[int, int, Shown | None]:
        """An appointment that Medflex shows, still to come or any; often one of few, so that partners meet."""
        rows, now = self._model.clinics.rows["appointment"], self._now()

        def fits(id_: int) -> bool:
            row = rows.get(id_)
            return row is not None and row["status"] in AHEAD and row["starts_at"] > now if ahead else True

        keys = [key for key in self._model.shown if fits(key[1])]
        if not keys:
            return next(iter(self._model.clinic_of())), 1, None
        key = self._dice.choice(keys[-20:] if self._dice.random() < 0.25 else keys)
        return (*key, self._model.shown[key])

    def _has_begun(self, id_: int) -> bool:
        row = self._model.clinics.rows["appointment"].get(id_)
        return row is not None and row["starts_at"] <= self._now()

    def _lpu_of(self, clinic_id: int) -> int:
        return int(self._model.clinics.rows["clinic"][clinic_id]["lpu_id"])

    def _times(self, id_: int, lpu_id: int) -> tuple[str, str]:
        """Start and end on the clinic's clocks: mostly inside the doctor's hours, now and then where others are."""
        dice, clinics = self._dice, self._model.clinics
        clinic_id = self._model.clinic_of().get(lpu_id, 1)
        zone = ZoneInfo(clinics.rows["clinic"][clinic_id]["timezone"])
        row: Row | None = clinics.rows["appointment"].get(id_)
        length = timedelta(minutes=dice.choice((15, 30, 30, 30, 60)))
        today = self._now().astimezone(zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        roll = dice.random()
        if roll < 0.70:
            start = today + timedelta(days=dice.randint(0, 9), minutes=15 * dice.choice(_QUARTERS))
        elif roll < 0.80 and row:
            # Where the doctor or the patient has another one.
            whose = dice.choice(("doctor_id", "patient_id"))
            others = [other for other in clinics.rows["appointment"].values() if other[whose] == row[whose]]
            start = _local(dice.choice(others)["starts_at"], zone) + timedelta(minutes=dice.choice((0, 0, 15, -15)))
        elif roll < 0.84 and row:
            start = _local(row["starts_at"], zone)
            length = row["ends_at"] - row["starts_at"]
        elif roll < 0.88:
            start = today + timedelta(days=dice.randint(31, 36), hours=10)
        elif roll < 0.92:
            # The clocks of Berlin skip the one, those of Sydney repeat the other.
            start = dice.choice((datetime(2027, 3, 28, 2, 30), datetime(2027, 4, 4, 2, 30)))  # noqa: DTZ001
        elif roll < 0.95:
            start = today - timedelta(days=dice.randint(0, 3), minutes=15)
        else:
            start = today + timedelta(days=dice.randint(0, 5), minutes=15 * dice.randint(0, 95))
        return f"{start:%Y-%m-%d %H:%M}", f"{start + length:%Y-%m-%d %H:%M}"

    def _ago(self, distance: timedelta) -> str:
        moment = self._now() - distance
        if self._dice.random() < 0.2:
            return moment.astimezone(ZoneInfo("Asia/Kolkata")).isoformat()
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)
