"""Starts and stops a real sandbox Medflex process, for tests and the stack."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from .control import Control

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 10.0


class MedflexStartError(RuntimeError):
    """The server did not come up; the message ends with what it said."""


class MedflexProcess:
    """One server process over one store folder. As a context manager it is started on entry and stopped on exit.

    The ports are chosen by the first start and kept by later ones, so addresses outlive `restart` and `kill`.
    The process ends with its parent, unless `detach` is set.
    """

    def __init__(
        self,
        store_dir: Path,
        *,
        token: str | None = None,
        port: int = 0,
        control_port: int = 0,
        detach: bool = False,
    ) -> None:
        """Only notes the settings. Without `token`, that of the store folder is used, or a new one is made there."""
        self.store_dir = store_dir
        self.token = token or ""
        self.port, self.control_port = port, control_port
        self.detach = detach
        self.ready_file = store_dir / "ready.json"
        self.token_file = store_dir / "token"
        self.log_file = store_dir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Control | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of the contract, once started."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def control_url(self) -> str:
        """Address of the control port, once started."""
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def control(self) -> Control:
        """A client of the control port."""
        if self._control is None or self._control.url != self.control_url:
            self._control = Control(self.control_url)
        return self._control

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start and wait until it listens; nothing when it runs. Raises MedflexStartError."""
        if self.pid is not None:
            return self
        self.store_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_token()
        self.ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "sandbox.medflex", "--store", self.store_dir, "--token-file", self.token_file]
        command += ["--ready-file", self.ready_file, "--port", self.port, "--control-port", self.control_port]
        if not self.detach:
            command.append("--stop-with-stdin")
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdin=subprocess.DEVNULL if self.detach else subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ready = self._wait_until_ready(self._process)
        self.port, self.control_port = ready["port"], ready["control_port"]
        return self

    def stop(self) -> int | None:
        """SIGTERM, then SIGKILL when that takes over ten seconds; returns the exit code, None when none ran."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop and start again on the same ports, store and token."""
        self.stop()
        return self.start()

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is None:
            return None
        process.send_signal(number)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        return code

    def _write_token(self) -> None:
        if not self.token and self.token_file.exists():
            self.token = self.token_file.read_text().strip()
        self.token = self.token or secrets.token_urlsafe(32)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while not self.ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                said = self.log_file.read_text(errors="replace").strip().splitlines()[-3:]
                raise MedflexStartError(f"the sandbox Medflex did not start over {self.store_dir}: {' '.join(said)}")
            time.sleep(0.01)
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready
