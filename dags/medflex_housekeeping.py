"""
### Retention: what is older than it has to be

**Purpose.** Removes old history from the ledger, old decisions from Medlock's journal of partner actions, staging that
crashed workers have left (names and phones lie there), and the pages of old runs in the quality reports. It does not
talk to Medflex.

**Schedule.** Every day at 05:30 Moscow time, one run at a time, no catch-up.

**Input and output.** Connections `medflex_ledger` and, where partner actions are carried out, `medlock_actions`
(without it `prune_journal` is skipped); the folders or buckets of `MEDFLEX_STAGING_URL` and `MEDFLEX_DATA_DOCS_URL`.
Each task logs what it removed, in numbers.

**Parameters.** Days, whole numbers from 1; empty takes the environment's, else the built-in: `runs_days`
(`MEDFLEX_KEEP_RUNS_DAYS`, 120: runs and their numbers, answered questions), `batches_days`
(`MEDFLEX_KEEP_BATCHES_DAYS`, 400: which request carried what), `staging_days` (`MEDFLEX_KEEP_STAGING_DAYS`, 2),
`data_docs_days` (`MEDFLEX_KEEP_DATA_DOCS_DAYS`, 120). Partner actions stay for 402 days, whatever is asked for: younger
ones could take effect a second time.

**When it fails.** The four tasks are independent; each one's log says in one sentence what is wrong. A failed
`remove_old_staging` is urgent: personal data stays longer than it should; a day and a half without one that has come
to its end is an alert. A wrong value stops the task before it
removes anything. What has been removed until then is not needed by anybody, and the next run goes on.

**Running again, backfills.** Safe at any time: it looks at what is old now. There is nothing to backfill.

**What always stays.** Records (what Medflex shows, and the versions that were given out), batches without outcome,
open questions (and answers for two weeks), partner actions without decision or answer, the last ten runs of each kind,
runs that have not ended until they are twice as old, and the staging of a run that is still active in Airflow, waiting
and paused ones included.

**Never** delete from the ledger or from staging by hand: what is no longer in the ledger can no longer be withdrawn.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.schedule import TIMEZONE
from medflex.airflow.tasks import housekeeping


def days(description: str) -> Param:
    """Return a parameter that holds a number of days, or nothing: then the workers' environment decides."""
    return Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=housekeeping.MOST_DAYS,
        description=f"{description}, in days.",
    )


with DAG(
    dag_id="medflex_housekeeping",
    description="Remove old ledger history, staging left by crashes, and old quality reports.",
    doc_md=__doc__,
    # After the daily transfer has begun, before the day's work.
    schedule=CronTriggerTimetable("30 5 * * *", timezone=TIMEZONE, run_immediately=False),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    default_args=task_defaults(timedelta(hours=1)),
    params={
        "runs_days": days("Keep settled runs, answered questions, alerts that are over and missed deadlines"),
        "batches_days": days("Keep batches with an outcome"),
        "staging_days": days("Keep staging of runs that are over"),
        "data_docs_days": days("Keep the quality reports of runs"),
    },
    render_template_as_native_obj=False,
) as dag:
    # Leaves all four: none waits for another, and any one's failure fails the run.
    task(housekeeping.prune_ledger)()
    task(housekeeping.prune_journal)()
    task(housekeeping.remove_old_staging)()
    task(housekeeping.prune_data_docs)()
