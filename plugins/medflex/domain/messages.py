"""Messages that patients get twice (R15): seen coming by configuration, and found by what was recorded.

Nothing here knows a message's text: a message is a clinic, an appointment, a scenario and who sent it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
import pandas as pd

MESSAGE_DAYS = 45
"""How far back messages are compared: as far as appointments are looked back at (R6)."""
KEPT_IDS = 1000
"""So many appointments are named per clinic and scenario, the lowest ids; their number is always the true one."""
KEPT_SCENARIOS = 50
"""So many scenarios are named per clinic, or whoever invents a name for each message could fill the ledger."""
OTHER = "other"
_FORM = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = ["clinic_id", "appointment_id", "scenario"]


class Twice(StrEnum):
    """What is told of a clinic; the order is that of reports."""

    DOUBLED = "doubled"
    OVERLAP = "overlap"
    UNKNOWN = "unknown"

    @property
    def description(self) -> str:
        """One line for reports and pages."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Twice.DOUBLED: "By record: these appointments got two messages of one scenario, at least one from a partner.",
    Twice.OVERLAP: "By configuration: Smart Care runs this scenario, and so does a partner with an enabled link.",
    Twice.UNKNOWN: "Smart Care runs scenarios, and it is not known which ones these partners run: ask them.",
}


@dataclass(frozen=True)
class MessageWarning:
    """What is told of one clinic and one scenario.

    ``scenario`` is empty for ``unknown``. ``appointments`` and ``appointment_ids`` (ascending, the first
    ``KEPT_IDS``) are those of ``doubled``. ``partner_ids`` ascend.
    """

    clinic_id: int
    kind: Twice
    scenario: str
    partner_ids: tuple[int, ...]
    appointments: int = 0
    appointment_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class MessageLook:
    """What one look found. A problem is the sentence why that part could not be judged; it then has no warnings.

    ``since`` (aware): from when on messages were compared.
    """

    since: datetime
    warnings: tuple[MessageWarning, ...]
    overlaps_problem: str | None = None
    doubled_problem: str | None = None

    def of(self, kind: Twice) -> list[MessageWarning]:
        """Return the warnings of one kind, in order of clinic and scenario."""
        return sorted(
            (item for item in self.warnings if item.kind is kind), key=lambda item: (item.clinic_id, item.scenario)
        )

    def by_clinic(self, clinic_ids: Sequence[int]) -> pd.DataFrame:
        """Return one row per clinic: ``clinic_id`` (int64), ``scenarios_run_twice``, ``appointments_told_twice``
        (Int64, missing where it could not be judged).
        """
        ids = sorted({int(item) for item in clinic_ids})
        frame = pd.DataFrame({"clinic_id": np.array(ids, dtype="int64")})
        for column, kind, problem in (
            ("scenarios_run_twice", Twice.OVERLAP, self.overlaps_problem),
            ("appointments_told_twice", Twice.DOUBLED, self.doubled_problem),
        ):
            numbers: Counter[int] = Counter()
            for item in self.of(kind):
                numbers[item.clinic_id] += item.appointments if kind is Twice.DOUBLED else 1
            values = [numbers[clinic_id] if problem is None else None for clinic_id in ids]
            frame[column] = pd.array(values, dtype="Int64")
        return frame


def shown_scenario(name: str) -> str:
    """Return a scenario's name if it has the form of one, else ``other``.

    People type these names and partners send them: what has not the form may be anything, and is neither kept nor
    shown.
    """
    return name if _FORM.fullmatch(name) else OTHER


def overlap_warnings(overlaps: pd.DataFrame) -> list[MessageWarning]:
    """Return what is told by configuration.

    Args:
        overlaps: ``clinic_id``, ``scenario`` (missing: partners of which it is not known what they run),
            ``partner_ids`` (lists).
    """
    tally = _Tally()
    unknown: dict[int, set[int]] = {}
    columns = (overlaps[name].tolist() for name in ("clinic_id", "scenario", "partner_ids"))
    for clinic_id, scenario, partner_ids in zip(*columns, strict=True):
        if pd.isna(scenario):
            unknown.setdefault(clinic_id, set()).update(partner_ids)
        else:
            tally.at(clinic_id, scenario).partner_ids.update(partner_ids)
    return [
        *(
            MessageWarning(clinic_id, Twice.OVERLAP, scenario, tuple(sorted(found.partner_ids)))
            for (clinic_id, scenario), found in tally.found.items()
        ),
        *(
            MessageWarning(clinic_id, Twice.UNKNOWN, "", tuple(sorted(partners)))
            for clinic_id, partners in unknown.items()
        ),
    ]


class DoubledMessages:
    """Adds up, part by part, which appointments got two messages of one scenario.

    Only those are held, and of them no more than is kept; what was told once is forgotten with its part.
    """

    def __init__(self) -> None:
        self._tally = _Tally()

    def add(self, notifications: pd.DataFrame, smart_care: pd.DataFrame) -> None:
        """Compare one part.

        Args:
            notifications: of partners, one row per appointment and scenario, each in one part only: ``clinic_id``,
                ``appointment_id``, ``scenario``, ``messages`` (how many), ``partner_ids`` (lists).
            smart_care: what Smart Care sent about these appointments: the first four of these columns.
        """
        sent = smart_care.groupby(_KEY)["messages"].sum().rename("of_smart_care").reset_index()
        both = notifications.merge(sent, how="left", on=_KEY)
        doubled = both[both["messages"] + both["of_smart_care"].fillna(0) >= 2].sort_values(_KEY)
        columns = (doubled[name].tolist() for name in ("clinic_id", "scenario", "appointment_id", "partner_ids"))
        for clinic_id, scenario, appointment_id, partner_ids in zip(*columns, strict=True):
            self._tally.at(clinic_id, scenario).add(appointment_id, partner_ids)

    def warnings(self) -> list[MessageWarning]:
        """Return what is told by record."""
        return [
            MessageWarning(
                clinic_id,
                Twice.DOUBLED,
                scenario,
                tuple(sorted(found.partner_ids)),
                found.appointments,
                tuple(sorted(found.appointment_ids)),
            )
            for (clinic_id, scenario), found in self._tally.found.items()
        ]


@dataclass
class _Found:
    appointments: int = 0
    appointment_ids: set[int] = field(default_factory=set)
    partner_ids: set[int] = field(default_factory=set)

    def add(self, appointment_id: int, partner_ids: Sequence[int]) -> None:
        self.partner_ids.update(int(item) for item in partner_ids)
        if appointment_id not in self.appointment_ids:
            self.appointments += 1
            if len(self.appointment_ids) < KEPT_IDS:
                self.appointment_ids.add(appointment_id)


class _Tally:
    """What was found per clinic and scenario, under names that may be shown."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], _Found] = {}
        self._named: dict[int, int] = {}

    def at(self, clinic_id: int, scenario: str) -> _Found:
        key = (clinic_id, shown_scenario(scenario))
        if key not in self.found:
            if self._named.get(clinic_id, 0) >= KEPT_SCENARIOS:
                key = (clinic_id, OTHER)
            else:
                self._named[clinic_id] = self._named.get(clinic_id, 0) + 1
        return self.found.setdefault(key, _Found())
