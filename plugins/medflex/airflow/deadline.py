"""From when on the daily run's deadline counts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk.definitions.deadline import BaseDeadlineReference


class DailyRunQueued(BaseDeadlineReference):
    """When a run was queued that the schedule has made; others, by hand or of a backfill, have no deadline.

    Airflow's own ``DAGRUN_QUEUED_AT`` is for all of them, and no task of a run that has it can be cleared (3.3.2): it
    is looked for by its name there. A plugin tells Airflow of this one, and its scheduler calls it as it makes a run.
    """

    required_kwargs = frozenset(("dag_id", "run_id"))

    def _evaluate_with(self, *, session: Any, dag_id: str, run_id: str) -> datetime | None:
        from airflow.models import DagRun
        from sqlalchemy import select

        from medflex.airflow.schedule import DAILY

        of_run = select(DagRun.queued_at).where(
            DagRun.dag_id == dag_id, DagRun.run_id == run_id, DagRun.run_type == DAILY
        )
        queued_at: datetime | None = session.scalar(of_run)
        return queued_at
