"""What the official chart makes of ``deploy/helm``, and its parts run as processes of this machine.

The chart is not in this repository and in no package index. Where it is found:

    helm pull apache-airflow/airflow --version 1.22.0
    HELM_CHART=airflow-1.22.0.tgz python -m pytest -m long tests/deploy/test_chart.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.cluster import COMPONENTS, WORKERS, Deployment
from tests.deploy.compose import ROOT

NAMESPACE = RELEASE = "medflex"
PARTS = {
    "airflow-api-server": "api-server",
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag-processor",
    "airflow-triggerer": "triggerer",
    **dict.fromkeys(WORKERS, "worker"),
}
"""Services of the compose file -> Deployments of the chart, without the release, and their containers."""
SECRETS = {
    ("medflex-airflow-metadata", "connection"): "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    ("medflex-airflow-broker", "connection"): "AIRFLOW__CELERY__BROKER_URL",
    ("medflex-airflow-fernet-key", "fernet-key"): "AIRFLOW__CORE__FERNET_KEY",
    ("medflex-airflow-api-secret-key", "api-secret-key"): "AIRFLOW__API__SECRET_KEY",
    ("medflex-airflow-jwt-secret", "jwt-secret"): "AIRFLOW__API_AUTH__JWT_SECRET",
}
"""Airflow's secrets -> the same in the compose file's environment."""
PRODUCT = (
    "MEDFLEX_DIGEST_KEY", "AIRFLOW_CONN_MEDLOCK_DB", "AIRFLOW_CONN_MEDLOCK_ACTIONS", "AIRFLOW_CONN_MEDLOCK_SWITCH",
    "AIRFLOW_CONN_MEDFLEX_LEDGER", "AIRFLOW_CONN_MEDFLEX_API", "AIRFLOW_CONN_MEDFLEX_STORAGE",
)  # fmt: skip
"""What docs/deployment.md puts into ``product.env``."""


def why_not() -> str | None:
    """Why nothing can be rendered here, if so."""
    if not os.environ.get("HELM_CHART"):
        return "HELM_CHART does not name the chart's archive: see tests/deploy/chart.py"
    return None if shutil.which("helm") else "helm is not on the PATH"


@cache
def manifests(*settings: str) -> tuple[dict[str, Any], ...]:
    """All that the chart renders, after it has judged the values by its schema. ``settings``: of ``--set``."""
    values = [word for name in ("values", "statsd") for word in ("--values", str(ROOT / f"deploy/helm/{name}.yaml"))]
    values += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        ["helm", "template", RELEASE, os.environ["HELM_CHART"], "--namespace", NAMESPACE, *values],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(item for item in yaml.safe_load_all(done.stdout) if item)


def manifest(kind: str, name: str) -> dict[str, Any]:
    """The manifest of this kind and name."""
    (only,) = [item for item in manifests() if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return only


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each workload, and what its pods are."""
    for item in manifests():
        spec = item.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield item["metadata"]["name"], template["spec"]


def container(workload: str, name: str) -> dict[str, Any]:
    """The container of that name in a workload's pods."""
    (pod,) = [pod for other, pod in pods() if other == workload]
    (only,) = [item for item in pod["containers"] if item["name"] == name]
    return only


class Release(Deployment):
    """The profile ``demo`` of the compose file, with Airflow as the chart would start it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.compose = dict(self.services["airflow-scheduler"]["environment"])
        self.elsewhere = {
            f"http://{RELEASE}-api-server:8080": f"http://127.0.0.1:{self.ports['api']}",
            f"statsd_host = {RELEASE}-statsd": "statsd_host = 127.0.0.1",
        }
        self.rendered = {service: container(f"{RELEASE}-{part}", part) for service, part in PARTS.items()} | {
            "migrations": container(f"{RELEASE}-run-airflow-migrations", "run-airflow-migrations"),
            "cleanup": container(f"{RELEASE}-database-cleanup", "database-cleanup"),
        }
        self.services |= {name: self._service(started) for name, started in self.rendered.items()}

    def _service(self, started: dict[str, Any]) -> dict[str, Any]:
        """A container as a service of the compose file."""
        assert started["envFrom"] == [{"secretRef": {"name": "medflex-product"}}]
        environment = {name: self.compose[name] for name in PRODUCT if name in self.compose}
        for item in started["env"]:
            if "value" in item:
                environment[item["name"]] = item["value"]
            else:
                key = item["valueFrom"]["secretKeyRef"]
                environment[item["name"]] = self.compose[SECRETS[key["name"], key["key"]]]
        # The image's entry point gives a word that is no program of Airflow's to the shell, as here.
        service = {"environment": environment, "command": started["args"]}
        probe = started.get("livenessProbe", {})
        if "exec" in probe:
            words = [word.replace("exec /entrypoint", "exec env") for word in probe["exec"]["command"]]
            service["healthcheck"] = {"test": ["CMD", *words]}
        elif "httpGet" in probe:
            address = f"http://localhost:{probe['httpGet']['port']}{probe['httpGet']['path']}"
            service["healthcheck"] = {"test": ["CMD", "curl", "--fail", "--silent", address]}
        return service

    def environment(self, service: str) -> dict[str, str]:
        """What the service's container gets; the chart's ``airflow.cfg`` lies where it is looked for."""
        environment = super().environment(service)
        if service in self.rendered:
            config = manifest("ConfigMap", f"{RELEASE}-config")["data"]["airflow.cfg"]
            file = Path(environment["AIRFLOW_HOME"]) / "airflow.cfg"
            # Once: who starts reads it while others ask for its environment.
            if not file.exists():
                file.write_text(self._here(config))
            del environment["AIRFLOW__CORE__HOSTNAME_CALLABLE"]  # The chart's.
        return environment

    def words(self, service: str) -> list[str]:
        if service not in self.rendered:
            return super().words(service)
        shell, option, text = self.services[service]["command"]
        # Both would have the name of this machine.
        own = " --celery-hostname celery@other" if service == WORKERS[1] else ""
        return [str(shutil.which(shell)), option, text + own]

    def start_airflow(self, user: str, password: str) -> None:
        """Run the chart's job, make the buckets and an administrator, start all parts, until each is alive."""
        self.run("migrations")
        self.run("storage-buckets")
        self.s3("s3.create_bucket(Bucket='medflex-logs')")
        self.make_administrator("airflow-api-server", user, password)
        self.start(*COMPONENTS, *WORKERS)
        self.wait_healthy(*COMPONENTS, WORKERS[0])
