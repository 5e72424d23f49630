"""What the tasks of ``medflex_reconcile`` do. Between them go shard numbers, clinic ids and counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from medflex.airflow import connections
from medflex.airflow.schedule import TIMEZONE
from medflex.airflow.tasks.parts import (
    clinic_ids_of,
    note_withdrawals,
    open_ledger,
    open_medflex,
    open_medlock,
    parameters_of,
    run_of,
    run_type,
    speaking,
    start_run,
    told,
)
from medflex.clock import SystemClock
from medflex.errors import BadParameterError, RunIncompleteError

log = logging.getLogger(__name__)

CLOCK = SystemClock()
CLINICS_PER_SHARD = 200
FULL_WEEKDAY, FULL_HOUR = 6, 12
"""Sundays, in the hour from 12:00 Moscow time, all clinics are compared."""
DOUBT = timedelta(hours=24)
"""So long after a request whose outcome was unknown its clinic is compared every hour: it may still arrive."""
RECORDS_PER_SHARD = 400_000
"""Records that Medflex shows, per shard, that are aimed at."""


@speaking
def plan_comparison() -> list[dict[str, Any]]:
    """Decide which clinics are compared; write the run down. Returns one ``{"shard", "label"}`` per shard."""
    import pandas as pd

    from medflex.domain.access import AccessState
    from medflex.domain.packing import pack_shards

    context = get_current_context()
    dry_run, asked = _parameters(context)
    now = CLOCK.now()
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger())
        medlock = stack.enter_context(open_medlock())
        ledger.check_schema()
        connections.digest_key()
        if run_type(context) == "scheduled":
            asked = _scheduled(ledger, now)
        clinics = medlock.clinics(asked, now)
        with_records = set(ledger.clinics_with_records())
        known = set(clinics["clinic_id"].tolist())
        gone = sorted((with_records if asked is None else with_records & set(asked)) - known)
        unknown = sorted(set(asked or ()) - known - set(gone))
        if unknown and run_type(context) != "scheduled":
            shown = ", ".join(map(str, unknown[:10]))
            raise BadParameterError(f"Neither Medlock nor the ledger knows clinic {shown}: correct clinic_ids.")
        # A clinic that is closed and of which nothing is known shows nothing, unless somebody else wrote it: it has an
        # lpu_id, so it is looked at as well.
        ids = [*clinics.loc[clinics["lpu_id"].notna() | clinics["clinic_id"].isin(with_records), "clinic_id"], *gone]
        counts = ledger.live_counts(ids)
        packed = pd.DataFrame(
            {
                "clinic_id": ids,
                # A clinic costs a request even if it shows nothing.
                "expected_rows": [counts.get(key, 0) + RECORDS_PER_SHARD // CLINICS_PER_SHARD for key in ids],
                "kind": AccessState.OPEN,
            }
        )
        shards = pack_shards(packed, RECORDS_PER_SHARD)
        start_run(
            context,
            ledger,
            clinics,
            gone,
            mode="dry_run" if dry_run else "reconcile",
            anchor=now,
            clinic_ids=asked,
            started_at=now,
            shards=shards,
        )
    log.info("%d clinics in %d shards%s.", len(ids), len(shards), ", dry run" if dry_run else "")
    return [{"shard": index, "label": shard.label} for index, shard in enumerate(shards)]


@speaking
def reconcile(shard: Mapping[str, Any]) -> dict[str, int]:
    """Compare what Medflex shows of the shard's clinics with what it should show, and repair the difference.

    Returns the number of records of each kind of difference.
    """
    from medflex.airflow import metrics
    from medflex.airflow.reconciling import Reconciler
    from medflex.domain.drift import Drift

    context = get_current_context()
    context["shard_label"] = shard["label"]  # type: ignore[typeddict-unknown-key]
    number = shard["shard"]
    with open_ledger() as ledger, open_medlock() as medlock:
        run = run_of(ledger, context)
        clinic_ids = ledger.shard(run.run_key, number).clinic_ids
        reconciler = Reconciler(
            client=open_medflex(ledger),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            holder=f"{run.dag_id}/{run.run_id}/{number}",
            run_key=run.run_key,
            digest_key=connections.digest_key(),
        )
        result = reconciler.reconcile(clinic_ids, repair=run.mode == "reconcile")
        ledger.save_findings(run.run_key, result.findings)
        log.info("%d records compared.", result.compared)
        metrics.reconciled(result.compared, {drift: result.total(drift) for drift in Drift})
        for drift in Drift:
            if result.total(drift):
                log.warning("%s: %d. %s", drift.value, result.total(drift), drift.description)
        ledger.set_withdraw_stage(run.run_key, number, "withdrawn", " ".join(map(str, result.problems)) or None)
        if result.withdrawals is not None:
            note_withdrawals(result.withdrawals, ledger, run, clinic_ids)
            # Its problems are among the reconciler's, too.
            told(result.withdrawals, context, ledger)
        if result.problems:
            raise max(result.problems, key=lambda error: error.transient)
        return {drift.value: result.total(drift) for drift in Drift}


@speaking
def settle_comparison() -> dict[str, int]:
    """Say what was found in all, and fail if a shard was not compared to its end. Returns the number of each kind."""
    from medflex.domain.drift import Drift

    context = get_current_context()
    with open_ledger() as ledger:
        run = run_of(ledger, context)
        findings = ledger.findings(run.run_key)
        problems = [
            f"Shard {shard.label}: {shard.withdraw_problem or 'it was not compared, see the log of its task.'}"
            for shard in ledger.shards(run.run_key)
            if shard.withdraw_problem or shard.withdraw_stage != "withdrawn"
        ]
        ledger.settle_run(run.run_key, problems)
    numbers = {
        drift.value: sum(len(ids) for ids in findings.loc[findings["kind"] == drift, "appointment_ids"])
        for drift in Drift
    }
    for row in findings.itertuples(index=False):
        log.info("Clinic %d, lpu_id %d, %s: %d.", row.clinic_id, row.lpu_id, row.kind, len(row.appointment_ids))
    log.info("%s: %s", run.mode, ", ".join(f"{name} {number}" for name, number in numbers.items()))
    if problems:
        raise RunIncompleteError(f"{len(problems)} problems in this run: {' '.join(problems)}")
    return numbers


@speaking
def transfer_parameters() -> dict[str, Any]:
    """Return the parameters of the transfer that sends what was missing; skip when there is nothing to send."""
    from medflex.airflow.reconciling import RESENT

    context = get_current_context()
    with open_ledger() as ledger:
        run = run_of(ledger, context)
        findings = ledger.findings(run.run_key)
    clinic_ids = sorted({int(key) for key in findings.loc[findings["kind"].isin(RESENT), "clinic_id"]})
    if run.mode == "dry_run" or not clinic_ids:
        raise AirflowSkipException("Nothing is missing at Medflex.")
    # Nobody has looked at the clinics' numbers of rows.
    return {"mode": "transfer", "clinic_ids": clinic_ids, "accept_row_counts": False}


def _scheduled(ledger: Any, now: datetime) -> list[int] | None:
    """Which clinics a scheduled run compares: all of them once a week (``None``), else those in doubt."""
    last = ledger.last_full_comparison()
    local = now.astimezone(ZoneInfo(TIMEZONE))
    is_its_hour = local.weekday() == FULL_WEEKDAY and local.hour == FULL_HOUR
    # A week whose hour was missed, since nothing ran then, is made up for.
    if last is None or (is_its_hour and now - last > timedelta(hours=2)) or now - last > timedelta(days=7, hours=1):
        return None
    doubtful: list[int] = ledger.doubtful_clinics(now - DOUBT)
    return doubtful


def _parameters(context: Context) -> tuple[bool, list[int] | None]:
    """Return whether nothing is changed, and which clinics are compared (``None``: all)."""
    params = parameters_of(context, {"dry_run": "true or false", "clinic_ids": ""})
    dry_run = params.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise BadParameterError("The parameter dry_run must be true or false.")
    return dry_run, clinic_ids_of(params)
