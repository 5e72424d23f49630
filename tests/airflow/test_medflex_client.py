"""The client of Medflex against the sandbox server, and against small servers for what no sandbox should play."""

from __future__ import annotations

import gzip
import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from airflow.sdk import Connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from medflex.airflow.hooks.medflex import (
    MAX_PAUSE,
    SEND_PATH,
    WITHDRAW_PATH,
    BatchReply,
    MedflexClient,
    MedflexSettings,
    NotProcessedError,
    UnknownOutcomeError,
    retry_after,
    settings_of,
)
from medflex.errors import ActionsUnreadableError, ConfigurationError, MedflexContractError, MedflexRefusedError
from sandbox.medflex.process import MedflexProcess
from sandbox.postgres import free_port
from tests.sandbox.medflex.helpers import CLINICS, LPU, record, withdrawal

TOKEN = "t0ken-that-nobody-may-read"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


# -- servers -----------------------------------------------------------------------------------------------------------


class Server:
    """A server on loopback that reads one request per connection, remembers it and does with it what it is told."""

    def __init__(
        self, answer: Callable[[socket.socket], None], context: ssl.SSLContext | None = None, *, beneath: bool = False
    ) -> None:
        """``context`` makes it speak TLS; ``beneath`` then answers on the bare connection, which breaks TLS."""
        self._answer = answer
        self._context = context
        self._beneath = beneath
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        # A connection that says nothing wakes the thread up, which then finds the listener closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                try:
                    self._converse(connection)
                except OSError:
                    # The client went away, which some tests are about.
                    continue

    def _converse(self, connection: socket.socket) -> None:
        if self._context is None:
            self.requests.append(_read_request(connection))
            self._answer(connection)
            return
        with (
            socket.socket(fileno=os.dup(connection.fileno())) as bare,
            self._context.wrap_socket(connection, server_side=True) as wrapped,
        ):
            self.requests.append(_read_request(wrapped))
            self._answer(bare if self._beneath else wrapped)


def _read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += _more(connection)
    return head + b"\r\n\r\n" + body


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(65_536)
    if not piece:
        raise ConnectionError("the client closed the connection")
    return piece


def reply(status: int, body: bytes | Any = b"", **headers: str) -> Callable[[socket.socket], None]:
    """Answer with this; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


@contextmanager
def serving(answer: Callable[[socket.socket], None], *tls: ssl.SSLContext, beneath: bool = False) -> Iterator[Server]:
    server = Server(answer, *tls, beneath=beneath)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def medflex(_medflex_process: MedflexProcess) -> Iterator[MedflexProcess]:
    """The sandbox Medflex, empty, with the clinics of the helpers."""
    _medflex_process.control.reset()
    _medflex_process.control.put_clinics(CLINICS)
    yield _medflex_process
    _medflex_process.control.clear_faults()


def client(url: str, token: str = TOKEN, **settings: Any) -> MedflexClient:
    return MedflexClient(MedflexSettings(base_url=url, token=token, **{"timeout": 5.0, **settings}))


def of(medflex: MedflexProcess, **settings: Any) -> MedflexClient:
    return client(medflex.url, medflex.token, **settings)


def send(
    to: MedflexClient, records: list[dict[str, Any]], key: str = "key-1", path: str = SEND_PATH, lpu_id: int = LPU
) -> BatchReply:
    body = to.encode({"lpu_id": lpu_id, "records": records})
    return to.post_batch(path, body, key, {item["id"]: item["version"] for item in records})


def send_to(server: Server, **settings: Any) -> BatchReply:
    """Send records 1 (version 1) and 2 (version 5)."""
    return send(client(server.url, **settings), [record(1), record(2, 5)])


def verdict(id_: Any, version: Any = 1, status_code: Any = 204, errors: Any = None) -> dict[str, Any]:
    return {"id": id_, "version": version, "status_code": status_code, "errors": errors}


# -- a reply that was read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_every_record_has_its_verdict(medflex: MedflexProcess, compress: bool) -> None:
    to = of(medflex, compress=compress)
    send(to, [record(1, 7)], "earlier")
    medflex.control.add_fault("reject_records", ids=[2])
    got = send(to, [record(1, 6), record(2), record(3)])
    assert (got.http_status, set(got.accepted), set(got.outdated), set(got.unknown)) == (200, {3}, {1}, set())
    assert set(got.rejected) == {2}
    assert {key: item["version"] for key, item in medflex.control.records().items()} == {(LPU, 1): 7, (LPU, 3): 1}


def test_a_withdrawal_has_its_verdict_too(medflex: MedflexProcess) -> None:
    to = of(medflex)
    send(to, [record(1), record(2)], "earlier")
    assert send(to, [withdrawal(1, 2)], path=WITHDRAW_PATH).accepted == {1}
    assert [item["id"] for item in to.visible(LPU)] == [2]


def test_the_same_key_again_has_its_effect_once(medflex: MedflexProcess) -> None:
    to = of(medflex)
    assert send(to, [record(1)]) == send(to, [record(1)])
    assert len(medflex.control.applied()) == 1


def test_requests_of_one_thread_differ_by_what_they_carry_only_and_bring_no_cookie_back() -> None:
    """Each is a copy of the first one."""
    with serving(reply(200, {"data": []}, Set_Cookie="balancer=7; Path=/")) as server:
        to = client(server.url)
        with suppress(UnknownOutcomeError):
            list(to.visible(LPU))
        send(to, [record(1)], "key-1")
        send(to, [record(1), record(2), record(3)], "key-2")
        send(to, [withdrawal(1, 2)], "key-3", WITHDRAW_PATH)
    parted = [request.partition(b"\r\n\r\n") for request in server.requests[1:]]
    heads = [sorted(head.split(b"\r\n")) for head, _, _ in parted]
    for (_, _, body), head, key in zip(parted, heads, (b"key-1", b"key-2", b"key-3"), strict=True):
        assert b"Idempotency-Key: " + key in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert {b"Content-Type: application/json", b"Content-Encoding: gzip"} <= set(head)
        assert f"Authorization: Token {TOKEN}".encode() in head
        assert not any(line.lower().startswith(b"cookie") for line in head)
    rest = [[line for line in head if not line.startswith((b"Idem", b"Content-Length", b"POST"))] for head in heads]
    assert rest[0] == rest[1] == rest[2]
    assert [len(orjson.loads(gzip.decompress(body))["records"]) for _, _, body in parted] == [1, 3, 1]


def test_the_same_body_has_the_same_bytes_at_any_time() -> None:
    body = {"lpu_id": LPU, "records": [record(1)]}
    to = client("http://127.0.0.1")
    assert to.encode(body) == to.encode(body)
    # The time stamp in gzip's header, which would differ from second to second.
    assert to.encode(body)[4:8] == bytes(4)
    assert json.loads(gzip.decompress(to.encode(body))) == body


@pytest.mark.parametrize("content_type", ["text/html; charset=windows-1251", "application/octet-stream", ""])
def test_the_body_counts_not_what_the_reply_calls_it(content_type: str) -> None:
    with serving(reply(200, {"data": [verdict(1), verdict(2, 5)]}, Content_Type=content_type)) as server:
        assert send_to(server).accepted == {1, 2}


@pytest.mark.parametrize("code", [[204], {"code": 204}, "204", True, None, 204.0, 0, 200, 500, -1])
def test_a_verdict_that_is_none_leaves_its_record_unknown(code: Any) -> None:
    with serving(reply(200, {"data": [verdict(1, status_code=code), verdict(2, 5)]})) as server:
        got = send_to(server)
    assert (set(got.accepted), set(got.unknown)) == ({2}, {1})
    assert not got.rejected
    assert not got.outdated


@pytest.mark.parametrize(
    ("items", "accepted", "unknown"),
    [
        ([verdict(2, 5)], {2}, {1}),
        ([], set(), {1, 2}),
        ([verdict(1), verdict(2, 5), verdict(1)], {2}, {1}),
        ([verdict(1), verdict(2, 5), verdict(1, status_code=400)], {2}, {1}),
        ([verdict(1, 2), verdict(2, 5)], {2}, {1}),
        ([verdict(1, None), verdict(2, 5)], {2}, {1}),
    ],
    ids=["one missing", "all missing", "twice", "twice, at odds", "another version", "no version"],
)
def test_what_a_reply_does_not_say_clearly_is_unknown_for_that_record(
    items: list[dict[str, Any]], accepted: set[int], unknown: set[int]
) -> None:
    with serving(reply(200, {"data": items})) as server:
        got = send_to(server)
    assert (set(got.accepted), set(got.unknown)) == (accepted, unknown)


@pytest.mark.parametrize(
    ("errors", "fields"),
    [
        ({"dt_end": ["?"], "client.mobile_phone": ["79001112233 is no phone"]}, ("client.mobile_phone", "dt_end")),
        ({"Анна 79001112233": ["?"], "dt_end": ["?"]}, ("dt_end", "other")),
        (["Анна 79001112233"], ("other",)),
        ("Анна 79001112233", ("other",)),
        ({}, ()),
        (None, ()),
    ],
)  # fmt: skip
def test_of_a_rejection_only_the_names_of_fields_are_kept(errors: Any, fields: tuple[str, ...]) -> None:
    with serving(reply(200, {"data": [verdict(1, status_code=400, errors=errors), verdict(2, 5)]})) as server:
        assert send_to(server).rejected == {1: fields}


# -- certainly not processed -------------------------------------------------------------------------------------------


def test_a_refused_connection_was_not_processed() -> None:
    with pytest.raises(NotProcessedError) as error:
        send(client(f"http://127.0.0.1:{free_port()}"), [record(1)])
    assert (error.value.status, error.value.retry_after) == (None, None)


@pytest.mark.parametrize("form", ["seconds", "http_date"])
def test_a_refused_rate_was_not_processed_and_says_how_long_to_wait(medflex: MedflexProcess, form: str) -> None:
    medflex.control.add_fault("rate_limited", retry_after=40, retry_after_form=form)
    with pytest.raises(NotProcessedError) as error:
        send(of(medflex), [record(1)])
    assert error.value.status == 429
    assert error.value.retry_after is not None
    # An HTTP date has whole seconds.
    assert 35 < error.value.retry_after <= 41
    assert not medflex.control.applied()


# -- unknown outcome ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 202, 204, 207, 408, 409, 500, 502, 503, 504, 599])
def test_a_status_that_leaves_the_effect_open_is_unknown(status: int) -> None:
    body = b"" if status == 204 else {"data": [verdict(1), verdict(2, 5)]}
    with serving(reply(status, body, Retry_After="17")) as server, pytest.raises(UnknownOutcomeError) as error:
        send_to(server)
    assert (error.value.status, error.value.retry_after) == (status, 17)


@pytest.mark.parametrize(
    ("fault", "settings", "what"),
    [
        ("timeout_before_effect", {"seconds": 2}, "a time-out"),
        ("timeout_after_effect", {"seconds": 2}, "a time-out"),
        ("reset_before_effect", {}, "a lost connection"),
        ("reset_after_effect", {}, "a lost connection"),
        ("malformed_body", {"form": "truncated"}, "a reply that is no JSON"),
        ("malformed_body", {"form": "empty"}, "a reply that is no JSON"),
        ("malformed_body", {"form": "wrong_type"}, "a reply without data"),
        ("malformed_body", {"form": "missing_data"}, "a reply without data"),
        ("malformed_body", {"form": "wrong_ids"}, "a reply about records that were not sent"),
    ],
)
def test_trouble_after_the_body_has_left_is_unknown_and_the_same_key_heals_it(
    medflex: MedflexProcess, fault: str, settings: dict[str, Any], what: str
) -> None:
    # Only what has to run into it gets so little time: on a busy machine a reply takes its time, too.
    to = of(medflex, timeout=1.0) if fault.startswith("timeout") else of(medflex)
    medflex.control.add_fault(fault, times=1, **settings)
    with pytest.raises(UnknownOutcomeError, match=f"^{what}$"):
        send(to, [record(1)])
    # With another client: the one above may be impatient.
    assert send(of(medflex), [record(1)]).accepted == {1}
    assert len(medflex.control.applied()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>200 OK</html>",
        b"\xff\xfe\x00",
        [],
        {"data": {"1": 204}},
        {"data": None},
        {"data": [1]},
        {"data": [{"status_code": 204}]},
        {"data": [verdict("1")]},
        {"data": [verdict(True)]},
        {"data": [verdict(1.0)]},
        {"data": [verdict(1), verdict(3)]},
    ],
)
def test_an_unreadable_reply_is_unknown_for_the_whole_batch(body: Any) -> None:
    with serving(reply(200, body)) as server, pytest.raises(UnknownOutcomeError) as error:
        send_to(server)
    assert error.value.status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"data": [',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nno gzip!",
        b"SSH-2.0-OpenSSH\r\n",
    ],
    ids=["closed", "cut head", "cut body", "broken chunks", "broken gzip", "no HTTP"],
)
def test_a_broken_reply_is_unknown(raw: bytes) -> None:
    with serving(lambda connection: connection.sendall(raw)) as server, pytest.raises(UnknownOutcomeError) as error:
        send_to(server)
    assert len(server.requests) == 1, "the client must not repeat a request by itself"
    assert error.value.retry_after is None


# -- what no repetition heals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_told(medflex: MedflexProcess, status: int) -> None:
    medflex.control.add_fault("unauthorized", status=status)
    with pytest.raises(MedflexRefusedError, match=rf"refuses the token \(HTTP {status}\).*password of the connection"):
        send(of(medflex), [record(1)])


def test_a_wrong_token_is_told_without_it(medflex: MedflexProcess) -> None:
    with pytest.raises(MedflexRefusedError) as error:
        send(client(medflex.url, TOKEN), [record(1)])
    assert TOKEN not in str(error.value)


def test_a_clinic_that_medflex_does_not_know_is_told(medflex: MedflexProcess) -> None:
    with pytest.raises(MedflexContractError, match="lpu_id"):
        send(of(medflex), [record(1)], lpu_id=999)


@pytest.mark.parametrize("status", [301, 302, 304, 307, 308, 400, 405, 413, 415, 422, 451])
def test_any_other_refusal_of_a_whole_request_is_a_broken_contract(status: int) -> None:
    with serving(reply(status, {"detail": "Анна 79001112233"})) as server:
        with pytest.raises(MedflexContractError, match=f"HTTP {status}") as error:
            send_to(server)
        assert len(server.requests) == 1
    assert "Анна" not in str(error.value)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """The body holds names and phones, and the header the token: they go where the connection says, nowhere else."""
    accepting = reply(200, {"data": [verdict(1), verdict(2, 5)]})
    with serving(accepting) as elsewhere, serving(reply(status, Location=f"{elsewhere.url}/x")) as server:
        with pytest.raises(MedflexContractError):
            send_to(server)
        assert len(server.requests) == 1
        assert elsewhere.requests == []


@pytest.mark.parametrize("host", ["http://exa mple", "http://127.0.0.1:notaport", "http://[::1", "http://.a"])
def test_a_host_that_is_no_address_is_told(host: str) -> None:
    settings = settings_of(Connection(conn_id="medflex_api", conn_type="http", host=host, password=TOKEN))
    with pytest.raises(ConfigurationError, match="host or port that is no URL"):
        send(MedflexClient(settings), [record(1)])


# -- what the machine must not change ----------------------------------------------------------------------------------


def test_no_proxy_of_the_machine_sees_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    accepting = reply(200, {"data": [verdict(1), verdict(2, 5)]})
    with serving(accepting) as proxy, serving(accepting) as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert send_to(server).accepted == {1, 2}
        assert proxy.requests == []


def test_no_netrc_of_the_machine_replaces_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(reply(200, {"data": [verdict(1), verdict(2, 5)]})) as server:
        send_to(server)
    assert f"Authorization: Token {TOKEN}".encode() in server.requests[0]


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ssl.SSLContext]]:
    """A function that makes a self-signed certificate for an address; the file to trust, and the server's context."""
    folder = tmp_path_factory.mktemp("certificates")

    def make(address: str) -> tuple[Path, ssl.SSLContext]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Medflex of a test")])
        today = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - timedelta(days=1))
            .not_valid_after(today + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        public, both = folder / f"{address}.crt", folder / f"{address}.pem"
        public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        both.write_bytes(private + public.read_bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        return public, context

    return make


def test_a_trusted_certificate_of_a_private_authority(certificates: Callable[..., Any]) -> None:
    trusted, context = certificates("127.0.0.1")
    with serving(reply(200, {"data": [verdict(1), verdict(2, 5)]}), context) as server:
        assert send_to(server, ca_bundle=str(trusted)).accepted == {1, 2}


@pytest.mark.parametrize(("address", "is_named"), [("127.0.0.1", False), ("127.0.0.9", True)])
def test_a_certificate_that_is_not_trusted_gets_no_body(
    certificates: Callable[..., Any], address: str, is_named: bool
) -> None:
    """Of an authority that nobody named, or of another host."""
    trusted, context = certificates(address)
    with serving(reply(200), context) as server:
        with pytest.raises(MedflexRefusedError, match=r"certificate of Medflex is not trusted.*ca_bundle"):
            send_to(server, ca_bundle=str(trusted) if is_named else None)
        assert server.requests == []


def test_tls_that_breaks_after_the_body_is_unknown(certificates: Callable[..., Any]) -> None:
    trusted, context = certificates("127.0.0.1")
    # Not encrypted: no record of TLS begins like this.
    with serving(lambda bare: bare.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 9), context, beneath=True) as server:
        with pytest.raises(UnknownOutcomeError, match="a broken TLS connection"):
            send_to(server, ca_bundle=str(trusted))
        assert len(server.requests) == 1


# -- reading back ------------------------------------------------------------------------------------------------------


def test_what_is_visible_comes_page_by_page(medflex: MedflexProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    to = of(medflex)
    send(to, [record(number, version=number) for number in range(1, 8)])
    monkeypatch.setattr("medflex.airflow.hooks.medflex.PAGE_SIZE", 3)
    assert {item["id"]: item["version"] for item in to.visible(LPU)} == {number: number for number in range(1, 8)}
    assert sum(1 for item in medflex.control.request_log() if item["method"] == "GET") == 3


@pytest.mark.parametrize(
    "body", [[], {}, {"data": None}, {"data": [7]}, {"data": [{"id": "7", "version": 1}]}, {"data": [{"id": 7}]}]
)
def test_a_page_that_cannot_be_read_is_unknown(body: Any) -> None:
    with serving(reply(200, body)) as server, pytest.raises(UnknownOutcomeError, match="an unreadable page"):
        list(client(server.url).visible(LPU))


UNREADABLE = {
    "half of a surrogate pair": b'"\\ud800"',
    "an integer that nobody reads": b"1" * 5000,
    "a number beyond all": b"1e400",
    "what is no number": b"[NaN, Infinity, -Infinity]",
    "a byte that is no text": b'"\xff"',
}


def action_page(value: bytes, cursor: bytes = b'"c"') -> bytes:
    """Return a page of two entries; the first one has this value as JSON in an unknown field."""
    entries = b'[{"id": "x", "value": ' + value + b'}, {"id": 9223372036854775807}]'
    return b'{"links": {"next": null}, "count": 2, "cursor": ' + cursor + b', "data": ' + entries + b"}"


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_value_that_cannot_be_read_hides_no_other_action(name: str) -> None:
    with serving(reply(200, action_page(UNREADABLE[name]))) as server:
        page = client(server.url).actions(None)
    assert [item["id"] for item in page.items] == ["x", 2**63 - 1]
    assert page.cursor == "c"


def test_a_page_of_actions_that_is_nested_too_deeply_is_told() -> None:
    with (
        serving(reply(200, action_page(b"[" * 100_000 + b"]" * 100_000))) as server,
        pytest.raises(ActionsUnreadableError, match="nested too deeply") as caught,
    ):
        client(server.url).actions(None)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("body", [b"", b'{"data": [', b"<html>", b"\xff"])
def test_a_page_of_actions_that_is_no_json_says_so(body: bytes) -> None:
    with serving(reply(200, body)) as server, pytest.raises(UnknownOutcomeError, match="actions that is no JSON"):
        client(server.url).actions(None)


@pytest.mark.parametrize("cursor", [b'"\\u0000a"', b'"\\ud800"', b'"a\\n"', b'"\xd0\xb0"', b'""', b"7", b"null"])
def test_a_cursor_that_nobody_can_keep_is_an_unreadable_page(cursor: bytes) -> None:
    page = action_page(b"1", cursor)
    with serving(reply(200, page)) as server, pytest.raises(UnknownOutcomeError, match="an unreadable page"):
        client(server.url).actions(None)


# -- Retry-After -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("17", 17),
        (" 17 ", 17),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW + timedelta(seconds=90)), 90),
        ("Sunday, 22-Nov-26 12:01:30 GMT", 90),
        ("Sun Nov 22 12:01:30 2026", 90),
        (format_datetime(NOW - timedelta(days=400), usegmt=True), 0),
        ("9" * 5000, MAX_PAUSE),
        ("86401", MAX_PAUSE),
        (format_datetime(NOW + timedelta(days=4000), usegmt=True), MAX_PAUSE),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("1e3", None),
        ("١٧", None),
        ("²", None),
        ("Sun, 22 Nov 99999 12:00:00 GMT", None),
        ("Sun, 31 Feb 2026 12:00:00 GMT", None),
        ("Sun, 22 Nov 2026 12:00:00 +999999999999999", None),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.one_of(st.text(), st.from_regex(r"Sun, \d{1,6} Nov \d{1,6} \d{1,3}:\d{1,3}:\d{1,3} [+-]\d{1,20}")))
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
def test_no_retry_after_breaks_the_client(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_PAUSE


# -- the connection ----------------------------------------------------------------------------------------------------


def connection(extra: Any = None, **fields: Any) -> Connection:
    given_fields = {"host": "medflex.example", "password": TOKEN} | fields
    return Connection(conn_id="medflex_api", conn_type="http", extra=json.dumps(extra or {}), **given_fields)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "https://medflex.example"),
        ({"schema": "http", "port": 8080}, "http://medflex.example:8080"),
        ({"host": "http://medflex.example/"}, "http://medflex.example"),
        ({"host": "https://medflex.example/api", "schema": "http"}, "https://medflex.example/api"),
    ],
)
def test_the_address_of_a_connection(fields: dict[str, Any], url: str) -> None:
    assert settings_of(connection(**fields)) == MedflexSettings(url, TOKEN)


def test_each_extra_arrives_where_it_belongs(tmp_path: Path) -> None:
    bundle = tmp_path / "authority.crt"
    bundle.touch()
    extra = {
        "timeout_seconds": 80,
        "connect_timeout_seconds": 2.5,
        "rate_per_second": 0,
        "batch_size": 500,
        "parallel": 1,
        "attempts": 7,
        "backoff_seconds": 0,
        "max_backoff_seconds": 10,
        "retry_budget_seconds": 100,
        "compress": False,
        "ca_bundle": str(bundle),
        "of another tool": "left alone",
    }
    assert settings_of(connection(extra)) == MedflexSettings(
        "https://medflex.example", TOKEN, 80, 2.5, 0, 500, 1, 7, 0, 10, 100, False, str(bundle)
    )


_NO_SECONDS = [-1, "5", None, True, [], float("nan"), float("inf"), 1e300]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("timeout_seconds", [0, *_NO_SECONDS]),
        ("connect_timeout_seconds", [0, *_NO_SECONDS]),
        ("rate_per_second", _NO_SECONDS),
        ("backoff_seconds", _NO_SECONDS),
        ("max_backoff_seconds", _NO_SECONDS),
        ("retry_budget_seconds", _NO_SECONDS),
        ("batch_size", [0, 501, 1.5, "500", True, None]),
        ("parallel", [0, 1001, 2.0, "4", True, None]),
        ("attempts", [0, -1, 1001, "5", None]),
        ("compress", [0, 1, "false", None]),
        ("ca_bundle", ["/nowhere/at/all.crt", 5, True, None]),
    ],
)
def test_an_extra_that_cannot_be_used_is_told_in_one_sentence(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=f"^The connection medflex_api has an extra {key} that ") as error:
            settings_of(connection({key: value}))
        assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"host": ""}, "no host"),
        ({"host": None}, "no host"),
        ({"host": "/"}, "no host"),
        ({"password": ""}, "no password"),
        ({"password": None}, "no password"),
        ({"password": f"{TOKEN} {TOKEN}"}, "is no token"),
        ({"password": f"{TOKEN}\n"}, "is no token"),
        ({"password": f"{TOKEN}Ж"}, "is no token"),
        ({"host": "ftp://medflex.example"}, "a schema other than"),
        ({"schema": "ftp"}, "a schema other than"),
    ],
)
def test_an_address_that_cannot_be_used_is_told_without_the_token(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as error:
        settings_of(connection(**fields))
    assert TOKEN not in str(error.value)


def test_the_token_shows_nowhere() -> None:
    to = client("http://127.0.0.1:1")
    assert TOKEN not in repr(to.settings)
    assert TOKEN not in repr(to)
    with pytest.raises(NotProcessedError) as error:
        send(to, [record(1)])
    assert TOKEN not in repr(error.value)
