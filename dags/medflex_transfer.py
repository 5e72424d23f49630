"""
### Daily transfer of appointments to Medflex

**Purpose.** Shares each open clinic's appointments of the previous 45 and the next 30 days with its partner services,
through Medflex: of the patient the first name, patronymic and phone, nothing else, and nothing of a patient, doctor or
clinic that does not want it.

**Schedule.** Every day at 03:00 Moscow time, one run at a time, no catch-up.

**Input and output.** Connections `medlock_db` (read), `medflex_ledger`, `medflex_api`. Each run leaves a funnel in the
ledger, Data Docs with counts, and an event on the asset `medflex_appointments`. Staged data is removed at its end.

**Parameters.** `mode`: `transfer` withdraws what may no longer be shared and sends what is new or has changed; `plan`
shows what would be withdrawn and sent, and does neither; `resync` sends everything that is eligible again.
`clinic_ids`: only these clinics. `accept_row_counts`: take their numbers of rows as they are.

**When it fails.** A shard that fails does not hold up the others; the run is marked failed at `settle_run`, whose log
names each problem in one sentence. `withdraw_revoked` waits for nothing and stops nothing; what a failed one has left
over is withdrawn by `medflex_withdraw` within minutes. A failed `validate` has stopped its shard's sending: read the
quality report, mend the source, then clear that shard from `extract` on. To mark `validate` as successful sends
nothing. A clinic that is rightly empty is let through by a run whose `clinic_ids` name it; a run without parameters
then sends the other clinics of its shard, which would be stopped again if it were cleared. A failed `load` has sent
what it could; the rest goes out with the next run, or when that shard is cleared from `extract` on. A skipped
`wait_for_activation` says in its log why the clinic is not open.

**Clearing.** Clear what has failed, or a task with *Downstream*; a task that is cleared by itself after the run's end
changes nothing and says so. A run that is marked before its end, as failed or as successful, removes what it has
staged and has failed, and the ledger says that it was ended by hand; to begin it anew, clear it as a whole.

**Running again, backfills.** Both are safe at any time: what Medflex has acknowledged is not sent again, and consent is
judged by the present, never by the day of the run. A backfill of an older day sends only what today's window still
holds; to see an older day's quality report, trigger that day with `mode=plan`.

**Never** edit the ledger by hand or delete its records: what is no longer there can no longer be withdrawn.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronTriggerTimetable, Param, task, task_group
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert

from medflex.airflow import lineage
from medflex.airflow.assets import APPOINTMENTS, HELD_ALIAS
from medflex.airflow.deadline import DailyRunQueued
from medflex.airflow.defaults import START, TAGS, clinic_ids_param, task_defaults
from medflex.airflow.schedule import CRON, TIMEZONE, daily_deadline
from medflex.airflow.sensors.activation import ActivationSensor
from medflex.airflow.tasks import transfer
from medflex.airflow.tasks.alerts import note_missed_deadline

LABEL = "{{ shard_label }}"

with DAG(
    dag_id="medflex_transfer",
    description="Share appointments with partners through Medflex, where the clinic and the patient want it.",
    doc_md=__doc__,
    schedule=CronTriggerTimetable(CRON, timezone=TIMEZONE, run_immediately=False),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    tags=TAGS,
    # A run may rightly wait for a day, for a clinic whose 24 hours are not over: the callback looks what is missing.
    deadline=DeadlineAlert(
        reference=DailyRunQueued(),
        interval=daily_deadline(),
        callback=SyncCallback(note_missed_deadline),
    ),
    default_args=task_defaults(timedelta(hours=3)),
    params={
        "mode": Param("transfer", enum=list(transfer.MODES), description="What to do with the changes."),
        "clinic_ids": clinic_ids_param(),
        "accept_row_counts": Param(
            None,
            type=["null", "boolean"],
            description="Take the clinics' numbers of rows as they are, also where they have suddenly dropped; empty:"
            " only if clinic_ids names them.",
        ),
    },
    render_template_as_native_obj=False,
) as dag:
    plan_shards = task(inlets=[*lineage.SOURCE, lineage.RECORDS], outlets=[lineage.RUN, lineage.NUMBERS])(
        transfer.plan_shards
    )()

    @task_group(group_id="shard")
    def work_on_shard(shard: dict[str, Any]) -> None:
        """Everything that happens to one shard, independent of the others."""
        gate = ActivationSensor(
            task_id="wait_for_activation",
            shard=shard,
            map_index_template=LABEL,
            execution_timeout=None,
            inlets=lineage.PERMISSIONS,
        )
        # Whether it succeeds or not, in a lane of its own; the rest only comes behind it.
        withdraw_revoked = task(
            map_index_template=LABEL, inlets=lineage.WITHDRAWING, outlets=[HELD_ALIAS, *lineage.WITHDRAWN]
        )(transfer.withdraw_revoked)(shard)
        withdrawals_ended = EmptyOperator(task_id="withdrawals_ended", trigger_rule="all_done")
        extract = task(map_index_template=LABEL, inlets=lineage.SOURCE, outlets=[lineage.STAGED_ROWS])(
            transfer.extract
        )(shard)
        withhold = task(
            map_index_template=LABEL,
            inlets=[lineage.STAGED_ROWS, *lineage.PERMISSIONS],
            outlets=[lineage.STAGED_PAYLOAD, lineage.NUMBERS],
        )(transfer.withhold)(shard)
        validate = task(
            map_index_template=LABEL,
            inlets=[lineage.STAGED_ROWS, lineage.STAGED_PAYLOAD],
            outlets=[lineage.VALIDATIONS],
        )(transfer.validate)(shard)
        plan_changes = task(
            map_index_template=LABEL,
            inlets=[lineage.STAGED_PAYLOAD, lineage.RECORDS],
            outlets=[lineage.STAGED_PLAN, lineage.NUMBERS],
        )(transfer.plan_changes)(shard)
        load = task(
            map_index_template=LABEL,
            inlets=[lineage.STAGED_PAYLOAD, lineage.STAGED_PLAN, *lineage.SOURCE],
            outlets=[*lineage.WRITTEN, lineage.NUMBERS],
        )(transfer.load)(shard)
        withdraw_revoked >> withdrawals_ended >> extract
        gate >> extract >> withhold >> validate >> plan_changes >> load

    publish = task(
        trigger_rule="all_done", inlets=[lineage.VALIDATIONS, lineage.NUMBERS, *lineage.MESSAGES], outlets=[lineage.RUN]
    )(transfer.publish_quality_report)()
    # What it finds is final, whatever number of attempts it has; these are for a worker that is lost under it.
    settle = task(trigger_rule="all_done", inlets=[lineage.NUMBERS], outlets=[APPOINTMENTS, lineage.RUN])(
        transfer.settle_run
    )()
    # Without a setup: clearing one shard would otherwise clear plan_shards as well, and with it everybody's numbers.
    remove = task(transfer.remove_staging)().as_teardown(on_failure_fail_dagrun=True)

    shards = work_on_shard.expand(shard=plan_shards)
    # Both are leaves, so that either one's failure fails the run.
    shards >> publish >> [settle, remove]
    # Where only what has failed is cleared, the report is not, nor what comes behind withdrawals: they would not wait.
    shards >> [settle, remove]
    dag.get_task("shard.withdraw_revoked") >> settle
