"""What a schedule is made of, and how a seed decides it.

A schedule is a beginning and a list of explicit events, drawn up front: it can be cut down event by event and pasted
into a test. An event that has lost its object (a row that is gone, a run that has ended) does nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.medlock import FLAGS, STATUSES, Clinic, appointment_id, doctor_id, patient_id

Event = tuple[Any, ...]
"""A name and its arguments; ``tests.faults.play.Play`` has a method ``do_<name>`` for each."""

RUNS = ("transfer", "quick", "sweep", "daily", "reconcile", "resync")
ACTIONS = ("pause", "crash", "crash_after", "lose", "lose_after")
"""What can happen at a step of a run, a step being a call to the ledger, Medlock or Medflex, or a wait.

``pause``: the process stands still until it is resumed, and others go on. ``crash``: it dies before the step takes
effect; ``crash_after``: between its effect and its result. ``lose``: the connection breaks before the step;
``lose_after``: the result of the step is lost.
"""

DAY = 86_400


@dataclass(frozen=True)
class Schedule:
    """One history: how it begins and what happens.

    late_last: late writes arrive when all is over, not before the quiet run.
    """

    clinics: tuple[Clinic, ...]
    events: tuple[Event, ...]
    hour: int = 9
    batch_size: int = 500
    rate: float = 0.0
    ignore_keys: bool = False
    ignore_versions: bool = False
    late_last: bool = False
    dice: int = 0


def make_schedule(seed: int) -> Schedule:
    """The schedule of that seed."""
    choice = random.Random(f"schedule {seed}")
    clinics = tuple(_clinic(choice) for _ in range(choice.choices([1, 2, 3], [60, 30, 10])[0]))
    return Schedule(
        clinics=clinics,
        events=tuple(_events(choice, clinics)),
        hour=choice.choice([0, 9, 20, 21, 23]),
        batch_size=choice.choice([500, 500, 7, 3]),
        rate=choice.choice([0.0, 0.0, 0.0, 20.0]),
        ignore_keys=choice.random() < 0.1,
        ignore_versions=choice.random() < 0.1,
        late_last=choice.random() < 0.3,
        dice=seed,
    )


def _clinic(choice: random.Random) -> Clinic:
    patients, doctors = choice.randint(2, 5), choice.randint(1, 3)
    # Seldom enough records for a mass of them to vanish, since these take longest.
    most = choice.choices([7, 12, 22], [70, 20, 10])[0]
    appointments = tuple(
        (choice.randrange(patients), choice.randrange(doctors), choice.choice([-1, 1]) * choice.randrange(1, 28 * 24))
        if choice.random() < 0.8
        # Close to the edges: a little time brings these into the window or out of it.
        else (choice.randrange(patients), choice.randrange(doctors), choice.choice([-45, -44, 30, 31]) * 24 + 3)
        for _ in range(choice.randint(max(2, most // 2), most))
    )
    partners = tuple(sorted(choice.sample([1, 2, 3], choice.choice([1, 2, 2, 3]))))
    zone = choice.choice(["Europe/Moscow", "Europe/Moscow", "Asia/Kamchatka", "Europe/Berlin"])
    return Clinic(appointments, partners, patients, doctors, zone)


def _events(choice: random.Random, clinics: tuple[Clinic, ...]) -> list[Event]:
    if choice.random() < 0.2:
        return _stale(choice, clinics)
    # Each seed lives in a world of few kinds of trouble: all at once would hide each other.
    changes = choice.sample(list(_CHANGES), choice.randint(2, 6))
    faults = choice.sample(list(_FAULTS), choice.choice([0, 1, 2, 4]))
    troubles = choice.choices([0, 0.3, 0.8], [20, 50, 30])[0]
    events: list[Event] = []
    if choice.random() < 0.5:
        events.append(("run", "daily", 0, ()))
    for _ in range(choice.randint(2, 4)):
        events += [_CHANGES[choice.choice(changes)](choice, clinics) for _ in range(choice.randint(1, 4))]
        if faults and choice.random() < 0.6:
            events.append(_fault(choice, choice.choice(faults)))
        if choice.random() < 0.15:
            events.append(("duplicate", choice.randint(1, 3)))
        if choice.random() < troubles / 2:
            events += _overlap(choice, clinics, changes)
        else:
            events.append(_run(choice, troubles))
        events += _afterwards(choice, troubles)
    return events


def _stale(choice: random.Random, clinics: tuple[Clinic, ...]) -> list[Event]:
    """A transfer stands still just before it writes down what it will send; what it has read is no longer so."""
    holder = choice.randrange(2)
    turns = ["flag", "phone", "name", "status", "anonymous", "ban", "switch"]
    events: list[Event] = []
    if choice.random() < 0.3:
        events += [("run", "daily", 0, ()), *(_CHANGES[choice.choice(turns[1:4])](choice, clinics) for _ in range(3))]
    events.append(("run", "transfer", holder, ((choice.randint(7, 10), "pause"),)))
    events += [_CHANGES[choice.choice(turns)](choice, clinics) for _ in range(choice.randint(1, 4))]
    if choice.random() < 0.7:
        # The next attempt of the same task takes over at once, anybody else when the lease is over.
        heir = choice.choice([holder, holder, 1 - holder])
        if heir != holder:
            events.append(("pass", 400))
        events.append(("run", choice.choice(["transfer", "transfer", "daily"]), heir, ()))
    events.append(("resume", 0, ()))
    return events


def _overlap(choice: random.Random, clinics: tuple[Clinic, ...], changes: list[str]) -> list[Event]:
    """A run stands still in its midst, and the world goes on: things change, its lease ends, another run comes by."""
    kind = choice.choices(("transfer", "daily", "quick", "sweep", "reconcile"), [50, 15, 15, 10, 10])[0]
    holder = choice.randrange(2)
    # Behind what a transfer reads first, in front of its requests.
    step = choice.choice([choice.randint(7, 10), choice.randint(4, 12), choice.randint(0, 30)])
    events: list[Event] = [("run", kind, holder, ((step, "pause"),))]
    events += [_CHANGES[choice.choice(changes)](choice, clinics) for _ in range(choice.randint(1, 3))]
    if choice.random() < 0.6:
        # What stands still has read what is no longer so.
        stale = choice.choice(["flag", "phone", "name", "status"])
        events.append(_CHANGES[stale](choice, clinics))
    if choice.random() < 0.4:
        events.append(("pass", choice.choice([20, 400])))
    if choice.random() < 0.75:
        # The next attempt of the same task, or somebody else.
        other = choice.choice([kind, "daily", "quick", "transfer"])
        events.append(("run", other, choice.choice([holder, 1 - holder]), ()))
        if choice.random() < 0.4:
            events.append(_CHANGES[choice.choice(changes)](choice, clinics))
    if choice.random() < 0.9:
        plan = ((choice.randrange(12), choice.choice(ACTIONS)),) if choice.random() < 0.2 else ()
        events.append(("resume", 0, plan))
    return events


def _run(choice: random.Random, troubles: float) -> Event:
    kind = choice.choices(RUNS, [28, 20, 15, 25, 10, 2])[0]
    plan = []
    if choice.random() < troubles:
        # Steps that come early are hit more often than late ones: a run may have ten or a hundred.
        for _ in range(choice.choice([1, 1, 2])):
            step = choice.randrange(choice.choice([6, 12, 25, 50]))
            plan.append((step, choice.choices(ACTIONS, [30, 25, 25, 10, 10])[0]))
    # Two attempts of one task have the same holder.
    return ("run", kind, choice.randrange(2), tuple(sorted(dict(plan).items())))


def _afterwards(choice: random.Random, troubles: float) -> list[Event]:
    events: list[Event] = []
    if choice.random() < 0.4:
        events.append(("pass", choice.choice([5, 70, 400, 3 * 3600, DAY, 3 * DAY, 20 * DAY])))
    if troubles and choice.random() < 0.5:
        plan = ((choice.randrange(12), choice.choice(ACTIONS)),) if choice.random() < 0.3 else ()
        events.append(("resume", choice.randrange(2), plan))
    if choice.random() < 0.2:
        events.append(("deliver",))
    if choice.random() < 0.3:
        events.append(("heal",))
    return events


# -- changes in Medlock ----------------------------------------------------------------------------------------------


def _some(choice: random.Random, clinics: tuple[Clinic, ...]) -> tuple[int, Clinic]:
    number = choice.randrange(len(clinics))
    return number + 1, clinics[number]


def _patient(choice: random.Random, clinics: tuple[Clinic, ...]) -> int:
    number, clinic = _some(choice, clinics)
    return patient_id(number, choice.randrange(clinic.patients))


def _doctor(choice: random.Random, clinics: tuple[Clinic, ...]) -> int:
    number, clinic = _some(choice, clinics)
    return doctor_id(number, choice.randrange(clinic.doctors))


def _appointment(choice: random.Random, clinics: tuple[Clinic, ...]) -> int:
    number, clinic = _some(choice, clinics)
    return appointment_id(number, choice.randrange(len(clinic.appointments)))


def _no(choice: random.Random) -> bool | None:
    return choice.choices([True, None, False], [40, 15, 45])[0]


def _lag(choice: random.Random) -> int:
    """How many seconds before its commit a transaction has read the clock."""
    return choice.choice([0, 0, 1, 30])


def _mass(choice: random.Random, clinics: tuple[Clinic, ...]) -> Event:
    number, clinic = _some(choice, clinics)
    ids = [appointment_id(number, item) for item in range(len(clinic.appointments))]
    share = choice.choice([0.4, 0.7, 1.0])
    return ("vanish", "appointment", tuple(item for item in ids if choice.random() < share))


def _to_another(choice: random.Random, clinics: tuple[Clinic, ...]) -> Event:
    number, clinic = _some(choice, clinics)
    appointment = appointment_id(number, choice.randrange(len(clinic.appointments)))
    if choice.random() < 0.7:
        other = patient_id(number, choice.randrange(clinic.patients))
        return ("appointment", appointment, "patient_id", other, _lag(choice))
    return ("appointment", appointment, "doctor_id", doctor_id(number, choice.randrange(clinic.doctors)), _lag(choice))


_CHANGES: dict[str, Callable[[random.Random, tuple[Clinic, ...]], Event]] = {
    "flag": lambda c, k: ("patient", _patient(c, k), c.choice(FLAGS), _no(c), _lag(c)),
    "anonymous": lambda c, k: ("appointment", _appointment(c, k), "is_anonymous", _no(c), _lag(c)),
    "ban": lambda c, k: ("doctor", _doctor(c, k), "medflex_banned", _no(c), _lag(c)),
    "switch": lambda c, k: (
        "switch",
        _some(c, k)[0],
        c.choice([True, False, None]),
        c.choices([1, 2, 9], [8, 1, 1])[0],
    ),
    "open": lambda c, k: ("open", _some(c, k)[0]),
    "link": lambda c, k: ("link", _some(c, k)[0], c.choice([1, 2, 3]), c.choice([True, False])),
    "lpu": lambda c, k: ("lpu", _some(c, k)[0], c.choice([0, 1, 1])),
    "status": lambda c, k: ("appointment", _appointment(c, k), "status", c.choice(list(STATUSES)), _lag(c)),
    "times": lambda c, k: ("move", _appointment(c, k), c.choice([-1, 1, 2, 30, 24 * 20, 24 * 33]), _lag(c)),
    "inverted": lambda c, k: ("length", _appointment(c, k), c.choice([-10, 0, 30]), _lag(c)),
    "phone": lambda c, k: ("phone", _patient(c, k), c.randint(-3, 4), _lag(c)),
    "name": lambda c, k: ("name", _patient(c, k), c.randint(0, 2), _lag(c)),
    "other": _to_another,
    "vanish": lambda c, k: ("vanish", "appointment", (_appointment(c, k),)),
    "patient gone": lambda c, k: ("vanish", "patient", (_patient(c, k),)),
    "doctor gone": lambda c, k: ("vanish", "doctor", (_doctor(c, k),)),
    "mass": _mass,
    "back": lambda c, k: ("bring_back",),
    "new": lambda c, k: ("new", _some(c, k)[0], c.randrange(2), 0, c.randrange(-20 * 24, 40 * 24)),
}


# -- faults of Medflex -----------------------------------------------------------------------------------------------

# More than the time-out of a request, so that its client gives up.
_LONG = 100

_FAULTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "rate_limited": lambda c: {
        "retry_after": c.choice([None, 0, 2, 30, 3600, -5]),
        "retry_after_form": c.choice(["seconds", "http_date"]),
    },
    "status": lambda c: {
        "status": c.choice([500, 502, 503]),
        "when": c.choice(["before", "after"]),
        "retry_after": c.choice([None, 3]),
    },
    "timeout_before_effect": lambda c: {"seconds": _LONG},
    "timeout_after_effect": lambda c: {"seconds": _LONG},
    "reset_before_effect": lambda c: {},
    "reset_after_effect": lambda c: {},
    "malformed_body": lambda c: {
        "form": c.choice(["truncated", "wrong_type", "missing_data", "missing_items", "wrong_ids", "empty"])
    },
    "late_delivery": lambda c: {"seconds": _LONG, "delay": c.choice([150, 1000, 3 * 3600, 2 * DAY, None])},
    "slow": lambda c: {"latency_ms": c.choice([5_000, 90_000, 400_000])},
    "reject_records": lambda c: {"fraction": c.choice([0.3, 1.0])},
    "unauthorized": lambda c: {},
    "down": lambda c: {},
}
_PATHS = ("/", "/", "/appointments/batch/", "/appointments/withdraw/")


def _fault(choice: random.Random, kind: str) -> Event:
    if kind == "down":
        return ("fault", kind, {}, {})
    where = {
        "times": choice.choice([1, 1, 2, 4, None]),
        "skip": choice.choice([0, 0, 0, 1]),
        "probability": choice.choice([1.0, 1.0, 0.5]),
        "path": choice.choice(_PATHS),
    }
    return ("fault", kind, _FAULTS[kind](choice), where)
