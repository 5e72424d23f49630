"""Records by columns keep together what belongs together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from medflex.airflow.columns import Columns

RECORDS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-(2**62), 2**62)), max_size=12)


def columns_of(records: list[tuple[int, int]]) -> Columns:
    """Each record with a text that tells which one it is."""
    return Columns(
        {
            "clinic_id": np.array([clinic_id for clinic_id, _ in records], dtype="int64"),
            "id": np.array([id_ for _, id_ in records], dtype="int64"),
            "tail": pa.array([f"{clinic_id}/{id_}" for clinic_id, id_ in records], pa.string()),
        }
    )


def records_of(columns: Columns) -> list[tuple[int, int]]:
    records = list(zip(columns["clinic_id"].tolist(), columns["id"].tolist(), strict=True))
    assert columns["tail"].to_pylist() == [f"{clinic_id}/{id_}" for clinic_id, id_ in records]
    return records


@given(RECORDS)
def test_each_record_is_in_the_part_of_its_clinic_in_the_order_of_ids(records: list[tuple[int, int]]) -> None:
    parts = [(clinic_id, records_of(part)) for clinic_id, part in columns_of(records).by("clinic_id", then="id")]
    assert [item for _, part in parts for item in part] == sorted(records)
    assert [clinic_id for clinic_id, _ in parts] == sorted({clinic_id for clinic_id, _ in records})
    assert all(item[0] == clinic_id for clinic_id, part in parts for item in part)


@given(RECORDS, st.data())
def test_what_is_kept_cut_copied_and_joined_stays_whole(records: list[tuple[int, int]], data: st.DataObject) -> None:
    columns = columns_of(records)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records))), dtype=bool)
    kept = records_of(columns.keep(mask))
    assert kept == [item for item, keeps in zip(records, mask.tolist(), strict=True) if keeps]
    at = data.draw(st.integers(0, len(records)))
    first, second = columns.cut(0, at), columns.cut(at, len(records))
    assert (len(first), len(second)) == (at, len(records) - at)
    assert Counter(records_of(Columns.joined([second.copy(), first]))) == Counter(records)
    assert records_of(Columns.joined([first, second])) == records


def test_a_copy_shares_no_memory() -> None:
    columns = columns_of([(1, 1), (1, 2), (1, 3)])
    rest = columns.cut(2, 3).copy()
    assert not np.shares_memory(rest["id"], columns["id"])
    assert rest["tail"].buffers()[2].size < columns["tail"].buffers()[2].size


def test_a_frame_s_columns_are_these() -> None:
    columns = Columns.of_frame(pd.DataFrame({"id": [3, 4], "reason": ["a", "b"]}))
    assert (columns["id"].tolist(), columns["reason"].tolist(), len(columns)) == ([3, 4], ["a", "b"], 2)
