"""
### Partner actions: confirm, cancel, reschedule, notification

**Purpose.** Brings what partner services did with patients' appointments back into Medlock: a confirmed, cancelled or
moved appointment is changed there, a notification that went out is noted, and the partner is told what became of it.
What was changed is sent to Medflex at once, so that other partners need not wait for the daily transfer to see it.

**Schedule.** Every two minutes (`MEDFLEX_PARTNER_ACTIONS_CRON`), one run at a time.

**Input and output.** Connections `medflex_api` (reads actions, gives answers, takes the changed appointments),
`medlock_actions` (a log-in that writes to Medlock, and only what `include/sql/medlock/actions` does), `medlock_db`
(read), `medflex_ledger`. Each decision, with its reason, is in the ledger (`ledger.partner_action`) and in Medlock's
journal, without a name.

**Parameters.** None.

**When it fails.** Each task takes up what is left over, so the next run, two minutes later, heals what has passed by
then; nothing has to be cleared. A failed `read_actions` has kept what it read, and `apply_actions` and `answer_actions`
work on with what is there. `apply_actions` fails with "being changed by somebody else" when the clinic holds on to an
appointment: only the actions about that one wait. A failed `answer_actions` means that partners wait for their answer;
what was decided stands. A failed `share_changes` holds up no answer: Medflex shows the appointments as they were until
the next run, or at the latest the next transfer, has sent them. If it fails with "critical expectations failed", a bug
would have sent something wrong; nothing is sent at once until it is mended.

**Running again.** Safe at any time: a decision is made once, in one transaction with its effect, and stays. It cannot
be backfilled: an action is judged by the present, by permissions as they are when it is carried out.

**Never** delete rows of Medlock's journal (`medlock.partner_action`) by hand: what is no longer there can take effect a
second time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronTriggerTimetable, task

from medflex.airflow import lineage
from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.schedule import ACTIONS_CRON, TIMEZONE
from medflex.airflow.tasks import actions

with DAG(
    dag_id="medflex_partner_actions",
    description="Bring what partners did with appointments back into Medlock, and tell them what became of it.",
    doc_md=__doc__,
    schedule=CronTriggerTimetable(ACTIONS_CRON, timezone=TIMEZONE, run_immediately=False),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    # Once more, briefly: the next run waits for this one and does the same work.
    default_args=task_defaults(timedelta(minutes=20), retry_delay=timedelta(seconds=10), backs_off=False)
    | {"retries": 1},
) as dag:
    read_actions = task(inlets=[lineage.ACTIONS], outlets=[lineage.DECISIONS])(actions.read_actions)()
    # Whatever became of reading: what is in the ledger is decided and answered.
    apply_actions = task(
        trigger_rule="all_done",
        inlets=[lineage.DECISIONS, lineage.RECORDS, lineage.SCHEDULE, *lineage.SOURCE],
        outlets=lineage.ACTED_ON,
    )(actions.apply_actions)()
    answer_actions = task(trigger_rule="all_done", inlets=[lineage.DECISIONS], outlets=[lineage.ACTIONS])(
        actions.answer_actions
    )()
    # Beside the answers, so that none waits for it; tried once, and not for long, since those of the next run would.
    share_changes = task(
        trigger_rule="all_done",
        retries=0,
        execution_timeout=timedelta(minutes=5),
        inlets=[lineage.DECISIONS, *lineage.SOURCE],
        outlets=lineage.WRITTEN,
    )(actions.share_changes)()
    # Takes no worker. Without it a run whose reading failed would be green, since its last task went well.
    acted = EmptyOperator(task_id="acted")

    read_actions >> apply_actions >> [answer_actions, share_changes]
    [read_actions, apply_actions, answer_actions, share_changes] >> acted
