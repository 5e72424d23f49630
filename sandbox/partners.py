"""Partners, played: actions on what they can see at Medflex, in and out of order, repeated, and hostile.

Everything but `play` is pure: the same seed, records and moment give the same actions.
"""

from __future__ import annotations

import datetime as dt
import random
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.medflex.control import Control

ACTIONS = {"confirm": 40, "cancel": 15, "reschedule": 20, "notification": 25}
"""How often partners want what, of each other."""
TIMES = {"to a free time": 55, "to a taken time": 20, "outside working hours": 15, "to the same time": 10}
HOSTILE = (
    "made-up appointment", "appointment of another clinic", "appointment of another partner", "unknown partner",
    "unknown clinic", "old version", "future version", "malformed times", "malformed fields", "text for a scenario",
)  # fmt: skip
SCENARIOS_BEFORE = ("greeting", "visit_details", "visit_confirmation", "visit_reminder", "before_visit_advice")
SCENARIOS_AFTER = ("after_visit_advice", "after_visit_survey")
UNKNOWN_PARTNER, UNKNOWN_CLINIC, MADE_UP = 999_983, 999_999_937, 7_000_000_000
_FORM = "%Y-%m-%d %H:%M"
_MALFORMED_TIMES: tuple[tuple[Any, Any], ...] = (
    ("2026-02-30 10:00", "2026-02-30 10:30"), ("2026-03-01T10:00", "2026-03-01T10:30"), (None, None), ("soon", "later"),
    ("2026-03-01 10:30", "2026-03-01 10:00"), ("2026-03-01 25:00", "2026-03-01 26:00"), (1_700_000_000, 1_700_001_800),
)  # fmt: skip
_MALFORMED_FIELDS: tuple[dict[str, Any], ...] = (
    {"type": "delete"}, {"type": None}, {"base_version": "1"}, {"base_version": 0}, {"appointment_id": 2**63},
    {"appointment_id": "1 OR 1=1"}, {"lpu_id": None}, {"partner_id": -3}, {"partner_id": [3]}, {"created_at": "now"},
)  # fmt: skip
_TEXTS = ("Здравствуйте! Перезвоните нам: 8 900 555-35-35", "visit reminder", "'; DROP TABLE medlock.patient; --", "")


@dataclass(frozen=True)
class Delivery:
    """One action as it is put into the queue. `kind` says what it is there for; `first` is False for a repetition."""

    action: dict[str, Any]
    kind: str
    first: bool = True


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a partner needs to know of a record: no name and no phone. Times are the clinic's wall clock."""

    lpu_id: int
    id: int
    version: int
    doctor_id: int
    starts: dt.datetime
    ends: dt.datetime
    offset: dt.timedelta
    status: str
    partners: tuple[int, ...]


class Partners:
    """Makes up what partners ask for, one delivery after the other; `look` comes first.

    `hostile`, `repeat`, `disorder` are shares from 0 to 1: of actions that nobody with a right to would send, of
    actions that are delivered a second time, and of actions that come later than others that were asked for after them.
    """

    def __init__(self, *, seed: int = 1, hostile: float = 0.0, repeat: float = 0.0, disorder: float = 0.0) -> None:
        self._random = random.Random(seed)
        self._hostile, self._repeat, self._disorder = hostile, repeat, disorder
        self._upcoming: list[_Seen] = []
        self._over: list[_Seen] = []
        self._all: list[_Seen] = []
        self._of_doctor: dict[tuple[int, int], list[_Seen]] = {}
        self._recent: deque[tuple[int, int]] = deque(maxlen=30)
        self._by_key: dict[tuple[int, int], _Seen] = {}
        self._sent: deque[Delivery] = deque(maxlen=500)
        self._held: list[tuple[int, Delivery]] = []
        self._step = 0

    def look(self, records: Mapping[tuple[int, int], Mapping[str, Any]], now: dt.datetime) -> None:
        """Take in what Medflex shows (`Control.records`), at `now` (aware). Raises ValueError when that is nothing."""
        if not records:
            raise ValueError("Medflex shows no appointment yet, so partners have nothing to act on.")
        self._all = [_see(lpu_id, record) for (lpu_id, _), record in sorted(records.items())]
        self._by_key = {(seen.lpu_id, seen.id): seen for seen in self._all}
        self._upcoming, self._over = [], []
        doctors: dict[tuple[int, int], list[_Seen]] = defaultdict(list)
        for seen in self._all:
            # Of what begins at once, nobody can say what it will be when the action is read.
            ahead = seen.starts - seen.offset > now.replace(tzinfo=None) + dt.timedelta(hours=1)
            stands = seen.status in ("relevant", "confirmed")
            (self._upcoming if ahead and stands else self._over).append(seen)
            if ahead and stands:
                doctors[seen.lpu_id, seen.doctor_id].append(seen)
        self._of_doctor = dict(doctors)

    def deliveries(self, count: int, now: dt.datetime) -> list[Delivery]:
        """The next `count` entries of the queue; `now` (aware) is when they are asked for."""
        return [self._next(now) for _ in range(count)]

    def _next(self, now: dt.datetime) -> Delivery:
        chance = self._random
        self._step += 1
        for place, (due, held) in enumerate(self._held):
            if due <= self._step:
                del self._held[place]
                return self._note(held)
        if self._sent and chance.random() < self._repeat:
            earlier = chance.choice(self._sent)
            return Delivery(earlier.action, earlier.kind, first=False)
        made = self._make(now)
        if chance.random() < self._disorder:
            self._held.append((self._step + chance.randint(1, 40), made))
            made = self._make(now)
        return self._note(made)

    def _note(self, delivery: Delivery) -> Delivery:
        self._sent.append(delivery)
        return delivery

    def _make(self, now: dt.datetime) -> Delivery:
        seen = self._choose()
        if self._random.random() < self._hostile:
            return self._make_hostile(seen, now)
        wanted = self._draw(ACTIONS)
        if wanted == "notification":
            return Delivery(self._notification(seen, now), wanted)
        if wanted == "reschedule":
            where = self._draw(TIMES)
            return Delivery(self._reschedule(seen, where, now), f"reschedule {where}")
        return Delivery(self._action(seen, wanted, now), wanted)

    def _choose(self) -> _Seen:
        """An appointment: half of the time one that had actions before, so that they meet; now and then an old one."""
        chance = self._random
        if self._recent and chance.random() < 0.5 and (again := self._by_key.get(chance.choice(self._recent))):
            return again
        pool = self._over if self._over and (not self._upcoming or chance.random() < 0.1) else self._upcoming
        seen = chance.choice(pool)
        self._recent.append((seen.lpu_id, seen.id))
        return seen

    def _draw(self, weights: Mapping[str, int]) -> str:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _action(self, seen: _Seen, wanted: str, now: dt.datetime, **changes: Any) -> dict[str, Any]:
        return {
            "id": str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
            "lpu_id": seen.lpu_id,
            "appointment_id": seen.id,
            "partner_id": self._random.choice(seen.partners),
            "type": wanted,
            "base_version": seen.version,
            "dt_start": None,
            "dt_end": None,
            "scenario": None,
            "created_at": now.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **changes,
        }

    def _notification(self, seen: _Seen, now: dt.datetime) -> dict[str, Any]:
        over = seen.starts - seen.offset < now.replace(tzinfo=None)
        scenario = self._random.choice(SCENARIOS_AFTER if over else SCENARIOS_BEFORE)
        return self._action(seen, "notification", now, scenario=scenario)

    def _reschedule(self, seen: _Seen, where: str, now: dt.datetime) -> dict[str, Any]:
        starts, ends = self._time(seen, where, now.replace(tzinfo=None) + seen.offset)
        return self._action(seen, "reschedule", now, dt_start=starts.strftime(_FORM), dt_end=ends.strftime(_FORM))

    def _time(self, seen: _Seen, where: str, here: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
        chance = self._random
        others = self._of_doctor.get((seen.lpu_id, seen.doctor_id), [])
        if where == "to the same time":
            return seen.starts, seen.ends
        if where == "to a taken time" and (taken := [other for other in others if other.id != seen.id]):
            other = chance.choice(taken)
            return other.starts, other.ends
        midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
        length = max(seen.ends - seen.starts, dt.timedelta(minutes=15))
        if where == "outside working hours":
            days, minutes = chance.choice([(chance.randint(1, 40), chance.randint(0, 6) * 60), (-2, 10 * 60)])
            starts = midnight + dt.timedelta(days=days, minutes=minutes)
            return starts, starts + length
        for _ in range(100):
            # As far as partners can see: what is withheld from them can stand there all the same.
            starts = midnight + dt.timedelta(days=chance.randint(1, 55), minutes=15 * chance.randrange(8 * 4, 20 * 4))
            ends = starts + length
            if not any(other.starts < ends and starts < other.ends for other in others):
                break
        return starts, ends

    def _make_hostile(self, seen: _Seen, now: dt.datetime) -> Delivery:
        chance = self._random
        how = chance.choice(HOSTILE)
        wanted = chance.choice(("confirm", "cancel", "notification"))
        action = self._notification(seen, now) if wanted == "notification" else self._action(seen, wanted, now)
        if how == "made-up appointment":
            action["appointment_id"] = MADE_UP + chance.randrange(1_000_000)
        elif how == "appointment of another clinic":
            foreign = [other for other in chance.choices(self._all, k=20) if other.lpu_id != seen.lpu_id]
            action["lpu_id"] = foreign[0].lpu_id if foreign else UNKNOWN_CLINIC
        elif how == "appointment of another partner":
            known = {partner for other in chance.choices(self._all, k=50) for partner in other.partners}
            action["partner_id"] = chance.choice(sorted(known - set(seen.partners)) or [UNKNOWN_PARTNER])
        elif how == "unknown partner":
            action["partner_id"] = UNKNOWN_PARTNER
        elif how == "unknown clinic":
            action["lpu_id"] = UNKNOWN_CLINIC
        elif how in ("old version", "future version"):
            action = self._action(seen, chance.choice(("confirm", "cancel")), now)
            # A record of the first version has no older one.
            action["base_version"] = max(1, seen.version - 1) if how == "old version" else seen.version + 1_000
        elif how == "malformed times":
            starts, ends = chance.choice(_MALFORMED_TIMES)
            action |= {"type": "reschedule", "scenario": None, "dt_start": starts, "dt_end": ends}
        elif how == "malformed fields":
            action |= chance.choice(_MALFORMED_FIELDS)
        else:
            action |= {"type": "notification", "scenario": chance.choice(_TEXTS)}
        return Delivery(action, f"hostile: {how}")


def _see(lpu_id: int, record: Mapping[str, Any]) -> _Seen:
    return _Seen(
        lpu_id=lpu_id,
        id=record["id"],
        version=record["version"],
        doctor_id=record["doctor_id"],
        starts=dt.datetime.strptime(record["dt_start"], _FORM),  # noqa: DTZ007 the clinic's wall clock
        ends=dt.datetime.strptime(record["dt_end"], _FORM),  # noqa: DTZ007
        offset=dt.timedelta(minutes=record["time_offset"]),
        status=record["status"],
        partners=tuple(record["partners"]),
    )


def play(
    control: Control,
    partners: Partners,
    *,
    rate: float,
    seconds: float,
    delivered: list[Delivery],
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Queue actions at Medflex, `rate` per second for so many `seconds`, and note each in `delivered` when it is there.

    Every ten seconds partners look at Medflex again: what they caused has new versions then. Raises ControlError, and
    ValueError when Medflex shows nothing.
    """
    started = time.monotonic()
    looked: float | None = None
    wanted = max(1, round(rate * seconds))
    while len(delivered) < wanted:
        elapsed = time.monotonic() - started
        now = dt.datetime.now(dt.UTC)
        if looked is None or elapsed - looked > 10:
            partners.look(control.records(), now)
            looked = elapsed
        due = min(wanted, int(elapsed * rate) + 1) - len(delivered)
        if due > 0:
            batch = partners.deliveries(min(due, 500), now)
            # Unchecked: a Medflex that passes on whatever partners send is the worst case.
            control.add_actions([item.action for item in batch], unchecked=True)
            delivered += batch
        else:
            pause(min(0.25, 1 / rate))


def await_answers(
    control: Control,
    delivered: Iterable[Delivery],
    *,
    seconds: float,
    pause: Callable[[float], object] = time.sleep,
) -> bool:
    """Wait until all of `delivered` are answered, at most so many `seconds`; False when some are still open."""
    asked = {item.action["id"] for item in delivered}
    deadline = time.monotonic() + seconds
    while not asked <= control.results().keys():
        if time.monotonic() >= deadline:
            return False
        pause(0.5)
    return True


def summary(delivered: Iterable[Delivery], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table with a line per kind: how many actions, how often delivered, and how they were answered so far."""
    deliveries: Counter[str] = Counter()
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for item in delivered:
        deliveries[item.kind] += 1
        if item.first:
            result = results.get(item.action["id"])
            answers[item.kind]["open" if result is None else str(result["status_code"])] += 1
    order = [*ACTIONS, *(f"reschedule {where}" for where in TIMES), *(f"hostile: {how}" for how in HOSTILE)]
    kinds = sorted(deliveries, key=order.index)
    codes = sorted({code for counts in answers.values() for code in counts})
    lines = [_line("", ["actions", "delivered", *codes])]
    lines += [_line(kind, [answers[kind].total(), deliveries[kind], *(answers[kind][code] for code in codes)])
              for kind in kinds]  # fmt: skip
    total = Counter[str]()
    for counts in answers.values():
        total += counts
    return [*lines, _line("all", [total.total(), deliveries.total(), *(total[code] for code in codes)])]


def _line(name: str, cells: Sequence[object]) -> str:
    return f"{name:<42}" + "".join(f"{cell!s:>10}" for cell in cells)
