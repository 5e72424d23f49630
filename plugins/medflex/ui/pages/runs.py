"""The pages *Runs* and *Run*. The latter is the run's tab in Airflow, and that of each task instance of the DAG too."""

from __future__ import annotations

from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from medflex.ledger.overview import LedgerOverview, ReasonCount, RunLine, ShardLine
from medflex.quality.report import RunInfo
from medflex.ui import charts
from medflex.ui.mount import DAG_ID
from medflex.ui.security import require_dag, signed_in
from medflex.ui.view import View, view_of

router = APIRouter()

Reader = Annotated[View, Depends(view_of)]
User = Annotated[BaseUser, Depends(signed_in)]
DAGS = (DAG_ID, "medflex_withdraw", "medflex_sweep", "medflex_reconcile")
"""The DAGs whose runs are in the ledger."""
RUNS_SHOWN = 50
SHARDS_SHOWN = 50
BATCHES_SHOWN, FIRST_BATCHES = 100, 20
IDS_SHOWN = 20
SECTIONS = ("funnel", "reasons", "results", "records", "messages", "shards", "batches")
FIRST = {"validate": "results", "load": "batches", "withhold": "reasons", "withdraw_revoked": "batches"}
"""Which part of the page stands first in the tab of a task."""
NUMBERS = (
    *("extracted", "withheld", "quarantined", "eligible", "unchanged", "planned", "new", "changed", "again", "dropped"),
    *("rejected", "to_retry", "unknown", "accepted", "unknown_statuses"),
    *("revoked", "permitted_again", "held", "withdraw_to_retry", "withdraw_unknown", "withdrawn"),
)
"""The numbers of a funnel as the table has them."""

_Page = Annotated[int, Query(ge=1, le=100_000)]
_Name = Annotated[str, Query(min_length=1, max_length=250, pattern=r"^[^\x00]+$")]


@router.get("/runs")
def runs_page(view: Reader, user: User, dag_id: _Name = DAG_ID, page: _Page = 1) -> Response:
    """Runs of a DAG, the newest first."""
    require_dag(user, dag_id)
    if dag_id not in DAGS:
        return _nothing_of(view, dag_id)
    with view.overview() as ledger:
        found = ledger.runs(dag_id, RUNS_SHOWN + 1, (page - 1) * RUNS_SHOWN)
    return view.page(
        "runs.html",
        section="runs_page",
        runs=found[:RUNS_SHOWN],
        dag_id=dag_id,
        dags=DAGS,
        page=page,
        is_last=len(found) <= RUNS_SHOWN,
    )


@router.get("/runs/view")
def run_page(
    view: Reader,
    user: User,
    dag_id: _Name,
    run_id: _Name,
    shard: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    task_id: Annotated[str, Query(max_length=250)] = "",
    map_index: Annotated[str, Query(max_length=20)] = "",
    page: _Page = 1,
) -> Response:
    """One run, or one shard of it: funnel, what has changed, reasons, results, records, shards, batches.

    ``task_id`` and ``map_index`` are those of the task instance in whose tab the page stands; a mapped task of the
    group ``shard`` works on the shard of its map index.
    """
    require_dag(user, dag_id)
    if dag_id not in DAGS:
        return _nothing_of(view, dag_id)
    group, _, task = task_id.rpartition(".")
    # The placeholder itself stands here where Airflow has nothing to put in.
    if shard is None and group == "shard" and map_index.isascii() and map_index.isdigit():
        shard = int(map_index[:9])
    with view.overview() as ledger:
        run = ledger.run(dag_id, run_id)
        if run is None:
            raise view.not_found("run.unknown")
        mine = None
        if shard is not None:
            mine = ledger.shard(run.run_key, shard)
            if mine is None:
                raise view.not_found("run.unknown_shard", shard=str(shard))
        if mine is None:
            page = min(page, max(1, -(-run.shards // SHARDS_SHOWN)))
        context = _of_shard(ledger, run, mine) if mine else _of_run(ledger, run, page)
        size = BATCHES_SHOWN if mine else FIRST_BATCHES
        context["found_batches"] = ledger.batches(
            run.run_key, context["clinic_ids"], size + 1, (page - 1) * size if mine else 0
        )
    first = FIRST.get(task)
    return view.page(
        "run.html",
        section="runs_page",
        run=run,
        shard=mine,
        parts=sorted(SECTIONS, key=lambda name: name != first),
        folder=RunInfo(run.run_id, run.anchor.date(), run.mode, run.started_at).folder,
        page=page,
        shown={"shards": SHARDS_SHOWN, "batches": size},
        **_pictures(view, run, mine),
        **context,
    )


def _nothing_of(view: View, dag_id: str) -> Response:
    """Airflow shows the tabs on every DAG there is: say of one that has nothing in the ledger that it has nothing."""
    return view.page("another_dag.html", section="runs_page", dag_id=dag_id)


def _of_run(ledger: LedgerOverview, run: RunLine, page: int) -> dict[str, Any]:
    before = ledger.previous(run)
    reasons = ledger.reasons(run)
    earlier = {(one.decision, one.reason): one for one in ledger.reasons(before)} if before else {}
    return {
        "clinic_ids": None,
        "before": before,
        "numbers": _compared(run, before),
        "found_reasons": _with_earlier(reasons, earlier) if before else [(one, None) for one in reasons],
        "states": ledger.access_states(run.run_key),
        "expectations": ledger.expectations(run),
        "quarantined": ledger.decided_ids(run.run_key, "quarantined", size=IDS_SHOWN),
        "rejected": ledger.rejected_ids(run.run_key, size=IDS_SHOWN),
        "found_messages": ledger.messages(run.run_key),
        "found_shards": ledger.shards(run.run_key, SHARDS_SHOWN, (page - 1) * SHARDS_SHOWN),
    }


def _of_shard(ledger: LedgerOverview, run: RunLine, shard: ShardLine) -> dict[str, Any]:
    clinic_ids = ledger.shard_clinics(run.run_key, shard.shard)
    return {
        "clinic_ids": clinic_ids,
        "before": None,
        "numbers": [(name, getattr(shard.funnel, name), None) for name in NUMBERS],
        "found_reasons": [(one, None) for one in ledger.reasons(run, clinic_ids)],
        "states": ledger.access_states(run.run_key, shard.shard),
        "expectations": ledger.shard_expectations(run.run_key, shard.shard),
        "quarantined": ledger.decided_ids(run.run_key, "quarantined", clinic_ids, IDS_SHOWN),
        "rejected": ledger.rejected_ids(run.run_key, clinic_ids, IDS_SHOWN),
        "found_messages": None,
        "found_shards": [],
    }


def _compared(run: RunLine, before: RunLine | None) -> list[tuple[str, int, int | None]]:
    """Each number of the funnel beside that of the run before."""
    return [
        (name, getattr(run.funnel, name), getattr(before.funnel, name) if before is not None else None)
        for name in NUMBERS
    ]


def _with_earlier(
    reasons: list[ReasonCount], earlier: dict[tuple[str, str], ReasonCount]
) -> list[tuple[ReasonCount, int | None]]:
    """Each reason beside its records in the run before; one that holds for none any more is told as well."""
    now = {(one.decision, one.reason) for one in reasons}
    gone = [ReasonCount(*key, records=0, first=0) for key in earlier if key not in now]
    both = [(one, earlier.get((one.decision, one.reason))) for one in [*reasons, *gone]]
    return [(one, old.records if old is not None else 0) for one, old in both]


def _pictures(view: View, run: RunLine, shard: ShardLine | None) -> dict[str, Any]:
    funnel = shard.funnel if shard else run.funnel
    pictures: dict[str, Any] = {"sending": None, "withdrawing": None}
    if run.dag_id == DAG_ID:
        steps = charts.funnel_steps(funnel, run.mode)
        pictures["sending"] = charts.funnel(view.speech, view.speech.text("run.sending"), steps, table=False)
    if funnel.revoked or run.dag_id != DAG_ID:
        steps = charts.funnel_steps(funnel, run.mode, withdrawing=True)
        pictures["withdrawing"] = charts.funnel(view.speech, view.speech.text("run.withdrawing"), steps, table=False)
    return pictures
