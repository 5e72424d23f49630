"""Links from task instances of the daily transfer to what they left behind. Light: every process imports this."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from medflex.ui.mount import DAG_ID


class _TaskLink(BaseOperatorLink):
    """A button on the task instances of one task; for those of any other it has no address and is not shown."""

    task_id: str

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        if operator.dag_id != DAG_ID or operator.task_id != self.task_id:
            return ""
        from airflow.configuration import conf

        base = str(conf.get("api", "base_url", fallback="/")).rstrip("/")
        mapped = f"/mapped/{ti_key.map_index}" if ti_key.map_index >= 0 else ""
        run, task = quote(ti_key.run_id, safe=""), quote(ti_key.task_id, safe="")
        return f"{base}/dags/{DAG_ID}/runs/{run}/tasks/{task}{mapped}/plugin/medflex-task"


class QualityReportLink(_TaskLink):
    """From ``validate`` to the results of its shard, which lead into Data Docs."""

    name = "Quality report"
    task_id = "shard.validate"


class BatchesLink(_TaskLink):
    """From ``load`` to the batches of its shard."""

    name = "Batches"
    task_id = "shard.load"
