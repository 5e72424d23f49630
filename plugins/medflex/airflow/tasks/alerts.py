"""What the task of ``medflex_alerts`` does, and what Airflow calls when the deadline of a daily run has passed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import get_current_context

from medflex.airflow import connections
from medflex.airflow.schedule import DAILY, daily_deadline, longest_wait_for_actions
from medflex.airflow.tasks.parts import parameters_of, speaking
from medflex.airflow.tasks.withdraw import deadline_seconds
from medflex.errors import BadParameterError

if TYPE_CHECKING:
    from medflex.domain.alerts import Limits
    from medflex.ledger.alerts import AlertLedger

log = logging.getLogger(__name__)


@speaking
def tell_alerts() -> dict[str, int]:
    """Judge what is wrong, write down what has changed, and tell it; send a test message first where one is asked for.

    Returns how many alerts were raised and cleared, and how many messages have reached everybody.
    """
    from medflex.airflow import alerting
    from medflex.domain.alerts import Clear, judge

    context = get_current_context()
    is_test = parameters_of(context, {"test_message": "true or false"}).get("test_message", False)
    if not isinstance(is_test, bool):
        raise BadParameterError("The parameter test_message must be true or false.")
    with _ledger() as ledger:
        ledger.check_schema()
        changes = ledger.turn_alerts(judge, limits())
        raised = [change for change in changes if not isinstance(change, Clear)]
        for change in changes:
            if isinstance(change, Clear):
                log.warning("Alert %s is over: %s", change.kind, change.sentence)
            else:
                log.error("Alert %s: %s", change.kind, change.sentence)
        targets = alerting.channels()
        if not targets:
            log.warning(
                "No channel is configured, so alerts are in this log only, and those that stand are told once there is"
                " one: set %s or define the connection %s.",
                alerting.VARIABLE,
                connections.ALERTS,
            )
        if is_test:
            alerting.try_out(targets, context)
            log.info("Each of %d channels has taken a test message.", len(targets))
        told = alerting.tell(ledger, targets, context)
    log.info("Raised: %d, cleared: %d, told: %d.", len(raised), len(changes) - len(raised), told)
    return {"raised": len(raised), "cleared": len(changes) - len(raised), "told": told}


def limits() -> Limits:
    """Return for how long what may wait, as the environment says."""
    from medflex.domain.alerts import READING, Limits

    return Limits(
        withdraw=timedelta(seconds=deadline_seconds()),
        reading=longest_wait_for_actions(datetime.now(UTC)) + READING,
        daily=daily_deadline(),
    )


@speaking
def note_missed_deadline(context: Mapping[str, Any]) -> None:
    """Note that a daily run is not done, if more is missing than clinics that wait for their 24 hours.

    ``medflex_alerts`` tells it: here nothing is known of what else is wrong.

    Args:
        context: as Airflow gives it to the callback of a deadline: ``dag_run`` is a mapping.
    """
    dag_run = context["dag_run"]
    if dag_run["run_type"] != DAILY:
        log.info("Run %s is not the daily one: nobody is told.", dag_run["dag_run_id"])
        return
    with _ledger() as ledger:
        if ledger.note_missed_deadline(dag_run["dag_id"], dag_run["dag_run_id"]):
            log.error("Run %s is not done; medflex_alerts tells it.", dag_run["dag_run_id"])
        else:
            log.info("Run %s is done, but for clinics that wait.", dag_run["dag_run_id"])


def _ledger() -> AlertLedger:
    from medflex.ledger.alerts import AlertLedger

    return AlertLedger(connections.postgres_conninfo(connections.LEDGER))
