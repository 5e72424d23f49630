"""A receiver of alerts on loopback: an HTTP server that keeps what it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "hook-secret-7c1d"
"""Stands in the receiver's path, as chat programs have it."""


@dataclass
class Receiver:
    """What came in, in order. ``status`` is what it answers with; what it does not take is in ``refused``."""

    server: ThreadingHTTPServer
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def connection(self) -> str:
        """The Airflow connection that leads here, as the value of its variable."""
        host = f"http://127.0.0.1:{self.port}/{SECRET}"
        return json.dumps({"conn_type": "http", "host": host, "password": SECRET})

    def told(self) -> list[tuple[str, str]]:
        """Return kind and state of what was taken."""
        return [(body["kind"], body["state"]) for body in self.bodies]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path.startswith(f"/{SECRET}")
            (made.bodies if made.status < 300 else made.refused).append(body)
            self.send_response(made.status)
            # As careless servers do.
            text = f"{self.path} said {made.status}".encode()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Receiver(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
