"""The few calls of Airflow's REST API that the stack makes (the `airflow` command takes seconds to import)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import requests


class AirflowError(RuntimeError):
    """Airflow cannot be reached, or refuses."""


class Airflow:
    """Client of the API server at ``url`` as ``user``."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy from the environment has no business on loopback

    def health(self) -> dict[str, str]:
        """State of each component, ``{}`` while nothing answers."""
        try:
            reply = self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5)
        except requests.RequestException:
            return {}
        if not reply.ok:
            return {}
        return {name: str((state or {}).get("status")) for name, state in reply.json().items()}

    def call(self, method: str, path: str, *, body: Any = None, accept: tuple[int, ...] = (), **params: Any) -> Any:
        """The JSON of the reply; ``None`` for the statuses in ``accept``. Raises ``AirflowError`` for other errors."""
        for _ in range(2):
            if "Authorization" not in self._session.headers:
                self._log_in()
            reply = self._send(method, f"/api/v2{path}", json=body, params=params)
            if reply.status_code != 401:
                break
            del self._session.headers["Authorization"]
        if reply.status_code in accept:
            return None
        if not reply.ok:
            raise AirflowError(f"Airflow refuses {method} {path} with {reply.status_code}: {_detail(reply)}")
        return reply.json() if reply.content else None

    def import_errors(self) -> list[str]:
        """``file: last line of the traceback`` of each DAG file that cannot be imported."""
        return [
            f"{error['filename']}: {str(error['stack_trace']).strip().splitlines()[-1]}"
            for error in self.call("GET", "/importErrors")["import_errors"]
        ]

    def dag(self, dag_id: str) -> dict[str, Any] | None:
        """The DAG, ``None`` while Airflow does not know it."""
        found: dict[str, Any] | None = self.call("GET", f"/dags/{dag_id}", accept=(404,))
        return found

    def pause(self, dag_id: str, *, paused: bool = True) -> None:
        self.call("PATCH", f"/dags/{dag_id}", body={"is_paused": paused})

    def unpause(self, dag_id: str) -> None:
        self.pause(dag_id, paused=False)

    def trigger(self, dag_id: str, logical_date: dt.datetime, conf: Mapping[str, Any]) -> str | None:
        """Makes a run and returns its id, ``None`` when there is one for that very logical date."""
        body = {"logical_date": logical_date.isoformat(), "conf": dict(conf)}
        made = self.call("POST", f"/dags/{dag_id}/dagRuns", body=body, accept=(409,))
        return None if made is None else str(made["dag_run_id"])

    def run_at(self, dag_id: str, logical_date: dt.datetime) -> str | None:
        """Id of the run of that logical date."""
        day = logical_date.isoformat()
        runs = self.call("GET", f"/dags/{dag_id}/dagRuns", logical_date_gte=day, logical_date_lte=day)["dag_runs"]
        return str(runs[0]["dag_run_id"]) if runs else None

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}"))

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.run(dag_id, run_id)["state"])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, dict[str, int]]:
        """``{task id: {state: number of instances}}``, in order of first start."""
        instances: list[dict[str, Any]] = []
        while True:
            page = self.call(
                "GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100, offset=len(instances)
            )  # fmt: skip
            instances += page["task_instances"]
            if not page["task_instances"] or len(instances) >= page["total_entries"]:
                break
        states: dict[str, dict[str, int]] = {}
        for instance in sorted(instances, key=lambda found: found["start_date"] or "~"):
            counts = states.setdefault(instance["task_id"], {})
            state = instance["state"] or "waiting"
            counts[state] = counts.get(state, 0) + 1
        return states

    def _log_in(self) -> None:
        reply = self._send("POST", "/auth/token", json=self._login)
        if not reply.ok:
            user = self._login["username"]
            raise AirflowError(f"Airflow at {self.url} refuses the log-in of {user}: {_detail(reply)}")
        self._session.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"

    def _send(self, method: str, path: str, **more: Any) -> requests.Response:
        try:
            return self._session.request(method, self.url + path, timeout=30, **more)
        except requests.RequestException as error:
            raise AirflowError(
                f"Airflow does not answer at {self.url} ({type(error).__name__}): is the stack running (`make demo`)?"
            ) from None


def _detail(reply: requests.Response) -> str:
    try:
        return str(reply.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return reply.reason
