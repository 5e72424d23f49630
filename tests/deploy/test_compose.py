"""docker-compose.yml: what has to hold of every service, every secret, every setting. No Docker is needed for it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from cryptography.fernet import Fernet

from bench import capacity
from medflex.ledger.migrate import migrate
from sandbox.containers import fill
from sandbox.medflex.process import MedflexProcess
from sandbox.medlock import LOGINS
from sandbox.postgres import Cluster, binaries, free_port
from sandbox.stack import Stack, stack_environment
from scripts import new_env
from tests.deploy import chart
from tests.deploy.cluster import run_script, wait_for
from tests.deploy.compose import EXAMPLE, ROOT, TEXT, MissingError, dotenv, interpolated, raw, variables

SERVICES: dict[str, dict[str, Any]] = raw()["services"]
ONCE = {"airflow-migrate", "ledger-migrate", "storage-buckets", "storage-expiry", "airflow-cli", "demo-data"}
COMPONENTS = {"airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"}
WORKERS = {"airflow-worker-1", "airflow-worker-2"}
PARTS = COMPONENTS | WORKERS
SECRETS = {*new_env.MADE_UP, *new_env.MADE_UP_FOR_DEMO} | {
    "AIRFLOW_CONN_MEDLOCK_DB", "AIRFLOW_CONN_MEDLOCK_ACTIONS", "AIRFLOW_CONN_MEDFLEX_API",
    "AIRFLOW_CONN_MEDLOCK_SWITCH", "AIRFLOW_CONN_MEDFLEX_ALERTS",
}  # fmt: skip
OPTIONAL = {name for name, uses in variables().items() if ("pass", "") in uses}


@pytest.fixture(scope="module")
def demo() -> dict[str, str]:
    """The variables of a fresh ``.env`` of the demo."""
    return dotenv(new_env.filled(EXAMPLE, demo=True))


@pytest.fixture(scope="module")
def tree(demo: dict[str, str]) -> dict[str, Any]:
    """The file with these."""
    return interpolated(demo)


# The services


def test_all_parts_are_there() -> None:
    assert set(SERVICES) == PARTS | ONCE | {
        "postgres",
        "redis",
        "storage",
        "statsd",
        "medlock",
        "medflex",
        "airflow-clean",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_root_and_can_become_nobody_else(name: str) -> None:
    service = SERVICES[name]
    assert str(service["user"]).split(":")[0] not in ("", "0", "root")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "pid", "ipc"} & set(service)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_and_can_be_replaced(name: str) -> None:
    match = re.fullmatch(r"\$\{([A-Z]+_)+IMAGE:-(?P<default>[^}]+)\}", SERVICES[name]["image"])
    assert match, SERVICES[name]["image"]
    _, _, tag = match["default"].rpartition(":")
    assert re.match(r"v?\d+\.\d+", tag), tag


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE))
def test_a_service_is_started_again_and_looked_after(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    health = service["healthcheck"]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(health)
    command = " ".join(health["test"][1:])
    assert health["test"][0] in ("CMD", "CMD-SHELL")
    # Nothing that hides a failure: `|| true`, `; exit 0`, a pipe whose end always succeeds.
    assert not re.search(r"\|\||;|\bexit\b|\btrue\b|\becho\b", command), command
    if "|" in command:
        assert re.search(r"\| grep --quiet [^|]+$", command), command


@pytest.mark.parametrize("name", sorted(ONCE))
def test_what_ends_by_itself_is_not_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "no"
    assert "healthcheck" not in SERVICES[name]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_airflow_waits_for_both_migrations_and_for_the_buckets(name: str) -> None:
    needs = SERVICES[name]["depends_on"]
    done = {other for other, how in needs.items() if how["condition"] == "service_completed_successfully"}
    assert done == {"airflow-migrate", "ledger-migrate", "storage-buckets"}
    assert {"postgres", "redis"} <= {other for other, how in needs.items() if how["condition"] == "service_healthy"}
    # Withdrawals and alerts need no object store, so Airflow is started without one, too, and without a profile's
    # metrics; and without nothing else.
    assert {other for other, how in needs.items() if not how.get("required", True)} == {"storage-buckets", "statsd"}


@pytest.mark.parametrize("name", sorted(PARTS | {"airflow-clean"}))
def test_metrics_are_there_before_airflow_which_looks_once(name: str) -> None:
    # Only begun: what is unhealthy there must not keep Airflow, and withdrawals with it, from starting.
    assert SERVICES[name]["depends_on"]["statsd"] == {"condition": "service_started", "required": False}
    assert SERVICES["airflow-scheduler"]["environment"]["AIRFLOW__METRICS__STATSD_HOST"] == "statsd"


def test_what_is_waited_for_can_become_what_is_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            becomes = "service_completed_successfully" if other in ONCE else "service_healthy"
            # The buckets' service waits by itself, and not for ever; of statsd Airflow needs the name.
            waits = (name, other) == ("storage-buckets", "storage") or other == "statsd"
            assert how["condition"] == ("service_started" if waits else becomes)
            # A profile that is off must not keep others from starting.
            same = set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", []))
            assert same or not how.get("required", True), (name, other)


class AbortedError(Exception):
    """``docker compose up`` ends, and starts nothing of what it has not started yet."""


def started(broken: dict[str, str]) -> set[str]:
    """The services that ``docker compose up`` starts, as Compose does it (``pkg/compose``, alike from 2.24 to 5.5).

    A service is started after all that it depends on, required or not. Where one of these is unhealthy or fails, it is
    an error of the whole command if it is required, and a warning if it is not. What is not required and of a profile
    that is off is passed over.

    Args:
        broken: service -> ``unhealthy``, ``fails`` (ends with another code than 0), or ``loops``: it starts over and
            over, and Docker calls its health "starting" each time.
    """
    found: set[str] = set()
    waiting = {name for name, service in SERVICES.items() if "profiles" not in service}

    def goes_on(other: str, how: dict[str, Any]) -> bool:
        state = broken.get(other)
        if how["condition"] == "service_started" or state is None:
            return True
        if state == "loops":
            return False
        if how.get("required", True):
            raise AbortedError(other)
        return True

    while True:
        needs = {
            name: {
                other: how for other, how in SERVICES[name].get("depends_on", {}).items()
                if how.get("required", True) or "profiles" not in SERVICES[other]
            }
            for name in waiting
        }  # fmt: skip
        ready = {
            name for name in waiting
            if needs[name].keys() <= found and all(goes_on(other, how) for other, how in needs[name].items())
        }  # fmt: skip
        if not ready:
            return found
        found |= ready
        waiting -= ready


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"storage": "unhealthy", "storage-buckets": "fails", "storage-expiry": "fails"},
        {"storage": "loops", "storage-buckets": "fails"},
        {"storage-buckets": "fails"},
        {"storage-buckets": "fails", "storage-expiry": "fails"},
        {"storage-expiry": "fails"},
    ],
    ids=" ".join,
)
def test_airflow_is_started_without_an_object_store(broken: dict[str, str]) -> None:
    """Who puts a new token into .env runs `up`, which has recreated Airflow, and so stopped it, before it waits."""
    up = started(broken)
    assert up >= PARTS
    if broken.get("storage") != "loops":
        assert up == {name for name, service in SERVICES.items() if "profiles" not in service}


@pytest.mark.parametrize("broken", ["postgres", "redis", "airflow-migrate", "ledger-migrate"])
def test_airflow_is_not_started_without_anything_else(broken: str) -> None:
    with pytest.raises(AbortedError, match=broken):
        started({broken: "fails" if broken in ONCE else "unhealthy"})


def test_up_waits_for_the_end_of_what_ends() -> None:
    """With ``--wait`` Compose wants a service to be running, unless another one waits for its success."""
    needs = [how for service in SERVICES.values() for how in service.get("depends_on", {}).items()]
    ends = {other for other, how in needs if how["condition"] == "service_completed_successfully"}
    assert ends == {name for name in ONCE if "profiles" not in SERVICES[name]}


def test_the_documents_ask_for_a_compose_that_knows_what_is_not_required() -> None:
    found = re.search(r"Compose (\d+)\.(\d+) or newer", (ROOT / "docs/deployment.md").read_text())
    assert found is not None
    # It is read from 2.20.0 on, and heeded from 2.20.2 on.
    assert (int(found[1]), int(found[2])) >= (2, 21)


def test_the_demo_and_what_else_is_optional_are_started_by_their_profile_only() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {
        "airflow-cli": ["tools"], "statsd": ["metrics"],
        "medlock": ["demo"], "medflex": ["demo"], "demo-data": ["demo"],
    }  # fmt: skip


def test_ports_are_open_on_this_machine_only() -> None:
    services = with_defaults()["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"airflow-api-server": ["127.0.0.1:8080:8080"], "statsd": ["127.0.0.1:9102:9102"]}


def test_what_keeps_data_reaches_nobody_outside() -> None:
    networks = raw()["networks"]
    assert networks["inside"] == networks["store"] == {"internal": True}
    for name in ("postgres", "redis", "medlock", "medflex"):
        assert SERVICES[name]["networks"] == ["inside"], name
    # S3's gRPC port has no log-in: nobody is beside it but those who have its secret anyway.
    assert SERVICES["storage"]["networks"] == ["store"]
    beside = {name for name, service in SERVICES.items() if "store" in service.get("networks", [])} - {"storage"}
    assert all("STORAGE_SECRET_KEY" in SERVICES[name]["environment"]["AIRFLOW_CONN_MEDFLEX_STORAGE"] for name in beside)
    assert beside > PARTS
    assert SERVICES["demo-data"]["network_mode"] == "service:medflex"
    assert SERVICES["storage-expiry"]["network_mode"] == "service:storage"


def test_every_folder_that_is_kept_is_a_volume_and_every_file_exists() -> None:
    volumes = raw()["volumes"]
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"]
            else:
                used.add(source)
    assert used == set(volumes)


def test_a_file_that_a_running_container_reads_again_is_not_mounted_by_itself() -> None:
    """Of a file alone it keeps the one that was there at its start: a checkout writes a new one in its place."""
    sources = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    alone = {source.removeprefix("./deploy/") for source in sources if (ROOT / source).is_file()}
    assert alone == {"postgres/init.sh", "demo/medlock.sh", "storage/expire.sh", "statsd/mapping.yml"}


def test_scripts_for_a_person_lie_where_the_documents_say() -> None:
    folders = {
        name: dict(reversed(volume.split(":")[:2]) for volume in SERVICES[name]["volumes"])
        for name in ("postgres", "airflow-clean")
    }
    texts = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("deployment", "runbook"))
    restored = re.findall(r"(/\S*)/restore\.sh (?:ledger|airflow)\b", texts)
    assert len(restored) >= 4
    for target in restored:
        assert (ROOT / folders["postgres"][target] / "restore.sh").is_file()
    (target,) = re.findall(r"bash (/\S+)/clean\.sh", str(SERVICES["airflow-clean"]["command"]))
    assert (ROOT / folders["airflow-clean"][target] / "clean.sh").is_file()


def test_every_part_of_airflow_sees_the_certificates_that_the_documents_name() -> None:
    texts = EXAMPLE + (ROOT / "docs/deployment.md").read_text()
    named = set(re.findall(r"(?<![\w.])(/\w+)/\w+\.pem", texts))
    assert len(named) == 1
    assert {"sslrootcert", "ca_bundle"} <= set(re.findall(r"(sslrootcert|ca_bundle)\W+\w+/\w+\.pem", texts))
    with_image = {name for name, service in SERVICES.items() if "MEDFLEX_IMAGE" in service["image"]}
    assert with_image == PARTS | {
        "airflow-clean",
        "airflow-cli",
        "airflow-migrate",
        "ledger-migrate",
        "storage-buckets",
    }
    for name in with_image:
        assert {f"./deploy/certs:{folder}:ro" for folder in named} <= set(SERVICES[name]["volumes"]), name
    # A clone has the folder, or Docker would make one that is root's; what lies in it is nobody's but this machine's.
    assert {path.name for path in (ROOT / "deploy/certs").glob("*.md")} == {"README.md"}
    assert (ROOT / "deploy/certs/.gitignore").read_text().splitlines() == ["*", "!.gitignore", "!README.md"]


def test_commands_are_those_of_airflow_and_of_the_product() -> None:
    commands = {name: SERVICES[name]["command"] for name in PARTS | ONCE}
    assert commands["airflow-migrate"] == ["airflow", "db", "migrate"]
    assert commands["ledger-migrate"] == ["python", "-m", "medflex.ledger.migrate"]
    assert (ROOT / commands["storage-buckets"][1]).is_file()
    assert commands["demo-data"] == ["python", "-m", "sandbox.containers"]
    for name in COMPONENTS:
        assert commands[name][:2] == ["airflow", name.removeprefix("airflow-")]
    for name in WORKERS:
        assert commands[name] == ["airflow", "celery", "worker"]
        # Logs and health checks ask for a worker by its name.
        assert SERVICES[name]["hostname"] == name


# Secrets and variables


def with_defaults() -> dict[str, Any]:
    """The file with nothing set but its secrets."""
    return interpolated(dict.fromkeys(SECRETS, "x"))


@pytest.mark.parametrize("name", sorted(SECRETS - OPTIONAL))
def test_a_secret_has_no_default(name: str) -> None:
    hows = {how for how, _ in variables()[name]}
    # Compose fills in all profiles, also those that are off: the demo's are empty, and its services refuse that.
    assert hows == ({":-"} if name in new_env.MADE_UP_FOR_DEMO else {":?"})
    assert all(more == "" for how, more in variables()[name] if how == ":-")


@pytest.mark.parametrize("name", sorted(SECRETS - OPTIONAL - set(new_env.MADE_UP_FOR_DEMO)))
def test_nothing_starts_without_a_secret(name: str, demo: dict[str, str]) -> None:
    with pytest.raises(MissingError, match=name):
        interpolated(demo | {name: ""})


def test_nothing_that_looks_like_a_secret_is_written_down() -> None:
    def walk(node: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict):
            for key, item in node.items():
                yield from walk(item, f"{path}.{key}")
        elif isinstance(node, list):
            for item in node:
                yield from walk(item, path)
        elif isinstance(node, str):
            yield path, node

    for path, value in walk(raw()["services"], ""):
        if re.search(r"(PASSWORD|SECRET|TOKEN|_KEY)$", path.rpartition(".")[2]) and "ACCESS_KEY_ID" not in path:
            assert value.startswith("${"), path
        for password in re.findall(r"://[^:/@\s]*:([^@\s]*)@", value):
            assert password.startswith("${"), path


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    in_example = re.findall(r"^#?([A-Z_]+)=", EXAMPLE, flags=re.MULTILINE)
    assert len(in_example) == len(set(in_example))
    # One is read by Compose itself.
    assert set(in_example) == {*variables(), "COMPOSE_PROFILES"}
    # An empty value would not be the default, so these are commented out.
    assert set(re.findall(r"^#([A-Z_]+)=", EXAMPLE, flags=re.MULTILINE)) == OPTIONAL


def test_the_example_holds_no_secret_and_the_defaults_of_the_file() -> None:
    example = dotenv(EXAMPLE)
    for name, uses in variables().items():
        if name in SECRETS:
            assert example.get(name, "") == ""
            continue
        for how, more in uses:
            if how != "pass":
                assert (how, more) == (":-", example[name]), name


def test_a_new_env_has_fresh_secrets_and_leaves_the_rest() -> None:
    first, second = (dotenv(new_env.filled(EXAMPLE)) for _ in range(2))
    assert {name for name in first if first[name] != second[name]} == set(new_env.MADE_UP)
    for name in new_env.MADE_UP:
        assert len(first[name]) >= 32
        assert re.fullmatch(r"[A-Za-z0-9_=-]+", first[name])
    assert first["AIRFLOW_CONN_MEDLOCK_DB"] == first["DEMO_MEDFLEX_TOKEN"] == ""
    assert {name: value for name, value in first.items() if name not in SECRETS} == {
        name: value for name, value in dotenv(EXAMPLE).items() if name not in SECRETS
    }


def test_a_new_env_of_the_demo_lacks_nothing_and_leads_to_its_services(
    demo: dict[str, str], tree: dict[str, Any]
) -> None:
    environment = tree["services"]["airflow-worker-1"]["environment"]
    assert json.loads(environment["AIRFLOW_CONN_MEDFLEX_API"])["host"] == "medflex"
    assert json.loads(environment["AIRFLOW_CONN_MEDFLEX_API"])["password"] == demo["DEMO_MEDFLEX_TOKEN"]
    users = set()
    for name in ("DB", "ACTIONS", "SWITCH"):
        address = urlsplit(environment[f"AIRFLOW_CONN_MEDLOCK_{name}"])
        assert (address.hostname, address.path) == ("medlock", "/medlock")
        users.add(address.username)
    assert users == set(LOGINS)


# Settings of Airflow and of the product


def test_every_part_of_airflow_has_the_same_settings(tree: dict[str, Any]) -> None:
    own = {"DUMB_INIT_SETSID"}
    environments = {name: tree["services"][name]["environment"] for name in PARTS}
    shared = environments["airflow-scheduler"]
    for name, environment in environments.items():
        assert {key: value for key, value in environment.items() if key not in own} == shared, name
    for name in (
        "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "MEDFLEX_DIGEST_KEY", "MEDFLEX_STAGING_URL",
    ):  # fmt: skip
        assert shared[name], name
    assert shared["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"


@pytest.mark.parametrize("path", ["", "/airflow"])
def test_tasks_find_airflow_below_the_path_of_its_address(demo: dict[str, str], path: str) -> None:
    service = interpolated(demo | {"AIRFLOW_BASE_URL": "https://host", "AIRFLOW_BASE_PATH": path})
    environment = service["services"]["airflow-worker-1"]["environment"]
    assert environment["AIRFLOW__API__BASE_URL"] == f"https://host{path}"
    address = urlsplit(environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"])
    assert (address.hostname, address.port, address.path) == ("airflow-api-server", 8080, f"{path}/execution/")


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("url", "path", "healthy"),
    [
        ("http://host", "", True),
        ("https://host", "/airflow", True),
        # A path where none belongs: the rest of the api-server looks well, and no task would run.
        ("https://host/airflow", "", False),
        ("http://host/", "/airflow", False),
    ],
)
def test_the_api_server_is_healthy_only_where_tasks_find_it(tmp_path: Path, url: str, path: str, healthy: bool) -> None:
    service = interpolated(
        {**dict.fromkeys(SECRETS, "x"), "AIRFLOW_BASE_URL": url, "AIRFLOW_BASE_PATH": path}
    )["services"]["airflow-api-server"]  # fmt: skip
    port = str(free_port())
    wanted = ("AIRFLOW__API__BASE_URL", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL")
    addresses = {
        name: service["environment"][name].replace("airflow-api-server:8080", f"127.0.0.1:{port}") for name in wanted
    }
    environment = airflow_environment(tmp_path, f"sqlite:///{tmp_path}/airflow.db", Fernet.generate_key().decode())
    environment |= {"AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__PORT": port, **addresses}

    def run(*words: str) -> int:
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=False).returncode

    assert run("airflow", "db", "migrate") == 0
    _, command = service["healthcheck"]["test"]
    database, tasks = command.replace("localhost:8080", f"127.0.0.1:{port}").split(" && ")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(["airflow", "api-server"], env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for("the database is told of", lambda: run("sh", "-c", database) == 0, 90)
        both = f"{database} && {tasks}"
        if healthy:
            wait_for("tasks find it", lambda: run("sh", "-c", both) == 0, 90)
        else:
            # Not only at its first look, which is slow.
            assert all(run("sh", "-c", both) != 0 for _ in range(3))
    finally:
        server.terminate()
        server.wait(60)


def test_every_setting_that_the_documents_name_reaches_airflow() -> None:
    architecture = (ROOT / "docs/architecture.md").read_text()
    table = architecture.partition("### Environment variables")[2].partition("\n## ")[0]
    named = {
        name
        for row in re.findall(r"^\|([^|]+)\|", table, flags=re.MULTILINE)
        for name in re.findall(r"`((?:MEDFLEX|AIRFLOW)_[A-Z_]+)`", row)
    }
    assert {"MEDFLEX_STAGING_URL", "AIRFLOW_CONN_MEDLOCK_DB", "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"} <= named
    connections = re.findall(r"^\| `(med\w+)` \| (?:Postgres|HTTP)", architecture, flags=re.MULTILINE)
    assert "medlock_switch" in connections
    named |= {f"AIRFLOW_CONN_{name.upper()}" for name in connections}
    for name in PARTS:
        assert named - {"MEDFLEX_STACK_DIR"} <= set(SERVICES[name]["environment"]), name


def test_a_connection_in_the_environment_is_read_before_what_airflow_keeps() -> None:
    """docs/runbook.md says so to whoever has to put a new token somewhere."""
    from airflow.sdk.execution_time.secrets import DEFAULT_SECRETS_SEARCH_PATH_WORKERS
    from airflow.secrets import DEFAULT_SECRETS_SEARCH_PATH
    from airflow.secrets.environment_variables import CONN_ENV_PREFIX

    for search_path in (DEFAULT_SECRETS_SEARCH_PATH, DEFAULT_SECRETS_SEARCH_PATH_WORKERS):
        assert search_path[0] == "airflow.secrets.environment_variables.EnvironmentVariablesBackend"
    assert CONN_ENV_PREFIX == "AIRFLOW_CONN_"
    for name in PARTS:
        assert not [key for key in SERVICES[name]["environment"] if key.startswith("AIRFLOW__SECRETS__")]


def test_what_the_stack_sets_for_a_reason_is_set_here_too(tmp_path: Path) -> None:
    stack = stack_environment(Stack(tmp_path))
    environment = SERVICES["airflow-worker-1"]["environment"]
    for name in (
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED", "AIRFLOW__CORE__LOAD_EXAMPLES", "DO_NOT_TRACK",
        "GX_ANALYTICS_ENABLED", "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL", "MALLOC_ARENA_MAX",
    ):  # fmt: skip
        assert environment[name] == stack[name], name
    # Airflow begins an unpaused DAG's watch when it reads the file next: a refusal is taken back within a minute.
    assert float(stack["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"]) <= 30
    # What the stack sets and this file does not: places, sizes of a demo, and how LocalExecutor makes its processes.
    of_the_machine = {
        "AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER", "AIRFLOW__API__HOST", "AIRFLOW__API__PORT",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL",
        "AIRFLOW__SCHEDULER__MP_START_METHOD", "AIRFLOW__CORE__MP_FORKSERVER_PRELOAD",
    }  # fmt: skip
    ours = {name for name in stack if name.startswith(("AIRFLOW", "MEDFLEX_"))}
    assert ours - set(environment) == of_the_machine


def test_a_run_leaves_room_for_withdrawals_on_the_only_worker_that_is_left() -> None:
    environment = with_defaults()["services"]["airflow-scheduler"]["environment"]
    of_a_run, of_a_worker = (
        int(environment[f"AIRFLOW__{name}"])
        for name in ("CORE__MAX_ACTIVE_TASKS_PER_DAG", "CELERY__WORKER_CONCURRENCY")
    )
    # A search for deleted rows may be at work, too.
    assert of_a_run + 1 < of_a_worker


def test_a_task_in_the_queue_is_sent_again_before_its_token_is_refused() -> None:
    from airflow.configuration import conf

    environment = with_defaults()["services"]["airflow-scheduler"]["environment"]
    timeout, look, retries = (
        float(environment[f"AIRFLOW__SCHEDULER__{name}"])
        for name in ("TASK_QUEUED_TIMEOUT", "TASK_QUEUED_TIMEOUT_CHECK_INTERVAL", "NUM_STUCK_IN_QUEUED_RETRIES")
    )
    # Its token is valid for the timeout and the leeway.
    assert look <= conf.getfloat("api_auth", "jwt_leeway")
    # Waiting for a worker must not fail a task within the three hours that others may take.
    assert timeout * retries > 24 * 3600
    longest = float(environment["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"])
    assert longest > 2 * 3 * 3600


def test_metrics_are_sent_as_the_board_wants_them() -> None:
    environment = SERVICES["airflow-scheduler"]["environment"]
    page = (ROOT / "docs/observability.md").read_text()
    wanted = dict(re.findall(r"^\| (AIRFLOW__METRICS__\w+) \| `(\w+)`", page, flags=re.MULTILINE))
    assert wanted.keys() >= {f"AIRFLOW__METRICS__{name}" for name in ("STATSD_PORT", "STATSD_INFLUXDB_ENABLED")}
    for name, value in wanted.items():
        if name != "AIRFLOW__METRICS__STATSD_ON":
            assert environment[name] == value, name
    assert environment["AIRFLOW__METRICS__STATSD_HOST"] == "statsd"


def test_the_stores_connection_is_read_by_airflow(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import Connection, ObjectStoragePath

    environment = tree["services"]["airflow-worker-1"]["environment"]
    found = Connection.from_json(environment["AIRFLOW_CONN_MEDFLEX_STORAGE"], conn_id="medflex_storage")
    storage = tree["services"]["storage"]["environment"]
    assert (found.conn_type, found.login, found.password) == (
        "aws", storage["AWS_ACCESS_KEY_ID"], storage["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    assert found.extra_dejson["endpoint_url"] == "http://storage:8333"
    buckets = set()
    for name in ("MEDFLEX_STAGING_URL", "MEDFLEX_DATA_DOCS_URL"):
        path = ObjectStoragePath(environment[name])
        assert (path.protocol, path.conn_id) == ("s3", "medflex_storage")
        buckets.add(path.bucket)
    assert len(buckets) == 2, "staging expires as a whole"


def test_only_s3_of_the_object_store_can_be_reached() -> None:
    command = SERVICES["storage"]["command"]
    assert {"-ip.bind=127.0.0.1", "-ip=127.0.0.1", "-s3.ip.bind=0.0.0.0", "-s3.encryptVolumeData"} <= set(command)
    assert not [option for option in command if option.startswith(("-webdav", "-iam", "-s3.config"))]


# The scripts that the file mounts, run for real


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("init"), durable=False)
    cluster.start()
    yield cluster
    cluster.remove()


def test_the_first_start_of_postgres_makes_two_databases_that_know_nothing_of_each_other(server: Cluster) -> None:
    # Quotes and semicolons in a password are text.
    passwords = {"airflow": "a'; DROP ROLE postgres; --", "ledger": 'l"$$\\'}
    run_script(
        server, "deploy/postgres/init.sh",
        POSTGRES_AIRFLOW_PASSWORD=passwords["airflow"], POSTGRES_LEDGER_PASSWORD=passwords["ledger"],
    )  # fmt: skip
    migrate(server.uri("ledger", "ledger", passwords["ledger"]))
    for database, other in (("airflow", "ledger"), ("ledger", "airflow")):
        with psycopg.connect(server.uri(database, database, passwords[database])) as connection:
            connection.execute("CREATE TABLE public.owned (id int)")
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(server.uri(database, other, passwords[other]))
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.uri(database, database, "another"))


def restore(
    server: Cluster, database: str, backup: bytes, *, programs: str = "", amid: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess[bytes]:
    """Run the script for it as ``docker compose exec`` does.

    ``programs``: a folder with programs that stand in for Postgres' own. ``amid``: is called while the script waits for
    the backup, after it has made the copy.
    """
    password, path = server.password("postgres"), f"{programs}:{binaries()}:/usr/bin:/bin"
    command = ["bash", str(ROOT / "deploy/postgres/restore.sh"), database]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": path, "PGPORT": str(server.port), "POSTGRES_PASSWORD": password},
    ) as script:  # fmt: skip
        amid()
        printed = script.communicate(backup, timeout=120)
    return subprocess.CompletedProcess(command, script.returncode, *printed)


@contextlib.contextmanager
def ledger_with_backup(folder: Path) -> Iterator[tuple[Cluster, str, bytes]]:
    """A server with a ledger, its owner's address and a backup with the row ``kept``; the ledger has one more."""
    server = Cluster(folder / "restored", durable=False)
    server.start()
    try:
        run_script(server, "deploy/postgres/init.sh", POSTGRES_AIRFLOW_PASSWORD="a", POSTGRES_LEDGER_PASSWORD="l")
        uri = server.uri("ledger", "ledger", "l")
        migrate(uri)
        add = "INSERT INTO ledger.watch (name, looked_at, value) VALUES (%s, now(), '{}')"
        with psycopg.connect(uri) as ledger:
            ledger.execute(add, ["kept"])
        dump = [str(binaries() / "pg_dump"), "--format=custom", "--dbname", server.uri("ledger")]
        backup = subprocess.run(dump, capture_output=True, check=True).stdout
        with psycopg.connect(uri) as ledger:
            ledger.execute(add, ["since"])
        yield server, uri, backup
    finally:
        server.remove()


def watches(uri: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(uri) as connection:
        return connection.execute("SELECT name FROM ledger.watch ORDER BY name").fetchall()


def databases(server: Cluster) -> set[object]:
    with server.connect() as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname ~ 'ledger'")}


def test_a_backup_takes_the_place_of_what_a_newer_version_has_left(tmp_path: Path) -> None:
    server = Cluster(tmp_path, durable=False)
    server.start()
    try:
        run_script(server, "deploy/postgres/init.sh", POSTGRES_AIRFLOW_PASSWORD="a", POSTGRES_LEDGER_PASSWORD="l")
        uri = server.uri("ledger", "ledger", "l")
        # Of a version that had fewer tables, and some rows.
        migrate(uri, "0004")
        with psycopg.connect(uri) as old:
            old.execute("INSERT INTO ledger.watch (name, looked_at, value) VALUES ('kept', now(), '{}')")
        dump = [str(binaries() / "pg_dump"), "--format=custom", "--dbname", server.uri("ledger")]
        backup = subprocess.run(dump, capture_output=True, check=True).stdout
        migrate(uri)
        with psycopg.connect(uri) as newer:
            newer.execute("INSERT INTO ledger.watch (name, looked_at, value) VALUES ('since', now(), '{}')")
        # Half a backup, or none, or the wrong name: what is there stays.
        for database, broken in (
            ("ledger", backup[:-100]),
            ("ledger", backup[:2000]),
            ("ledger", b""),
            ("medlock", backup),
        ):
            assert restore(server, database, broken).returncode != 0
        with psycopg.connect(uri) as there:
            assert there.execute("SELECT count(*) FROM ledger.watch").fetchone() == (2,)
        assert restore(server, "ledger", backup).returncode == 0
        with psycopg.connect(uri) as there:
            assert there.execute("SELECT name FROM ledger.watch").fetchall() == [("kept",)]
            assert there.execute("SELECT version_num FROM ledger.schema_version").fetchall() == [("0004",)]
            # Without statistics whole tables are read where an index would serve.
            sql = "SELECT attname FROM pg_stats WHERE schemaname = 'ledger' AND tablename = 'watch'"
            assert ("name",) in there.execute(sql).fetchall()
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(server.uri("ledger", "airflow", "a"))
        migrate(uri)
    finally:
        server.remove()


def test_nobody_who_sits_in_the_copy_keeps_it_from_its_place(tmp_path: Path) -> None:
    """The database that was there is gone by then."""
    with ledger_with_backup(tmp_path) as (server, uri, backup):
        sits, over = threading.Event(), threading.Event()
        sleep = "SELECT pg_sleep(600)"

        def sit() -> None:
            # Cut off, it comes back at once, as a program would.
            while not over.is_set():
                with (
                    contextlib.suppress(psycopg.OperationalError),
                    psycopg.connect(server.uri("ledger_restored"), autocommit=True) as session,
                ):
                    sits.set()
                    session.execute(sleep)
                over.wait(0.001)

        guest = threading.Thread(target=sit)
        guest.start()
        try:
            done = restore(server, "ledger", backup, amid=lambda: sits.wait(60))
        finally:
            over.set()
            with server.connect() as connection:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s", [sleep])
            guest.join(60)
        assert sits.is_set()
        assert done.returncode == 0, done.stderr
        assert databases(server) == {"ledger"}
        assert watches(uri) == [("kept",)]


def test_what_is_restored_stays_when_it_cannot_take_its_place_and_another_try_does_it(tmp_path: Path) -> None:
    with ledger_with_backup(tmp_path) as (server, uri, backup):
        broken = tmp_path / "psql"
        broken.write_text(f'#!/bin/sh\ncase "$*" in *RENAME*) exit 1 ;; esac\nexec {binaries() / "psql"} "$@"\n')
        broken.chmod(0o755)
        assert restore(server, "ledger", backup, programs=str(tmp_path)).returncode != 0
        assert databases(server) == {"ledger_restored"}
        assert restore(server, "ledger", backup).returncode == 0
        assert databases(server) == {"ledger"}
        assert watches(uri) == [("kept",)]


def test_postgres_is_healthy_only_with_its_databases(tmp_path: Path) -> None:
    """Where the image's first start fails, it does not try again: it is up without them."""
    server = Cluster(tmp_path, durable=False)
    server.start()

    def health(name: str) -> int:
        (_, command) = SERVICES[name]["healthcheck"]["test"]
        password, path = server.password("postgres"), f"{binaries()}:/usr/bin:/bin"
        environment = {"PATH": path, "PGPORT": str(server.port), "POSTGRES_PASSWORD": password}
        # As Compose hands it over.
        command = command.replace("$$", "$")
        return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False).returncode

    try:
        assert health("postgres") != 0
        run_script(server, "deploy/postgres/init.sh", POSTGRES_AIRFLOW_PASSWORD="a", POSTGRES_LEDGER_PASSWORD="l")
        assert health("postgres") == 0
        assert health("medlock") != 0
        run_script(server, "deploy/demo/medlock.sh", POSTGRES_PASSWORD="p")
        assert health("medlock") == 0
    finally:
        server.remove()


def test_the_runbooks_way_to_the_ledger_leads_there(tmp_path: Path) -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    (command,) = re.findall(r"^docker compose exec postgres sh -c '(.*)'$", runbook, flags=re.MULTILINE)
    assert set(re.findall(r"\$(\w+)", command)) <= set(SERVICES["postgres"]["environment"])
    with ledger_with_backup(tmp_path) as (server, _, _):
        environment = {
            "PATH": f"{binaries()}:/usr/bin:/bin",
            "PGPORT": str(server.port),
            "POSTGRES_LEDGER_PASSWORD": "l",
        }
        asked = b"SELECT current_user, count(*) FROM ledger.watch"
        done = subprocess.run(["sh", "-c", command], input=asked, env=environment, capture_output=True, check=True)
        assert b"ledger       |     2" in done.stdout


def test_the_runbooks_way_to_the_ledger_on_kubernetes_shows_nobody_its_password(tmp_path: Path) -> None:
    runbook = (ROOT / "docs/runbook.md").read_text()
    (command,) = re.findall(r"^kubectl \S+ \S+ exec -it deploy/\S+ -- (.*psql.*)$", runbook, flags=re.MULTILINE)
    # What others see of a process, and then the real one.
    shown = tmp_path / "psql"
    shown.write_text(
        f'#!/bin/sh\ntr "\\0" " " < /proc/$$/cmdline >> {tmp_path}/seen\nexec {binaries() / "psql"} "$@"\n'
    )
    shown.chmod(0o755)
    with ledger_with_backup(tmp_path) as (server, _, _):
        (kept,) = re.findall(
            r"^AIRFLOW_CONN_MEDFLEX_LEDGER=(.*)$", (ROOT / "docs/deployment.md").read_text(), flags=re.MULTILINE
        )
        # As the page has it, but for TLS, which this server has not.
        address = kept.partition("?")[0].replace("VALUE@HOST", f"for-nobodys-eyes@127.0.0.1:{server.port}")
        environment = {
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "AIRFLOW_CONN_MEDFLEX_LEDGER": address,
        }
        with server.connect() as connection:
            connection.execute("ALTER ROLE ledger PASSWORD 'for-nobodys-eyes'")
        asked = b"SELECT current_user, count(*) FROM ledger.watch"
        done = subprocess.run(["sh", "-c", command], input=asked, env=environment, capture_output=True, check=False)
        assert b"ledger       |     2" in done.stdout, done.stderr
    assert "for-nobodys-eyes" not in (tmp_path / "seen").read_text()


def test_the_fernet_key_is_told_of_as_one_to_keep() -> None:
    """Whoever takes it for the key of a few connections loses the watch for refusals with it."""
    from airflow.cli.cli_parser import get_parser

    page = (ROOT / "docs/deployment.md").read_text()
    (in_example,) = re.findall(r"((?:^# .*\n)+)^AIRFLOW_FERNET_KEY=", EXAMPLE, flags=re.MULTILINE)
    (row,) = re.findall(r"^\| `AIRFLOW_FERNET_KEY` \|.*$", page, flags=re.MULTILINE)
    for text in (in_example, row):
        assert "watch for refusals" in text
        assert "no triggerer runs" in text
    for command in ("airflow-cli airflow", "deploy/medflex-api-server -- airflow"):
        (words,) = re.findall(rf"{command} (rotate-\S+?)`?$", page, flags=re.MULTILINE)
        get_parser().parse_args([words])
    kept = page.partition("## Back up and restore")[2].partition("\n## ")[0]
    assert {"`AIRFLOW_FERNET_KEY`", "`MEDFLEX_DIGEST_KEY`"} <= set(re.findall(r"`\w+_KEY`", kept))


def airflow_environment(folder: Path, database: str, key: str) -> dict[str, str]:
    """Of an Airflow of its own with the product, in ``folder``: as far as the compose file's matters here."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "AIRFLOW_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT / "plugins"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__FERNET_KEY": key,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__API_AUTH__JWT_SECRET": "x" * 64,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "0",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


# A task that waits for its instant, as shard.wait_for_activation does.
WAITS = """
import datetime as dt
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.trigger import Trigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType

now = dt.datetime.now(dt.UTC)
with create_session() as session:
    dag = SerializedDagModel.get("medflex_withdraw", session=session).dag
    run = dag.create_dagrun(
        run_id="waits", logical_date=now, run_after=now, run_type=DagRunType.MANUAL, state="running",
        triggered_by=DagRunTriggeredByType.TEST, session=session,
    )
    trigger = Trigger.from_object(DateTimeTrigger(moment=now + dt.timedelta(hours=9)))
    session.add(trigger)
    session.flush()
    task = run.get_task_instance("withdraw_revoked_now", session=session)
    task.state, task.trigger_id, task.next_method = "deferred", trigger.id, "execute"
"""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_triggerer_runs_again_with_another_key_by_the_runbooks_way_and_after_a_rotation(tmp_path: Path) -> None:
    """Airflow encrypts what its triggers are made with: with another key no triggerer runs, for none of them."""
    runbook = (ROOT / "docs/runbook.md").read_text()
    (way,) = re.findall(
        r"^docker compose exec -T postgres sh -c '([^']*)' <<'SQL'\n(.*?)^SQL$", runbook, flags=re.MULTILINE | re.DOTALL
    )
    server = Cluster(tmp_path / "pg", durable=False)
    server.start()
    run_script(server, "deploy/postgres/init.sh", POSTGRES_AIRFLOW_PASSWORD="a", POSTGRES_LEDGER_PASSWORD="l")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/medflex_withdraw.py").write_text((ROOT / "dags/medflex_withdraw.py").read_text())
    lost, new, newer = (Fernet.generate_key().decode() for _ in range(3))

    def run(key: str, *words: str, seconds: float = 120) -> tuple[bool, str]:
        """Whether it ended by itself, and what it said."""
        environment = airflow_environment(tmp_path, server.uri("airflow", "airflow", "a", "psycopg2"), key)
        with (tmp_path / "said").open("w") as said, subprocess.Popen(
            words, env=environment, cwd=tmp_path, stdout=said, stderr=said
        ) as process:  # fmt: skip
            try:
                ended = process.wait(seconds) is not None
            except subprocess.TimeoutExpired:
                ended = False
                process.terminate()
        return ended, (tmp_path / "said").read_text()

    def look(sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(server.uri("airflow")) as airflow:
            return airflow.execute(sql.encode()).fetchall()

    triggerer, reads = ("airflow", "triggerer", "--skip-serve-logs"), ("airflow", "dag-processor", "--num-runs")
    waiting = "SELECT state, trigger_id IS NULL FROM task_instance WHERE task_id = 'withdraw_revoked_now'"
    watched = "SELECT count(*) FROM asset_watcher JOIN trigger ON trigger.id = trigger_id WHERE kwargs <> '{}'"
    try:
        run(lost, "airflow", "db", "migrate")
        run(lost, *reads, "2")
        run(lost, sys.executable, "-c", WAITS)
        assert look("SELECT count(*) FROM trigger") == [(2,)]
        ended, said = run(new, *triggerer)
        assert ended
        assert "InvalidToken" in said
        assert "InvalidToken" in run(new, *reads, "1")[1]

        environment = {
            "PATH": f"{binaries()}:/usr/bin:/bin", "PGPORT": str(server.port), "POSTGRES_AIRFLOW_PASSWORD": "a",
        }  # fmt: skip
        subprocess.run(["sh", "-c", way[0]], input=way[1], env=environment, text=True, capture_output=True, check=True)
        assert "InvalidToken" not in run(new, *reads, "1")[1]
        ended, said = run(new, *triggerer, seconds=20)
        assert not ended
        assert "InvalidToken" not in said
        # The watch is made anew; what waited goes on as a failed attempt, and its run is still there.
        assert look(watched) == [(1,)]
        assert look(waiting) == [("scheduled", True)]

        run(f"{newer},{new}", "airflow", "rotate-fernet-key")
        ended, said = run(newer, *triggerer, seconds=20)
        assert not ended
        assert "InvalidToken" not in said + run(newer, *reads, "1")[1]
        assert look(watched) == [(1,)]
    finally:
        server.remove()


def test_the_documents_commands_name_services_and_parts_that_there_are() -> None:
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("runbook", "deployment"))
    services = set(re.findall(r"docker compose (?:exec(?: -T)?|run --rm) ([a-z-]+)", text))
    assert {"postgres", "airflow-cli"} <= services <= set(SERVICES)
    parts = set(re.findall(r"\bdeploy/medflex-([a-z-]+)", text))
    assert {"api-server"} <= parts <= set(chart.PARTS.values())
    assert set(re.findall(r"kubectl -n (\S+)", text)) == {chart.NAMESPACE}
    made = set(re.findall(r"generic (medflex-\S+) --from-env-file", text))
    assert set(re.findall(r"get secret (\S+)", text)) <= made


def test_the_demos_data_are_made_once(server: Cluster, tmp_path: Path) -> None:
    run_script(server, "deploy/demo/medlock.sh", POSTGRES_PASSWORD="p")
    environment = {
        "DEMO_MEDLOCK_URI": server.uri("medlock", "medlock_owner", "p"),
        "DEMO_APPOINTMENTS": "300", "DEMO_CLINICS": "3", "DEMO_SEED": "",
    }  # fmt: skip
    with MedflexProcess(tmp_path) as medflex:
        environment["DEMO_CONTROL_URL"] = medflex.control_url
        assert fill(environment) == "Medlock has 300 made-up appointments now; Medflex knows 3 clinics."
        assert fill(environment) == "Medlock keeps what it has; Medflex knows 3 clinics."
    for login in LOGINS:
        with psycopg.connect(server.uri("medlock", login, "p")) as connection:
            connection.execute("SELECT count(*) FROM medlock.clinic")
    with psycopg.connect(server.uri("medlock", "medlock_app", "p")) as connection:
        row = connection.execute("SELECT count(*) FROM medlock.appointment").fetchone()
    assert row is not None
    # The canaries come on top.
    assert 300 < row[0] < 400


def test_the_file_is_read_alike_by_every_reader_of_yaml() -> None:
    # A key twice would be the last one for some and an error for others.
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert yaml.load(TEXT, Strict)["services"].keys() == SERVICES.keys()  # noqa: S506 a SafeLoader


def test_the_sandbox_serves_others_its_contract_and_nobody_its_control(tmp_path: Path) -> None:
    token, ready = tmp_path / "token", tmp_path / "ready.json"
    token.write_text("t")
    command = [sys.executable, "-m", "sandbox.medflex", "--host", "127.0.0.2", "--store", tmp_path, "--stop-with-stdin"]
    with subprocess.Popen(
        [*command, "--token-file", token, "--ready-file", ready], cwd=ROOT, stdin=subprocess.PIPE
    ) as process:
        wait_for("the sandbox", ready.exists, 30)
        ports = json.loads(ready.read_text())
        with socket.create_connection(("127.0.0.2", ports["port"]), timeout=5):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", ports["control_port"]), timeout=5)
        assert process.stdin
        process.stdin.close()
        assert process.wait(15) == 0
    token.write_text("")
    refused = subprocess.run([*command, "--token-file", token], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "holds no token" in refused.stderr


def test_the_page_about_it_tells_of_every_variable_and_service() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    for name in [*variables(), *SERVICES, "COMPOSE_PROFILES"]:
        assert f"`{name}`" in page, name


def test_each_image_is_built_by_one_service() -> None:
    """Several that build the same tag at once keep each other from it, where Compose leaves it to Bake."""
    services = raw()["services"]
    built = [service["image"] for service in services.values() if "build" in service]
    assert sorted(built) == [
        "${MEDFLEX_DEMO_IMAGE:-medflex-transfer-demo:1.0.0}",
        "${MEDFLEX_IMAGE:-medflex-transfer:1.0.0}",
    ]
    assert services["airflow-migrate"]["build"]["target"] == "production"
    assert services["demo-data"]["build"]["target"] == "demo"


def test_a_large_run_has_the_slots_and_the_connections_that_the_plan_counts_on() -> None:
    services = with_defaults()["services"]
    environment = services["airflow-worker-1"]["environment"]
    loads, of_a_worker, parallelism = (
        int(environment[f"AIRFLOW__{name}"])
        for name in ("CORE__MAX_ACTIVE_TASKS_PER_DAG", "CELERY__WORKER_CONCURRENCY", "CORE__PARALLELISM")
    )
    assert len(WORKERS) == capacity.WORKERS
    assert (loads, parallelism) == (capacity.DEPLOYED_SLOTS, capacity.PARALLELISM)
    assert of_a_worker == loads + capacity.BESIDE
    assert parallelism >= len(WORKERS) * of_a_worker
    (setting,) = [word for word in services["postgres"]["command"] if word.startswith("max_connections=")]
    assert setting == f"max_connections={capacity.DEPLOYED_CONNECTIONS}"
    assert capacity.connections(loads, of_a_worker) <= capacity.DEPLOYED_CONNECTIONS
    more = interpolated({**dict.fromkeys(SECRETS, "x"), "POSTGRES_MAX_CONNECTIONS": "900"})
    assert "max_connections=900" in more["services"]["postgres"]["command"]


def test_a_worker_takes_no_more_memory_than_with_helm_and_goes_before_postgres() -> None:
    limit = yaml.safe_load((ROOT / "deploy/helm/values.yaml").read_text())["workers"]["celery"]["resources"]["limits"]
    services = with_defaults()["services"]
    more = interpolated({**dict.fromkeys(SECRETS, "x"), "AIRFLOW_WORKER_MEMORY": "12g"})["services"]
    for name in WORKERS:
        # The same unit: 2 to the power of 30.
        assert services[name]["mem_limit"] == limit["memory"].replace("Gi", "g") == "6g"
        assert more[name]["mem_limit"] == "12g"
        # Where the machine runs short, the kernel ends what has most, and this much more; a task is tried again.
        assert services[name]["oom_score_adj"] > max(
            service.get("oom_score_adj", 0) for other, service in services.items() if other not in WORKERS
        )


def test_postgres_keeps_more_in_memory_than_its_own_default_and_as_much_as_one_says() -> None:
    assert "shared_buffers=1GB" in with_defaults()["services"]["postgres"]["command"]
    more = interpolated({**dict.fromkeys(SECRETS, "x"), "POSTGRES_SHARED_BUFFERS": "8GB"})
    assert "shared_buffers=8GB" in more["services"]["postgres"]["command"]


def test_postgres_understands_the_settings_of_its_service(server: Cluster) -> None:
    program, *options = with_defaults()["services"]["postgres"]["command"]
    settings = [option.partition("=")[0] for option in options if option != "-c"]
    told = {
        name: server._run(program, "-D", str(server.pgdata), *options, "-C", name).stderr.strip() for name in settings
    }
    # In its own units: pages of 8 kB, and megabytes.
    pages, megabytes = str(1024**3 // 8192), str(4 * 1024)
    assert told == {
        "max_connections": str(capacity.DEPLOYED_CONNECTIONS), "shared_buffers": pages, "max_wal_size": megabytes,
    }  # fmt: skip
