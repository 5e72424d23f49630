"""deploy/helm: values for the official chart. The chart is not here, so what it knows is listed, with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from medflex.airflow.tasks.housekeeping import DAYS
from tests.deploy.compose import ROOT, raw

TEXT = (ROOT / "deploy/helm/values.yaml").read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
STATSD: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/statsd.yaml").read_text())

# Keys of values.yaml in the archive of chart 1.22.0. Where a path ends, anything may follow: Kubernetes' own fields, or
# free keys. With the archive at hand, test_chart.py lets Helm judge all of it by the chart's own schema.
KNOWN = """
airflowVersion defaultAirflowRepository defaultAirflowTag uid gid executor allowPodLaunching allowJobLaunching
images.useDefaultImageForMigration
images.airflow.repository images.airflow.tag images.redis.repository images.redis.tag
images.statsd.repository images.statsd.tag
securityContexts.pod securityContexts.containers
data.metadataSecretName data.brokerUrlSecretName fernetKeySecretName apiSecretKeySecretName jwtSecretName
extraEnvFrom env config volumes volumeMounts
workers.celery.replicas workers.celery.resources workers.celery.terminationGracePeriodSeconds
workers.celery.strategy.rollingUpdate.maxSurge workers.celery.strategy.rollingUpdate.maxUnavailable
triggerer.strategy.rollingUpdate.maxSurge triggerer.strategy.rollingUpdate.maxUnavailable
workers.celery.persistence.enabled workers.celery.podDisruptionBudget.enabled
workers.celery.podDisruptionBudget.config.maxUnavailable
scheduler.replicas scheduler.resources
dagProcessor.enabled dagProcessor.replicas dagProcessor.resources
triggerer.enabled triggerer.replicas triggerer.persistence.enabled triggerer.resources
apiServer.replicas apiServer.args apiServer.resources
migrateDatabaseJob.enabled migrateDatabaseJob.applyCustomEnv migrateDatabaseJob.args migrateDatabaseJob.resources
createUserJob.enabled createUserJob.serviceAccount.create
rbac.create
workers.celery.serviceAccount.automountServiceAccountToken scheduler.serviceAccount.automountServiceAccountToken
dagProcessor.serviceAccount.automountServiceAccountToken triggerer.serviceAccount.automountServiceAccountToken
apiServer.serviceAccount.automountServiceAccountToken migrateDatabaseJob.serviceAccount.automountServiceAccountToken
databaseCleanup.serviceAccount.automountServiceAccountToken redis.serviceAccount.automountServiceAccountToken
statsd.serviceAccount.automountServiceAccountToken
workers.celery.logGroomerSidecar.requirePersistence workers.celery.logGroomerSidecar.resources
scheduler.startupProbe.failureThreshold scheduler.livenessProbe.timeoutSeconds
dagProcessor.livenessProbe.timeoutSeconds triggerer.livenessProbe.timeoutSeconds
workers.celery.logGroomerSidecar.env scheduler.logGroomerSidecar.env dagProcessor.logGroomerSidecar.env
triggerer.logGroomerSidecar.env
scheduler.logGroomerSidecar.resources dagProcessor.logGroomerSidecar.resources triggerer.logGroomerSidecar.resources
redis.enabled redis.passwordSecretName redis.uid redis.resources
redis.persistence.enabled redis.persistence.size redis.securityContexts.pod redis.securityContexts.container
statsd.enabled statsd.uid statsd.resources statsd.overrideMappings
statsd.securityContexts.pod statsd.securityContexts.container
postgresql.enabled networkPolicies.enabled ingress.apiServer.enabled
workers.celery.livenessProbe.timeoutSeconds apiServer.startupProbe.failureThreshold
apiServer.networkPolicy.ingress.from
databaseCleanup.enabled databaseCleanup.schedule databaseCleanup.retentionDays databaseCleanup.args
databaseCleanup.resources
"""  # fmt: skip
KNOWN_PATHS = frozenset(re.findall(r"[\w.]+", KNOWN))


def paths(node: Any, above: str = "") -> Iterator[str]:
    """The dotted paths that are set, each as far as the list of known ones goes."""
    if above in KNOWN_PATHS or not isinstance(node, dict) or not node:
        yield above
        return
    for key, item in node.items():
        yield from paths(item, f"{above}.{key}" if above else key)


def test_every_value_is_one_that_the_chart_knows() -> None:
    used = {*paths(VALUES), *paths(STATSD)}
    assert used <= KNOWN_PATHS
    assert used >= KNOWN_PATHS, "no longer used"


def test_the_chart_and_airflow_are_pinned() -> None:
    assert "--version 1.22.0" in TEXT
    assert VALUES["airflowVersion"] == "3.3.2"
    for image in VALUES["images"].values():
        if isinstance(image, dict):
            assert re.match(r"v?\d+\.\d+\.\d+$", str(image["tag"]))
    defaults = {name: service["image"] for name, service in raw()["services"].items()}
    for name in ("redis", "statsd"):
        assert f":-{VALUES['images'][name]['repository']}:{VALUES['images'][name]['tag']}}}" in defaults[name]


def test_it_is_the_same_deployment_as_with_compose() -> None:
    assert VALUES["executor"] == "CeleryExecutor"
    assert VALUES["workers"]["celery"]["replicas"] >= 2
    ours = {item["name"]: item["value"] for item in VALUES["env"]}
    compose = raw()["services"]["airflow-worker-1"]["environment"]
    for name, value in ours.items():
        if name.startswith("MEDFLEX_"):
            assert compose[name] == f"${{{name}:-{value}}}", name
        elif name != "PYTHONPATH":
            assert compose[name] in (value, f"${{AIRFLOW_{name.rpartition('__')[2]}:-{value}}}"), name
    assert VALUES["config"]["core"]["auth_manager"] == compose["AIRFLOW__CORE__AUTH_MANAGER"]
    assert (
        VALUES["config"]["metrics"]["statsd_influxdb_enabled"] == compose["AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED"]
    )
    concurrency = VALUES["config"]["celery"]["worker_concurrency"]
    assert compose["AIRFLOW__CELERY__WORKER_CONCURRENCY"] == f"${{AIRFLOW_WORKER_CONCURRENCY:-{concurrency}}}"
    alike = (
        "AIRFLOW__WORKERS", "AIRFLOW__SCHEDULER__TASK", "AIRFLOW__SCHEDULER__NUM", "AIRFLOW__CELERY_BROKER_TRANSPORT",
    )  # fmt: skip
    settings = {name for name in compose if name.startswith(alike)}
    assert len(settings) == 6
    assert settings <= set(ours)


def test_secrets_are_named_and_none_is_written_down() -> None:
    secrets = {
        VALUES["data"]["metadataSecretName"], VALUES["data"]["brokerUrlSecretName"], VALUES["fernetKeySecretName"],
        VALUES["apiSecretKeySecretName"], VALUES["jwtSecretName"], VALUES["redis"]["passwordSecretName"],
        yaml.safe_load(VALUES["extraEnvFrom"])[0]["secretRef"]["name"],
    }  # fmt: skip
    assert len(secrets) == 7
    page = (ROOT / "docs/deployment.md").read_text()
    for name in secrets:
        assert f"generic {name} --from-env-file=" in page, name
    for item in VALUES["env"]:
        assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY$|AIRFLOW_CONN_", item["name"])
    assert not re.search(r"password: |://[^/\s]*:[^/\s]*@", TEXT)
    # The chart makes a user admin with the password admin, and a Postgres with a known password, unless told not to.
    assert VALUES["createUserJob"]["enabled"] is VALUES["postgresql"]["enabled"] is False


def test_nobody_is_root() -> None:
    assert VALUES["uid"] == VALUES["securityContexts"]["pod"]["runAsUser"] == 50000
    assert VALUES["securityContexts"]["pod"]["runAsNonRoot"] is True
    for part in (VALUES["redis"], VALUES["statsd"]):
        assert part["uid"] == part["securityContexts"]["pod"]["runAsUser"] > 0
        assert part["securityContexts"]["container"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize(
    "name", ["apiServer", "scheduler", "dagProcessor", "triggerer", "migrateDatabaseJob", "redis", "statsd", "celery"]
)
def test_each_part_says_what_it_needs(name: str) -> None:
    part = VALUES["workers"]["celery"] if name == "celery" else VALUES[name]
    assert part["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in part["resources"]["limits"]


@pytest.mark.parametrize("name", ["celery", "scheduler", "dagProcessor", "triggerer"])
def test_what_removes_old_logs_does_not_ask_the_database_for_it(name: str) -> None:
    """The image's start would run Airflow for that, which needs as much memory as the container may have."""
    sidecar = (VALUES["workers"]["celery"] if name == "celery" else VALUES[name])["logGroomerSidecar"]
    assert sidecar["env"] == [{"name": "CONNECTION_CHECK_MAX_COUNT", "value": "0"}]


def test_an_update_needs_no_room_for_more_workers_and_triggerers_and_leaves_one_of_each() -> None:
    for part in (VALUES["workers"]["celery"], VALUES["triggerer"]):
        assert part["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        assert part["replicas"] > 1


def test_certificates_are_where_compose_has_them_and_may_be_missing() -> None:
    (volume,), (mount,) = VALUES["volumes"], VALUES["volumeMounts"]
    assert volume == {"name": mount["name"], "configMap": {"name": "medflex-certs", "optional": True}}
    assert mount["readOnly"] is True
    assert f"./deploy/certs:{mount['mountPath']}:ro" in raw()["services"]["airflow-worker-1"]["volumes"]
    page = (ROOT / "docs/deployment.md").read_text()
    (made,) = re.findall(r"create configmap medflex-certs (.*)$", page, flags=re.MULTILINE)
    named = set(re.findall(rf"{mount['mountPath']}/(\w+\.pem)", page))
    assert named == set(re.findall(r"--from-file=(\S+)", made))


def test_the_address_of_airflows_database_is_one_that_both_of_its_drivers_take() -> None:
    from sqlalchemy.dialects.postgresql import asyncpg
    from sqlalchemy.engine import make_url

    page = (ROOT / "docs/deployment.md").read_text()
    (address,) = re.findall(r"`connection=(postgresql\+psycopg2:\S+)`", page)
    second: Any = asyncpg
    _, parameters = second.dialect().create_connect_args(make_url(address.replace("psycopg2", "asyncpg")))
    assert parameters.keys() == {"host", "user", "password", "database"}
    assert address.count("@") == 1
    # libpq and asyncpg read these alike.
    assert {"PGSSLMODE", "PGSSLROOTCERT"} <= set(re.findall(r"^(PG[A-Z]+)=", page, flags=re.MULTILINE))


def test_helm_waits_for_a_migration_longer_than_it_would_by_itself() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    lines = re.findall(r"^(?:# +)?helm upgrade --install .*$", page + TEXT, flags=re.MULTILINE)
    assert len(lines) == 2
    assert all(" --timeout 30m " in line for line in lines)


def test_the_ledger_is_migrated_before_airflow_and_stops_it_by_failing() -> None:
    job = VALUES["migrateDatabaseJob"]
    assert job["args"] == ["bash", "-c", "python -m medflex.ledger.migrate && exec airflow db migrate"]
    # The connections and PYTHONPATH reach the job.
    assert job["applyCustomEnv"] is job["enabled"] is True
    assert VALUES["images"]["useDefaultImageForMigration"] is False


def test_the_rules_for_metrics_are_those_of_the_mapping() -> None:
    mapping = yaml.safe_load((ROOT / "deploy/statsd/mapping.yml").read_text())
    defaults = {name: mapping["defaults"][name] for name in ("observer_type", "histogram_options")}
    expected = [rule | (defaults if rule["match_metric_type"] == "observer" else {}) for rule in mapping["mappings"]]
    assert STATSD["statsd"]["overrideMappings"] == expected


def test_whoever_has_to_reach_the_api_server_is_let_in() -> None:
    """The chart's policy without an entry lets nobody in, no worker's task and no person."""
    assert VALUES["networkPolicies"]["enabled"] is True
    parts, people = VALUES["apiServer"]["networkPolicy"]["ingress"]["from"]
    assert parts == {"podSelector": {"matchLabels": {"tier": "airflow", "release": "medflex"}}}
    assert "helm upgrade --install medflex " in TEXT
    assert people.keys() == {"namespaceSelector"}


def test_what_airflow_knows_of_old_runs_goes_with_the_ledgers() -> None:
    cleanup = VALUES["databaseCleanup"]
    assert cleanup["enabled"] is True
    # As Docker Compose does it: no archive, and a failure where a table cannot be cleaned.
    ours = re.search(r"^airflow db clean (.*)$", (ROOT / "deploy/airflow/clean.sh").read_text(), flags=re.MULTILINE)
    assert ours is not None
    assert {"--skip-archive", "--error-on-cleanup-failure"} <= _options(ours[1])
    assert _options(cleanup["args"][-1]) - {"--utc", "--date"} == _options(ours[1])
    kept = raw()["services"]["airflow-clean"]["environment"]["AIRFLOW_KEEP_DAYS"]
    assert kept == f"${{AIRFLOW_KEEP_DAYS:-{cleanup['retentionDays']}}}"
    assert cleanup["retentionDays"] >= DAYS["runs_days"]


def _options(command: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", command))


def test_a_worker_is_asked_for_the_log_of_a_running_task_where_it_is() -> None:
    """A pod of a Deployment has no name that leads to it."""
    assert VALUES["workers"]["celery"]["persistence"]["enabled"] is False
    assert VALUES["config"]["core"]["hostname_callable"] == "airflow.utils.net.get_host_ip_address"
