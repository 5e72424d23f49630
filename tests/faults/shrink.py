"""Cuts a failing schedule down to what it takes to fail, ready to be pasted into a test."""

from __future__ import annotations

import pprint
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.faults.events import Event, Schedule
from tests.faults.medlock import Clinic

_PLAIN = Schedule(clinics=(), events=())


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], *, most: int = 600) -> Schedule:
    """Return a smaller schedule that fails, too; at most so many are tried."""
    tried = 0
    smaller = True
    while smaller and tried < most:
        smaller = False
        for candidate in _candidates(schedule):
            tried += 1
            if fails(candidate):
                schedule, smaller = candidate, True
                break
            if tried >= most:
                break
    return schedule


def _candidates(schedule: Schedule) -> Iterator[Schedule]:
    """Smaller schedules, the much smaller ones first."""
    events = schedule.events
    size = len(events) // 2
    while size:
        for start in range(0, len(events), size):
            yield replace(schedule, events=events[:start] + events[start + size :])
        size //= 2
    for number, event in enumerate(events):
        if event[0] in ("run", "resume") and event[-1]:
            for step in range(len(event[-1])):
                plan = event[-1][:step] + event[-1][step + 1 :]
                yield replace(schedule, events=(*events[:number], (*event[:-1], plan), *events[number + 1 :]))
        if event[0] == "vanish" and len(event[2]) > 1:
            for id_ in event[2]:
                left = (*event[:2], tuple(item for item in event[2] if item != id_))
                yield replace(schedule, events=(*events[:number], left, *events[number + 1 :]))
    for name in ("batch_size", "rate", "ignore_keys", "ignore_versions", "late_last", "hour"):
        if getattr(schedule, name) != getattr(_PLAIN, name):
            yield replace(schedule, **{name: getattr(_PLAIN, name)})
    yield from _smaller_clinics(schedule)


def _smaller_clinics(schedule: Schedule) -> Iterator[Schedule]:
    clinics = schedule.clinics
    if len(clinics) > 1:
        yield replace(schedule, clinics=clinics[:-1])
    for number, clinic in enumerate(clinics):
        if len(clinic.appointments) > 1:
            # From the end, since appointments are numbered.
            fewer = replace(clinic, appointments=clinic.appointments[:-1])
            yield replace(schedule, clinics=(*clinics[:number], fewer, *clinics[number + 1 :]))


def source(schedule: Schedule) -> str:
    """The schedule as Python."""
    lines = ["Schedule("]
    clinics = ", ".join(_clinic(clinic) for clinic in schedule.clinics)
    lines.append(f"    clinics=({clinics},),")
    lines.append("    events=(")
    lines += [f"        {_pretty(event)}," for event in schedule.events]
    lines.append("    ),")
    lines += [f"    {text}," for text in _settings(schedule, 2)]
    return "\n".join([*lines, ")"])


def _clinic(clinic: Clinic) -> str:
    return f"Clinic({', '.join([repr(clinic.appointments), *_settings(clinic, 1)])})"


def _settings(made: Schedule | Clinic, skip: int) -> list[str]:
    """What differs from the default, as arguments."""
    given = ((item, getattr(made, item.name)) for item in fields(made)[skip:])
    return [f"{item.name}={value!r}" for item, value in given if value != item.default]


def _pretty(event: Event) -> str:
    return pprint.pformat(event, width=110, compact=True, sort_dicts=False).replace("\n", "\n        ")
