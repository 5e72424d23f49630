"""Pack clinics into shards: the parts of a run that go their own way."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import pandas as pd

from medflex.domain.access import AccessState

MOST_WAITING = 200
"""Shards of waiting clinics. Airflow maps a task over at most 1,024 of all kinds by default ([core] max_map_length)."""


@dataclass(frozen=True)
class Shard:
    """Clinics that one mapped task group works on. label: for the grid, ids only. clinic_ids: ascending."""

    label: str
    clinic_ids: tuple[int, ...]
    kind: AccessState


def pack_shards(clinics: pd.DataFrame, target_rows: int) -> list[Shard]:
    """Pack clinics so that shards have about equally many expected rows.

    clinics: clinic_id, expected_rows (missing counts as none), kind (an AccessState), opens_at (needed beyond
    MOST_WAITING waiting clinics only). target_rows: rows per shard that are aimed at; a clinic with as many or more is
    alone. Waiting clinics are alone each, so that their waiting holds up nobody; closed ones, which have nothing to
    send, are together.

    The same clinics in any order give the same shards: open ones first and the largest first, then waiting ones by id,
    then closed ones. Raises ValueError when target_rows is below 1.
    """
    if target_rows < 1:
        raise ValueError(f"A shard cannot aim at {target_rows} rows: give at least 1.")
    ids_of = {
        kind: clinics.loc[clinics["kind"] == kind, "clinic_id"].astype("int64").sort_values() for kind in AccessState
    }
    shards = []
    bins = _bins(clinics[clinics["kind"] == AccessState.OPEN], target_rows)
    width = max(2, len(str(len(bins))))
    for number, ids in enumerate(bins, start=1):
        shards.append(Shard(f"open-{number:0{width}} · {_told(ids)}", ids, AccessState.OPEN))
    shards += _waiting(clinics[clinics["kind"] == AccessState.WAITING])
    if closed := tuple(int(clinic_id) for clinic_id in ids_of[AccessState.CLOSED]):
        shards.append(Shard(f"closed · {_told(closed)}", closed, AccessState.CLOSED))
    return shards


def _waiting(clinics: pd.DataFrame) -> list[Shard]:
    """A shard each; beyond MOST_WAITING, clinics that open at about the same time share one."""
    if len(clinics) <= MOST_WAITING:
        ids = clinics["clinic_id"].astype("int64").sort_values().tolist()
        return [Shard(f"clinic {clinic_id} waiting", (clinic_id,), AccessState.WAITING) for clinic_id in ids]
    ordered = clinics.sort_values(["opens_at", "clinic_id"])["clinic_id"].astype("int64").tolist()
    size = -(-len(ordered) // MOST_WAITING)
    groups = [tuple(sorted(ordered[start : start + size])) for start in range(0, len(ordered), size)]
    return [
        Shard(f"waiting-{number:03} · {_told(ids)}", ids, AccessState.WAITING) for number, ids in enumerate(groups, 1)
    ]


def _bins(clinics: pd.DataFrame, target_rows: int) -> list[tuple[int, ...]]:
    """Clinic ids, largest first into the emptiest bin; one more row per clinic, since an empty one costs as well."""
    cost = clinics["expected_rows"].fillna(0).clip(lower=0).astype("int64") + 1
    sized = sorted(zip(cost.tolist(), clinics["clinic_id"].tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
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


def _told(ids: tuple[int, ...]) -> str:
    return f"clinic {ids[0]}" if len(ids) == 1 else f"{len(ids)} clinics"
