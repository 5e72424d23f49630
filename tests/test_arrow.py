"""Reading a batch ahead: in its order, with its errors, and never behind the back of whoever has closed it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.arrow import UngroupedError, grouped, read_ahead

LONG = 30.0
"""Seconds that no test waits for unless it fails."""


def batch(number: int) -> pa.RecordBatch:
    return pa.record_batch({"number": [number]})


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_the_next_batch_is_read_while_the_caller_works() -> None:
    read = [threading.Event() for _ in range(4)]

    def reader() -> Iterator[pa.RecordBatch]:
        for number, event in enumerate(read):
            event.set()
            yield batch(number)

    seen = []
    for item in read_ahead(reader()):
        (number,) = item["number"].to_pylist()
        seen.append(number)
        if number < 3:
            assert read[number + 1].wait(LONG)
        if number < 2:
            # One, not all: that bounds the memory.
            assert not read[number + 2].is_set()
    assert seen == [0, 1, 2, 3]
    assert not reading_threads()


def test_nothing_to_read_is_nothing() -> None:
    assert list(read_ahead([])) == []


def test_what_reading_raises_comes_behind_the_batches_before_it() -> None:
    def reader() -> Iterator[pa.RecordBatch]:
        yield batch(0)
        yield batch(1)
        raise OSError("broken")

    seen = []

    def read() -> None:
        for item in read_ahead(reader()):
            seen.extend(item["number"].to_pylist())

    with pytest.raises(OSError, match="broken"):
        read()
    assert seen == [0, 1]
    assert not reading_threads()


def test_once_closed_nothing_reads_any_more() -> None:
    """Else a connection could be closed under the hands of a thread that reads from it."""
    begun, let_go, over = threading.Event(), threading.Event(), threading.Event()

    def reader() -> Iterator[pa.RecordBatch]:
        yield batch(0)
        begun.set()
        let_go.wait(LONG)
        over.set()
        yield batch(1)

    batches = read_ahead(reader())
    next(batches)
    assert begun.wait(LONG)
    closing = threading.Thread(target=batches.close)
    closing.start()
    # It cannot end before what it waits for; where it does not wait, it has ended by then.
    closing.join(0.2)
    assert closing.is_alive()
    let_go.set()
    closing.join(LONG)
    assert not closing.is_alive()
    assert over.is_set()
    assert not reading_threads()


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=12), max_size=8),
    st.permutations(range(1, 10)),
    st.sets(st.integers(1, 8), max_size=4),
    st.integers(1, 15),
)
def test_rows_are_gathered_by_their_groups(
    batches: list[list[int]], values: list[int], ends: set[int], rows: int
) -> None:
    cuts = [0, *sorted(ends), len(values)]
    groups = [values[start:end] for start, end in itertools.pairwise(cuts)]
    number = 0
    given_: list[pa.RecordBatch] = []
    for keys in batches:
        numbers = range(number, number := number + len(keys))
        given_.append(pa.record_batch({"key": pa.array(keys, pa.int64()), "number": pa.array(numbers, pa.int64())}))
    tables = list(grouped(given_, rows, "key", groups))
    # Each row once, with those of its group only, in the order in which they came.
    for place, members in enumerate(groups):
        mine = [table for group, table in tables if group == place]
        found = [row for table in mine for row in table.to_pylist()]
        assert found == [row for batch in given_ for row in batch.to_pylist() if row["key"] in members]
        assert all(table.num_rows >= rows for table in mine[:-1])
        assert all(table.num_rows for table in mine)
    assert sum(table.num_rows for _, table in tables) == number


def test_the_rows_of_a_group_keep_nothing_of_the_others_in_memory() -> None:
    keys = np.arange(10_000) % 2
    whole = pa.record_batch({"key": keys, "text": pa.array(["x" * 100] * len(keys))})
    (_, first), (_, second) = grouped([whole], 10**9, "key", [[0], [1]])
    assert first.get_total_buffer_size() + second.get_total_buffer_size() < 1.1 * whole.get_total_buffer_size()
    del whole
    assert (first.num_rows, second.num_rows) == (5_000, 5_000)


@pytest.mark.parametrize("keys", [[1, 2], [2, 3], [0, 2], [2, None]])
def test_a_row_that_belongs_to_no_group_is_an_error(keys: list[int | None]) -> None:
    given_ = pa.record_batch({"key": pa.array(keys, pa.int64())})
    for groups in ([[2], [4]], [[2, 4]], []):
        with pytest.raises(UngroupedError, match="key"):
            list(grouped([given_], 1, "key", groups))
