"""
### What Medflex shows is what may be shared

**Purpose.** Reads, clinic by clinic, what partners can see, and compares it with the ledger and with what may be shared
now. Records that should not be there are withdrawn, missing and older ones are sent anew, the ledger is corrected. It
heals what no single run can see: a write that arrived late, a Medflex or a ledger that was restored from a backup.

**Schedule.** Every hour for clinics with a request of the last 24 hours whose outcome was never known: it may still
arrive. Sundays at 12:30 Moscow time for all clinics. One run at a time; by hand whenever there is doubt.

**Input and output.** Connections `medlock_db` (read), `medflex_ledger`, `medflex_api`. The findings are in the ledger:
for each clinic the ids that differ in the same way. Where something has to be sent, a run of `medflex_transfer` for
these clinics is triggered, so that nothing leaves without its rules, validation and last look.

**Parameters.** `clinic_ids`: only these clinics. `dry_run`: tell what differs and change nothing.

**When it fails.** A shard that fails does not hold up the others; `settle_comparison` names each problem in one
sentence. What was compared is repaired. Clear the failed shard: the next run does not make up for it, since the hourly
ones compare clinics in doubt only, and a comparison of all counts as made, however it has ended. Findings are no
failure; many of them are worth a look at the runbook.

**Running again.** Safe at any time, beside any other run: clinics are compared one after another under their lease.

**Never** write to Medflex by hand to mend a finding: what the ledger does not know of is withdrawn again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from medflex.airflow import lineage
from medflex.airflow.assets import HELD_ALIAS
from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, clinic_ids_param, task_defaults
from medflex.airflow.schedule import TIMEZONE
from medflex.airflow.tasks import reconcile

with DAG(
    dag_id="medflex_reconcile",
    description="Compare what Medflex shows with what may be shared, and repair the difference.",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("30 * * * *", timezone=TIMEZONE, run_immediately=False),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    default_args=task_defaults(timedelta(hours=3)),
    params={
        "clinic_ids": clinic_ids_param(),
        "dry_run": Param(False, type="boolean", description="Tell what differs and change nothing."),
    },
    render_template_as_native_obj=False,
) as dag:
    plan = task(reconcile.plan_comparison)()
    compared = task(
        map_index_template="{{ shard_label }}",
        inlets=[lineage.SHOWN, *lineage.WITHDRAWING],
        outlets=[HELD_ALIAS, lineage.FINDINGS, *lineage.WITHDRAWN],
    )(reconcile.reconcile).expand(shard=plan)
    settle = task(trigger_rule="all_done", retries=0)(reconcile.settle_comparison)()
    # Also after a shard that failed: what the others found missing is sent.
    parameters: Any = task(trigger_rule="all_done")(reconcile.transfer_parameters)()
    TriggerDagRunOperator(task_id="transfer", trigger_dag_id="medflex_transfer", conf=parameters)

    compared >> [settle, parameters]
