"""Pack clinics into shards, the parts of a run that go their own way, and these into slices."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass

import pandas as pd

from medflex.domain.access import AccessState

MOST_SHARDS = 120
"""Shards of all kinds: times the 8 tasks of each, below 1,000 instances. Airflow's scheduler looks at every instance
that has not begun in each of its rounds, for all DAGs: with 120 shards a round takes seconds, with 400 a quarter of a
minute, in which no withdrawal begins (docs/capacity.md)."""
MOST_OPEN, MOST_CLOSED = 90, 10
"""Of these, shards of open and of closed clinics; what they leave is for those that wait."""

MOST_SLICES = 32
"""Slices of a shard: while it is being read, some thousand rows of each are in memory, and a file of each is open."""


@dataclass(frozen=True)
class Shard:
    """Clinics that one mapped task group works on. label: for the grid, ids only. clinic_ids: ascending."""

    label: str
    clinic_ids: tuple[int, ...]
    kind: AccessState


def pack_shards(clinics: pd.DataFrame, target_rows: int) -> list[Shard]:
    """Pack clinics so that shards have about equally many expected rows.

    clinics: clinic_id, expected_rows (missing counts as none), kind (an AccessState), opens_at (needed when there are
    more waiting clinics than shards left for them). target_rows: rows per shard that are aimed at; a clinic with as
    many or more is alone. Where that would make more than MOST_OPEN or MOST_CLOSED shards of a kind, shards are as much
    larger as they have to be: there are never more than MOST_SHARDS. Waiting clinics are alone each, so that their
    waiting holds up nobody, unless they are too many for that.

    The same clinics in any order give the same shards: open ones first and the largest first, then waiting ones by id,
    then closed ones. Raises ValueError when target_rows is below 1.
    """
    if target_rows < 1:
        raise ValueError(f"A shard cannot aim at {target_rows} rows: give at least 1.")
    open_bins = _bins(clinics[clinics["kind"] == AccessState.OPEN], target_rows, MOST_OPEN)
    closed_bins = _bins(clinics[clinics["kind"] == AccessState.CLOSED], target_rows, MOST_CLOSED)
    width = max(2, len(str(len(open_bins))))
    shards = [
        Shard(f"open-{number:0{width}} · {_told(ids)}", ids, AccessState.OPEN)
        for number, ids in enumerate(open_bins, start=1)
    ]
    left = MOST_SHARDS - len(open_bins) - len(closed_bins)
    shards += _waiting(clinics[clinics["kind"] == AccessState.WAITING], left)
    for number, ids in enumerate(closed_bins, start=1):
        name = "closed" if len(closed_bins) == 1 else f"closed-{number:02}"
        shards.append(Shard(f"{name} · {_told(ids)}", ids, AccessState.CLOSED))
    return shards


def slice_clinics(clinics: pd.DataFrame, target_rows: int) -> list[tuple[int, ...]]:
    """Cut a shard's clinics into slices, which its tasks work on one after the other: what they hold of clinics they
    hold of a slice, however large the shard is.

    clinics: clinic_id, expected_rows (missing counts as none). target_rows: about so many expected rows slices have,
    and less than twice as many; a clinic that has as many or more is alone. Where that would make more than
    MOST_SLICES, they are as much larger as they have to be. Returns each slice's clinic ids, ascending; each clinic
    once.
    """
    return _bins(clinics, target_rows, MOST_SLICES)


def _waiting(clinics: pd.DataFrame, most: int) -> list[Shard]:
    """A shard each; beyond so many, clinics that open at about the same time share one."""
    if len(clinics) <= most:
        ids = clinics["clinic_id"].astype("int64").sort_values().tolist()
        return [Shard(f"clinic {clinic_id} waiting", (clinic_id,), AccessState.WAITING) for clinic_id in ids]
    ordered = clinics.sort_values(["opens_at", "clinic_id"])["clinic_id"].astype("int64").tolist()
    size = -(-len(ordered) // most)
    groups = [tuple(sorted(ordered[start : start + size])) for start in range(0, len(ordered), size)]
    return [
        Shard(f"waiting-{number:03} · {_told(ids)}", ids, AccessState.WAITING) for number, ids in enumerate(groups, 1)
    ]


def _bins(clinics: pd.DataFrame, target_rows: int, most: int) -> list[tuple[int, ...]]:
    """Clinic ids, largest first into the emptiest bin; one more row per clinic, since an empty one costs as well."""
    cost = clinics["expected_rows"].fillna(0).clip(lower=0).astype("int64") + 1
    sized = sorted(zip(cost.tolist(), clinics["clinic_id"].tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
    if not sized:
        return []
    costs = [rows for rows, _ in sized]
    target_rows = _enough(costs, target_rows, most)
    alone = [(int(clinic_id),) for rows, clinic_id in sized if rows > target_rows]
    rest = sized[len(alone) :]
    number = -(-sum(rows for rows, _ in rest) // target_rows)
    heap: list[tuple[int, int]] = [(0, bin_) for bin_ in range(number)]
    packed: list[list[int]] = [[] for _ in range(number)]
    for rows, clinic_id in rest:
        load, bin_ = heapq.heappop(heap)
        packed[bin_].append(int(clinic_id))
        heapq.heappush(heap, (load + rows, bin_))
    return alone + [tuple(sorted(ids)) for ids in packed if ids]


def _enough(costs: list[int], target_rows: int, most: int) -> int:
    """The smallest number of rows per bin, from ``target_rows`` up, for which no more than ``most`` bins are needed."""

    def number(rows: int) -> int:
        alone = [cost for cost in costs if cost > rows]
        return len(alone) + -(-(sum(costs) - sum(alone)) // rows)

    # It never grows with the rows: a clinic that is no longer alone adds less than a bin to the others.
    sizes = range(target_rows, max(target_rows, sum(costs)) + 1)
    return sizes[bisect_left(sizes, -most, key=lambda rows: -number(rows))]


def _told(ids: tuple[int, ...]) -> str:
    return f"clinic {ids[0]}" if len(ids) == 1 else f"{len(ids)} clinics"
