"""Run-time staging between tasks: Parquet parts under ``MEDFLEX_STAGING_URL``, gone when the run ends.

It is the one place outside Medlock and Medflex where names and phones lie, and only while a run lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from airflow.sdk import ObjectStoragePath

from medflex.airflow.environment import setting
from medflex.errors import ConfigurationError, RunIncompleteError

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


class Staging:
    """The staged parts of one run. ``kind`` is what a part holds: ``extract``, ``clinics``, ``eligible`` or ``plan``.

    Each attempt of a task writes into a folder of its own, and the newest attempt's parts are read: one that was
    thought dead and goes on writing changes nothing.

    Args:
        attempt: number of the attempt that writes.
    """

    def __init__(self, dag_id: str, run_id: str, attempt: int = 1) -> None:
        self._attempt = attempt
        # Run ids hold characters that file systems and object stores do not all take.
        self.folder = staging_root() / dag_id / hashlib.sha256(run_id.encode()).hexdigest()[:24]

    def clear(self, shard: int, kind: str) -> None:
        """Remove what earlier attempts left, and what this one did if it is run again under the same number."""
        for attempt, folder in self._attempts(shard, kind):
            if attempt <= self._attempt:
                folder.fs.rm(folder.path, recursive=True)

    def write(self, shard: int, kind: str, part: int, table: pa.Table) -> None:
        """Write one part."""
        folder = self._folder(shard, kind)
        self._make(folder)
        # Not by the path's own open(): that would tell OpenLineage of each part as a data set of its own.
        with folder.fs.open((folder / f"{part:05}.parquet").path, "wb") as file:
            repeated = [name for name in table.column_names if name not in _DISTINCT]
            pq.write_table(table, file, compression="zstd", use_dictionary=repeated, write_statistics=False)

    @contextmanager
    def writing(self, shard: int, kind: str) -> Iterator[Callable[[int, pa.Table], None]]:
        """Yield what writes a part in the background; its call waits for the part before, and the end for the last."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="staging") as thread:
            under_way: list[Future[None]] = []

            def write(part: int, table: pa.Table) -> None:
                while under_way:
                    under_way.pop().result()
                under_way.append(thread.submit(self.write, shard, kind, part, table))

            yield write
            while under_way:
                under_way.pop().result()

    def parts(self, shard: int, kind: str) -> list[int]:
        """Return the numbers of the parts that are there, in order."""
        folder = self._newest(shard, kind)
        if folder is None:
            return []
        return sorted(int(Path(item.name).stem) for item in folder.iterdir() if item.name.endswith(".parquet"))

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
                " workers): clear the run from plan_shards on."
            ) from None

    def read_all(self, shard: int, kind: str, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Read the parts one after another."""
        for part in self.parts(shard, kind):
            yield part, self.read(shard, kind, part, columns)

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
