"""Reading Postgres through ADBC: Arrow record batches, streamed by COPY, at the speed of the server."""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Arrow's own pool keeps some 60 MB of what it was given back; malloc returns large pieces to the system at once.
pa.set_memory_pool(pa.system_memory_pool())

BATCH_BYTES = 4 * 1024 * 1024
"""How much the driver gathers before it hands a batch over; bounds the memory of a stream."""


STREAM_SECONDS = 1800
"""So long may one query take, while its rows are worked on: no signal to the task reaches a driver that waits."""
LOCK_SECONDS = 120
"""So long may it wait for a table that somebody has locked."""
_LIMITS = f"""SELECT
    set_config('transaction_read_only', 'on', true),
    set_config('jit', 'off', true),
    set_config('statement_timeout', '{STREAM_SECONDS}s', true),
    set_config('lock_timeout', '{LOCK_SECONDS}s', true)"""


class Streams:
    """Results of a database's queries as Arrow record batches, streamed by COPY; any thread may ask for one. Nothing
    can be written by it, and no query waits for ever (``STREAM_SECONDS``, ``LOCK_SECONDS``).

    Args:
        conninfo: libpq connection string or URI.

    Raises (all methods):
        Exception: one of those that :func:`is_driver_error` knows, as the driver raises it; callers translate it.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._idle: list[Any] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are kept; from now on none is."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def stream(self, sql: str, *, settings: Mapping[str, str]) -> Iterator[pa.RecordBatchReader]:
        """Run ``sql`` and yield a reader of its record batches; memory is bounded by the batch, not by the result.

        Args:
            settings: custom settings (``medflex.…``) or Postgres' own, made for this query before it. The former carry
                the parameters, since a query with bound parameters is not streamed by the driver but held in memory
                whole.
        """
        # A session of its own, which ends with it: who stops in the middle need not wait for the rest.
        with self._begun(settings) as connection, _reader(connection, sql) as reader:
            yield reader

    def read(self, sql: str, *, settings: Mapping[str, str]) -> pa.Table:
        """Run ``sql`` and return its whole result.

        Its connection is kept for the next one: to open one, the driver reads all of the server's types, which takes as
        long as to read 50,000 records.
        """
        connection = self._begun(settings)
        try:
            with _reader(connection, sql) as reader:
                table = reader.read_all()
            # Nothing of it stays, and no transaction stands still until the next query.
            connection.adbc_connection.rollback()
            connection.adbc_connection.set_autocommit(True)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            is_kept = not self._is_closed
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()
        return table

    def _begun(self, settings: Mapping[str, str]) -> Any:
        """A connection in a transaction that has these settings."""
        import adbc_driver_postgresql.dbapi as adbc

        _install_terminate_handler()
        while True:
            try:
                connection, is_new = self._idle.pop(), False
            except IndexError:
                connection, is_new = adbc.connect(self._conninfo, autocommit=True), True
            try:
                # Behind a connection pooler, the next statement of a session may meet another session's settings.
                connection.adbc_connection.set_autocommit(False)
                with connection.cursor() as cursor:
                    cursor.execute(_LIMITS)
                    cursor.fetchall()
                    for name, value in settings.items():
                        # Not the value itself: lists of ids have megabytes.
                        cursor.execute("SELECT set_config($1, $2, true) IS NOT NULL", (name, value))
                        cursor.fetchall()
            except BaseException as error:
                connection.close()
                # One that was kept may have been closed by the server in the meantime.
                if is_new or not isinstance(error, Exception):
                    raise
            else:
                return connection


_TERMINATE_HANDLER = ctypes.CFUNCTYPE(None)
_former_handlers: list[Any] = []


@_TERMINATE_HANDLER
def _terminate_handler() -> None:
    """Called by C++ where an exception meets nobody who catches it, before the process ends."""
    log.critical(
        "This process is ended by a library, most likely by the driver that reads Medlock's and the ledger's database:"
        " it does that where a connection is lost in the middle of a query. Check that both servers are up and"
        " reachable from the workers. What has been sent is in the ledger; the task is tried again if it has a try"
        " left."
    )
    for handler in _former_handlers:
        handler()


@functools.cache
def _install_terminate_handler() -> None:
    """Let a sentence be logged if the driver ends this process.

    It does where a connection is lost without a word while the server is at work on a query and has sent no row yet
    (docs/adr/0027-driver-version.md). Airflow then tries the task again, as after any other end of a process.
    """
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")["_ZSt13set_terminatePFvvE"]
    except (OSError, AttributeError):
        return  # Not the C++ library of the driver's Linux wheels.
    set_terminate.argtypes, set_terminate.restype = [_TERMINATE_HANDLER], _TERMINATE_HANDLER
    _former_handlers.append(set_terminate(_terminate_handler))


@contextmanager
def _reader(connection: Any, sql: str) -> Iterator[pa.RecordBatchReader]:
    with connection.cursor(adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}) as cursor:
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


class UngroupedError(LookupError):
    """A row belongs to none of the groups that were given."""


def grouped(
    batches: Iterable[pa.RecordBatch], rows: int, column: str, groups: Sequence[Sequence[int]]
) -> Iterator[tuple[int, pa.Table]]:
    """Gather record batches into tables of about so many rows, each with rows of one group.

    Args:
        column: int64, none missing; by it a row belongs to a group.
        groups: the values of each; each value that comes is in one.

    Yields:
        The place of the group in ``groups``, and the table.

    Raises:
        UngroupedError: a value comes that is in none, or is missing.
    """
    places = _places(groups)
    values, of_value = (np.array([pair[item] for pair in places], dtype="int64") for item in (0, 1))
    gathered: dict[int, list[pa.RecordBatch]] = defaultdict(list)
    number: Counter[int] = Counter()
    for batch in batches:
        mine = batch[column]
        if not batch.num_rows:
            continue
        at = np.searchsorted(values, mine) if not mine.null_count else np.full(len(mine), len(values))
        if (at == len(values)).any() or (values[at] != mine.to_numpy()).any():
            raise UngroupedError(f"The {column} of a row is in no group.")
        for group, piece in _pieces(batch, of_value[at], len(groups)):
            gathered[group].append(piece)
            number[group] += piece.num_rows
            if number[group] >= rows:
                yield group, pa.Table.from_batches(gathered.pop(group))
                del number[group]
    for group in sorted(gathered):
        yield group, pa.Table.from_batches(gathered.pop(group))


def _places(groups: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return sorted((value, place) for place, members in enumerate(groups) for value in members)


def _pieces(batch: pa.RecordBatch, groups: Any, most: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of each group as a batch of their own, which keeps nothing of the others in memory."""
    if most == 1:
        yield 0, batch
        return
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=most))
    for group, rows in enumerate(np.split(order, ends[:-1])):
        if len(rows):
            yield group, batch.take(pa.array(rows))


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
    streams: Streams, sql: str, *, settings: Mapping[str, str], nullable_ids: Sequence[str] = ("acked_digest",)
) -> pd.DataFrame:
    """Run ``sql`` and return the whole result as a DataFrame; for results of a few columns of numbers."""
    return to_pandas(streams.read(sql, settings=settings), nullable_ids)
