"""docker-compose.yml brought to life without Docker: real Celery workers, broker, object store, users (``cluster.py``).

Minutes of work, and the first time an installation of the images' packages: in ``make test-long`` only.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
import requests

from sandbox.airflow_api import Airflow
from sandbox.stack import DAG_ID, OTHER_DAG_IDS
from tests.deploy.cluster import WORKERS, Deployment, packages, wait_for
from tests.deploy.compose import EXAMPLE, ROOT, dotenv, interpolated

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
USER, PASSWORD = "head-1", "made up for this test 1"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything up and healthy, a small Medlock, and one user, who is the head of clinic 1."""
    found = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        found.start_servers()
        found.fill_medlock(1_000, 12)
        found.start_airflow(USER, PASSWORD)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def airflow(deployment: Deployment) -> Airflow:
    return deployment.airflow(USER, PASSWORD)


@pytest.fixture(scope="module")
def run_id(deployment: Deployment, airflow: Airflow) -> str:
    """A run of the daily DAG that has ended."""
    return deployment.daily_run(airflow)


def test_the_daily_run_goes_through_on_two_workers_that_share_an_object_store(
    deployment: Deployment, airflow: Airflow, run_id: str
) -> None:
    states = airflow.task_states(DAG_ID, run_id)
    assert airflow.run_state(DAG_ID, run_id) == "success", states
    assert states["shard.load"].get("success", 0) >= 1
    password = deployment.variables["POSTGRES_LEDGER_PASSWORD"]
    with psycopg.connect(deployment.postgres.uri("ledger", "ledger", password)) as ledger:
        row = ledger.execute("SELECT count(*) FROM ledger.record WHERE state = 'sent'").fetchone()
    shown = deployment.medflex.control.records()
    assert row == (len(shown),)
    assert len(shown) > 100
    # Each worker has its own home, so its own logs: both have worked.
    for worker in WORKERS:
        assert list((deployment.folder / worker / "logs").rglob(f"*{DAG_ID}*/**/*.log")), worker


def test_the_workers_have_imported_the_tasks_libraries_before_they_fork(deployment: Deployment) -> None:
    for worker in WORKERS:
        process = deployment.processes.process(worker)
        assert process is not None
        # Of the worker itself: what a task imports is gone with its process.
        assert any("/pandas/_libs/" in entry.path for entry in process.memory_maps()), worker


def test_staging_is_gone_and_the_report_is_there(deployment: Deployment, run_id: str) -> None:
    keys = "print(*[o['Key'] for o in s3.list_objects_v2(Bucket='{}').get('Contents', [])], sep='\\n')"
    assert deployment.s3(keys.format("medflex-staging")) == ""
    assert "reports/index.html" in deployment.s3(keys.format("medflex-data-docs")).splitlines()


def test_staging_expires_and_the_reports_do_not(deployment: Deployment) -> None:
    rules = deployment.s3("print(s3.get_bucket_lifecycle_configuration(Bucket='medflex-staging')['Rules'])")
    assert "'Days': 3" in rules
    assert "'Prefix': 'runs/'" in rules
    assert "'Enabled'" in rules
    none = deployment.s3(
        "try: s3.get_bucket_lifecycle_configuration(Bucket='medflex-data-docs')\n"
        "except s3.exceptions.ClientError as e: print(e.response['Error']['Code'])",
    )
    assert none == "NoSuchLifecycleConfiguration"
    # Once more changes nothing and fails in nothing.
    assert "are there" in deployment.run("storage-buckets")
    done = deployment.let_staging_expire()
    assert done.returncode == 0, done.stderr
    # And it is so of each object, since the collector that the rule is for does not run.
    for bucket, key, seconds in (
        ("medflex-staging", "runs/probe-of-expiry", 3 * 86_400),
        ("medflex-data-docs", "reports/probe-of-expiry", 0),
    ):
        deployment.s3(f"s3.put_object(Bucket='{bucket}', Key='{key}', Body=b'x')")
        address = f"http://127.0.0.1:{deployment.ports['filer']}/buckets/{bucket}/{key}?metadata=true"
        with urlopen(address, timeout=10) as answer:
            assert json.load(answer)["TtlSec"] == seconds
        deployment.s3(f"s3.delete_object(Bucket='{bucket}', Key='{key}')")


@pytest.mark.parametrize(
    "variables",
    [{"MEDFLEX_STAGING_URL": "s3://medflex_storage@no-such-bucket/runs"}, {"MASTER": "127.0.0.1:1"}],
    ids=["no such bucket", "no store"],
)
def test_who_lets_staging_expire_fails_where_it_does_not(deployment: Deployment, variables: dict[str, str]) -> None:
    done = deployment.let_staging_expire(**variables)
    assert done.returncode != 0
    assert "does not expire by itself" in done.stderr


def test_the_cleaning_fails_where_a_table_cannot_be_cleaned(deployment: Deployment) -> None:
    environment = deployment.environment("airflow-clean")
    done_before = deployment.folder / "airflow-clean" / "cleaned"
    done_before.unlink(missing_ok=True)
    password = deployment.variables["POSTGRES_AIRFLOW_PASSWORD"]
    with psycopg.connect(deployment.postgres.uri("airflow", "airflow", password), autocommit=True) as airflow:
        airflow.execute("INSERT INTO log (dttm, event) VALUES (now() - interval '121 days', 'an event that stays')")
        airflow.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION SQLSTATE '53100' USING MESSAGE = 'no space'; END$$"
        )
        airflow.execute("CREATE TRIGGER refuse BEFORE DELETE ON log FOR EACH ROW EXECUTE FUNCTION refuse()")
        try:
            command = ["bash", str(ROOT / "deploy/airflow/clean.sh")]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        finally:
            airflow.execute("DROP FUNCTION refuse() CASCADE")
            airflow.execute("DELETE FROM log WHERE event = 'an event that stays'")
    assert done.returncode != 0
    assert not done_before.exists()


def test_old_runs_and_logs_go_and_young_ones_stay(deployment: Deployment, run_id: str) -> None:
    logs = deployment.folder / "airflow-clean" / "logs"
    for name in ("old", "young"):
        (logs / name).mkdir(parents=True)
        (logs / name / "attempt=1.log").write_text("a line")
    long_ago = time.time() - 121 * 86_400
    os.utime(logs / "old" / "attempt=1.log", (long_ago, long_ago))
    password = deployment.variables["POSTGRES_AIRFLOW_PASSWORD"]
    with psycopg.connect(deployment.postgres.uri("airflow", "airflow", password), autocommit=True) as airflow:
        for name, days in (("old", 121), ("young", 119)):
            airflow.execute(
                "INSERT INTO log (dttm, event) VALUES (now() - make_interval(days => %s), %s)",
                (days, f"a {name} event"),
            )
        environment = deployment.environment("airflow-clean")
        command = ["bash", str(ROOT / "deploy/airflow/clean.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found = airflow.execute("SELECT event FROM log WHERE event IN ('a old event', 'a young event')").fetchall()
        runs = airflow.execute("SELECT count(*) FROM dag_run WHERE run_id = %s", (run_id,)).fetchone()
    assert found == [("a young event",)]
    assert runs == (1,)
    assert [path.parent.name for path in logs.rglob("*.log")] == ["young"]
    assert (deployment.folder / "airflow-clean" / "cleaned").exists()


def test_the_store_keeps_nothing_in_the_clear_and_lets_nobody_in(deployment: Deployment) -> None:
    # Neither text, which the store packs by itself, nor Parquet, which is packed: random bytes stay as they are.
    secret = secrets.token_bytes(2_000)
    deployment.s3(
        f"k, v = 'probe', bytes.fromhex('{secret.hex()}')\n"
        "s3.put_object(Bucket='medflex-staging', Key=k, Body=v)\n"
        "assert s3.get_object(Bucket='medflex-staging', Key=k)['Body'].read() == v",
    )
    stored = b"".join(path.read_bytes() for path in (deployment.folder / "storage").rglob("*") if path.is_file())
    assert len(stored) > len(secret)
    assert secret[:100] not in stored
    assert secret[-100:] not in stored
    for path in ("medflex-staging/probe", "medflex-data-docs/reports/index.html"):
        assert requests.get(f"http://127.0.0.1:{deployment.ports['s3']}/{path}", timeout=10).status_code == 403


def test_the_pages_know_airflows_users(deployment: Deployment, airflow: Airflow, run_id: str) -> None:
    address = deployment.address
    assert requests.get(f"{address}/medflex/", timeout=30).status_code in (401, 403)
    session = deployment.session(USER, PASSWORD)
    clinics = session.get(f"{address}/medflex/", timeout=30)
    assert clinics.status_code == 200
    # The report is read from the object store; one that is not there is not found, and no error.
    report = session.get(f"{address}/medflex/data-docs/index.html", timeout=30)
    assert report.status_code == 200
    assert "<html" in report.text
    # The api-server lives long, and must not remember how the report was.
    put = "s3.put_object(Bucket='medflex-data-docs', Key='reports/index.html', Body=b'<html>the next day</html>')"
    deployment.s3(put)
    assert "the next day" in session.get(f"{address}/medflex/data-docs/index.html", timeout=30).text
    missing = session.get(f"{address}/medflex/data-docs/runs/none/run.html", timeout=30)
    assert missing.status_code == 404
    # The user's name is the log-in of the head of clinic 1, so the switch is theirs.
    switch = session.get(f"{address}/medflex/clinics/1/switch?to=off", timeout=30)
    assert switch.status_code == 200
    assert "<form" in switch.text
    # Of another clinic they are not the head, whatever their role in Airflow.
    assert session.get(f"{address}/medflex/clinics/2/switch?to=off", timeout=30).status_code == 403


def test_the_other_dags_run_on_the_workers_too(airflow: Airflow, run_id: str) -> None:
    found: dict[str, str] = {}
    for dag_id in OTHER_DAG_IDS:
        if dag_id == "medflex_release":
            continue  # asks a person
        made = airflow.trigger(dag_id, dt.datetime.now(dt.UTC), {})
        assert made is not None
        found[dag_id] = made
        airflow.unpause(dag_id)
    for dag_id, made in found.items():
        wait_for(f"{dag_id} ends", lambda d=dag_id, m=made: airflow.run_state(d, m) in ("success", "failed"), 300)
        assert airflow.run_state(dag_id, made) == "success", (dag_id, airflow.task_states(dag_id, made))
        airflow.pause(dag_id)


def test_a_health_check_tells_of_a_part_that_is_gone(deployment: Deployment, run_id: str) -> None:
    assert deployment.health("airflow-worker-2") == 0
    deployment.processes.stop(["airflow-worker-2", "airflow-scheduler"])
    assert deployment.health("airflow-worker-2") != 0
    assert deployment.health("airflow-scheduler") != 0
    assert deployment.health("airflow-worker-1") == 0
    assert deployment.health("airflow-api-server") == 0
    deployment.postgres.stop()
    try:
        wait_for("the api-server is unhealthy", lambda: deployment.health("airflow-api-server") != 0, 60)
    finally:
        deployment.postgres.start()
    deployment.processes.stop(["storage"])
    assert deployment.health("storage") != 0


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([packages() / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_file_is_one_of_the_compose_specification() -> None:
    import json

    tree: dict[str, Any] = interpolated(
        dotenv(EXAMPLE)
        | {"POSTGRES_PASSWORD": "x"}
        | dict.fromkeys([name for name, value in dotenv(EXAMPLE).items() if not value], "x")
    )
    tree = {name: part for name, part in tree.items() if not name.startswith("x-")}
    program = "import sys; from compose_spec import PyCompose; PyCompose.from_yaml(sys.stdin.read()).validate()"
    check = [packages() / "python", "-c", program]
    done = subprocess.run(check, input=json.dumps(tree), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    tree["services"]["redis"]["networks"] = ["nowhere"]
    assert subprocess.run(check, input=json.dumps(tree), capture_output=True, text=True, check=False).returncode != 0
