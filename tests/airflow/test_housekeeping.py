"""Housekeeping: what is too old goes from folders and object stores, what is in use stays; and the DAG as a whole."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psycopg
import pyarrow as pa
import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from medflex.airflow.staging import Staging, staging_root
from medflex.airflow.tasks import housekeeping
from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.errors import BadParameterError, ConfigurationError
from medflex.ledger.retention import ACTION_DAYS
from medflex.ledger.store import Ledger
from sandbox.postgres import free_port
from tests.airflow.dag_runs import ROOT, dag, task_states

DAG_ID = "medflex_transfer"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
TASKS = ("prune_ledger", "prune_journal", "remove_old_staging", "prune_data_docs")


@pytest.fixture(params=["file", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder, and an object store that is no folder; both settings point into it."""
    url = f"file://{tmp_path}"
    if request.param == "memory":
        # Airflow takes any file system that is attached; those of clouds it attaches by itself.
        attach(protocol="memory", fs=MemoryFileSystem())
        url = "memory://bucket"
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"{url}/staging")
    monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", f"{url}/docs")
    yield url
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def age(path: ObjectStoragePath, by: timedelta) -> None:
    """Let everything at and below a path be that old."""
    for item in [path.path, *path.fs.find(path.path, withdirs=True)]:
        if path.protocol == "memory":
            if item in path.fs.store:
                path.fs.store[item].modified = datetime.now(UTC) - by
        else:
            at = (datetime.now(UTC) - by).timestamp()
            os.utime(item, (at, at))


def stage(run_id: str, by: timedelta, dag_id: str = DAG_ID) -> Staging:
    """Stage two parts of a run; they were written that long ago."""
    made = Staging(dag_id, run_id)
    made.write(0, "extract", 0, pa.table({"phone": ["79000000000"]}))
    made.write(1, "eligible", 3, pa.table({"phone": ["79000000000"]}))
    age(made.folder, by)
    return made


def sweep(known: list[str], active: set[str]) -> dict[str, int]:
    """Sweep what is older than two days; ``known`` to the ledger, ``active`` in Airflow."""
    return housekeeping.sweep_staging(
        staging_root(),
        datetime.now(UTC) - 2 * DAY,
        lambda dag_id: known if dag_id == DAG_ID else [],
        lambda dag_id, run_id: dag_id == DAG_ID and run_id in active,
    )


# -- staging


def test_old_staging_of_runs_that_are_over_goes_wholly(home: str) -> None:
    over, recent = stage("over", 49 * timedelta(hours=1)), stage("recent", 47 * timedelta(hours=1))
    assert sweep(["over", "recent"], set()) == {"removed": 1, "still_active": 0, "recent": 1}
    assert not over.folder.exists()
    assert len(recent.parts(0, "extract") + recent.parts(1, "eligible")) == 2
    assert sweep(["over", "recent"], set()) == {"removed": 0, "still_active": 0, "recent": 1}


def test_an_active_run_keeps_its_staging_however_old(home: str) -> None:
    """A run can wait for its gate, or be paused, for any time."""
    paused, over = stage("paused", 200 * DAY), stage("over", 200 * DAY)
    assert sweep(["paused", "over"], {"paused"}) == {"removed": 1, "still_active": 1, "recent": 0}
    assert paused.parts(0, "extract") == [0]
    assert paused.parts(1, "eligible") == [3]
    assert not over.folder.exists()


def test_one_new_part_makes_the_whole_folder_recent(home: str) -> None:
    started_again = stage("started again", 9 * DAY)
    started_again.write(7, "plan", 0, pa.table({"planned": [True]}))
    assert sweep(["started again"], set()) == {"removed": 0, "still_active": 0, "recent": 1}
    assert started_again.parts(0, "extract") == [0]


def test_staging_of_a_run_that_the_ledger_does_not_know_goes_too(home: str) -> None:
    """No task can read it: each asks the ledger for its run first."""
    lost = stage("lost", 3 * DAY)
    assert sweep([], {"lost"})["removed"] == 1
    assert not lost.folder.exists()


def test_only_tasks_whose_run_the_ledger_knows_put_rows_into_staging() -> None:
    """Another module may join them if ``plan_shards``, or its like, has written the run down before."""
    plugins = ROOT / "plugins" / "medflex"
    users = {str(path.relative_to(plugins)) for path in plugins.rglob("*.py") if "import Staging" in path.read_text()}
    assert users == {"airflow/tasks/transfer.py", "airflow/tasks/housekeeping.py"}


def test_what_is_not_of_the_product_is_left_alone(home: str) -> None:
    root = staging_root()
    others = [
        root / "notes.txt",
        root / DAG_ID / "notes.txt",
        root / DAG_ID / "archive" / "a.parquet",
        root / DAG_ID / ("0" * 25) / "a.parquet",
        root / "photos" / ("0" * 24) / "a.jpg",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    age(root, 900 * DAY)
    assert sweep([], set()) == {"removed": 0, "still_active": 0, "recent": 0}
    assert all(path.exists() for path in others)


def test_empty_folders_go_and_those_of_an_active_run_stay(home: str) -> None:
    root = staging_root()
    empty, busy = Staging(DAG_ID, "empty").folder, Staging(DAG_ID, "busy").folder
    gone = root / "medflex_gone"
    for folder in (empty / "00000" / "extract", busy, gone):
        folder.mkdir(parents=True)
    age(root, 3 * DAY)
    assert sweep(["empty", "busy"], {"busy"})["removed"] == 1
    assert not empty.exists()
    assert not gone.exists()
    assert busy.exists()


def test_a_folder_that_was_just_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a run's folder and writing its first part there is nothing in it."""
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}/staging")
    folder = Staging(DAG_ID, "just begun").folder
    folder.mkdir(parents=True)
    (staging_root() / "medflex_other").mkdir()
    assert sweep([], set()) == {"removed": 0, "still_active": 0, "recent": 1}
    assert folder.exists()
    assert (staging_root() / "medflex_other").exists()


def test_without_any_staging_there_is_nothing_to_do(home: str) -> None:
    assert sweep([], set()) == {"removed": 0, "still_active": 0, "recent": 0}


# -- data docs


def publish(target: ObjectStoragePath, *ages: timedelta) -> list[str]:
    """Publish the pages of runs that started that long ago; return their folders."""
    from medflex.quality import validation
    from medflex.quality.report import RunInfo, publish_data_docs

    numbers = validation.Funnel(extracted=1, eligible=1, withheld=0, quarantined=0, unchanged=1, planned=0, reasons={})
    results = [validation.validate_run(numbers, [])]
    folders = []
    for by in ages:
        info = RunInfo(f"run of {by.total_seconds():.0f}", date(2026, 1, 1), "transfer", NOW - by)
        publish_data_docs(results, info, target)  # type: ignore[arg-type]
        folders.append(info.folder)
    return folders


def linked(target: ObjectStoragePath) -> set[str]:
    """Return the folders of runs that the index links to."""
    text = (target / "index.html").read_text(encoding="utf-8")
    return {part.split("/")[0] for part in text.split('"runs/')[1:]}


def test_pages_of_old_runs_go_and_the_index_does_not_link_to_them(home: str) -> None:
    target = ObjectStoragePath(f"{home}/docs")
    old, older, young = publish(target, 121 * DAY, 300 * DAY, 119 * DAY)
    assert linked(target) == {old, older, young}
    # On an object store each publication puts all pages there anew, so their age tells nothing.
    assert housekeeping.sweep_data_docs(target, NOW - 120 * DAY) == {"removed": 2, "kept": 1}
    assert linked(target) == {young}
    assert (target / "runs" / young / "run.html").exists()
    assert not (target / "runs" / old).exists()
    assert housekeeping.sweep_data_docs(target, NOW - 120 * DAY) == {"removed": 0, "kept": 1}


def test_an_index_that_links_to_pages_which_are_gone_is_mended(home: str) -> None:
    """As after a sweep that was cut off before it had written the index."""
    target = ObjectStoragePath(f"{home}/docs")
    gone, young = publish(target, 121 * DAY, 119 * DAY)
    (target / "runs" / gone).fs.rm((target / "runs" / gone).path, recursive=True)
    assert housekeeping.sweep_data_docs(target, NOW - 120 * DAY) == {"removed": 0, "kept": 1}
    assert linked(target) == {young}


def test_an_unfinished_publication_is_judged_by_the_age_of_its_pages(home: str) -> None:
    target = ObjectStoragePath(f"{home}/docs")
    old, young = publish(target, 1 * DAY, 2 * DAY)
    for folder in (old, young):
        (target / "runs" / folder / "run.json").unlink()
    age(target / "runs" / old, 121 * DAY)
    stranger = target / "runs" / "notes" / "a.txt"
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.write_text("x")
    age(stranger.parent, 900 * DAY)
    assert housekeeping.sweep_data_docs(target, NOW - 120 * DAY) == {"removed": 1, "kept": 1}
    assert not (target / "runs" / old).exists()
    assert (target / "runs" / young).exists()
    assert stranger.exists()


def test_without_any_report_there_is_nothing_to_do(home: str) -> None:
    assert housekeeping.sweep_data_docs(ObjectStoragePath(f"{home}/docs"), NOW) == {"removed": 0, "kept": 0}


# -- days


def context(params: dict[str, Any] | None = None, conf: dict[str, Any] | None = None) -> Any:
    all_params = dict.fromkeys(housekeeping.DAYS) | (params or {})
    return {"params": all_params, "dag_run": SimpleNamespace(conf=conf)}


def test_the_parameter_counts_then_the_environment_then_the_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name: housekeeping.days_of(context(), name) for name in housekeeping.DAYS} == {
        "runs_days": 120, "batches_days": 400, "staging_days": 2, "data_docs_days": 120,
    }  # fmt: skip
    names = ("RUNS_DAYS", "BATCHES_DAYS", "STAGING_DAYS", "DATA_DOCS_DAYS")
    for number, name in enumerate(names, start=1):
        monkeypatch.setenv(f"MEDFLEX_KEEP_{name}", f" {number} ")
    assert [housekeeping.days_of(context(), name) for name in housekeeping.DAYS] == [1, 2, 3, 4]
    assert housekeeping.days_of(context({"runs_days": 30}), "runs_days") == 30
    assert housekeeping.days_of(context(conf={"runs_days": 31}), "runs_days") == 31
    monkeypatch.setenv("MEDFLEX_KEEP_RUNS_DAYS", "")
    assert housekeeping.days_of(context(), "runs_days") == 120


@pytest.mark.parametrize("value", [0, -1, 1.5, "7", True, [], 36_501])
@pytest.mark.parametrize("name", housekeeping.DAYS)
def test_a_slip_in_any_parameter_is_refused_whichever_is_asked_for(name: str, value: Any) -> None:
    for asked in housekeeping.DAYS:
        for given in (context({name: value}), context(conf={name: value})):
            with pytest.raises(BadParameterError, match=f"The parameter {name} must be a whole number of days"):
                housekeeping.days_of(given, asked)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(BadParameterError, match="no parameter days: it knows runs_days, batches_days"):
        housekeeping.days_of(context(conf={"days": 3}), "runs_days")


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "two", "1e3", "36501", "999999", "٣"])
def test_an_unusable_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MEDFLEX_KEEP_STAGING_DAYS", text)
    with pytest.raises(ConfigurationError, match=r"^MEDFLEX_KEEP_STAGING_DAYS is no whole number of days from 1 "):
        housekeeping.days_of(context(), "staging_days")
    assert housekeeping.days_of(context(), "runs_days") == 120


# -- the DAG


class House:
    """A ledger, Medlock's journal, staging and data docs, each with something old and something young."""

    def __init__(self, uri: str, medlock: str, folder: Path) -> None:
        self.uri, self.medlock, self.folder = uri, medlock, folder
        for age in (2 * ACTION_DAYS, ACTION_DAYS + 1, ACTION_DAYS - 1):
            self._action(age * DAY)
        with Ledger(uri) as ledger:
            for number in range(14):
                self._run(ledger, f"run {number}", NOW - timedelta(days=300 - number))
            self.unsettled = [f"{name}-{uuid.uuid4()}" for name in ("paused", "queued", "failed", "forgotten")]
            for run_id in self.unsettled:
                self._run(ledger, run_id, NOW - 5 * DAY, settled=False)
        self.staged = [stage(run_id, 5 * DAY) for run_id in self.unsettled]
        self.docs = ObjectStoragePath(f"file://{folder}/docs")
        self.pages = publish(self.docs, 121 * DAY, 119 * DAY)

    def _run(self, ledger: Ledger, run_id: str, at: datetime, *, settled: bool = True) -> None:
        run = ledger.start_run(
            dag_id=DAG_ID, run_id=run_id, run_type="scheduled", mode="transfer", anchor=at, clinic_ids=None,
            started_at=at, clinics=[], shards=[Shard("open", (1,), AccessState.OPEN)],
        )  # fmt: skip
        if settled:
            with Ledger(self.uri, now=lambda: at) as then:
                then.settle_run(run.run_key, [])

    def _action(self, age: timedelta) -> None:
        """A partner action that was decided and answered so long ago."""
        action_id = uuid.uuid4()
        with psycopg.connect(self.uri) as connection:
            connection.execute(
                "INSERT INTO ledger.partner_action (action_id, read_at, read_in, status_code, reason, decided_at,"
                " answer, answered_at) VALUES (%s, %s, 'run', 404, 'revoked', %s, 'taken', %s)",
                [action_id, *[NOW - age] * 3],
            )
        with psycopg.connect(self.medlock) as connection:
            connection.execute(
                "INSERT INTO medlock.partner_action (action_id, status_code, reason, decided_at)"
                " VALUES (%s, 404, 'revoked', %s)",
                [action_id, NOW - age],
            )

    def journal(self) -> int:
        """Return how many decisions Medlock's journal holds."""
        with psycopg.connect(self.medlock) as connection:
            (number,) = connection.execute("SELECT count(*) FROM medlock.partner_action").fetchone() or (-1,)
        return int(number)

    def is_as_it_was(self) -> tuple[bool, ...]:
        """Tell of the ledger, the journal, staging and the data docs whether nothing was removed."""
        with psycopg.connect(self.uri) as connection:
            kept = [
                connection.execute(f"SELECT count(*) FROM ledger.{table}".encode()).fetchone()
                for table in ("run", "partner_action")
            ]
        staged = all(one.folder.exists() for one in self.staged)
        docs = all((self.docs / "runs" / name).exists() for name in self.pages)
        return kept == [(18,), (3,)], self.journal() == 3, staged, docs


@pytest.fixture
def house(
    ledger_db: str, medlock_db: str, medlock_actions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> House:
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_ACTIONS", medlock_actions)
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}/staging")
    monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", f"file://{tmp_path}/docs")
    return House(ledger_db, medlock_db, tmp_path)


@pytest.fixture
def known_to_airflow(airflow_db: object) -> Iterator[Callable[[str, str], None]]:
    """A function that lets Airflow have a run of ``medflex_transfer`` in some state."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    made: list[str] = []

    def have(run_id: str, state: Any) -> None:
        made.append(run_id)
        with create_session() as session:
            run = DagRun(dag_id=DAG_ID, run_id=run_id, state=state, run_type=DagRunType.MANUAL, run_after=NOW)
            run.triggered_by = DagRunTriggeredByType.TEST
            session.add(run)

    yield have
    with create_session() as session:
        session.query(DagRun).where(DagRun.run_id.in_(made)).delete()


def run_housekeeping(**conf: Any) -> Any:
    """Run the DAG to its end, each task tried once; return the DagRun."""
    found = dag("medflex_housekeeping")
    for operator in found.tasks:
        operator.retries = 0
    return found.test(run_conf=conf)


@pytest.mark.timeout(300)
def test_a_run_of_the_dag_removes_what_is_old_and_asks_airflow_which_runs_are_active(
    house: House, known_to_airflow: Callable[[str, str], None]
) -> None:
    # A paused run is still running to Airflow; the fourth is one that it has forgotten.
    for run_id, state in zip(house.unsettled, ("running", "queued", "failed"), strict=False):
        known_to_airflow(run_id, state)
    run = run_housekeeping()
    assert run.state == "success", task_states(run)
    with psycopg.connect(house.uri) as connection:
        left = [row[0] for row in connection.execute("SELECT run_id FROM ledger.run ORDER BY run_key").fetchall()]
    assert left == [*(f"run {number}" for number in range(4, 14)), *house.unsettled]
    assert [one.folder.exists() for one in house.staged] == [True, True, False, False]
    assert house.staged[0].parts(0, "extract") == [0]
    assert linked(house.docs) == {house.pages[1]}
    assert house.journal() == 1
    counts = {
        item.task_id: item.xcom_pull(task_ids=item.task_id, run_id=run.run_id) for item in run.get_task_instances()
    }
    assert counts == {
        "prune_ledger": {"runs": 4, "batches": 0, "holds": 0, "actions": 2, "alerts": 0, "writers": 0},
        "prune_journal": {"decisions": 2},
        "remove_old_staging": {"removed": 2, "still_active": 2, "recent": 0},
        "prune_data_docs": {"removed": 1, "kept": 1},
    }


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("airflow_db")
@pytest.mark.parametrize("number", range(4), ids=TASKS)
def test_one_task_that_fails_stops_no_other_and_fails_the_run(
    house: House, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    wrong = (
        ("MEDFLEX_KEEP_BATCHES_DAYS", "0"),
        ("AIRFLOW_CONN_MEDLOCK_ACTIONS", f"postgresql://medlock_actions:x@127.0.0.1:{free_port()}/medlock"),
        ("MEDFLEX_KEEP_STAGING_DAYS", "0"),
        ("MEDFLEX_KEEP_DATA_DOCS_DAYS", "0"),
    )
    monkeypatch.setenv(*wrong[number])
    run = run_housekeeping()
    assert run.state == "failed"
    assert task_states(run) == {
        (name, -1): "failed" if place == number else "success" for place, name in enumerate(TASKS)
    }
    # The task whose setting is wrong has removed nothing, the others have.
    assert [place for place, untouched in enumerate(house.is_as_it_was()) if untouched] == [number]


def test_where_nobody_carries_out_partner_actions_there_is_no_journal_to_prune(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", context)
    monkeypatch.delenv("AIRFLOW_CONN_MEDLOCK_ACTIONS")
    with pytest.raises(AirflowSkipException, match="connection medlock_actions does not exist, so there is no journal"):
        housekeeping.prune_journal()
    assert housekeeping.prune_ledger()["actions"] == 2
    assert house.journal() == 3
    # One that is there and wrong is told.
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_ACTIONS", "postgresql://medlock_actions:x@127.0.0.1")
    with pytest.raises(AirflowFailException, match="medlock_actions names no database"):
        housekeeping.prune_journal()


def test_that_old_staging_was_removed_is_noted_and_not_that_it_was_tried(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", context)
    monkeypatch.setattr(housekeeping, "_is_active", lambda *_: False)

    def noted() -> list[tuple[Any, ...]]:
        with psycopg.connect(house.uri) as connection:
            return connection.execute("SELECT looked_at FROM ledger.watch WHERE name = 'staging_removed'").fetchall()

    with monkeypatch.context() as broken:
        broken.setattr(housekeeping, "_is_older", Mock(side_effect=PermissionError))
        with pytest.raises(AirflowException, match="remove_old_staging failed with PermissionError"):
            housekeeping.remove_old_staging()
    assert noted() == []
    assert housekeeping.remove_old_staging()["removed"] == 4
    ((at,),) = noted()
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=1)


def test_how_long_decisions_stay_cannot_be_shortened(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", lambda: context(dict.fromkeys(housekeeping.DAYS, 1)))
    for name in ("ACTIONS", "RUNS", "BATCHES"):
        monkeypatch.setenv(f"MEDFLEX_KEEP_{name}_DAYS", "1")
    assert housekeeping.prune_ledger()["actions"] == 2
    assert housekeeping.prune_journal() == {"decisions": 2}


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_was_started_with_a_slip_removes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(housekeeping, "get_current_context", lambda: context(conf={"runs_days": 1, "docs_days": 1}))
    with pytest.raises(AirflowFailException, match="BadParameterError: This DAG has no parameter docs_days"):
        getattr(housekeeping, task)()
    assert house.is_as_it_was() == (True, True, True, True)


def test_the_dag_wires_four_independent_tasks_and_reads_no_environment() -> None:
    os.environ["MEDFLEX_KEEP_RUNS_DAYS"] = "not a number"
    try:
        found = dag("medflex_housekeeping")
    finally:
        del os.environ["MEDFLEX_KEEP_RUNS_DAYS"]
    assert {operator.task_id for operator in found.tasks} == set(TASKS)
    assert not any(operator.upstream_task_ids or operator.downstream_task_ids for operator in found.tasks)
    assert {name: found.params[name] for name in found.params} == dict.fromkeys(housekeeping.DAYS)
    assert json.loads(json.dumps(found.params.get_param("staging_days").schema))["minimum"] == 1
