"""The sandbox Medflex behind a `requests` session, without a network: for fault schedules on a fake clock.

session.mount("http://medflex.test", EngineAdapter(engine, clock.sleep))
"""

import io
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from .engine import Carriage, Engine, Reply, Request


class EngineAdapter(BaseAdapter):
    """Carries requests to an engine and turns broken connections into the exceptions that `requests` would raise.

    `sleep` passes the time that a reply takes, in seconds; give it the clock by which the engine goes.
    """

    def __init__(self, engine: Engine, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self._engine, self._sleep = engine, sleep

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float, float] | tuple[float, None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """One request. Raises requests.ReadTimeout or requests.ConnectionError as a real connection would."""
        if self._engine.faults.is_down():
            raise requests.ConnectionError("Connection refused", request=request)
        patience = timeout[1] if isinstance(timeout, tuple) else timeout
        admitted = self._engine.admit(_to_engine(request))
        try:
            if patience is not None and admitted.wait > patience:
                self._engine.finish_later(admitted, admitted.wait)
                self._sleep(patience)
                raise requests.ReadTimeout("Read timed out", request=request)
            if admitted.wait:
                self._sleep(admitted.wait)
            reply = self._engine.finish(admitted)
            if reply.carriage is Carriage.RESET:
                raise requests.ConnectionError("Connection reset by peer", request=request)
            if reply.carriage is Carriage.HOLD:
                if patience is not None and patience < reply.seconds:
                    self._sleep(patience)
                    raise requests.ReadTimeout("Read timed out", request=request)
                self._sleep(reply.seconds)
                raise requests.ConnectionError("Remote end closed connection without response", request=request)
            return _to_requests(request, reply)
        finally:
            self._engine.release(admitted)

    def close(self) -> None:
        """Nothing to close; the engine belongs to the caller."""


def _to_engine(request: requests.PreparedRequest) -> Request:
    parts = urlsplit(str(request.url))
    body: Any = request.body or b""
    return Request(
        method=str(request.method),
        path=parts.path or "/",
        query=parts.query,
        headers={name.lower(): _text(value) for name, value in request.headers.items()},
        body=body.encode() if isinstance(body, str) else bytes(body),
        base_url=f"{parts.scheme}://{parts.netloc}",
    )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _to_requests(request: requests.PreparedRequest, reply: Reply) -> requests.Response:
    response = requests.Response()
    response.status_code = reply.status
    response.headers = CaseInsensitiveDict(reply.headers)
    response.url = str(request.url)
    response.request = request
    response.raw = io.BytesIO(reply.body)
    response.encoding = "utf-8"
    return response
