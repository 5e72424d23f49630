"""The sandbox Medflex on loopback: one process, the contract on one port, the control of it on another."""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import orjson
import uvicorn
from pydantic import BaseModel, Field, TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .engine import MAX_BODY_BYTES, Carriage, Engine, Reply, Request
from .faults import Fault
from .store import Store

LOOPBACK = "127.0.0.1"
Peer = tuple[str, int]


class Clinic(BaseModel):
    """A clinic that the token sees; time_offset in minutes east of UTC."""

    lpu_id: Annotated[int, Field(ge=1)]
    name: str
    time_offset: Annotated[int, Field(ge=-720, le=840)]


class Settings(BaseModel):
    """How the server treats every request."""

    requests_per_second: Annotated[float | None, Field(gt=0)] = None
    retry_after_form: Literal["seconds", "http_date"] = "seconds"
    latency_ms: Annotated[float, Field(ge=0)] = 0.0


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us: two servers share this process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """One port that can be closed and opened again. The port stays ours in between: a second socket keeps it bound
    without listening, so that connecting is refused and nobody else gets it."""

    def __init__(self, port: int, host: str = LOOPBACK) -> None:
        """Bind; port 0 takes a free one. Raises OSError when the port is taken."""
        self._host = host
        self._keeper = self._bind(port)
        self.port: int = self._keeper.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.transports: dict[Peer, asyncio.Transport] = {}
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    def _bind(self, port: int) -> socket.socket:
        # With the protocol named, asyncio turns Nagle's delay off; without, each reply waits 40 ms for an ACK.
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((self._host, port))
        return bound

    @property
    def is_open(self) -> bool:
        """True while the port accepts connections."""
        return self._server is not None

    async def open(self, app: ASGIApp) -> None:
        """Accept connections from now on."""
        transports = self.transports

        class Protocol(H11Protocol):
            """Notes its transport, which ASGI does not hand on, so that a fault can break the connection."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                self.peer: Peer = transport.get_extra_info("peername")
                transports[self.peer] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                transports.pop(self.peer, None)
                super().connection_lost(exc)

        config = uvicorn.Config(
            app,
            http=Protocol,
            loop="asyncio",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
        )
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve([self._bind(self.port)]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.001)

    async def close(self, *, abort: bool) -> None:
        """Refuse connections from now on; `abort` breaks the open ones, else they may finish what they are at."""
        if self._server is None or self._task is None:
            return
        for listening in self._server.servers:
            listening.close()
        if abort:
            for transport in list(self.transports.values()):
                reset(transport)
            self._server.force_exit = True
        self._server.should_exit = True
        await self._task
        self._server = self._task = None


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP RST: the other side gets "connection reset by peer"."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Api:
    """The contract's port: carries bytes between a connection and the engine."""

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self._engine, self._listener = engine, listener
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            # One byte more than is allowed is enough for the engine to refuse; the rest is read and dropped.
            body += message.get("body", b"")[: MAX_BODY_BYTES + 1 - len(body)]
            if not message.get("more_body"):
                break
        request = Request(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            body=bytes(body),
            base_url=self._listener.url,
        )
        admitted = self._engine.admit(request)
        try:
            if admitted.wait:
                await self._pause(admitted.wait)
            reply = self._engine.finish(admitted)
            if reply.carriage is Carriage.ANSWER:
                await self._answer(reply, send)
            else:
                await self._break_off(reply, scope, receive)
        finally:
            self._engine.release(admitted)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    @staticmethod
    async def _answer(reply: Reply, send: Send) -> None:
        headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in reply.headers.items()]
        if reply.status != 204:
            headers.append((b"content-length", str(len(reply.body)).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _break_off(self, reply: Reply, scope: Scope, receive: Receive) -> None:
        gone = asyncio.ensure_future(receive())
        stopping = asyncio.ensure_future(self.stopping.wait())
        if reply.carriage is Carriage.HOLD:
            await asyncio.wait({gone, stopping}, timeout=reply.seconds, return_when=asyncio.FIRST_COMPLETED)
        transport = self._listener.transports.get(tuple(scope["client"]))
        if transport is not None:
            reset(transport) if reply.carriage is Carriage.RESET else transport.abort()
        stopping.cancel()
        # Return only when uvicorn knows that the connection is gone, or it would try to answer with a 500.
        await gone


_CLINICS, _LPU_IDS, _ACTIONS = TypeAdapter(list[Clinic]), TypeAdapter(list[int]), TypeAdapter(list[Any])


class ControlPort:
    """The control port: what tests and the command line may do to the server. The contract knows nothing of it."""

    def __init__(self, engine: Engine, listener: Listener, api: Api) -> None:
        self._engine, self._listener, self._api = engine, listener, api
        routes = [
            self._route("PUT", "/clinics", self._put_clinics),
            self._route("POST", "/clinics/remove", self._remove_clinics),
            self._route("GET", "/faults", lambda _: engine.faults.listing()),
            self._route("POST", "/faults", self._add_fault),
            self._route("DELETE", "/faults", lambda _: engine.faults.remove(None)),
            self._route("DELETE", "/faults/{fault_id:int}", self._remove_fault),
            self._route("POST", "/late/deliver", lambda _: engine.deliver_all()),
            self._route("PUT", "/settings", self._put_settings),
            self._route("GET", "/counters", lambda _: engine.counters()),
            self._route("GET", "/requests", lambda _: engine.log()),
            self._route("DELETE", "/requests", lambda _: engine.forget_requests()),
            self._route("POST", "/actions", self._add_actions),
            self._route("POST", "/actions/forget", self._forget_actions),
            self._route("POST", "/actions/{action_id}/repeat", self._repeat_action),
            self._route("GET", "/results", lambda _: engine.store.results()),
            self._route("POST", "/reset", lambda _: engine.reset()),
            Route("/records", self._dump_records),
            Route("/tombstones", self._dump_tombstones),
            Route("/applied", self._dump_applied),
        ]
        self.app = Starlette(routes=routes)

    def _route(self, method: str, path: str, act: Callable[["_Call"], Any]) -> Route:
        """JSON in, JSON out. What cannot be done is 422 with a text that says why."""

        async def endpoint(request: HttpRequest) -> Response:
            try:
                done = act(_Call(request.path_params, request.query_params, await request.body()))
            except (ValueError, LookupError) as error:
                return PlainTextResponse(str(error), 422)
            await self._follow_down_fault()
            return Response(orjson.dumps(done), media_type="application/json")

        return Route(path, endpoint, methods=[method])

    async def _follow_down_fault(self) -> None:
        if self._engine.faults.is_down() and self._listener.is_open:
            await self._listener.close(abort=True)
        elif not self._engine.faults.is_down() and not self._listener.is_open:
            await self._listener.open(self._api)

    def _put_clinics(self, call: "_Call") -> int:
        clinics = _CLINICS.validate_json(call.body)
        self._engine.store.put_clinics((clinic.lpu_id, clinic.name, clinic.time_offset) for clinic in clinics)
        return self._engine.store.count_clinics()

    def _remove_clinics(self, call: "_Call") -> int:
        self._engine.store.remove_clinics(_LPU_IDS.validate_json(call.body))
        return self._engine.store.count_clinics()

    def _add_fault(self, call: "_Call") -> int:
        return self._engine.faults.add(Fault.model_validate_json(call.body))

    def _remove_fault(self, call: "_Call") -> None:
        if not self._engine.faults.remove(call.path["fault_id"]):
            raise LookupError(f"there is no fault {call.path['fault_id']}")

    def _put_settings(self, call: "_Call") -> None:
        settings = Settings.model_validate_json(call.body)
        self._engine.set_rate_limit(settings.requests_per_second, settings.retry_after_form)
        self._engine.latency_ms = settings.latency_ms

    def _add_actions(self, call: "_Call") -> list[str]:
        return self._engine.add_actions(_ACTIONS.validate_json(call.body), unchecked=call.query["unchecked"] == "1")

    def _forget_actions(self, call: "_Call") -> None:
        self._engine.forget_actions(keep=call.query["keep"] == "1")

    def _repeat_action(self, call: "_Call") -> None:
        if not self._engine.repeat_action(call.path["action_id"]):
            raise LookupError("there is no such action")

    async def _dump_records(self, request: HttpRequest) -> StreamingResponse:
        return self._lines(self._engine.store.dump_records(_number(request, "lpu_id")))

    async def _dump_tombstones(self, _: HttpRequest) -> StreamingResponse:
        return self._lines(self._engine.store.dump_tombstones())

    async def _dump_applied(self, request: HttpRequest) -> StreamingResponse:
        wanted = _number(request, "lpu_id"), _number(request, "appointment_id")
        return self._lines(self._engine.store.dump_applied(*wanted))

    def _lines(self, source: Iterator[bytes]) -> StreamingResponse:
        def blocks() -> Iterator[bytes]:
            block = bytearray()
            for line in source:
                block += line
                if len(block) > 65536:
                    yield bytes(block)
                    block.clear()
            yield bytes(block)

        self._engine.deliver_due()
        return StreamingResponse(blocks(), media_type="application/x-ndjson")


class _Call(NamedTuple):
    """What a control route is given."""

    path: dict[str, Any]
    query: Mapping[str, str]
    body: bytes


def _number(request: HttpRequest, name: str) -> int | None:
    return int(request.query_params[name]) if name in request.query_params else None


async def serve(arguments: argparse.Namespace, token: str) -> None:
    """Run until SIGTERM or SIGINT (or the end of stdin, when asked to)."""
    engine = Engine(Store(arguments.store), token, time.monotonic)
    listener, control_listener = Listener(arguments.port, arguments.host), Listener(arguments.control_port)
    api = Api(engine, listener)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, api.stopping.set)
    async with _opened(listener, api), _opened(control_listener, ControlPort(engine, listener, api).app):
        if arguments.ready_file:
            _announce(arguments.ready_file, listener, control_listener)
        if arguments.stop_with_stdin:
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            ended = asyncio.ensure_future(reader.read())
            ended.add_done_callback(lambda _: api.stopping.set())
        await api.stopping.wait()
    engine.store.close()


@contextlib.asynccontextmanager
async def _opened(listener: Listener, app: ASGIApp) -> AsyncIterator[None]:
    await listener.open(app)
    try:
        yield
    finally:
        await listener.close(abort=False)


def _announce(ready_file: Path, listener: Listener, control_listener: Listener) -> None:
    """Write the addresses in one step: whoever sees the file sees all of it."""
    content = {
        "url": listener.url,
        "control_url": control_listener.url,
        "port": listener.port,
        "control_port": control_listener.port,
        "pid": os.getpid(),
    }
    unfinished = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(ready_file)


def read_token(token_file: Path) -> str:
    """The token in the file; when there is no file, one is made that only we can read. ValueError: it is empty."""
    if not token_file.exists():
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_urlsafe(32))
    token = token_file.read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"the token file {token_file} holds no token; put one line of ASCII text in, or remove it")
    return token


def main(argv: list[str] | None = None) -> int:
    """`python -m sandbox.medflex`: 0 after a clean stop, 1 with one sentence on stderr when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.medflex", description=__doc__)
    parser.add_argument(
        "--host", default=LOOPBACK, help="address that the contract is served on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the contract; 0: a free one")
    parser.add_argument("--control-port", type=int, default=0, help="port of the control on 127.0.0.1; 0: a free one")
    parser.add_argument("--store", type=Path, required=True, help="folder of the server's data; made when missing")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the token; made when missing")
    parser.add_argument("--ready-file", type=Path, help="written as JSON (url, control_url, ports, pid) once listening")
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when stdin ends, so with the parent")
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(serve(arguments, read_token(arguments.token_file)))
    except (OSError, ValueError) as error:
        print(f"The sandbox Medflex cannot start: {error}", file=sys.stderr)
        return 1
    return 0
