"""Reading a batch ahead: in its order, with its errors, and never behind the back of whoever has closed it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from medflex.arrow import read_ahead

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
