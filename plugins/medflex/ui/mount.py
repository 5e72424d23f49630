"""Where the pages are in the Airflow UI. Light: every process of Airflow imports this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

PREFIX = "/medflex"
"""The path below which Airflow mounts the app."""
DAG_ID = "medflex_transfer"
"""Whoever may read the runs of this DAG may read the pages."""

# Without a leading slash: Airflow's page has a <base>, and may itself be mounted below another path.
_HOME = f"{PREFIX[1:]}/clinics"
_RUN = f"{PREFIX[1:]}/runs/view?dag_id={{DAG_ID}}&run_id={{RUN_ID}}"
_ICONS = {"icon": f"{PREFIX[1:]}/static/icon.svg", "icon_dark_mode": f"{PREFIX[1:]}/static/icon-dark.svg"}

VIEWS: list[dict[str, Any]] = [
    {
        "name": "Medflex",
        "href": _HOME,
        "destination": "nav",
        "url_route": "medflex",
        "nav_top_level": True,
        **_ICONS,
    },
    {
        "name": "Medflex",
        "href": f"{PREFIX[1:]}/runs?dag_id={{DAG_ID}}",
        "destination": "dag",
        "url_route": "medflex-dag",
        **_ICONS,
    },
    {"name": "Medflex", "href": _RUN, "destination": "dag_run", "url_route": "medflex-run", **_ICONS},
    {
        "name": "Medflex",
        "href": f"{_RUN}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        "destination": "task_instance",
        "url_route": "medflex-task",
        **_ICONS,
    },
]


class LazyApp:
    """The pages as an ASGI application that is made at its first request, in the api-server and nowhere else."""

    def __init__(self) -> None:
        self._app: Callable[..., Awaitable[None]] | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if self._app is None:
            from medflex.ui.app import build

            self._app = build()
        await self._app(scope, receive, send)
