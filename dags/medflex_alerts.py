"""
### Alerts: telling somebody that something is wrong, and that it is over

**Purpose.** Tells once when something begins to matter and once when it is over: Medflex does not answer or refuses the
token, withdrawals are late or nobody looks for them or for deleted rows, changes in Medlock are not watched, partner
actions wait or nobody reads them, the daily transfer is missing, a critical expectation has failed, Medflex rejects
many records, vanished records wait for a person, the numbers of a run do not add up, nobody removes what is left in
staging. It does not talk to Medflex or Medlock, and depends on no other DAG: also one that is paused or fails is
noticed.

**Schedule.** Every two minutes (`MEDFLEX_ALERTS_CRON`), one run at a time.

**Input and output.** Connection `medflex_ledger`: what is wrong is judged from counts and times there, and each alert
stays there. Messages go to the notifiers of `MEDFLEX_ALERT_NOTIFIERS`, else to the connection `medflex_alerts`, else
to the log only; what stands is told as soon as there is a channel.

**Parameters.** `test_message`: send each channel a test message, to see that it leads somewhere. A channel that does
not take it fails the run.

**When it fails.** *ConfigurationError* or *AlertNotToldError*: what is wrong is known and written down, and a channel
has not taken the message; each run tries again, so mend the channel. Any other error: the ledger is away, and **nobody
is told anything** meanwhile, so let Airflow's own monitoring watch this DAG.

**Running again.** Safe at any time: what was told is not told again. A crash between a delivery and its note repeats
that one message. It cannot be backfilled: it judges the present.

**Never** pause it to be left in peace: the alerts of the runbook say how each one ends.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, Param, task

from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.schedule import ALERTS_CRON, TIMEZONE
from medflex.airflow.tasks import alerts

with DAG(
    dag_id="medflex_alerts",
    description="Tell somebody, once each, when something begins to matter and when it is over.",
    doc_md=__doc__,
    schedule=CronTriggerTimetable(ALERTS_CRON, timezone=TIMEZONE, run_immediately=False),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    # The next run comes as soon as another attempt would.
    default_args=task_defaults(timedelta(minutes=5), backs_off=False) | {"retries": 0},
    params={"test_message": Param(False, type="boolean", description="Send each channel a test message.")},
) as dag:
    task(alerts.tell_alerts)()
