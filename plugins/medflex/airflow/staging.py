"""Run-time staging between tasks: Parquet parts under ``MEDFLEX_STAGING_URL``, gone when the run ends.

It is the one place outside Medlock and Medflex where names and phones lie, and only while a run lasts.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from airflow.sdk import ObjectStoragePath

from medflex.airflow.environment import setting
from medflex.errors import ConfigurationError, RunIncompleteError, TaskEndedError

_DISTINCT = frozenset(
    ("appointment_id", "id", "patient_id", "phone", "mobile_phone", "digest", "created_at", "updated_at")
)
"""Columns of which few values come twice: Parquet would begin a dictionary of them, and throw it away."""


def staging_root() -> ObjectStoragePath:
    """Return the folder of all runs, readable by all workers."""
    url = setting("MEDFLEX_STAGING_URL")
    if not url:
        raise ConfigurationError(
            "MEDFLEX_STAGING_URL is not set: name a folder or bucket that all workers can read and nobody else,"
            " for example file:///var/lib/medflex/staging or s3://connection@bucket/medflex."
        )
    return ObjectStoragePath(url)


PARTS = 1_000
"""A slice has fewer parts."""
LOOK_SECONDS = 1.0
"""While it writes, a task looks so often whether it is still wanted: one that was ended goes on for five seconds and
more until Airflow kills it (``[workers] min_heartbeat_interval``); what its run has staged is removed within one."""


def part_of(slice_: int, number: int) -> int:
    """Return the number of a part by the slice of the shard that its rows belong to, and its place among the slice's.

    A clinic's rows are all in parts of one slice.

    Raises:
        ValueError: the slice would have too many parts.
    """
    if not 0 <= number < PARTS:
        raise ValueError(f"A slice has fewer than {PARTS} parts: this would be number {number}.")
    return slice_ * PARTS + number


class Staging:
    """The staged parts of one run. ``kind`` is what a part holds: ``extract``, ``clinics``, ``eligible``,
    ``validated`` or ``plan``.

    Each attempt of a task writes into a folder of its own, and the newest attempt's parts are read: one that was
    thought dead and goes on writing changes nothing.

    Args:
        attempt: number of the attempt that writes.
        is_wanted: tells whether it is still to be written; what was written behind the removal, nobody would remove.
    """

    def __init__(
        self, dag_id: str, run_id: str, attempt: int = 1, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._attempt = attempt
        self._is_wanted = is_wanted
        # Run ids hold characters that file systems and object stores do not all take.
        self.folder = staging_root() / dag_id / hashlib.sha256(run_id.encode()).hexdigest()[:24]

    def clear(self, shard: int, kind: str) -> None:
        """Remove what earlier attempts left, and what this one did if it is run again under the same number."""
        for attempt, folder in self._attempts(shard, kind):
            if attempt <= self._attempt:
                folder.fs.rm(folder.path, recursive=True)

    def write(self, shard: int, kind: str, part: int, table: pa.Table) -> None:
        """Write one part."""
        with self.writing(shard, kind) as write:
            write(part, table)

    @contextmanager
    def writing(self, shard: int, kind: str) -> Iterator[Callable[..., None]]:
        """Yield ``write(part, table, last=True)``: it adds rows to a part, in the background, and waits for the call
        before. A part has to be read only behind its last rows, or the end.

        Raises:
            TaskEndedError: by ``write`` or at the end; what was written of this kind is removed.
        """
        looked = time.monotonic()

        def look() -> None:
            if not self._is_wanted():
                raise TaskEndedError(
                    "This task was ended while it wrote, so what it has staged is removed: clear this shard from"
                    " extract on."
                )

        parts = _Parts(functools.partial(self._begun, shard, kind))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging") as thread:
            under_way: list[Future[None]] = []

            def write(part: int, table: pa.Table, last: bool = True) -> None:
                nonlocal looked
                while under_way:
                    under_way.pop().result()
                if time.monotonic() - looked >= LOOK_SECONDS:
                    looked = time.monotonic()
                    look()
                under_way.append(thread.submit(parts.add, part, table, last))

            try:
                yield write
                under_way.append(thread.submit(parts.end))
                for future in under_way:
                    future.result()
                # Whoever ends it from now on removes later than this was written.
                look()
            except BaseException as error:
                # No half of a part is left: it would look like a whole one.
                thread.submit(parts.drop, self._folder(shard, kind), isinstance(error, TaskEndedError))
                raise

    def _begun(self, shard: int, kind: str, part: int, schema: pa.Schema) -> _Part:
        folder = self._folder(shard, kind)
        self._make(folder)
        # Not by the path's own open(): that would tell OpenLineage of each part as a data set of its own.
        return _Part(folder.fs.open((folder / f"{part:05}.parquet").path, "wb"), schema)

    def parts(self, shard: int, kind: str) -> list[int]:
        """Return the numbers of the parts that are there, in order."""
        folder = self._newest(shard, kind)
        if folder is None:
            return []
        return sorted(int(Path(item.name).stem) for item in folder.iterdir() if item.name.endswith(".parquet"))

    def slices(self, shard: int, kind: str) -> Iterator[list[int]]:
        """Yield the numbers of each slice's parts, in order (see :func:`part_of`)."""
        for _, parts in groupby(self.parts(shard, kind), lambda part: part // PARTS):
            yield list(parts)
            # What was done with one slice, malloc keeps in pieces that do not serve the next one: it would take more
            # with each.
            pa.default_memory_pool().release_unused()

    def read(self, shard: int, kind: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part."""
        folder = self._newest(shard, kind) or self._folder(shard, kind)
        file = folder / f"{part:05}.parquet"
        try:
            with file.fs.open(file.path, "rb") as handle:
                return pq.read_table(handle, columns=list(columns) if columns is not None else None)
        except FileNotFoundError:
            raise RunIncompleteError(
                "A staged part of this run is gone (its run has ended, or MEDFLEX_STAGING_URL is not the same on all"
                " workers): clear this shard from extract on."
            ) from None

    def remove(self) -> None:
        """Remove everything of this run."""
        if self.folder.exists():
            self.folder.fs.rm(self.folder.path, recursive=True)

    def _folder(self, shard: int, kind: str) -> ObjectStoragePath:
        return self.folder / f"{shard:05}" / f"{kind}-{self._attempt:04}"

    def _attempts(self, shard: int, kind: str) -> list[tuple[int, ObjectStoragePath]]:
        """The folders of all attempts, oldest first."""
        folder = self.folder / f"{shard:05}"
        if not folder.exists():
            return []
        found = [(item.name.rstrip("/").rpartition("-"), item) for item in folder.iterdir()]
        return sorted((int(number), item) for (name, _, number), item in found if name == kind)

    def _newest(self, shard: int, kind: str) -> ObjectStoragePath | None:
        attempts = self._attempts(shard, kind)
        return attempts[-1][1] if attempts else None

    def _make(self, folder: ObjectStoragePath) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.protocol in ("file", "local"):
            # Nobody but the workers' user may look into a run; object stores have their bucket policy for that.
            Path(self.folder.path).chmod(0o700)


class _Parts:
    """The parts of one attempt at a task that are being written.

    Args:
        begin: begins the part of this number, for tables of this schema.
    """

    def __init__(self, begin: Callable[[int, pa.Schema], _Part]) -> None:
        self._begin = begin
        self._open: dict[int, _Part] = {}

    def add(self, number: int, table: pa.Table, last: bool) -> None:
        """Add rows to a part, which ends with its last ones."""
        if number not in self._open:
            self._open[number] = self._begin(number, table.schema)
        self._open[number].add(table)
        if last:
            self._open.pop(number).end()

    def end(self) -> None:
        """Finish those that are open."""
        while self._open:
            self._open.popitem()[1].end()

    def drop(self, folder: ObjectStoragePath, everything: bool) -> None:
        """Remove those that are open, or everything that was written into the attempt's folder."""
        for number, part in self._open.items():
            with suppress(Exception):
                part.end()
            with suppress(Exception):
                folder.fs.rm((folder / f"{number:05}.parquet").path)
        if everything:
            with suppress(FileNotFoundError):
                folder.fs.rm(folder.path, recursive=True)


class _Part:
    """A part that is being written."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._file = file
        repeated = [name for name in schema.names if name not in _DISTINCT]
        self._writer = pq.ParquetWriter(
            file, schema, compression="lz4", use_dictionary=repeated, write_statistics=False
        )

    def add(self, table: pa.Table) -> None:
        """Compress some more rows."""
        self._writer.write_table(table)

    def end(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._file.close()
