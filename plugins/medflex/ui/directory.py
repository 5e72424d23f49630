"""All clinics as the list shows them: Medlock's clinics joined with what the newest transfers did with them.

Reading all of them costs some tenths of a second for 20,000 clinics, so the list is kept for a few seconds; a page
about one clinic, and whoever turns a switch, reads afresh.
"""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pandas as pd
from cachetools import TTLCache

from medflex.airflow.hooks.medlock import Medlock
from medflex.clock import CLOCKS_DIFFER
from medflex.domain.access import AccessState, ClosedReason, judge_access
from medflex.errors import MedlockUnavailableError
from medflex.ledger.clinic_overview import LastRun
from medflex.ledger.withdrawals import instants

KEPT_SECONDS = 5
WAIT_SECONDS = 5
"""So long does a request wait for another one that reads all clinics."""
PAGE_SIZE = 50
ATTENTION = frozenset(
    reason.value
    for reason in ClosedReason
    if reason not in (ClosedReason.NEVER_CONFIGURED, ClosedReason.SWITCHED_OFF, ClosedReason.CLINIC_GONE)
)
"""Why a clinic is closed although somebody seems to want it open."""


class Clinic(NamedTuple):
    """One clinic. ``overlaps``: scenarios that Smart Care and a partner both run (R15), "" where it is not known."""

    clinic_id: int
    lpu_id: int | None
    name: str
    timezone: str | None
    enabled: bool | None
    changed_at: datetime | None
    changed_by: int | None
    role: str | None
    state: str
    closed_reason: str | None
    opens_at: datetime | None
    partners: tuple[tuple[int, str, str], ...]
    overlaps: tuple[str, ...]
    last_run: LastRun | None

    @property
    def is_on(self) -> bool:
        """Whether the switch counts as on."""
        return self.state != AccessState.CLOSED

    @property
    def needs_attention(self) -> bool:
        """Whether it is closed although the switch was meant to be on, or open without any partner (R4)."""
        return self.closed_reason in ATTENTION or (self.is_on and not self.partners)

    @property
    def held_back_share(self) -> float | None:
        """The share of the last run's records that was not sent because of what they or their patients say."""
        return self.last_run.held_back_share if self.last_run else None


class Listing(NamedTuple):
    """All clinics. ``problem``: why their last runs are not among it, as a sentence; ``None`` if they are."""

    clinics: list[Clinic]
    problem: str | None


def read_clinics(
    medlock: Medlock,
    last_runs: Callable[[], Mapping[int, LastRun]],
    now: datetime,
    clinic_ids: Sequence[int] | None = None,
) -> list[Clinic]:
    """Return clinics as they are now, in the order of their ids; ``clinic_ids`` of ``None`` means all.

    Args:
        last_runs: asks the ledger, beside the reads from Medlock.
    """
    reads: tuple[Callable[[], Any], ...] = (
        lambda: _forgiven(medlock.clinics(clinic_ids, now), now),
        lambda: medlock.clinic_labels(clinic_ids),
        lambda: medlock.scenario_overlaps(clinic_ids),
        medlock.partners,
        last_runs,
    )
    if clinic_ids is None:
        # Each with a connection of its own: half of the time of reading all is waiting for the databases.
        with ThreadPoolExecutor(len(reads)) as pool:
            results = list(pool.map(lambda read: read(), reads))
    else:
        results = [read() for read in reads]
    frame, labels, found, names, runs = results
    partners = {key: (key, *label) for key, label in names.items()}
    overlaps: dict[int, list[str]] = {}
    for clinic_id, scenario in zip(found["clinic_id"].tolist(), _known(found["scenario"]), strict=True):
        overlaps.setdefault(clinic_id, []).append(scenario or "")
    # By columns: a row at a time, 20,000 of them take seconds.
    columns = zip(
        frame["clinic_id"].tolist(),
        _known(frame["lpu_id"]),
        _known(frame["timezone"]),
        _known(frame["access_enabled"]),
        instants(frame["access_changed_at"]),
        _known(frame["access_changed_by_role"]),
        frame["state"].tolist(),
        _known(frame["closed_reason"]),
        instants(frame["opens_at"]),
        frame["partner_ids"].tolist(),
        strict=True,
    )
    return [
        Clinic(
            clinic_id,
            lpu_id,
            labels.get(clinic_id, _NO_LABEL)[0],
            timezone,
            enabled,
            changed_at,
            labels.get(clinic_id, _NO_LABEL)[1],
            role,
            state,
            reason,
            opens_at,
            tuple(partners.get(key) or (key, "", "") for key in partner_ids),
            tuple(overlaps.get(clinic_id, ())),
            runs.get(clinic_id),
        )
        for clinic_id, lpu_id, timezone, enabled, changed_at, role, state, reason, opens_at, partner_ids in columns
    ]


def _forgiven(clinics: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Judge a switch that is on since a time in the future once more, by a clock as far ahead as clocks may differ.

    Medlock stamps a turn by its own clock, and whoever has turned it sees the page at once. For the pages alone: what
    decides about sending goes by what stands there.
    """
    is_ahead = clinics["closed_reason"].eq(ClosedReason.TIME_STAMP_IN_FUTURE.value).to_numpy(bool, na_value=False)
    if not is_ahead.any():
        return clinics
    return pd.concat([clinics[~is_ahead], judge_access(clinics[is_ahead], now + CLOCKS_DIFFER)]).sort_index()


def gone_clinic(clinic_id: int) -> Clinic:
    """Return a clinic that Medlock has no more, and the ledger still knows."""
    return Clinic(
        clinic_id=clinic_id,
        lpu_id=None,
        name="",
        timezone=None,
        enabled=None,
        changed_at=None,
        changed_by=None,
        role=None,
        state=AccessState.CLOSED.value,
        closed_reason=ClosedReason.CLINIC_GONE.value,
        opens_at=None,
        partners=(),
        overlaps=(),
        last_run=None,
    )


# Of a clinic that came between the two looks.
_NO_LABEL: tuple[str, None] = ("", None)


def _known(column: pd.Series) -> list[Any]:
    """A column's values, ``None`` where there is none."""
    return column.astype(object).where(column.notna(), None).tolist()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Some hundred thousand values come into being, none of them in a circle: each search for circles goes through all
    that the api-server holds, which took a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Directory:
    """All clinics, read again when the last look is older than :data:`KEPT_SECONDS`."""

    def __init__(self) -> None:
        self._kept: TTLCache[int, Listing] = TTLCache(1, KEPT_SECONDS)
        self._lock = threading.Lock()
        self._look = 0

    def clinics(self, read: Callable[[], Listing]) -> Listing:
        """Return all clinics; one request reads them, and those that come meanwhile wait for it.

        Raises MedlockUnavailableError when that takes too long: all who wait hold a thread of the api-server each.
        """
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise MedlockUnavailableError(
                "The list of clinics is still being read, because Medlock or the ledger is slow: try again in a moment."
            )
        try:
            look = self._look
            found = self._kept.get(look)
            if found is None:
                with _without_garbage_collection():
                    found = self._kept[look] = read()
            return found
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Read anew at the next request; what is being read right now is not kept. Waits for nobody."""
        self._look += 1


DIRECTORY = Directory()

_STATE_ORDER = {AccessState.OPEN.value: 0, AccessState.WAITING.value: 1, AccessState.CLOSED.value: 2}
STATES = ("open", "waiting", "closed", "attention")


def _as_read(name: str) -> list[Any]:
    """The name to sort by: number 2 comes before number 10."""
    parts = re.split("([0-9]+)", name.casefold())
    # Every other part is a number; by its length first, as one may have more digits than Python reads.
    parts[1::2] = [number.lstrip("0") for number in parts[1::2]]
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


SORTS: dict[str, Callable[[Clinic], Any]] = {
    "name": lambda clinic: (_as_read(clinic.name), clinic.clinic_id),
    "id": lambda clinic: clinic.clinic_id,
    "state": lambda clinic: (_STATE_ORDER.get(clinic.state, 9), clinic.closed_reason or ""),
    "changed": lambda clinic: clinic.changed_at.timestamp() if clinic.changed_at else None,
    "opens": lambda clinic: clinic.opens_at.timestamp() if clinic.opens_at else None,
    "partners": lambda clinic: len(clinic.partners),
    "run": lambda clinic: clinic.last_run.started_at.timestamp() if clinic.last_run else None,
    "withheld": lambda clinic: clinic.held_back_share,
    "overlap": lambda clinic: len(clinic.overlaps),
}


def chosen(
    clinics: Iterable[Clinic],
    *,
    text: str = "",
    state: str = "",
    overlap: bool = False,
    sort: str = "name",
    descending: bool = False,
) -> list[Clinic]:
    """Return the clinics that fit, in order; those without the value that is sorted by come last.

    Args:
        text: part of the name, in any case, or a whole id or lpu_id.
        state: one of :data:`STATES`, or empty for all.
        overlap: only those whose Smart Care and partners overlap.
        sort: one of :data:`SORTS`.
    """
    wanted = text.strip().casefold()
    found = [
        clinic
        for clinic in clinics
        if (not wanted or wanted in clinic.name.casefold() or wanted in (str(clinic.clinic_id), str(clinic.lpu_id)))
        and (not state or (clinic.needs_attention if state == "attention" else clinic.state == state))
        and (not overlap or clinic.overlaps)
    ]
    keys = {id(clinic): SORTS[sort](clinic) for clinic in found}
    known = [clinic for clinic in found if keys[id(clinic)] is not None]
    known.sort(key=lambda clinic: keys[id(clinic)], reverse=descending)
    return known + [clinic for clinic in found if keys[id(clinic)] is None]
