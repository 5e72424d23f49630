"""Background processes that outlive the command which started them, and are found again by the next one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil


class ServiceError(RuntimeError):
    """A background process did not start or ended too early; the message names its log."""


class Services:
    """Processes started from one folder: their ids are in ``services.json``, their output in ``logs/<name>.log``.

    Each leads a session of its own, so a terminal's Ctrl-C does not reach it, and all that it ever started can be
    found and ended with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "services.json"
        self._lock = threading.Lock()  # the stack starts several at once
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # started by this very process: its to reap

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts ``command`` as the service ``name`` unless that runs; what a dead one left behind is for `stop`."""
        with self._lock:
            if self.is_running(name):
                return
            if name in self._children:
                self._children.pop(name).wait()
            # Not ended here: tasks of a dead scheduler come to their end, while Airflow takes minutes to miss them.
            left = self._leaders(name)
            self.log(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.log(name).open("ab") as log:
                process = subprocess.Popen(
                    command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._children[name] = process
            # The start time tells the process from a later one under the same number.
            started = psutil.Process(process.pid).create_time()
            self._write(self._read() | {name: {"pid": process.pid, "started": started, "left": left}})

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def is_running(self, name: str) -> bool:
        return self.process(name) is not None

    def process(self, name: str) -> psutil.Process | None:
        """The live process of the service."""
        known = self._read().get(name)
        if known is None:
            return None
        try:
            process = psutil.Process(int(known["pid"]))
            alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() == known["started"]
        except psutil.Error:
            return None
        return process if alive else None

    def names(self) -> list[str]:
        """The services that were started and not stopped since, alive or not."""
        return list(self._read())

    def check(self, name: str) -> None:
        """Raises ``ServiceError`` when the service is not running."""
        if not self.is_running(name):
            raise ServiceError(f"The {name} ended by itself: see the end of {self.log(name)}.")

    def stop(self, names: Sequence[str] | None = None, *, seconds: float = 25.0) -> None:
        """SIGTERM to the services (default: all), after ``seconds`` SIGKILL, then an end to whatever they left."""
        names = self.names() if names is None else [name for name in names if name in self._read()]
        sessions = {int(leader["pid"]) for name in names for leader in self._leaders(name)}
        for name in names:
            process = self.process(name)
            if process is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(self.is_running(name) for name in names):
            time.sleep(0.05)
        # Task processes and the like: in the session of the service, whether or not that is still there itself.
        left = [process for process in psutil.process_iter() if _session(process.pid) in sessions]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, still = psutil.wait_procs([process for process in left if not _is_zombie(process)], timeout=10)
        still = [process for process in still if not _is_zombie(process)]
        for name in names:
            if name in self._children:
                self._children.pop(name).wait()
        self._write({name: known for name, known in self._read().items() if name not in names})
        if still:
            raise ServiceError(f"Could not end the processes {', '.join(str(process.pid) for process in still)}.")

    def _leaders(self, name: str) -> list[dict[str, float]]:
        """Process and start time of the service and of dead ones before it, as far as their sessions are still ours."""
        known = self._read().get(name)
        if known is None:
            return []
        own = {"pid": known["pid"], "started": known["started"]}
        return [leader for leader in (own, *known.get("left", ())) if _is_ours(leader)]

    def _read(self) -> dict[str, dict[str, Any]]:
        return dict(json.loads(self._file.read_text())) if self._file.exists() else {}

    def _write(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(known, indent=1))
        new.replace(self._file)


def _is_ours(leader: Mapping[str, float]) -> bool:
    """Whether the leader's session is still that of a service: nobody else has its number."""
    try:
        # Also a dead leader for whose end its parent has not asked yet.
        return bool(psutil.Process(int(leader["pid"])).create_time() == leader["started"])
    except psutil.NoSuchProcess:
        return True


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
