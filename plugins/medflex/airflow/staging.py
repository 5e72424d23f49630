"""Run-time staging between tasks: Parquet parts under ``MEDFLEX_STAGING_URL``, gone when the run ends.

It is the one place outside Medlock and Medflex where names and phones lie, and only while a run lasts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from airflow.sdk import ObjectStoragePath

from medflex.errors import ConfigurationError, RunIncompleteError


def staging_root() -> ObjectStoragePath:
    """Return the folder of all runs, readable by all workers."""
    url = os.environ.get("MEDFLEX_STAGING_URL", "")
    if not url:
        raise ConfigurationError(
            "MEDFLEX_STAGING_URL is not set: name a folder or bucket that all workers can read and nobody else,"
            " for example file:///var/lib/medflex/staging or s3://connection@bucket/medflex."
        )
    return ObjectStoragePath(url)


class Staging:
    """The staged parts of one run. ``kind`` is what a part holds: ``extract``, ``eligible`` or ``plan``."""

    def __init__(self, dag_id: str, run_id: str) -> None:
        # Run ids hold characters that file systems and object stores do not all take.
        self.folder = staging_root() / dag_id / hashlib.sha256(run_id.encode()).hexdigest()[:24]

    def clear(self, shard: int, kind: str) -> None:
        """Remove what an earlier attempt left, so that fewer parts this time cannot leave old ones behind."""
        folder = self._folder(shard, kind)
        if folder.exists():
            folder.fs.rm(folder.path, recursive=True)

    def write(self, shard: int, kind: str, part: int, table: pa.Table) -> None:
        """Write one part."""
        folder = self._folder(shard, kind)
        self._make(folder)
        with cast("Any", folder / f"{part:05}.parquet").open("wb") as file:
            pq.write_table(table, file, compression="zstd")

    def parts(self, shard: int, kind: str) -> list[int]:
        """Return the numbers of the parts that are there, in order."""
        folder = self._folder(shard, kind)
        if not folder.exists():
            return []
        return sorted(int(Path(item.name).stem) for item in folder.iterdir() if item.name.endswith(".parquet"))

    def read(self, shard: int, kind: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part."""
        file = self._folder(shard, kind) / f"{part:05}.parquet"
        try:
            with cast("Any", file).open("rb") as handle:
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
        return self.folder / f"{shard:05}" / kind

    def _make(self, folder: ObjectStoragePath) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.protocol in ("file", "local"):
            # Nobody but the workers' user may look into a run; object stores have their bucket policy for that.
            Path(self.folder.path).chmod(0o700)
