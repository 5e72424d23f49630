"""
### Search for rows that were deleted

**Purpose.** Finds what Medflex still shows though its row is gone from Medlock. A deleted row leaves nothing behind
that could be asked for: everything that Medflex shows has to be looked up. What is found is withdrawn; a number that
looks like a mishap is held and asked about by `medflex_release`. Refusals do not wait for it: `medflex_withdraw` goes
on beside it.

**Schedule.** Whenever `medflex_withdraw` sees in Medlock's counters that rows were deleted (asset `medflex_sweep`), but
at most for a tenth of the time. Besides that every five minutes, in case an event is lost. One run at a time; it looks
for four minutes and starts the next one, which goes on behind the clinic at which it has ended.

**Input and output.** Connections `medlock_db` (read), `medflex_ledger`, `medflex_api`. How far a sweep has come is in
the ledger.

**Parameters.** None.

**When it fails.** A failed `sweep` says in one sentence which system refuses or is away. The next run, five minutes
later at most, brings over what this one had found and goes on where it stopped: nothing has to be cleared, and no
refusal waits for it. Should it fail for long, deleted rows stay at Medflex until the next daily run, which looks at
everything, too.

**Running again.** Safe at any time. A run that is not due ends within seconds and leaves no trace in the ledger. It
cannot be backfilled: what is there is judged by the present.

**Never** rely on it for clinics that were to be taken back at once: turn their switch off, which `medflex_withdraw`
sees within seconds.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, task

from medflex.airflow import lineage
from medflex.airflow.assets import GO_ON_ALIAS, HELD_ALIAS, SWEEP
from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.schedule import TIMEZONE
from medflex.airflow.tasks import withdraw

with DAG(
    dag_id="medflex_sweep",
    description="Withdraw from Medflex what has been deleted in Medlock.",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("*/5 * * * *", timezone=TIMEZONE, run_immediately=False), assets=[SWEEP]
    ),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    default_args=task_defaults(timedelta(minutes=30), retry_delay=timedelta(seconds=10), backs_off=False),
) as dag:
    # Not tried again: another attempt would be another piece, and a run tells of one. The next run goes on.
    sweep = task(retries=0, inlets=lineage.WITHDRAWING, outlets=[HELD_ALIAS, *lineage.WITHDRAWN])(withdraw.sweep)()
    # Events of a failed task are lost.
    start_what_is_left = task(trigger_rule="all_done", outlets=[GO_ON_ALIAS])(withdraw.start_what_is_left)(
        withdraw.watches.SWEEP
    )
    # A leaf beside it, or a failed sweep would leave the run green.
    swept = EmptyOperator(task_id="swept")

    sweep >> [start_what_is_left, swept]
