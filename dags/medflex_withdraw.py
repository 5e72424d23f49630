"""
### Withdrawal of what may no longer be shared

**Purpose.** Tells Medflex within seconds that a record which was sent earlier may no longer be used: because the
patient refused, the appointment became anonymous, the doctor was banned from sending, or the clinic switched off or cut
the link to its partners. Where rows were deleted in Medlock, it starts `medflex_sweep`.

**Schedule.** Whenever something changed in Medlock that can revoke: the triggerer looks every few seconds (asset
`medflex_consent`). Besides that every five minutes, in case a change left no trace. One run at a time; changes that
come in meanwhile make one more run, and so does a partner that leaves more clinics than one run goes over.

**Input and output.** Connections `medlock_db` (read), `medflex_ledger`, `medflex_api`. Each revocation's time from the
commit in Medlock to Medflex's acknowledgement is in the ledger.

**Parameters.** None.

**When it fails.** The next run, five minutes later at most, does what this one left over: nothing has to be cleared. A
failed `withdraw_revoked_now` says in one sentence which system refuses or is away. A failed `report_lateness` means
that a revocation has waited longer than it may: mend what keeps `withdraw_revoked_now` from its work. If runs come
every five minutes only, the watch is down (after three hours an alert): look at the triggerer's log, where it names the
reason once, and check that this DAG is not paused, since a paused DAG is not watched for.

**Running again.** Safe at any time: a withdrawal that was acknowledged is not sent again. Trigger it by hand when a
revocation must not wait for the watch. It cannot be backfilled: consent is judged by the present.

**Never** pause it for longer than the deadline of a withdrawal. The daily run withdraws too, but only once a day.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, task

from medflex.airflow import lineage
from medflex.airflow.assets import CONSENT, GO_ON_ALIAS, HELD_ALIAS
from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.schedule import TIMEZONE
from medflex.airflow.tasks import withdraw

with DAG(
    dag_id="medflex_withdraw",
    description="Withdraw from Medflex what may no longer be shared, as soon as that changes in Medlock.",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("*/5 * * * *", timezone=TIMEZONE, run_immediately=False), assets=[CONSENT]
    ),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    # Tried again briefly, because the next run waits for this one and does the same work.
    default_args=task_defaults(timedelta(minutes=30), retry_delay=timedelta(seconds=10), backs_off=False),
) as dag:
    withdraw_revoked_now = task(inlets=lineage.WITHDRAWING, outlets=[HELD_ALIAS, *lineage.WITHDRAWN])(
        withdraw.withdraw_revoked_now
    )()
    # Also after a failed withdrawal: that is when something gets late.
    report_lateness = task(trigger_rule="all_done", retries=0, inlets=[lineage.REVOCATIONS])(withdraw.report_lateness)()
    # Events of a failed task are lost, and one clinic that Medflex does not know makes each look a failed one.
    start_what_is_left = task(trigger_rule="all_done", outlets=[GO_ON_ALIAS])(withdraw.start_what_is_left)(
        withdraw.watches.CONSENT
    )
    # Takes no worker. A leaf beside the report, or a failed withdrawal with nothing late would leave the run green.
    withdrawn = EmptyOperator(task_id="withdrawn")

    withdraw_revoked_now >> [report_lateness, start_what_is_left, withdrawn]
