"""The server that all contenders of the comparison post to: ``python -m bench.receiver --port 8099``.

It speaks of Medflex's contract what a transfer needs (share and withdraw, a verdict for each record), and takes plain
rows besides, from clients that know no contract. It reads each body as a real one would (unpacks and parses it), keeps
which version of which record it shows, and counts. It is quick so that contenders are measured, not their receiver; the
whole contract with its limits and faults is what ``sandbox.medflex`` is for.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import requests
import uvicorn

from sandbox.postgres import free_port

HOST = "127.0.0.1"
PROJECT = Path(__file__).resolve().parents[1]
TOKEN = "bench"  # noqa: S105 - of a server on loopback that lives for minutes
SEND, WITHDRAW, ROWS = "/appointments/batch/", "/appointments/withdraw/", "/rows"
START_SECONDS = 30.0
LENGTH = struct.Struct("<I")
"""Before each body of a recording."""


class Receiver:
    """The ASGI app. ``shown``: lpu_id (of plain rows: clinic_id) → id → version, negative once it is withdrawn."""

    def __init__(self) -> None:
        self.shown: dict[int, dict[int, int]] = defaultdict(dict)
        self.counts: Counter[str] = Counter()
        self.latency = 0.0
        self._recording: Any = None
        self._writes: dict[str, Callable[[Any], tuple[int, Any]]] = {
            SEND: partial(self._judge, counted="records", sign=1),
            WITHDRAW: partial(self._judge, counted="withdrawn", sign=-1),
            ROWS: self._take_rows,
        }

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Answer one request."""
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            parts = [body]
            while message.get("more_body"):
                message = await receive()
                parts.append(message.get("body", b""))
            body = b"".join(parts)
        if scope["path"].startswith("/bench/"):
            status, reply = self._control(scope["path"], body)
        else:
            status, reply = self._answer(scope, body)
            if self.latency:
                await asyncio.sleep(self.latency)
        data = orjson.dumps(reply)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def _answer(self, scope: Any, body: bytes) -> tuple[int, Any]:
        path, headers = scope["path"], dict(scope["headers"])
        self.counts["requests"] += 1
        self.counts["bytes"] += len(body)
        if path not in self._writes or scope["method"] != "POST":
            self.counts["unknown"] += 1
            return 404, {"detail": "No such path."}
        if path != ROWS:
            if headers.get(b"authorization") != f"Token {TOKEN}".encode():
                return 401, {"detail": "Token missing or unknown."}
            if b"idempotency-key" not in headers:
                return 400, {"Idempotency-Key": ["This header is required."]}
        self.counts[path] += 1
        if self._recording is not None and path == SEND:
            self._recording.write(LENGTH.pack(len(body)) + body)
        if headers.get(b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        self.counts["unpacked"] += len(body)
        try:
            return self._writes[path](orjson.loads(body))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return 400, {"detail": "The body is not what this path takes."}

    def _judge(self, batch: Any, counted: str, sign: int) -> tuple[int, Any]:
        """Take records that are newer than what is shown, or are what is shown; ``sign``: -1 for what is withdrawn."""
        known = self.shown[batch["lpu_id"]]
        verdicts = []
        for record in batch["records"]:
            key, version = record["id"], record["version"]
            there = known.get(key, 0)
            if version > abs(there) or sign * version == there:
                known[key] = sign * version
                verdicts.append({"id": key, "version": version, "status_code": 204, "errors": None})
            else:
                verdicts.append(_outdated(key, version))
        self.counts[counted] += len(verdicts)
        return 200, {"data": verdicts}

    def _take_rows(self, rows: Any) -> tuple[int, Any]:
        rows = rows if isinstance(rows, list) else [rows]
        for row in rows:
            self.shown[row["clinic_id"]][row["appointment_id"]] = 1
        self.counts["records"] += len(rows)
        return 200, {"stored": len(rows)}

    def _control(self, path: str, body: bytes) -> tuple[int, Any]:
        """What the benchmark itself asks: not counted, not part of any contract."""
        if path == "/bench/reset":
            self.shown.clear()
            self.counts.clear()
        elif path == "/bench/counts":
            counts = dict(self.counts)
            self.counts.clear()
            return 200, counts
        elif path == "/bench/shown":
            ids = {str(key): [record for record, v in known.items() if v > 0] for key, known in self.shown.items()}
            return 200, ids
        elif path == "/bench/settings":
            wanted = orjson.loads(body)
            self.latency = wanted.get("latency_ms", 0) / 1000
            if self._recording is not None:
                self._recording.close()
                self._recording = None
            if wanted.get("record"):
                self._recording = Path(wanted["record"]).open("wb")  # noqa: SIM115 - open until told otherwise
        return 200, {}


def _outdated(key: int, version: int) -> dict[str, Any]:
    errors = {"version": ["A newer one is there."]}
    return {"id": key, "version": version, "status_code": 409, "errors": errors}


class Client:
    """What the benchmark asks of a running receiver."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self._session = requests.Session()
        self._session.trust_env = False

    def reset(self) -> None:
        """Forget all records and counts."""
        self._ask("reset")

    def counts(self) -> Counter[str]:
        """Return what was counted since this was last asked: requests, bytes, records, withdrawn, by path."""
        return Counter(self._ask("counts"))

    def shown(self) -> dict[int, set[int]]:
        """Return which records are shown: lpu_id (of plain rows: clinic_id) → ids."""
        return {int(key): set(ids) for key, ids in self._ask("shown").items() if ids}

    def set(self, *, latency_ms: float = 0.0, record: Path | None = None) -> None:
        """Answer so much later from now on; write bodies of shared batches to a file, or no longer."""
        self._ask("settings", {"latency_ms": latency_ms, "record": str(record) if record else None})

    def _ask(self, what: str, body: Any = None) -> Any:
        reply = self._session.post(f"{self.url}/bench/{what}", data=orjson.dumps(body), timeout=120)
        reply.raise_for_status()
        return orjson.loads(reply.content)


@contextmanager
def started(log: Path) -> Iterator[Client]:
    """Run a receiver in a process of its own.

    Raises:
        TimeoutError: it does not answer.
    """
    port = free_port()
    with log.open("ab") as output:
        command = [sys.executable, "-m", "bench.receiver", "--port", str(port)]
        process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    client = Client(port)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                client.reset()
                break
            except requests.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"The receiver did not start: see {log}.") from None
                time.sleep(0.05)
        yield client
    finally:
        process.terminate()
        process.wait()


def bodies(recording: Path) -> list[bytes]:
    """Return the bodies of a recording."""
    found, data, at = [], recording.read_bytes(), 0
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        found.append(data[at : at + length])
        at += length
    return found


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="python -m bench.receiver", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        Receiver(), host=HOST, port=options.port, log_level="error", access_log=False, lifespan="off", ws="none"
    )


if __name__ == "__main__":
    main()
