"""Reading Postgres through ADBC: Arrow record batches, streamed by COPY, at the speed of the server."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

# Arrow's own pool keeps some 60 MB of what it was given back; malloc returns large pieces to the system at once.
pa.set_memory_pool(pa.system_memory_pool())

BATCH_BYTES = 4 * 1024 * 1024
"""How much the driver gathers before it hands a batch over; bounds the memory of a stream."""


@contextmanager
def stream(conninfo: str, sql: str, *, settings: Mapping[str, str]) -> Iterator[pa.RecordBatchReader]:
    """Run ``sql`` and yield a reader of its record batches; memory is bounded by the batch, not by the result.

    Args:
        conninfo: libpq connection string or URI.
        settings: custom settings (``medflex.…``) made for this session before the query. They carry the parameters,
            since a query with bound parameters is not streamed by the driver but held in memory whole.

    Raises:
        Exception: one of those that :func:`is_driver_error` knows, as the driver raises it; callers translate it.
    """
    import adbc_driver_postgresql.dbapi as adbc

    with (
        # One transaction, and settings that end with it: behind a connection pooler the next statement of a session
        # may meet another session's settings.
        adbc.connect(conninfo, autocommit=False) as connection,
        connection.cursor(adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}) as cursor,
    ):
        for name, value in settings.items():
            # Not the value itself: lists of ids have megabytes.
            cursor.execute("SELECT set_config($1, $2, true) IS NOT NULL", (name, value))
            cursor.fetchall()
        cursor.execute(sql)
        yield cursor.fetch_record_batch()


def read_ahead(reader: Iterable[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
    """Yield what a reader yields, the next batch being read while the caller works with the last one.

    Else the server waits for the caller, since little fits into a socket. What reading raises is raised here. Close
    this before what is read from: then nothing reads any more.
    """
    batches = iter(reader)
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def tables(batches: Iterable[pa.RecordBatch], rows: int, at_least_one: pa.Schema | None = None) -> Iterator[pa.Table]:
    """Gather record batches into tables of about so many rows.

    Args:
        at_least_one: where there is no batch, yield one table of this schema without rows.
    """
    gathered: list[pa.RecordBatch] = []
    number = 0
    for batch in batches:
        gathered.append(batch)
        number += batch.num_rows
        if number >= rows:
            yield pa.Table.from_batches(gathered)
            gathered, number, at_least_one = [], 0, None
    if number:
        yield pa.Table.from_batches(gathered)
    elif at_least_one is not None:
        yield at_least_one.empty_table()


def is_driver_error(error: BaseException) -> bool:
    """Tell whether an exception comes from reading through ADBC.

    What happens while a result is being streamed arrives as pyarrow's errors or as a plain OSError, with libpq's text,
    which can quote a row. Told by module, so that asking does not import the driver.
    """
    return isinstance(error, OSError | pa.ArrowException) or type(error).__module__.startswith("adbc_driver_manager")


def to_pandas(table: pa.Table, nullable_ids: Sequence[str] = ()) -> pd.DataFrame:
    """Turn Arrow into the pandas types the rules and the validation expect.

    Booleans become nullable ``boolean`` (a missing flag stays missing), text pandas' ``str``, instants
    ``datetime64[us, UTC]``, integers ``int64``; those named in ``nullable_ids``, if there, ``Int64``: by pandas'
    default a missing one would turn the column into floats, which cannot hold every id.
    """
    import pandas as pd

    frame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    for name in nullable_ids:
        if name in table.column_names:
            frame[name] = table[name].to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


def of_types(frame: pd.DataFrame, types: Mapping[str, str]) -> pd.DataFrame:
    """Return a frame whose columns have these types; as it is where they have them, since pandas copies even then."""
    others = {name: dtype for name, dtype in types.items() if frame[name].dtype != dtype}
    return frame.astype(others) if others else frame


def read_frame(
    conninfo: str, sql: str, *, settings: Mapping[str, str], nullable_ids: Sequence[str] = ("acked_digest",)
) -> pd.DataFrame:
    """Run ``sql`` and return the whole result as a DataFrame; for results of a few columns of numbers."""
    with stream(conninfo, sql, settings=settings) as reader:
        return to_pandas(reader.read_all(), nullable_ids)
