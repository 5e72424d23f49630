"""A machine for runs of the product: processes that take turns, stand still, lose a connection or die at any step.

Everything runs in one thread. A process is a greenlet with its own ledger, Medlock and Medflex client, and hands over
only between steps, so that a schedule replays exactly. A process that has died does nothing any more: what its code
tries while it unwinds has no effect, as its memory would be gone.
"""

from __future__ import annotations

import contextlib
import gzip
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

import adbc_driver_postgresql.dbapi as adbc
import greenlet
import orjson
import pandas as pd
import psycopg
import requests

import medflex.airflow.hooks.medflex as medflex_hook
from medflex import arrow
from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings
from medflex.airflow.hooks.medlock import Medlock
from medflex.errors import LedgerUnavailableError, MedlockUnavailableError
from medflex.ledger.store import Ledger
from sandbox.medflex.engine import Engine
from sandbox.medflex.inprocess import EngineAdapter

BASE_URL = "http://medflex.test"
TOKEN = "a token for tests only"
MOST_STEPS = 3000
STEP_SECONDS = 0.001
_TURNED_AWAY = (400, 401, 403, 404, 413, 415, 422, 429)


class Crash(BaseException):
    """The process dies here. No `except Exception` of the product sees it."""


class RunsForeverError(AssertionError):
    """A process has made so many steps that it will not end."""


class FakeClock:
    """A clock that moves when somebody sleeps, or when the schedule says so."""

    def __init__(self, now: datetime) -> None:
        self.time = now
        self._began = now

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=max(0.0, seconds))

    def monotonic(self) -> float:
        return (self.time - self._began).total_seconds()


class Connections:
    """Connections that outlive a process, since opening one takes longer than a whole run on tiny data.

    A connection is given to one process at a time and handed on only between transactions, so nothing of one process is
    seen by the next but the session's settings, which are the same.
    """

    def __init__(self, medlock: str, ledger: str, admin: psycopg.Connection[Any]) -> None:
        self.medlock, self.ledger = medlock, ledger
        self._admin = admin
        self._free: dict[str, list[psycopg.Connection[Any]]] = defaultdict(list)
        self._arrow: dict[str, list[Any]] = defaultdict(list)

    def lend(self, part: Medlock | Ledger, conninfo: str) -> None:
        """Give a part of the product a connection that it would otherwise have to open."""
        if self._free[conninfo]:
            part._connections.adopt(self._free[conninfo].pop())

    def take_back(self, part: Medlock | Ledger, conninfo: str) -> None:
        """Keep a part's connection for the next process, if it is whole."""
        connection = part._connections.mine
        if connection is None:
            return
        with contextlib.suppress(psycopg.Error):
            # Also one that was broken off, and nobody has noticed, is not whole.
            if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE and connection.execute("SELECT"):
                self._free[conninfo].append(connection)
                return
        connection.close()

    def break_off(self, part: Medlock | Ledger) -> bool:
        """Let the server end a part's connection; ``False`` when it has none."""
        connection = part._connections.mine
        if connection is None:
            return False
        # With a time-out the function waits until the session is gone.
        self._admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        return True

    @contextmanager
    def stream(self, conninfo: str, sql: str, *, settings: Mapping[str, str]) -> Iterator[Any]:
        """Like :meth:`medflex.arrow.Streams.stream`, with a connection that outlives the process."""
        free = self._arrow[conninfo]
        connection = free.pop() if free else adbc.connect(conninfo, autocommit=False)
        try:
            hint = {"adbc.postgresql.batch_size_hint_bytes": str(arrow.BATCH_BYTES)}
            with connection.cursor(adbc_stmt_kwargs=hint) as cursor:
                for name, value in settings.items():
                    cursor.execute("SELECT set_config($1, $2, true)", (name, value))
                    cursor.fetchall()
                cursor.execute(sql)
                yield cursor.fetch_record_batch()
            connection.rollback()
        except BaseException:
            connection.close()
            raise
        free.append(connection)

    def close(self) -> None:
        """Close all of them."""
        for connection in [item for kept in (*self._free.values(), *self._arrow.values()) for item in kept]:
            with contextlib.suppress(Exception):
                connection.close()
        self._free.clear()
        self._arrow.clear()


class Machine:
    """Where processes run: the clock, Medflex, the connections; what happened, as a trace."""

    def __init__(self, connections: Connections, engine: Engine, clock: FakeClock) -> None:
        self.connections, self.engine, self.clock = connections, engine, clock
        self.main = greenlet.getcurrent()
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.processes: list[Process] = []
        self.running: Process | None = None
        self.duplicates = 0
        self.ignores_versions = False
        self.settings: dict[str, Any] = {}
        self.on_request: Callable[[Process, str, int, dict[str, Any]], None] = lambda *_: None
        self.on_refusal: Callable[[], None] = lambda: None
        self.on_read: Callable[[Process, str, tuple[Any, ...]], None] = lambda *_: None

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.clock.monotonic():>12.3f} {text}")

    def start(self, name: str, body: Callable[[Process], str], plan: Mapping[int, str]) -> Process:
        """Begin a process; it runs until its end, its death or its first pause."""
        process = Process(self, f"{name}#{len(self.processes)}", body, plan)
        self.processes.append(process)
        self.counts["runs"] += 1
        process.go_on({})
        return process

    def paused(self) -> list[Process]:
        """The processes that stand still."""
        return [process for process in self.processes if not process.over]

    @contextmanager
    def patched(self, *, light: bool) -> Iterator[None]:
        """While this lasts, the product streams through kept connections and reads HTTP dates by the fake clock.

        light: texts are kept as Python's own, which behaves the same and takes a quarter less time on few rows.
        """
        wall = medflex_hook.datetime
        clock, connections = self.clock, self.connections

        def stream(streams: arrow.Streams, sql: str, *, settings: Mapping[str, str]) -> AbstractContextManager[Any]:
            return connections.stream(streams._conninfo, sql, settings=settings)

        def read(streams: arrow.Streams, sql: str, *, settings: Mapping[str, str]) -> Any:
            with stream(streams, sql, settings=settings) as reader:
                return reader.read_all()

        class Wall(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return clock.now()

        medflex_hook.datetime = Wall  # type: ignore[misc]
        storage = "python" if light else "auto"
        try:
            with (
                mock.patch.multiple(arrow.Streams, stream=stream, read=read),
                pd.option_context("mode.string_storage", storage),
            ):
                yield
        finally:
            medflex_hook.datetime = wall  # type: ignore[misc]


class Process:
    """One process of the product.

    Attributes:
        flags_seen: appointment → what the last look read of it, and when, see ``Judge``.
        clinics_seen: the same of clinics.
        stepped_at: when the present step began; it may have stood still since.
        log: the kind of each step.
        result: what became of it, for the trace and for the judge; empty while it has not ended.
    """

    def __init__(self, machine: Machine, name: str, body: Callable[[Process], str], plan: Mapping[int, str]) -> None:
        self.machine, self.name = machine, name
        self.plan = dict(plan)
        self.steps = 0
        self.log: list[str] = []
        self.dead = self.over = False
        self.result = ""
        self.error: BaseException | None = None
        self.flags_seen: dict[int, Any] = {}
        self.clinics_seen: dict[int, Any] = {}
        self.stepped_at = machine.clock.now()
        self.real_ledger = Ledger(machine.connections.ledger, now=machine.clock.now)
        self.real_medlock = Medlock(machine.connections.medlock)
        machine.connections.lend(self.real_ledger, machine.connections.ledger)
        machine.connections.lend(self.real_medlock, machine.connections.medlock)
        self.ledger: Any = _Watched(self, "ledger", self.real_ledger)
        self.medlock: Any = _Watched(self, "medlock", self.real_medlock)
        self.clock = _Clock(self)
        self.client = MedflexClient(MedflexSettings(BASE_URL, TOKEN, parallel=1, **machine.settings))
        self.client._session().mount(BASE_URL, _Adapter(self))
        self._greenlet = greenlet.greenlet(lambda: self._run(body))

    def go_on(self, plan: Mapping[int, str]) -> None:
        """Run until the end, death or the next pause. ``plan``: what happens so many steps from here."""
        if self.over:
            return
        self.plan |= {self.steps + step: action for step, action in plan.items()}
        before, self.machine.running = self.machine.running, self
        try:
            self._greenlet.switch()
        finally:
            self.machine.running = before
        if self._greenlet.dead:
            self._end()

    def kill(self) -> None:
        """Let the process die where it stands."""
        if not self.over:
            self.dead = True
            self.machine.note(f"{self.name} is killed at step {self.steps}")
            self.machine.counts["crashes"] += 1
            self.go_on({})

    def step(self, kind: str, name: str, call: Callable[[], Any], brief: str = "") -> Any:
        """Make one step, with what the plan has for it."""
        self._alive()
        number, self.steps = self.steps, self.steps + 1
        self.log.append(kind)
        # No two steps of anybody are made at the same instant.
        self.machine.clock.sleep(STEP_SECONDS)
        self.stepped_at = self.machine.clock.now()
        if number > MOST_STEPS:
            raise RunsForeverError(f"{self.name} has made {number} steps and does not end")
        action = self.plan.get(number, "")
        where = f"{self.name} {number} {kind}.{name} {brief}".rstrip()
        self.machine.note(f"{where} {action}".rstrip())
        if action == "pause":
            self.machine.counts["pauses"] += 1
            self.machine.main.switch()
            self._alive()
        elif action == "crash":
            self._die()
        elif action == "lose":
            self.machine.counts[f"lost {kind}"] += 1
            self._lose(kind)
        result = call()
        self._alive()
        if action == "crash_after":
            self._die()
        elif action == "lose_after" and kind in _LOST:
            self.machine.counts[f"lost {kind}"] += 1
            raise _LOST[kind]()
        return result

    def _lose(self, kind: str) -> None:
        part = {"ledger": self.real_ledger, "medlock": self.real_medlock}.get(kind)
        if part is None:
            if kind in _LOST:
                raise _LOST[kind]()
        elif not self.machine.connections.break_off(part):
            raise _LOST[kind]()

    def _alive(self) -> None:
        if self.dead:
            raise Crash

    def _die(self) -> None:
        self.dead = True
        self.machine.counts["crashes"] += 1
        raise Crash

    def _run(self, body: Callable[[Process], str]) -> None:
        try:
            self.result = body(self)
        except Crash:
            self.result = "crashed"
        except RunsForeverError as error:
            self.result, self.error = "runs forever", error
        except Exception as error:
            self.result, self.error = f"failed with {type(error).__name__}", error

    def _end(self) -> None:
        self.over = True
        self.machine.note(f"{self.name} ends: {self.result}")
        connections = self.machine.connections
        connections.take_back(self.real_ledger, connections.ledger)
        connections.take_back(self.real_medlock, connections.medlock)


_LOST: dict[str, Callable[[], Exception]] = {
    "ledger": lambda: LedgerUnavailableError("The connection was lost."),
    "medlock": lambda: MedlockUnavailableError("The connection was lost."),
    "medflex": lambda: requests.ConnectionError("Connection reset by peer"),
}


class _Watched:
    """The ledger or Medlock of a process: each call is a step."""

    def __init__(self, process: Process, kind: str, part: Any) -> None:
        self._process, self._kind, self._part = process, kind, part
        self._wrapped: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self._wrapped:
            return self._wrapped[name]
        member = getattr(self._part, name)
        if not callable(member):
            return member
        process, kind = self._process, self._kind

        if name.startswith("stream_"):

            @contextmanager
            def streaming(*args: Any, **kwargs: Any) -> Iterator[Any]:
                process.step(kind, name, lambda: None)
                with member(*args, **kwargs) as reader:
                    yield reader

            self._wrapped[name] = streaming
            return streaming

        def watched(*args: Any, **kwargs: Any) -> Any:
            def call() -> Any:
                if kind == "medlock":
                    process.machine.on_read(process, name, (*args, *kwargs.values()))
                return member(*args, **kwargs)

            return process.step(kind, name, call)

        self._wrapped[name] = watched
        return watched


class _Clock:
    """The clock of a process: a wait is a step, too."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> datetime:
        return self._process.machine.clock.now()

    def sleep(self, seconds: float) -> None:
        machine = self._process.machine
        self._process.step("clock", "sleep", lambda: machine.clock.sleep(seconds), f"{seconds:.1f}")


class _Adapter(EngineAdapter):
    """Carries the requests of a process to Medflex."""

    def __init__(self, process: Process) -> None:
        # What a reply takes is waited for by the process; nobody else's work hangs on it.
        super().__init__(process.machine.engine, process.machine.clock.sleep)
        self._process = process

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        process, machine = self._process, self._process.machine
        body = _body(request)
        ids = [[item["id"], item["version"]] for item in body.get("records", ())]
        brief = f"{request.method} {request.path_url} {body.get('lpu_id', '')} {ids if ids else ''}".rstrip()

        def call() -> requests.Response:
            machine.counts["requests"] += 1
            if body:
                key = str(request.headers.get("Idempotency-Key"))
                machine.on_request(process, str(request.path_url), key, body)
            copies = 1
            if machine.duplicates and body:
                machine.duplicates -= 1
                machine.counts["duplicates"] += 1
                copies = 2
            statuses = []
            answers: list[requests.Response | requests.RequestException] = []
            for _ in range(copies):
                try:
                    response = super(_Adapter, self).send(request, *args, **kwargs)
                except requests.RequestException as error:
                    machine.note(f"{process.name} → {type(error).__name__}")
                    machine.counts[f"reply {type(error).__name__}"] += 1
                    answers.append(error)
                else:
                    machine.note(f"{process.name} → {response.status_code} {_verdicts(response)}".rstrip())
                    machine.counts[f"reply {response.status_code}"] += 1
                    statuses.append(response.status_code)
                    answers.append(response)
            if body and len(statuses) == copies and all(status in _TURNED_AWAY for status in statuses):
                machine.on_refusal()
            # Whoever doubles a request hands on the first answer that is no refusal: of a request of which one copy was
            # turned away the other one may have had its effect, and a refusal would say that it had none.
            heard = [item for item in answers if getattr(item, "status_code", 0) not in _TURNED_AWAY] or answers
            if isinstance(heard[0], requests.RequestException):
                raise heard[0]
            return heard[0]

        return process.step("medflex", brief, call)


def _body(request: requests.PreparedRequest) -> dict[str, Any]:
    data = request.body
    if not data:
        return {}
    raw = data if isinstance(data, bytes) else str(data).encode()
    if request.headers.get("Content-Encoding") == "gzip":
        raw = gzip.decompress(raw)
    return dict(orjson.loads(raw))


def _verdicts(response: requests.Response) -> str:
    try:
        data = orjson.loads(response.raw.getbuffer())["data"]
        return str(sorted([item["id"], item["status_code"]] for item in data)) if "status_code" in data[0] else ""
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return ""
