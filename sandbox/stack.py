"""The one-machine stack: Postgres, Medlock, Medflex and a whole Airflow, on loopback, below one folder.

``.stack/`` of the project (``MEDFLEX_STACK_DIR`` names another) holds all state::

    postgres/    the embedded server with the databases airflow, medlock, ledger
    medflex/     the store of the Medflex sandbox, its token and its addresses
    airflow/     AIRFLOW_HOME with the task logs
    staging/     data between tasks          data-docs/   quality reports
    logs/        output of each process      settings.json (0600)   secrets and ports, made once and kept
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
from cryptography.fernet import Fernet

from sandbox.airflow_api import Airflow
from sandbox.medlock import LOGINS
from sandbox.postgres import HOST, Cluster, _is_taken, _write_private, free_port
from sandbox.services import ServiceError, Services

PROJECT = Path(__file__).resolve().parents[1]
DAG_ID = "medflex_transfer"
# What runs beside it, each in the file of its name: at an event in Medlock, for a question to a person, by the clock.
OTHER_DAG_IDS = (
    "medflex_withdraw", "medflex_sweep", "medflex_partner_actions", "medflex_release", "medflex_housekeeping",
    "medflex_reconcile", "medflex_alerts",
)  # fmt: skip
RUN_ZONE, RUN_TIME = ZoneInfo("Europe/Moscow"), dt.time(3)
# Log-ins of the demo's Airflow and their roles. The heads' names are their log-ins in the demo Medlock, too.
USERS = {"admin": "ADMIN", "head-1": "USER", "head-6": "USER", "viewer": "VIEWER"}
AIRFLOW_SERVICES = {
    "api-server": ("api-server",),
    # Task logs are read from the folder; the servers for other machines' logs would listen on all addresses.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
SERVICES = ("medflex", *AIRFLOW_SERVICES)
_READY_SECONDS = 180
_DAG_SECONDS = 90
ENDED = ("success", "failed")


class StackError(RuntimeError):
    """The stack cannot do that now; one sentence that says why and what to do."""


class Stack:
    """The stack whose state lies below ``folder``. ``dags`` and ``plugins``: folders for Airflow, the project's own
    unless a test wants others. ``environment`` comes last over that of Airflow's processes. ``say`` prints progress."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        dags: Path = PROJECT / "dags",
        plugins: Path = PROJECT / "plugins",
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = Path(folder or os.environ.get("MEDFLEX_STACK_DIR") or PROJECT / ".stack").resolve()
        self.dags, self.plugins, self.say = dags, plugins, say
        self.environment = dict(environment or {})
        self.cluster = Cluster(self.folder / "postgres")
        self.services = Services(self.folder)
        self._settings_lock = threading.Lock()
        self._cancelled = threading.Event()

    # Settings, made once

    def setting(self, name: str, make: Callable[[], Any]) -> Any:
        """The kept value of ``name``, made by ``make`` at the first look."""
        with self._settings_lock:
            file = self.folder / "settings.json"
            known = json.loads(file.read_text()) if file.exists() else {}
            if name not in known:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                known[name] = make()
                _write_private(file, json.dumps(known, indent=1))
            return known[name]

    def _forget(self, name: str) -> None:
        file = self.folder / "settings.json"
        known = json.loads(file.read_text())
        known.pop(name, None)
        _write_private(file, json.dumps(known, indent=1))

    def port(self, name: str) -> int:
        return int(self.setting(f"port of {name}", free_port))

    def passwords(self) -> dict[str, str]:
        """The log-ins of the Airflow UI and their passwords."""
        return dict(self.setting("airflow passwords", lambda: {user: secrets.token_urlsafe(9) for user in USERS}))

    @property
    def token(self) -> str:
        """What Medflex wants in the header ``Authorization: Token …``."""
        return str(self.setting("medflex token", lambda: secrets.token_urlsafe(24)))

    @property
    def url(self) -> str:
        """Address of the Airflow UI."""
        return f"http://{HOST}:{self.port('airflow')}"

    @property
    def medflex_url(self) -> str:
        return f"http://{HOST}:{self.port('medflex')}"

    @property
    def control_url(self) -> str:
        """Address of the Medflex sandbox's control port."""
        return f"http://{HOST}:{self.port('medflex control')}"

    def medlock_owner(self) -> str:
        return self.cluster.uri("medlock", "medlock_owner")

    def ledger(self) -> str:
        return self.cluster.uri("ledger", "ledger_owner")

    def airflow(self) -> Airflow:
        return Airflow(self.url, "admin", self.passwords()["admin"])

    # Life

    def start(self, *, appointments: int = 20_000, clinics: int = 21, seed: int = 1) -> None:
        """Starts what is not running, seeds an empty Medlock, and returns when all is healthy.

        What this call started is stopped again when it fails or is interrupted. Raises ``StackError``,
        ``PostgresError``, ``ServiceError``.
        """
        with self.lock():
            before = {name for name in SERVICES if self.services.is_running(name)}
            had_postgres = self.cluster.is_running()
            try:
                self._start(appointments=appointments, clinics=clinics, seed=seed)
            except BaseException:
                self.say("Stopping what was started …")
                self.services.stop([name for name in SERVICES if name not in before])
                if not had_postgres:
                    self.cluster.stop()
                raise

    def stop(self) -> bool:
        """Stops everything; False when nothing was running."""
        if not self.folder.exists():
            return False
        starter = self._lock_holder()
        if starter is not None:
            # Somebody is starting it right now: that command cleans up after itself.
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(starter).send_signal(signal.SIGINT)
        with self.lock(wait_seconds=90):
            was_running = self.is_partly_running()
            self.services.stop()
            self.cluster.stop()
        return was_running or starter is not None

    def states(self) -> dict[str, bool]:
        """Whether each part's process runs."""
        return {"postgres": self.cluster.is_running()} | {name: self.services.is_running(name) for name in SERVICES}

    def is_partly_running(self) -> bool:
        return any(self.states().values())

    def is_running(self) -> bool:
        return all(self.states().values())

    def _start(self, *, appointments: int, clinics: int, seed: int) -> None:
        for folder in ("airflow", "logs", "staging", "data-docs", "medflex"):
            (self.folder / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._free_ports()
        with self._step("Postgres"):
            self.cluster.start()
            for role in ("airflow", "medlock_owner", *LOGINS, "ledger_owner"):
                self.cluster.create_role(role)
            for database, owner in (("airflow", "airflow"), ("medlock", "medlock_owner"), ("ledger", "ledger_owner")):
                self.cluster.create_database(database, owner)
            for role in LOGINS:
                self.cluster.allow("medlock", role)
        # Airflow takes longest by far, so all else happens beside it.
        pool = ThreadPoolExecutor()
        # Ctrl-C while a thread is being made leaves one that the pool does not know of and would not wait for. So none
        # begins before all are there.
        all_there, given_up = threading.Event(), threading.Event()

        def begin(part: Callable[..., None], *arguments: int) -> None:
            all_there.wait()
            if not given_up.is_set():
                part(*arguments)

        try:
            work = [
                pool.submit(begin, self._start_airflow),
                pool.submit(begin, self._start_medlock_and_medflex, appointments, clinics, seed),
                pool.submit(begin, self._migrate_ledger),
            ]
            all_there.set()
            done, _ = wait(work, return_when=FIRST_EXCEPTION)
            for part in done:
                part.result()
        finally:
            # After a failure or Ctrl-C the other parts end at their next step, before anything is stopped.
            self._cancelled.set()
            given_up.set()
            all_there.set()
            pool.shutdown()
            self._cancelled.clear()

    def _start_airflow(self) -> None:
        environment = stack_environment(self)
        passwords = self.folder / "airflow" / "passwords.json"
        _write_private(passwords, json.dumps(self.passwords()))
        marker = self.folder / "airflow" / "migrated-for"
        wanted = version("apache-airflow-core")
        if not marker.exists() or marker.read_text() != wanted:
            with self._step("Airflow's database"):
                self._command("airflow-db", "-m", "airflow", "db", "migrate")
            marker.write_text(wanted)
        with self._step("Airflow"):
            for name, arguments in AIRFLOW_SERVICES.items():
                self.services.start(name, [sys.executable, "-m", "airflow", *arguments], environment)
            airflow = self.airflow()
            parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
            self._wait(lambda: all(airflow.health().get(part) == "healthy" for part in parts), *AIRFLOW_SERVICES)

    def _start_medlock_and_medflex(self, appointments: int, clinics: int, seed: int) -> None:
        # Imported here: pyarrow and numpy take their time, and `stop` or `status` do not need them.
        from sandbox.medlock.generate import add_schedules, create_schema, is_empty

        ready = self.folder / "medflex" / "ready.json"
        token_file = self.folder / "medflex" / "token"
        if not self.services.is_running("medflex"):
            with self._step("Medflex sandbox"):
                _write_private(token_file, self.token)
                ready.unlink(missing_ok=True)
                self.services.start(
                    "medflex",
                    [sys.executable, "-m", "sandbox.medflex", "--store", str(self.folder / "medflex"),
                     "--token-file", str(token_file), "--ready-file", str(ready),
                     "--port", str(self.port("medflex")), "--control-port", str(self.port("medflex control"))],
                    os.environ | {"PYTHONPATH": str(PROJECT)},
                )  # fmt: skip
                self._wait(ready.exists, "medflex")
        create_schema(self.medlock_owner())
        if is_empty(self.medlock_owner()):
            self.seed(appointments=appointments, clinics=clinics, seed=seed)
        else:
            add_schedules(self.medlock_owner(), seed=seed)
            self._tell_medflex_clinics()

    def seed(self, *, appointments: int, clinics: int, seed: int) -> None:
        """Replaces all content of the demo Medlock, and tells Medflex which clinics there are."""
        from sandbox.medlock.generate import generate

        with self._step(f"Medlock: {appointments:,} appointments in {clinics} clinics"):
            # Long enough for the first run to find the clinic still waiting, short enough to watch it open.
            generate(
                self.medlock_owner(),
                appointments=appointments,
                clinics=clinics,
                seed=seed,
                opens_in=dt.timedelta(seconds=75),
            )
        self._tell_medflex_clinics()

    def _tell_medflex_clinics(self) -> None:
        from sandbox.medflex.control import Control
        from sandbox.medlock.generate import clinic_offsets

        with Control(self.control_url) as control:
            control.put_clinics(clinic_offsets(self.medlock_owner(), dt.datetime.now(dt.UTC)))

    def _migrate_ledger(self) -> None:
        with self._step("Ledger"):
            self._command("ledger-db", "-m", "medflex.ledger.migrate")

    def _command(self, name: str, *arguments: str) -> None:
        """Runs Python with ``arguments`` in the stack's environment to its end. Raises ``StackError``."""
        log = self.services.log(name)
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, *arguments], env=stack_environment(self), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise StackError(f"`python {' '.join(arguments)}` failed: {last} (all of it: {log})")

    def _wait(self, condition: Callable[[], bool], *names: str) -> None:
        """Waits for ``condition`` while the services ``names`` live. Raises ``ServiceError`` or ``StackError``."""
        deadline = time.monotonic() + _READY_SECONDS
        while not condition():
            self._check_cancelled()
            for name in names:
                self.services.check(name)
            if time.monotonic() > deadline:
                raise StackError(
                    f"Not ready after {_READY_SECONDS} seconds: {', '.join(names)}; see {self.folder / 'logs'}."
                )
            time.sleep(0.1)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise StackError("The start was given up.")

    def _free_ports(self) -> None:
        """Gives up kept ports that somebody else has taken since; those of running services stay."""
        for name, service in (("airflow", "api-server"), ("medflex", "medflex"), ("medflex control", "medflex")):
            if not self.services.is_running(service) and _is_taken(self.port(name)):
                self._forget(f"port of {name}")

    @contextlib.contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self._check_cancelled()
        started = time.monotonic()
        yield
        self.say(f"  {title:<48} {time.monotonic() - started:5.1f} s")

    # One starter at a time

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Held while the stack is started, stopped or removed. The system gives it back if the holder dies."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as file:
            deadline = time.monotonic() + wait_seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        file.seek(0)
                        raise StackError(
                            f"Process {file.read().strip() or 'unknown'} is starting or stopping this stack right now:"
                            " wait for it, or end it with `make stop`."
                        ) from None
                    time.sleep(0.1)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _lock_holder(self) -> int | None:
        """Process that holds the lock."""
        file = self.folder / "lock"
        if not file.exists():
            return None
        with file.open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text else None
        return None

    # Runs

    def run_day(
        self, day: dt.date | None, *, mode: str = "transfer", clinic_ids: list[int] | None = None, again: bool = True
    ) -> str:
        """Makes a run of the daily DAG for ``day`` (default: the last one whose time has come) and returns its id.

        The logical date is 03:00 of that day in Moscow. A day that has a run gets another one a second later, or with
        ``again=False`` the id of the run that is there and has not failed. Raises ``StackError`` for a day to come.
        """
        now = dt.datetime.now(RUN_ZONE)
        if day is None:
            day = now.date() if now.time() >= RUN_TIME else now.date() - dt.timedelta(days=1)
        logical_date = dt.datetime.combine(day, RUN_TIME, RUN_ZONE)
        if logical_date > now:
            raise StackError(f"The run of {day} is due at {RUN_TIME:%H:%M} ({RUN_ZONE.key}) of that day, not before.")
        conf: dict[str, Any] = {"mode": mode} | ({"clinic_ids": clinic_ids} if clinic_ids else {})
        airflow = self.airflow()
        self._wait_for_dag(airflow, DAG_ID)
        run_id = None
        while run_id is None:
            run_id = airflow.trigger(DAG_ID, logical_date, conf)
            if run_id is None and not again:
                run_id = airflow.run_at(DAG_ID, logical_date)
                if run_id is not None and airflow.run_state(DAG_ID, run_id) == "failed":
                    run_id = None
            logical_date += dt.timedelta(seconds=1)
        # After the run is there: an unpaused DAG makes the run of its last due date by itself, once.
        airflow.unpause(DAG_ID)
        for dag_id in OTHER_DAG_IDS:
            if (self.dags / f"{dag_id}.py").exists():
                self._wait_for_dag(airflow, dag_id)
                airflow.unpause(dag_id)
        return run_id

    def follow(self, run_id: str) -> str:
        """Prints what changes in the run until it has ended, and returns its state: ``success`` or ``failed``."""
        airflow = self.airflow()
        seen: dict[str, str] = {}
        while True:
            state = airflow.run_state(DAG_ID, run_id)
            for task, counts in airflow.task_states(DAG_ID, run_id).items():
                summary = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
                if seen.get(task) != summary and set(counts) != {"waiting"}:
                    self.say(f"  {dt.datetime.now():%H:%M:%S}  {task:<44} {summary}")  # noqa: DTZ005 the user's clock
                seen[task] = summary
            if state in ENDED:
                return state
            for name in AIRFLOW_SERVICES:
                self.services.check(name)
            time.sleep(1.0)

    def _wait_for_dag(self, airflow: Airflow, dag_id: str) -> None:
        deadline = time.monotonic() + _DAG_SECONDS
        while airflow.dag(dag_id) is None:
            errors = airflow.import_errors()
            if errors:
                raise StackError(f"Airflow cannot import a DAG file: {errors[0]}")
            if time.monotonic() > deadline:
                raise StackError(f"Airflow found no DAG {dag_id} in {self.dags} within {_DAG_SECONDS} seconds.")
            time.sleep(0.2)


def stack_environment(stack: Stack) -> dict[str, str]:
    """The environment of Airflow's processes: settings, connections, secrets; nothing of the caller's Airflow."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "MEDFLEX_"))}
    # Else each task's process would compile all that it imports anew, which takes longer than most tasks.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    home = stack.folder / "airflow"
    medflex = {
        "conn_type": "http",
        "schema": "http",
        "host": HOST,
        "port": stack.port("medflex"),
        "password": stack.token,
        "extra": {"rate_per_second": 50, "timeout_seconds": 60, "batch_size": 500},
    }
    return inherited | {
        # LocalExecutor and the task runner start `airflow` and `python` by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(stack.plugins),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(stack.dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(stack.plugins),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # Tasks find their libraries imported: a second of processor time each, three where they validate.
        "AIRFLOW__SCHEDULER__MP_START_METHOD": "forkserver",
        "AIRFLOW__CORE__MP_FORKSERVER_PRELOAD": "airflow.executors.local_executor,medflex.airflow.preload",
        "AIRFLOW__CORE__FERNET_KEY": str(stack.setting("fernet key", lambda: Fernet.generate_key().decode())),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{stack.url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": stack.cluster.uri("airflow", "airflow", driver="psycopg2"),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": str(stack.port("airflow")),
        "AIRFLOW__API__BASE_URL": stack.url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": str(stack.setting("jwt secret", lambda: secrets.token_urlsafe(72))),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        # With the default of 5 s a task that defers and resumes at once is marked failed (Airflow 3.3.2).
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        # Threads of a task share what memory they give back, and a task needs less of it at most.
        "MALLOC_ARENA_MAX": "1",
        # How soon the next task begins after the one before: with the default of 1 s a run of small tasks mostly waits.
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
        # Airflow begins an unpaused DAG's watch for refusals only when it reads the file next.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        # A worker lost as a whole is noticed by this only, and a run of medflex_withdraw keeps the next one waiting.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "GX_ANALYTICS_ENABLED": "False",
        "DO_NOT_TRACK": "1",
        "AIRFLOW_CONN_MEDLOCK_DB": stack.cluster.uri("medlock", "medlock_app"),
        "AIRFLOW_CONN_MEDLOCK_ACTIONS": stack.cluster.uri("medlock", "medlock_actions"),
        "AIRFLOW_CONN_MEDLOCK_SWITCH": stack.cluster.uri("medlock", "medlock_switch"),
        "AIRFLOW_CONN_MEDFLEX_LEDGER": stack.ledger(),
        "AIRFLOW_CONN_MEDFLEX_API": json.dumps(medflex),
        "MEDFLEX_STAGING_URL": f"file://{stack.folder / 'staging'}",
        "MEDFLEX_DATA_DOCS_URL": f"file://{stack.folder / 'data-docs'}",
        "MEDFLEX_DIGEST_KEY": str(stack.setting("digest key", lambda: secrets.token_hex(32))),
        **stack.environment,
    }


def remove(stack: Stack) -> None:
    """Stops the stack and deletes all its data."""
    stack.stop()
    shutil.rmtree(stack.folder, ignore_errors=True)


__all__ = ["DAG_ID", "PROJECT", "ServiceError", "Stack", "StackError", "remove", "stack_environment"]
