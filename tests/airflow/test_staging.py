"""Staging: parts of a run, in a folder and in an object store, readable by nobody else and gone at the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from medflex.airflow.staging import PARTS, Staging, part_of, staging_root
from medflex.errors import ConfigurationError, RunIncompleteError, TaskEndedError

RUN = "scheduled__2026-11-22T00:00:00+00:00"
ODD = ["", "a/b/../../c", "..", "manual__Пн 1?*:\\", "x" * 250, "%2e%2e/", "run\nid", RUN]


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Staging in a folder, and in an object store that is no folder."""
    if request.param == "file":
        monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}/staging")
        yield staging_root()
        return
    # Airflow takes any file system that is attached; those of clouds it attaches by itself.
    attach(protocol="memory", fs=MemoryFileSystem())
    monkeypatch.setenv("MEDFLEX_STAGING_URL", "memory://bucket/staging")
    yield staging_root()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def staging(root: Any) -> Staging:
    return Staging("medflex_transfer", RUN)


def table(*numbers: int) -> pa.Table:
    return pa.table({"id": list(numbers), "phone": [f"7900{number:07}" for number in numbers]})


def read_all(staging: Staging, shard: int, kind: str, columns: list[str] | None = None) -> list[tuple[int, pa.Table]]:
    return [(part, staging.read(shard, kind, part, columns)) for part in staging.parts(shard, kind)]


def files(root: Any) -> list[str]:
    return sorted(item for item in root.fs.find(root.path)) if root.exists() else []


def test_parts_of_a_slice_come_together(staging: Staging) -> None:
    for slice_, number in ((2, 0), (0, 1), (10, 3), (0, 0), (2, PARTS - 1)):
        part = part_of(slice_, number)
        staging.write(3, "extract", part, table(part))
    assert list(staging.slices(3, "extract")) == [[0, 1], [2 * PARTS, 3 * PARTS - 1], [10 * PARTS + 3]]
    assert list(staging.slices(4, "extract")) == []
    # It would be taken for a part of the next slice.
    with pytest.raises(ValueError, match="fewer than 1000 parts"):
        part_of(0, PARTS)


def test_parts_come_back_as_written_and_in_order(staging: Staging) -> None:
    for part in (10, 2, 0, 100_000):
        staging.write(3, "extract", part, table(part, part + 1))
    assert staging.parts(3, "extract") == [0, 2, 10, 100_000]
    assert staging.read(3, "extract", 2).equals(table(2, 3))
    assert [(part, read["id"].to_pylist()) for part, read in read_all(staging, 3, "extract", ["id"])] == [
        (part, [part, part + 1]) for part in (0, 2, 10, 100_000)
    ]
    assert staging.read(3, "extract", 0, ["id"]).column_names == ["id"]


def test_what_is_written_in_the_background_is_there_at_the_end(staging: Staging) -> None:
    with staging.writing(0, "extract") as write:
        for part in range(4):
            write(part, table(part))
    assert [read["id"].to_pylist() for _, read in read_all(staging, 0, "extract")] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("broken", [0, 2])
def test_a_part_that_could_not_be_written_is_told(
    staging: Staging, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """By the next part's writing, or by the end where it was the last."""
    really = staging._begun

    def begin_or_fail(shard: int, kind: str, part: int, schema: pa.Schema) -> Any:
        if part == broken:
            raise OSError("no space left")
        return really(shard, kind, part, schema)

    monkeypatch.setattr(staging, "_begun", begin_or_fail)
    with pytest.raises(OSError, match="no space left"), staging.writing(0, "extract") as write:  # noqa: PT012
        for part in range(3):
            assert part <= broken + 1
            write(part, table(part))


def test_rows_are_added_to_the_parts_of_several_slices(staging: Staging) -> None:
    parts = [part_of(slice_, number) for slice_, number in ((0, 0), (1, 0), (0, 0), (1, 1), (0, 1), (1, 1), (0, 1))]
    with staging.writing(0, "extract") as write:
        for number, part in enumerate(parts):
            write(part, table(number, number + 10), part not in parts[number + 1 :] and part != PARTS + 1)
    assert [(part, read["id"].to_pylist()) for part, read in read_all(staging, 0, "extract")] == [
        (0, [0, 10, 2, 12]), (1, [4, 14, 6, 16]), (PARTS, [1, 11]), (PARTS + 1, [3, 13, 5, 15])
    ]  # fmt: skip


def test_what_fails_in_the_middle_leaves_no_half_of_a_part(staging: Staging, root: Any) -> None:
    with pytest.raises(RuntimeError), staging.writing(0, "extract") as write:  # noqa: PT012
        write(0, table(1))
        write(1, table(2), False)
        write(1, table(3), False)
        raise RuntimeError
    assert [read["id"].to_pylist() for _, read in read_all(staging, 0, "extract")] == [[1]]
    assert len(files(root)) == 1


def test_the_types_and_notes_of_a_table_survive(staging: Staging) -> None:
    written = pa.table(
        {"at": pa.array([None, 1], pa.timestamp("us", "UTC")), "flag": pa.array([None, True])}
    ).replace_schema_metadata({"judged_at": "2026-11-22T00:00:00+00:00"})
    staging.write(0, "clinics", 0, written)
    read = staging.read(0, "clinics", 0)
    assert read.schema.equals(written.schema, check_metadata=True)
    assert read.equals(written)


def test_a_part_written_again_replaces_the_first(staging: Staging) -> None:
    staging.write(0, "extract", 0, table(1, 2, 3))
    staging.write(0, "extract", 0, table(4))
    assert staging.read(0, "extract", 0)["id"].to_pylist() == [4]


def test_shards_kinds_and_runs_lie_apart(staging: Staging) -> None:
    staging.write(0, "extract", 0, table(1))
    staging.write(0, "plan", 0, table(2))
    staging.write(1, "extract", 0, table(3))
    for other in (Staging("medflex_transfer", RUN + "x"), Staging("another_dag", RUN)):
        assert other.parts(0, "extract") == []
        other.write(0, "extract", 0, table(9))
    for number, (shard, kind) in enumerate([(0, "extract"), (0, "plan"), (1, "extract")], start=1):
        assert staging.read(shard, kind, 0)["id"].to_pylist() == [number]


def test_clearing_takes_one_kind_of_one_shard_only(staging: Staging) -> None:
    for part in range(3):
        staging.write(0, "extract", part, table(part))
    staging.write(0, "plan", 0, table(1))
    staging.write(1, "extract", 0, table(1))
    staging.clear(0, "extract")
    staging.clear(0, "extract")
    staging.clear(7, "never written")
    assert staging.parts(0, "extract") == []
    assert (staging.parts(0, "plan"), staging.parts(1, "extract")) == ([0], [0])
    # An attempt with fewer parts does not see what the one before has left.
    staging.write(0, "extract", 0, table(5))
    assert [read["id"].to_pylist() for _, read in read_all(staging, 0, "extract")] == [[5]]


def test_removing_leaves_nothing_of_this_run_and_all_of_the_others(staging: Staging, root: Any) -> None:
    other = Staging("medflex_transfer", "another run")
    for made in (staging, other):
        for shard in range(3):
            made.write(shard, "extract", 0, table(1))
    staging.remove()
    staging.remove()
    assert len(files(root)) == 3
    assert other.parts(2, "extract") == [0]
    other.remove()
    assert files(root) == []


def test_a_part_that_is_gone_is_told(staging: Staging) -> None:
    staging.write(0, "extract", 0, table(1))
    staging.remove()
    assert staging.parts(0, "extract") == []
    with pytest.raises(
        RunIncompleteError, match=r"A staged part of this run is gone .*: clear this shard from"
    ) as error:
        staging.read(0, "extract", 0)
    assert error.value.__suppress_context__
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("run_id", ODD)
def test_any_run_id_has_a_folder_of_its_own_below_the_root(root: Any, run_id: str) -> None:
    staging = Staging("medflex_transfer", run_id)
    staging.write(0, "extract", 0, table(1))
    assert staging.parts(0, "extract") == [0]
    (file,) = files(root)
    assert str(root.path).rstrip("/") in file
    assert ".." not in file
    staging.remove()
    assert files(root) == []


def test_run_ids_do_not_share_folders(root: Any) -> None:
    folders = {str(Staging("medflex_transfer", run_id).folder) for run_id in ODD}
    assert len(folders) == len(ODD)


def test_nobody_else_may_look_into_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask, and also where the folder was there already."""
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}/staging")
    staging = Staging("medflex_transfer", RUN)
    before = os.umask(0)
    try:
        staging.write(0, "extract", 0, table(1))
        staging.clear(0, "extract")
        staging.write(0, "extract", 0, table(1))
        staging.write(0, "plan", 0, table(1))
    finally:
        os.umask(before)
    folder = Path(staging.folder.path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.rglob("*.parquet"))) == len(list(tmp_path.rglob("*.parquet"))) == 2


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_place_nothing_is_staged(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MEDFLEX_STAGING_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("MEDFLEX_STAGING_URL", value)
    with pytest.raises(ConfigurationError, match="MEDFLEX_STAGING_URL is not set: name a folder or bucket"):
        Staging("medflex_transfer", RUN)


def test_an_attempt_thought_dead_changes_nothing_that_the_next_one_staged(root: Any) -> None:
    dead, alive = Staging("medflex_transfer", RUN, attempt=1), Staging("medflex_transfer", RUN, attempt=2)
    dead.clear(0, "extract")
    dead.write(0, "extract", 0, table(1))
    alive.clear(0, "extract")
    alive.write(0, "extract", 0, table(2))
    dead.write(0, "extract", 0, table(3))
    dead.write(0, "extract", 1, table(4))
    for reader in (dead, alive, Staging("medflex_transfer", RUN)):
        assert [read["id"].to_pylist() for _, read in read_all(reader, 0, "extract")] == [[2]]
    # Nor can it remove what the next one staged.
    dead.clear(0, "extract")
    assert alive.read(0, "extract", 0)["id"].to_pylist() == [2]
    alive.remove()
    assert files(root) == []


def test_what_a_task_writes_that_was_ended_meanwhile_is_removed(root: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow lets it go on for seconds, in which the run has removed what was staged."""
    monkeypatch.setattr("medflex.airflow.staging.LOOK_SECONDS", 0)
    wanted = True
    staging = Staging("medflex_transfer", RUN, is_wanted=lambda: wanted)
    staging.write(0, "clinics", 0, table(1))
    with pytest.raises(TaskEndedError, match="was ended while it wrote"), staging.writing(0, "extract") as write:  # noqa: PT012
        write(0, table(1))
        write(1, table(2), False)
        wanted = False
        write(2, table(3))
        pytest.fail("it goes on to the end")
    assert staging.parts(0, "extract") == []
    assert staging.parts(0, "clinics") == [0]
    # At the end of it as well, however soon that comes.
    monkeypatch.setattr("medflex.airflow.staging.LOOK_SECONDS", 3600)
    with pytest.raises(TaskEndedError):
        staging.write(0, "extract", 0, table(1))
    assert len(files(root)) == 1
