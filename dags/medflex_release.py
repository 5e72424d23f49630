"""
### Release of withdrawals that wait for a person

**Purpose.** When rows have vanished from Medlock in a number that looks like a mishap (an empty extract, a lost table),
their withdrawal is held, and this DAG asks a person: are they really gone, or will they be back? Refusals and other
explicit revocations are never held.

**Schedule.** Whenever withdrawals were newly held (asset `medflex_held`). Each run asks about what was held since the
last one, 500 questions at most, and starts the next one where there are more; several runs may wait at the same time,
for days.

**Input and output.** Connections `medflex_ledger`, `medlock_db` (read), `medflex_api`. The question stands in Airflow
under Required Actions and in the run's tab of that name: the clinic's id, how many records, for which reasons. The
answer and who gave it are in the ledger.

**Parameters.** None.

**When it fails.** A waiting `ask` is no failure, however long it takes: it survives restarts, holds no worker and needs
no triggerer. A failed `ask` is asked again when it is cleared. A failed `carry_out` says in one sentence which system
refuses or is away: clear it, the answer is kept. What is held stays at Medflex until somebody answers, so do answer:
`Withdraw` if the rows are really gone, `Keep` if Medlock is being repaired; kept rows that are still missing after a
week, or others that vanish beside them, are asked about again.

**Running again.** Clearing `ask` withdraws the answer and asks anew; clearing `carry_out` carries the answer out again,
which changes nothing that is already done.

**Never** delete a waiting run or mark its tasks: its questions would be asked nowhere any more. A question that has
waited for a month is asked once more, in a new run, in case its run was removed with other old ones; the newest counts.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, task, task_group

from medflex.airflow import lineage
from medflex.airflow.assets import HELD, HELD_ALIAS
from medflex.airflow.defaults import NO_BACKFILL, START, TAGS, task_defaults
from medflex.airflow.tasks import release

with DAG(
    dag_id="medflex_release",
    description="Ask a person before rows that vanished from Medlock in bulk are withdrawn from Medflex.",
    doc_md=__doc__,
    schedule=[HELD],
    start_date=START,
    catchup=False,
    # A question may stay open for days, and the next one must not wait for its answer.
    max_active_runs=16,
    tags=TAGS,
    allowed_run_types=NO_BACKFILL,
    default_args=task_defaults(timedelta(hours=1), backs_off=False),
) as dag:

    @task_group(group_id="hold")
    def settle_hold(hold_id: int, subject: Any, body: Any) -> None:
        """One question, one answer, and what follows from it."""
        # Not an ApprovalOperator: that one skips what follows a no, and a no has to be written down, too.
        ask = HITLOperator(
            task_id="ask",
            subject=subject,
            body=body,
            options=release.OPTIONS,
            map_index_template="{{ task.subject }}",
            # It waits without a worker; with a limit here Airflow would take that for the time to answer.
            execution_timeout=None,
        )
        answer: Any = ask.output
        task(
            map_index_template="{{ hold_label }}",
            inlets=[lineage.HOLDS, *lineage.WITHDRAWING],
            outlets=[HELD_ALIAS, *lineage.WITHDRAWN],
        )(release.carry_out)(hold_id, answer)

    questions = task(inlets=[lineage.HOLDS], outlets=[HELD_ALIAS, lineage.HOLDS])(release.list_holds)()
    settle_hold.expand_kwargs(questions)
