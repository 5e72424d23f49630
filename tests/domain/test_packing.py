"""Clinics packed into shards: about equal, the same each time, each clinic exactly once."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.access import AccessState
from medflex.domain.packing import (
    MOST_CLOSED,
    MOST_OPEN,
    MOST_SHARDS,
    MOST_SLICES,
    Shard,
    pack_shards,
    slice_clinics,
)


def _clinics(*clinics: tuple[int, float | None, str]) -> pd.DataFrame:
    frame = pd.DataFrame(list(clinics), columns=["clinic_id", "expected_rows", "kind"])
    return frame.astype({"clinic_id": "int64", "expected_rows": "Int64", "kind": "str"})


def test_a_big_clinic_is_alone_and_small_ones_are_together() -> None:
    shards = pack_shards(_clinics((1, 10, "open"), (2, 5000, "open"), (3, 20, "open"), (4, None, "open")), 1000)
    assert shards == [
        Shard("open-01 · clinic 2", (2,), AccessState.OPEN),
        Shard("open-02 · 3 clinics", (1, 3, 4), AccessState.OPEN),
    ]


def test_waiting_clinics_are_alone_and_closed_ones_together() -> None:
    clinics = _clinics((17, 0, "waiting"), (5, 9, "closed"), (3, 9, "waiting"), (4, 99, "closed"), (9, 1, "open"))
    assert pack_shards(clinics, 1000) == [
        Shard("open-01 · clinic 9", (9,), AccessState.OPEN),
        Shard("clinic 3 waiting", (3,), AccessState.WAITING),
        Shard("clinic 17 waiting", (17,), AccessState.WAITING),
        Shard("closed · 2 clinics", (4, 5), AccessState.CLOSED),
    ]


def test_closed_clinics_with_much_to_withdraw_are_not_all_together() -> None:
    clinics = _clinics((5, 9, "closed"), (4, 99, "closed"), (6, 0, "closed"))
    assert pack_shards(clinics, 50) == [
        Shard("closed-01 · clinic 4", (4,), AccessState.CLOSED),
        Shard("closed-02 · 2 clinics", (5, 6), AccessState.CLOSED),
    ]


def test_no_clinics_make_no_shards() -> None:
    assert pack_shards(_clinics(), 10) == []


def test_five_clinics_make_one_small_grid() -> None:
    assert len(pack_shards(_clinics(*((number, 4000, "open") for number in range(5))), 300_000)) == 1


@pytest.mark.parametrize("target_rows", [0, -1])
def test_a_target_below_one_is_refused(target_rows: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pack_shards(_clinics((1, 1, "open")), target_rows)


def test_twenty_thousand_clinics_are_packed_evenly_in_a_moment() -> None:
    sizes = np.random.default_rng(5).pareto(1.5, 20_000) * 500
    clinics = _clinics(*((number, int(rows), "open") for number, rows in enumerate(sizes)))
    began = time.process_time()
    shards = pack_shards(clinics, 300_000)
    assert time.process_time() - began < 1
    loads = [
        sum(int(sizes[clinic]) + 1 for clinic in shard.clinic_ids) for shard in shards if len(shard.clinic_ids) > 1
    ]
    assert min(loads) > 0.9 * 300_000
    assert max(loads) <= 300_000 + 1
    assert all(re.fullmatch(r"open-\d+ · (\d+ clinics|clinic \d+)", shard.label) for shard in shards)


@given(
    st.dictionaries(
        st.integers(1, 60),
        st.tuples(st.one_of(st.none(), st.integers(0, 90)), st.sampled_from(["open", "waiting", "closed"])),
        max_size=40,
    ),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_each_clinic_is_in_exactly_one_shard_in_any_order(
    clinics: dict[int, tuple[int | None, str]], target_rows: int, random: Any
) -> None:
    made = [(clinic, *rest) for clinic, rest in clinics.items()]
    shards = pack_shards(_clinics(*made), target_rows)
    random.shuffle(made)
    assert pack_shards(_clinics(*made), target_rows) == shards

    packed = [clinic for shard in shards for clinic in shard.clinic_ids]
    assert sorted(packed) == sorted(clinics)
    assert all(clinics[clinic][1] == shard.kind for shard in shards for clinic in shard.clinic_ids)
    assert all(type(clinic) is int for clinic in packed)
    assert len({shard.label for shard in shards}) == len(shards)
    assert all(list(shard.clinic_ids) == sorted(shard.clinic_ids) for shard in shards)
    biggest = max((rows or 0) + 1 for rows, _ in clinics.values()) if clinics else 0
    for shard in shards:
        if shard.kind == "open" and len(shard.clinic_ids) > 1:
            assert sum((clinics[clinic][0] or 0) + 1 for clinic in shard.clinic_ids) <= target_rows + biggest


@given(
    st.fixed_dictionaries({kind: st.integers(0, 400) for kind in ("open", "waiting", "closed")}),
    st.integers(1, 500),
    st.integers(0, 2_000),
)
def test_there_are_never_more_shards_than_airflow_bears(numbers: dict[str, int], target_rows: int, most: int) -> None:
    kinds = [kind for kind, number in numbers.items() for _ in range(number)]
    rows = np.random.default_rng(len(kinds)).integers(0, most + 1, len(kinds))
    made = _clinics(*((number, int(rows[number]), kind) for number, kind in enumerate(kinds)))
    made["opens_at"] = pd.Timestamp("2026-11-22", tz="UTC") + pd.to_timedelta(made["clinic_id"] % 24, unit="h")
    shards = pack_shards(made, target_rows)
    assert len(shards) <= MOST_SHARDS
    assert sorted(clinic for shard in shards for clinic in shard.clinic_ids) == list(range(len(kinds)))
    number = Counter(shard.kind for shard in shards)
    assert number["open"] <= MOST_OPEN
    assert number["closed"] <= MOST_CLOSED
    assert len({shard.label for shard in shards}) == len(shards)


def test_shards_grow_no_more_than_they_have_to() -> None:
    """One row more per clinic than are expected: 900 clinics of 10 fill 90 shards of 100 exactly."""
    clinics = _clinics(*((number, 9, "open") for number in range(10 * MOST_OPEN)))
    shards = pack_shards(clinics, 1)
    assert [len(shard.clinic_ids) for shard in shards] == [10] * MOST_OPEN
    assert shards == pack_shards(clinics, 100)
    # A clinic that is larger than all shards stays alone, and the others share what is left.
    shards = pack_shards(pd.concat([clinics, _clinics((99_999, 10**9, "open"))]), 1)
    assert shards[0].clinic_ids == (99_999,)
    assert len(shards) == MOST_OPEN
    assert {len(shard.clinic_ids) for shard in shards[1:]} <= {10, 11}


def test_three_hundred_million_rows_of_twenty_thousand_clinics_are_packed_evenly() -> None:
    sizes = np.random.default_rng(6).lognormal(0, 1.2, 20_000)
    rows = (sizes / sizes.sum() * 300_000_000).astype("int64")
    clinics = _clinics(*((number, int(size), "open") for number, size in enumerate(rows)))
    began = time.process_time()
    shards = pack_shards(clinics, 400_000)
    assert time.process_time() - began < 3
    loads = [int(rows[list(shard.clinic_ids)].sum()) for shard in shards]
    assert len(shards) == MOST_OPEN
    assert max(loads) < 1.01 * min(loads)


def _waiting(hours: dict[int, float]) -> pd.DataFrame:
    """Clinics that wait; id → hours until each opens."""
    frame = _clinics(*((clinic, None, "waiting") for clinic in hours))
    midnight = pd.Timestamp("2026-11-22", tz="UTC")
    frame["opens_at"] = [midnight + pd.Timedelta(hours=value) for value in hours.values()]
    return frame


def test_as_many_waiting_clinics_as_there_may_be_shards_are_still_alone() -> None:
    shards = pack_shards(_waiting({clinic: clinic % 7 for clinic in range(1, MOST_SHARDS + 1)}), 10)
    assert [shard.clinic_ids for shard in shards] == [(clinic,) for clinic in range(1, MOST_SHARDS + 1)]
    assert shards[0].label == "clinic 1 waiting"


@pytest.mark.parametrize("number", [MOST_SHARDS + 1, 2 * MOST_SHARDS, 2 * MOST_SHARDS + 1, 20_000])
def test_many_waiting_clinics_share_shards_with_those_that_open_about_then(number: int) -> None:
    """Airflow bears so many shards of all kinds; nobody waits longer than its neighbours."""
    random = np.random.default_rng(3)
    hours = dict(zip(random.permutation(number).tolist(), random.uniform(0, 24, number).tolist(), strict=True))
    clinics = _waiting(hours)
    shards = pack_shards(clinics, 10)
    assert pack_shards(clinics.iloc[::-1], 10) == shards

    assert len(shards) <= MOST_SHARDS
    assert sorted(clinic for shard in shards for clinic in shard.clinic_ids) == sorted(hours)
    assert {shard.kind for shard in shards} == {AccessState.WAITING}
    assert all(list(shard.clinic_ids) == sorted(shard.clinic_ids) for shard in shards)
    sizes = {len(shard.clinic_ids) for shard in shards[:-1]}
    assert len(sizes) == 1
    assert 0 < len(shards[-1].clinic_ids) <= max(sizes)
    for earlier, later in itertools.pairwise(shards):
        assert max(hours[clinic] for clinic in earlier.clinic_ids) <= min(hours[clinic] for clinic in later.clinic_ids)
    assert [shard.label for shard in shards] == [
        f"waiting-{position:03} · {len(shard.clinic_ids)} clinics"
        if len(shard.clinic_ids) > 1
        else f"waiting-{position:03} · clinic {shard.clinic_ids[0]}"
        for position, shard in enumerate(shards, start=1)
    ]


def test_open_and_closed_clinics_keep_their_shards_beside_many_waiting_ones() -> None:
    left = MOST_SHARDS - 2
    waiting = _waiting(dict.fromkeys(range(1000, 1000 + 3 * left), 5.0))
    others = _clinics((1, 10, "open"), (2, 10, "closed")).assign(
        opens_at=pd.Series(pd.NaT, range(2), waiting["opens_at"].dtype)
    )
    shards = pack_shards(pd.concat([waiting, others], ignore_index=True), 1000)
    assert shards[0] == Shard("open-01 · clinic 1", (1,), AccessState.OPEN)
    assert shards[1] == Shard("waiting-001 · 3 clinics", (1000, 1001, 1002), AccessState.WAITING)
    assert shards[-1] == Shard("closed · clinic 2", (2,), AccessState.CLOSED)
    assert len(shards) == MOST_SHARDS


def test_slices_are_about_equal_and_a_big_clinic_is_alone() -> None:
    clinics = _clinics((1, 39, "open"), (2, 500, "open"), (3, 38, "open"), (4, 19, "open"), (5, None, "open"))
    assert slice_clinics(clinics, 60) == [(2,), (1, 5), (3, 4)]
    assert slice_clinics(clinics, 10**9) == [(1, 2, 3, 4, 5)]
    assert slice_clinics(_clinics(), 60) == []


@given(st.lists(st.one_of(st.none(), st.integers(0, 90)), max_size=80), st.integers(1, 200))
def test_each_clinic_is_in_exactly_one_slice(rows: list[int | None], target_rows: int) -> None:
    slices = slice_clinics(_clinics(*((number, item, "open") for number, item in enumerate(rows))), target_rows)
    assert sorted(clinic for slice_ in slices for clinic in slice_) == list(range(len(rows)))
    assert len(slices) <= MOST_SLICES
    assert all(list(slice_) == sorted(slice_) for slice_ in slices)
