"""What Airflow loads as a plugin, in each of its processes: pages, and links to them from task instances.

Nothing here may cost time: the pages themselves are imported by the api-server only, at the first request.
"""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from medflex.airflow.deadline import DailyRunQueued
from medflex.ui.links import BatchesLink, QualityReportLink
from medflex.ui.mount import PREFIX, VIEWS, LazyApp


class MedflexPlugin(AirflowPlugin):
    """The pages "Medflex" in the navigation, and their views of a DAG, of one run and of one task instance."""

    name = "medflex"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "Medflex"}]  # noqa: RUF012 - read by Airflow
    external_views = VIEWS
    deadline_references = [DailyRunQueued]  # noqa: RUF012
    global_operator_extra_links = [QualityReportLink(), BatchesLink()]  # noqa: RUF012
