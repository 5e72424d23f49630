"""A listener between Airflow and the object store: notes each request, and can hold one up in the middle."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

_HEAD = re.compile(rb"([A-Z]+) (/\S*) HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Request:
    """method: of HTTP. path: without its query. port: the client's, which tells who it is while it is connected."""

    method: str
    path: str
    port: int


class Tap:
    """Listens on a port of its own (``url``) and passes everything on to ``port``, unchanged.

    Clients of the store wait for each reply, so that every request begins a piece of what is read.
    """

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []
        self.held: Request | None = None
        """The request of which half has been passed on, until ``let_go``."""
        self._wanted: re.Pattern[str] | None = None
        self._whole = True
        self._lock = threading.Lock()
        self._released = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._listener.close()

    def hold(self, pattern: str) -> None:
        """Pass on only half of the next request whose ``METHOD /path`` matches, until ``let_go``."""
        with self._lock:
            self._released.clear()
            self.held, self._wanted = None, re.compile(pattern)

    def let_go(self, *, whole: bool = True) -> None:
        """Hold nothing any more; the other half of what was held goes on, or (not ``whole``) is lost."""
        with self._lock:
            self._wanted, self._whole = None, whole
        self._released.set()

    def _accept(self) -> None:
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client, port), daemon=True).start()

    def _connect(self, client: socket.socket, port: int) -> None:
        with client, socket.create_connection(self._to) as server:
            back = threading.Thread(target=self._pass_on, args=(server, client, None), daemon=True)
            back.start()
            self._pass_on(client, server, port)
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket, port: int | None) -> None:
        held, headers = False, 0
        try:
            while data := source.recv(1 << 16):
                if port is not None and (head := _HEAD.match(data)):
                    held = self._note(Request(head[1].decode(), unquote(head[2].decode()).partition("?")[0], port))
                    headers = data.find(b"\r\n\r\n") + 4
                if held and len(data) > headers:
                    half = (headers + len(data)) // 2
                    target.sendall(data[:half])
                    self._released.wait()
                    if not self._whole:
                        return
                    data, held = data[half:], False
                elif held:
                    headers = 0  # the body comes in the next piece
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _note(self, request: Request) -> bool:
        """Whether this is the request to hold."""
        with self._lock:
            self.requests.append(request)
            if self._wanted is None or not self._wanted.search(f"{request.method} {request.path}"):
                return False
            self._wanted, self.held = None, request
            return True
