"""deploy/helm in the chart's hands: what Helm renders, and Airflow as the chart would start it (``chart.py``).

Wants Helm and the chart's archive, which no package index has; without them nothing here runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from sandbox.airflow_api import Airflow
from sandbox.stack import DAG_ID
from tests.deploy import chart
from tests.deploy.chart import PARTS, PRODUCT, RELEASE, SECRETS, Release, container, manifests, pods
from tests.deploy.cluster import COMPONENTS, WORKERS
from tests.deploy.compose import ROOT
from tests.deploy.test_helm import TEXT, VALUES

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(chart.why_not()), reason=str(chart.why_not())),
]
PAGE = (ROOT / "docs/deployment.md").read_text()
USER, PASSWORD = "head-1", "made up for this test 1"


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for workload, pod in pods():
        for item in (*pod.get("initContainers", []), *pod["containers"]):
            yield f"{workload}/{item['name']}", item


def test_the_chart_is_the_pinned_one() -> None:
    (pinned,) = set(re.findall(r"--version (\S+)", TEXT))
    charts = {item["metadata"]["labels"]["chart"] for item in manifests() if "chart" in item["metadata"]["labels"]}
    assert charts == {f"airflow-{pinned}"}
    assert f"helm upgrade --install {RELEASE} " in PAGE
    assert f"--namespace {chart.NAMESPACE} " in PAGE


def test_images_are_the_pinned_ones() -> None:
    images = VALUES["images"]
    allowed = {f"{images[name]['repository']}:{images[name]['tag']}" for name in ("airflow", "redis", "statsd")}
    assert {item["image"] for _, item in containers()} == allowed


def test_every_pod_may_run_where_only_restricted_ones_may() -> None:
    """Kubernetes' Pod Security Standard "restricted", which a namespace can enforce."""
    for workload, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, workload
        assert pod["securityContext"]["runAsUser"] > 0, workload
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, workload
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), workload
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, workload
    for name, item in containers():
        assert item["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert item["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name


def test_no_part_has_rights_in_kubernetes_or_a_token_for_it() -> None:
    assert not [item for item in manifests() if item["kind"].startswith(("Role", "ClusterRole"))]
    accounts = {item["metadata"]["name"]: item for item in manifests() if item["kind"] == "ServiceAccount"}
    assert accounts.keys() == {pod["serviceAccountName"] for _, pod in pods()}
    assert not any(item["automountServiceAccountToken"] for item in accounts.values())
    assert not any(pod.get("automountServiceAccountToken") for _, pod in pods())


def test_each_container_says_what_it_needs() -> None:
    for name, item in containers():
        assert item["resources"]["requests"].keys() == {"cpu", "memory"}, name
        assert "memory" in item["resources"]["limits"], name


def test_every_secret_is_one_that_the_page_makes() -> None:
    asked = {("medflex-product", None)}
    for _, item in containers():
        asked |= {(source["secretRef"]["name"], None) for source in item.get("envFrom") or []}
        for variable in item.get("env", []):
            if "valueFrom" in variable:
                key = variable["valueFrom"]["secretKeyRef"]
                asked.add((key["name"], key["key"]))
    assert asked == {*SECRETS, ("medflex-product", None), ("medflex-airflow-redis-password", "password")}
    for name, key in asked:
        (file,) = set(re.findall(rf"generic {name} --from-env-file=(\S+)", PAGE))
        assert key is None or f"| `{file}` | `{key}=" in PAGE
    for name in PRODUCT:
        assert f"`{name}`" in PAGE, name
    # Of the chart itself: it would make random ones anew with each update.
    assert not [item for item in manifests() if item["kind"] == "Secret"]


def test_the_broker_is_found_and_reached_by_those_who_need_it_only() -> None:
    assert f"@{chart.manifest('Service', f'{RELEASE}-redis')['metadata']['name']}:6379/0" in PAGE
    (rule,) = chart.manifest("NetworkPolicy", f"{RELEASE}-redis-policy")["spec"]["ingress"]
    let_in = {item["podSelector"]["matchLabels"]["component"] for item in rule["from"]}
    assert let_in == {"worker", "scheduler", "flower"}


def test_what_a_pod_is_told_reaches_every_part_of_airflow() -> None:
    ours = {item["name"]: item["value"] for item in VALUES["env"]}
    for part in set(PARTS.values()):
        found_env = {item["name"]: item.get("value") for item in container(f"{RELEASE}-{part}", part)["env"]}
        assert ours.items() <= found_env.items(), part


def test_certificates_are_in_every_part_of_airflow() -> None:
    (mount,), images = VALUES["volumeMounts"], VALUES["images"]
    with_image = {name: item for name, item in containers() if images["airflow"]["repository"] in item["image"]}
    assert len(with_image) > len(set(PARTS.values()))
    for name, item in with_image.items():
        assert mount in item["volumeMounts"], name
    for workload, pod in pods():
        mounts = any(mount in item.get("volumeMounts", []) for item in pod["containers"])
        assert not mounts or VALUES["volumes"][0] in pod["volumes"], workload


def test_what_removes_old_logs_does_not_ask_the_database_for_it() -> None:
    asks = {name: item for name, item in containers() if name.endswith("-log-groomer")}
    assert len(asks) == 4
    for name, item in asks.items():
        assert {"name": "CONNECTION_CHECK_MAX_COUNT", "value": "0"} in item["env"], name


def test_an_update_takes_workers_and_triggerers_one_after_another() -> None:
    for part in ("worker", "triggerer"):
        spec = chart.manifest("Deployment", f"{RELEASE}-{part}")["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        assert spec["replicas"] > 1


@pytest.mark.parametrize("path", ["", "/airflow"])
def test_tasks_find_airflow_below_the_path_of_its_address(path: str) -> None:
    """The chart takes the path from the address by itself, as docker-compose.yml cannot."""
    made = chart.manifests(f"config.api.base_url=https://host{path}")
    (config,) = [item for item in made if item["metadata"]["name"] == f"{RELEASE}-config"]
    assert f"base_url = https://host{path}\n" in config["data"]["airflow.cfg"]
    assert (
        f"execution_api_server_url = http://{RELEASE}-api-server:8080{path}/execution/\n"
        in config["data"]["airflow.cfg"]
    )


def test_all_of_airflow_is_what_the_page_stops() -> None:
    (scaled,) = re.findall(r"scale deployment ((?:\S+ )+)--replicas=0", PAGE)
    (waited,) = re.findall(r"component in \(([^)]*)\)", PAGE)
    parts = {f"{RELEASE}-{part}" for part in PARTS.values()}
    assert set(scaled.split()) == {f"{RELEASE}-{part}" for part in waited.split(", ")} == parts
    for part in parts:
        labels = chart.manifest("Deployment", part)["spec"]["template"]["metadata"]["labels"]
        assert f"{RELEASE}-{labels['component']}" == part


# -- the parts, started ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Everything up and alive, a small Medlock, and one user."""
    made = Release(tmp_path_factory.mktemp("release"))
    try:
        made.start_servers()
        made.fill_medlock(1_000, 12)
        made.start_airflow(USER, PASSWORD)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def airflow(release: Release) -> Airflow:
    return release.airflow(USER, PASSWORD)


@pytest.fixture(scope="module")
def run_id(release: Release, airflow: Airflow) -> str:
    """A run of the daily DAG that has ended."""
    return release.daily_run(airflow)


def test_the_daily_run_goes_through(release: Release, airflow: Airflow, run_id: str) -> None:
    assert airflow.run_state(DAG_ID, run_id) == "success", airflow.task_states(DAG_ID, run_id)
    assert len(release.medflex.control.records()) > 100


def test_logs_are_read_from_the_object_store(release: Release, run_id: str) -> None:
    """A worker's own disk goes with its pod."""
    session = release.session(USER, PASSWORD)
    release.processes.stop(list(WORKERS))
    try:
        path = f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/plan_shards/logs/1"
        answer = session.get(release.address + path, headers={"Accept": "application/json"}, timeout=60)
        assert answer.status_code == 200, answer.text
        events = [line["event"] for line in answer.json()["content"]]
        assert any("s3://medflex-logs/airflow/" in event for event in events), events[:5]
        # What only the log itself says.
        assert any(re.search(r"\d+ clinics?.* shards?", event) for event in events), events
    finally:
        release.start(*WORKERS)
        release.wait_healthy(WORKERS[0])


def test_the_probes_tell_of_a_part_that_is_gone(release: Release, run_id: str) -> None:
    for service in (*COMPONENTS, WORKERS[0]):
        assert release.health(service) == 0, service
    release.processes.stop([WORKERS[0], "airflow-scheduler"])
    assert release.health(WORKERS[0]) != 0
    assert release.health("airflow-scheduler") != 0


def test_old_runs_go_by_the_charts_job(release: Release, run_id: str) -> None:
    assert "airflow db clean" in release.services["cleanup"]["command"][-1]
    password = release.variables["POSTGRES_AIRFLOW_PASSWORD"]
    with psycopg.connect(release.postgres.uri("airflow", "airflow", password), autocommit=True) as airflow:
        for name, days in (("old", 121), ("young", 119)):
            airflow.execute(
                "INSERT INTO log (dttm, event) VALUES (now() - make_interval(days => %s), %s)", (days, name)
            )
        release.run("cleanup")
        left = airflow.execute("SELECT event FROM log WHERE event IN ('old', 'young')").fetchall()
    assert left == [("young",)]
