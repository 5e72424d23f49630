"""The gate: no first sending until a clinic's 24 hours are full (R3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowSkipException

SHORTEST_DEFERRAL = timedelta(seconds=15)
"""A task that defers and is resumed within seconds can be marked failed by the scheduler (Airflow 3.3.2: the executor's
late success report meets the state queued), so shorter waits are slept through on the worker."""


class ActivationSensor(BaseSensorOperator):
    """Wait until at least one clinic of a shard is open; skip the shard when none will be in this run.

    The switch is read from Medlock each time the sensor looks: off, off and on again, or turned by somebody else is
    noticed at the latest after ``recheck``. While it waits it sleeps in the triggerer and holds no worker slot; the
    trigger carries a time stamp and nothing else.

    It never waits past the next scheduled run, and gives way as soon as another run of this DAG is queued: it skips,
    and that run takes the clinic over. In ``plan`` mode and in backfills it does not wait at all.

    Args:
        shard: ``{"shard": number, "label": text}`` as ``plan_shards`` returns it.
        recheck: how long it sleeps at most before it looks at the switch again.
    """

    template_fields: Sequence[str] = ("shard",)

    def __init__(self, *, shard: Any, recheck: timedelta = timedelta(minutes=10), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard
        self.recheck = recheck

    def execute(self, context: Context, event: Any = None) -> None:
        """Look at the switch; return when the shard may go on.

        Raises:
            AirflowSkipException: no clinic of the shard is or will be open in this run; the reason is in the message.
            TaskDeferred: not yet.
        """
        from medflex.airflow.tasks import transfer

        context["shard_label"] = self.shard["label"]  # type: ignore[typeddict-unknown-key]
        outlook = transfer.look_at_gate(context, self.shard["shard"])
        if outlook.is_open:
            self.log.info("Open: %s", outlook.sentence)
            return
        if outlook.wait_until is None:
            raise AirflowSkipException(outlook.sentence)
        self.log.info("Waiting: %s", outlook.sentence)
        self._wait(outlook.wait_until, outlook.now)
        self.execute(context)

    def _wait(self, until: datetime, now: datetime) -> None:
        wake = min(until, now + self.recheck)
        if wake - now < SHORTEST_DEFERRAL:
            from medflex.clock import SystemClock

            SystemClock().sleep((wake - now).total_seconds())
            return
        self.defer(trigger=DateTimeTrigger(moment=wake), method_name="execute")
