"""What the tasks of ``medflex_housekeeping`` do: remove what is older than it has to be. They report counts only."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Context, ObjectStoragePath, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from medflex.airflow import connections
from medflex.airflow.environment import whole_number
from medflex.airflow.tasks.parts import data_docs_url, logged, parameters_of, speaking
from medflex.clock import SystemClock
from medflex.errors import BadParameterError, ConfigurationError

CLOCK = SystemClock()
DAYS = {"runs_days": 120, "batches_days": 400, "staging_days": 2, "data_docs_days": 120}
"""What is kept how long where nothing else is said: parameter of the DAG -> days of 24 hours."""
MOST_DAYS = 36_500
ACTIVE = ["queued", "running"]
"""States of a run that Airflow still works on; a paused or waiting one is among them."""

_STAGING_DAG = re.compile(r"medflex_\w+")
_STAGING_RUN = re.compile(r"[0-9a-f]{24}")
_DOCS_RUN = re.compile(r".*-[0-9a-f]{8}")


# -- tasks -----------------------------------------------------------------------------------------------------------


@speaking
def prune_ledger() -> dict[str, int]:
    """Remove old runs, batches, answered questions, partner actions, alerts that are over and marks of ended attempts;
    return how many of each.
    """
    from medflex.ledger.retention import LedgerRetention

    context = get_current_context()
    runs_days, batches_days = days_of(context, "runs_days"), days_of(context, "batches_days")
    with closing(LedgerRetention(connections.postgres_conninfo(connections.LEDGER))) as ledger:
        ledger.check_schema()
        removed = {
            "runs": ledger.prune_runs(runs_days),
            "batches": ledger.prune_batches(batches_days),
            "holds": ledger.prune_holds(runs_days),
            "actions": ledger.prune_actions(),
            "alerts": ledger.prune_alerts(runs_days),
            "writers": ledger.prune_writers(),
        }
    return logged(removed)


@speaking
def prune_journal() -> dict[str, int]:
    """Remove old decisions about partner actions from Medlock's journal; return how many.

    How long they stay is not for a run to say: what is no longer there could take effect a second time.
    """
    from medflex.airflow.hooks.medlock_actions import MedlockActions
    from medflex.ledger.retention import ACTION_DAYS

    check_parameters(get_current_context())
    try:
        connections.connection(connections.MEDLOCK_ACTIONS)
    except ConfigurationError:
        raise AirflowSkipException(
            "The connection medlock_actions does not exist, so there is no journal of partner actions to prune."
        ) from None
    with MedlockActions(connections.postgres_conninfo(connections.MEDLOCK_ACTIONS)) as medlock:
        return logged({"decisions": medlock.forget(ACTION_DAYS)})


@speaking
def remove_old_staging() -> dict[str, int]:
    """Remove what runs that are over have left in staging; return how many folders went and how many stay.

    That it came to its end is noted in the ledger: nothing else would tell that names and phones stay.
    """
    from medflex.airflow.staging import staging_root
    from medflex.ledger import watches
    from medflex.ledger.retention import LedgerRetention

    context = get_current_context()
    older_than = CLOCK.now() - timedelta(days=days_of(context, "staging_days"))
    root = staging_root()
    with closing(LedgerRetention(connections.postgres_conninfo(connections.LEDGER))) as ledger:
        ledger.check_schema()
        counts = sweep_staging(root, older_than, ledger.run_ids, functools.partial(_is_active, context))
        ledger.note_watch(watches.STAGING_REMOVED, CLOCK.now(), {})
    return logged(counts)


@speaking
def prune_data_docs() -> dict[str, int]:
    """Remove the pages of old runs from the quality reports and from their index; return how many runs."""
    context = get_current_context()
    older_than = CLOCK.now() - timedelta(days=days_of(context, "data_docs_days"))
    return logged(sweep_data_docs(ObjectStoragePath(data_docs_url()), older_than))


# -- days ------------------------------------------------------------------------------------------------------------


def days_of(context: Context, name: str) -> int:
    """Return how many days the thing called ``name`` (a key of :data:`DAYS`) is kept.

    The run's parameter counts, else the environment variable (``MEDFLEX_KEEP_RUNS_DAYS`` …), else the built-in number.

    Raises:
        BadParameterError: any parameter of the run is unknown or no whole number of days, also one that is not asked
            for here: a run that was started with a slip removes nothing at all.
        ConfigurationError: the environment variable has an unusable value.
    """
    params = check_parameters(context)
    if params.get(name) is not None:
        return int(params[name])
    return whole_number(f"MEDFLEX_KEEP_{name.upper()}", DAYS[name], most=MOST_DAYS, unit="days")


def check_parameters(context: Context) -> dict[str, Any]:
    """Return the parameters of the run.

    Raises:
        BadParameterError: one of them is unknown or no whole number of days.
    """
    params = parameters_of(context, dict.fromkeys(DAYS, ""))
    for parameter in DAYS:
        value = params.get(parameter)
        if value is not None and not (type(value) is int and 1 <= value <= MOST_DAYS):
            raise BadParameterError(
                f"The parameter {parameter} must be a whole number of days from 1 to {MOST_DAYS}, or empty."
            )
    return params


# -- staging ---------------------------------------------------------------------------------------------------------


def sweep_staging(
    root: ObjectStoragePath,
    older_than: datetime,
    run_ids: Callable[[str], list[str]],
    is_active: Callable[[str, str], bool],
) -> dict[str, int]:
    """Remove the folders of runs under ``root`` in which nothing was written since ``older_than`` (aware).

    A folder is named by a hash, so the ledger has to say whose it is; Airflow then tells whether that run is still
    active (queued, running; also while it waits or is paused), and such a one keeps its folder however old. A folder
    whose run the ledger does not know can be read by no task: each asks the ledger for its run first, and the one that
    writes it down begins with an empty staging.

    Args:
        run_ids: returns the ids of the runs of a DAG that the ledger knows.
        is_active: tells of a DAG's id and a run's id whether Airflow still works on it.

    Returns:
        ``removed``, ``still_active`` (old, but in use) and ``recent``, in folders.
    """
    counts = {"removed": 0, "still_active": 0, "recent": 0}
    for dag_folder in _folders(root, _STAGING_DAG):
        old = {}
        for folder in _folders(dag_folder, _STAGING_RUN):
            if _is_older(folder, older_than):
                old[folder.name] = folder
            else:
                counts["recent"] += 1
        # The ledger is asked after the folders were listed: a run that comes later has no old folder.
        run_of = _runs_by_folder(dag_folder.name, run_ids(dag_folder.name)) if old else {}
        for name, folder in old.items():
            if name in run_of and is_active(dag_folder.name, run_of[name]):
                counts["still_active"] += 1
                continue
            with suppress(FileNotFoundError):
                folder.fs.rm(folder.path, recursive=True)
            counts["removed"] += 1
        _remove_if_empty(dag_folder, older_than)
    return counts


def _runs_by_folder(dag_id: str, run_ids: list[str]) -> Mapping[str, str]:
    from medflex.airflow.staging import Staging

    return {Staging(dag_id, run_id).folder.name: run_id for run_id in run_ids}


def _is_active(context: Context, dag_id: str, run_id: str) -> bool:
    """Ask Airflow's API, which also counts runs of other DAGs; one that Airflow has forgotten counts as over."""
    return bool(context["ti"].get_dr_count(dag_id=dag_id, run_ids=[run_id], states=ACTIVE))


def _remove_if_empty(folder: ObjectStoragePath, older_than: datetime) -> None:
    """Remove a folder in which there is nothing; object stores have none such."""
    if not any(folder.iterdir()) and _is_older(folder, older_than):
        # A run that has just begun may have put something there.
        with suppress(OSError):
            folder.fs.rmdir(folder.path)


# -- data docs -------------------------------------------------------------------------------------------------------


def sweep_data_docs(target: ObjectStoragePath, older_than: datetime) -> dict[str, int]:
    """Remove the pages of runs that started before ``older_than`` (aware); leave no link to them in the index.

    The index is also mended when it links to pages that are gone, as after a sweep that was cut off.

    Returns:
        ``removed`` and ``kept``, in runs.
    """
    counts = {"removed": 0, "kept": 0}
    runs = target / "runs"
    old = []
    for folder in _folders(runs, _DOCS_RUN):
        if _published_before(folder, older_than):
            old.append(folder)
        else:
            counts["kept"] += 1
    for folder in old:
        with suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)
        counts["removed"] += 1
    index = target / "index.html"
    if index.exists():
        linked = set(re.findall(r"""["']runs/([^/"']+)/""", index.read_text(encoding="utf-8")))
        if linked - {folder.name for folder in _folders(runs, _DOCS_RUN)}:
            # Imported here: Great Expectations takes seconds, and on most days nothing has to be written.
            from medflex.quality.report import index_page

            index.write_text(index_page(target), encoding="utf-8")
    return counts


def _published_before(folder: ObjectStoragePath, moment: datetime) -> bool:
    """Tell whether a run started before ``moment``; by the age of its files where the publication was cut off.

    What an object store knows of a page's age tells nothing: each publication puts all pages there anew.
    """
    try:
        summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return datetime.fromisoformat(summary["started_at"]) < moment
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return _is_older(folder, moment)


# -- folders, also on object stores ----------------------------------------------------------------------------------


def _folders(parent: ObjectStoragePath, name: re.Pattern[str]) -> Iterator[ObjectStoragePath]:
    """Return the folders of exactly these names; whatever else lies there is not ours."""
    parent.fs.invalidate_cache()
    if not parent.exists():
        return iter(())
    found = (item for item in parent.iterdir() if name.fullmatch(item.name) and item.is_dir())
    return iter(sorted(found, key=lambda item: item.name))


def _is_older(folder: ObjectStoragePath, moment: datetime) -> bool:
    """Tell whether nothing below a folder was written since ``moment``.

    Files tell; where there are none, folders do, on file systems that know their age. One without any age is old.
    """
    files = folder.fs.find(folder.path)
    paths = files or [folder.path, *folder.fs.find(folder.path, withdirs=True)]
    return all(modified < moment for modified in _modified(folder.fs, paths))


def _modified(fs: Any, paths: list[str]) -> Iterator[datetime]:
    for path in paths:
        try:
            modified = fs.modified(path)
        except (FileNotFoundError, IsADirectoryError, KeyError):
            continue  # gone meanwhile, or an object store's folder, which has no age
        yield modified if modified.tzinfo else modified.replace(tzinfo=UTC)
