"""Medflex, the destination: the one adapter to its HTTP API (include/contracts/medflex.openapi.yaml).

Every request ends in one of four ways: a reply that was read; certainly not processed; an unknown outcome; or an error
that no repetition can heal.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol
from uuid import UUID

import orjson
import requests
from isal import igzip
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError

from medflex.errors import (
    ActionsUnreadableError,
    ConfigurationError,
    MedflexContractError,
    MedflexRefusedError,
    MedflexUnavailableError,
)

SEND_PATH = "/appointments/batch/"
WITHDRAW_PATH = "/appointments/withdraw/"
MAX_BATCH = 500
PAGE_SIZE = 1000
ACTIONS_PATH = "/actions/"
ACTION_PAGE_SIZE = 500
MAX_PAUSE = 86_400.0
"""The longest pause in seconds that a Retry-After is taken for; a day later the next run asks anew."""

RECORD_FIELDS = frozenset(
    [
        "id",
        "version",
        "doctor_id",
        "dt_start",
        "dt_end",
        "time_offset",
        "status",
        "mis_status",
        "entry",
        "partners",
        "client",
        "client.first_name",
        "client.second_name",
        "client.mobile_phone",
        "first_name",
        "second_name",
        "mobile_phone",
    ]
)
"""Names a rejection may be stored under; Medflex's own words about a field may quote its value and are not kept."""


class NotProcessedError(Exception):
    """Medflex has certainly not looked at the request: it may be sent again, ``retry_after`` seconds from now."""

    def __init__(self, status: int | None, retry_after: float | None = None) -> None:
        super().__init__(f"not processed, status {status}")
        self.status = status
        self.retry_after = retry_after


class UnknownOutcomeError(Exception):
    """The request may or may not have had its effect: time-out, 5xx, lost connection, unreadable reply."""

    def __init__(self, what: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class BatchReply:
    """Medflex's verdict on each record of a batch, by id. ``rejected`` maps to the names of the fields at fault."""

    http_status: int
    accepted: frozenset[int]
    rejected: Mapping[int, tuple[str, ...]]
    outdated: frozenset[int]
    unknown: frozenset[int]


class Operation(StrEnum):
    """What is asked of Medflex."""

    SEND = "send"
    WITHDRAW = "withdraw"
    READ_VISIBLE = "read_visible"
    READ_ACTIONS = "read_actions"
    ANSWER_ACTION = "answer_action"


_OPERATIONS = {SEND_PATH: Operation.SEND, WITHDRAW_PATH: Operation.WITHDRAW}


class NoReply(StrEnum):
    """How a request ended that was not answered."""

    NOT_CONNECTED = "not_connected"
    LOST_CONNECTION = "lost_connection"
    TIMEOUT = "timeout"
    TLS = "tls"
    UNTRUSTED = "untrusted"
    """The certificate is not trusted; nothing was sent."""
    BROKEN_REPLY = "broken_reply"


class Observer(Protocol):
    """Is told how requests ended; from several threads, and must not raise."""

    def requested(self, operation: Operation, ended: int | NoReply, seconds: float) -> None:
        """Note one request: its HTTP status, or how it ended without one, and how long it took."""
        ...

    def judged(self, operation: Operation, verdicts: Mapping[int | None, int]) -> None:
        """Note Medflex's verdicts on the records of a batch: status code (``None``: unknown) → records."""
        ...


class CursorUnknownError(Exception):
    """Medflex does not know the place in the queue of partner actions from which to read on."""


@dataclass(frozen=True)
class ActionPage:
    """Partner actions, oldest first, as Medflex delivered them: not yet looked at.

    items: whatever the list holds. cursor: from where to read on. is_last: there was no more.
    """

    items: list[Any]
    cursor: str
    is_last: bool


class AnswerTaken(StrEnum):
    """What Medflex says to our answer to a partner action."""

    TAKEN = "taken"
    CONTRADICTED = "contradicted"
    """Another answer was given before, and stays."""
    UNKNOWN_ACTION = "unknown_action"


@dataclass(frozen=True)
class MedflexSettings:
    """How to reach Medflex and how hard to press; all but the first two come from the connection's extra.

    Times in seconds. ``timeout`` is above the 60 s that a write of Medflex can take.
    """

    base_url: str
    token: str = field(repr=False)
    timeout: float = 70.0
    connect_timeout: float = 5.0
    rate_per_second: float = 20.0
    batch_size: int = MAX_BATCH
    parallel: int = 4
    attempts: int = 5
    backoff: float = 1.0
    max_backoff: float = 60.0
    retry_budget: float = 600.0
    compress: bool = True
    ca_bundle: str | None = None


class _Adapter(HTTPAdapter):
    """Of one host; can also open the connection that the next request goes over."""

    _pool: Any = None

    def connect(self, settings: MedflexSettings) -> None:
        """Open it unless it is open.

        Raises:
            urllib3.exceptions.HTTPError, ssl.CertificateError, OSError: it cannot be opened.
            requests.exceptions.RequestException: the address is none.
        """
        if self._pool is None:
            request = requests.Request("GET", settings.base_url).prepare()
            verify = settings.ca_bundle or True
            pool = self.get_connection_with_tls_context(request, verify)
            self.cert_verify(pool, settings.base_url, verify, None)  # type: ignore[no-untyped-call]
        connection = self._pool._get_conn()
        try:
            if connection.is_closed:
                connection.timeout = settings.connect_timeout
                connection.connect()
        finally:
            self._pool._put_conn(connection)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pool of the one host, which is looked up once and not for each request."""
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool


class MedflexClient:
    """Speaks to Medflex. Sessions are per thread, so that connections are reused and never shared.

    Args:
        observer: is told how each request ended.

    Raises (all methods):
        NotProcessedError, UnknownOutcomeError: see there; the caller decides what to do about it.
        MedflexRefusedError: 401 or 403.
        MedflexContractError: any other refusal of the whole request.
    """

    def __init__(self, settings: MedflexSettings, observer: Observer | None = None) -> None:
        self.settings = settings
        self._observer = observer
        self._local = threading.local()

    def encode(self, body: Mapping[str, Any] | bytes) -> bytes:
        """Return the bytes of a request body; the same body gives the same bytes, as a repeated key demands.

        Args:
            body: an object, or its JSON.
        """
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        # By ISA-L, in a fifth of zlib's time. mtime=0: gzip's time stamp would make the same body differ.
        return igzip.compress(data, compresslevel=1, mtime=0) if self.settings.compress else data

    def connect(self, path: str) -> None:
        """Open this thread's connection unless it is open: names, TCP and TLS can take seconds, in which a look at
        what is to be posted to ``path`` would grow old.

        Raises:
            NotProcessedError, MedflexRefusedError: as of the request.
        """
        begun = time.monotonic()
        adapter = self._session().get_adapter(self.settings.base_url)
        if not isinstance(adapter, _Adapter):
            return  # One that has no connections: tests' own Medflex, without a network.
        try:
            adapter.connect(self.settings)
        except requests.exceptions.RequestException:
            return  # An address that is none: the request says so.
        except (HTTPError, ssl.CertificateError, OSError) as error:
            ended = NoReply.UNTRUSTED if _not_trusted(error) else NoReply.NOT_CONNECTED
            if self._observer is not None:
                self._observer.requested(_OPERATIONS[path], ended, time.monotonic() - begun)
            raise _untrusted() if ended == NoReply.UNTRUSTED else NotProcessedError(None) from None

    def post_batch(self, path: str, body: bytes, key: str, versions: Mapping[int, int]) -> BatchReply:
        """Send an encoded batch under an idempotency key and read the verdict on each of its records.

        Args:
            versions: id → version of the records in the body.
        """
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        if self.settings.compress:
            headers["Content-Encoding"] = "gzip"
        operation = _OPERATIONS[path]
        response = self._request(operation, "POST", path, data=body, headers=headers)
        reply = _read_verdicts(response.status_code, _json(response), versions)
        if self._observer is not None:
            verdicts = {204: reply.accepted, 400: reply.rejected, 409: reply.outdated, None: reply.unknown}
            self._observer.judged(operation, {code: len(records) for code, records in verdicts.items()})
        return reply

    def visible(self, lpu_id: int, pace: Callable[[], object] = lambda: None) -> Iterator[dict[str, Any]]:
        """Yield what partners of a clinic can see now: mappings with ``id``, ``version``, ``digest``, page by page.

        Args:
            pace: called before each request, to wait until it may leave.
        """
        page, read, count = 1, 0, None
        while True:
            pace()
            try:
                response = self._request(
                    Operation.READ_VISIBLE,
                    "GET",
                    "/appointments/",
                    params={"lpu_id": lpu_id, "page": page, "size": PAGE_SIZE},
                )
            except MedflexContractError:
                if page == 1:
                    raise
                # The clinic is known: it is this page that went while the ones before it were read.
                raise UnknownOutcomeError("pages that do not add up", None) from None
            body = _json(response)
            data = body.get("data") if isinstance(body, dict) else None
            if not isinstance(data, list) or not all(
                isinstance(item, dict) and isinstance(item.get("id"), int) and isinstance(item.get("version"), int)
                for item in data
            ):
                raise UnknownOutcomeError("an unreadable page", response.status_code)
            yield from data
            read += len(data)
            links = body.get("links")
            is_last = not isinstance(links, dict) or not links.get("next")
            if page == 1:
                count = body.get("count")
            if body.get("count") != count or (is_last and count != read):
                # Something came or went while the pages were read, so that one may have been passed over. The number
                # read does not tell: what was passed over is made up for by what is gone.
                raise UnknownOutcomeError("pages that do not add up", response.status_code)
            if is_last:
                return
            if not data:
                raise UnknownOutcomeError("empty pages without end", response.status_code)
            page += 1

    def actions(self, after: str | None) -> ActionPage:
        """Read one page of partner actions.

        Args:
            after: the cursor of the page before; ``None`` for the beginning.

        Raises:
            CursorUnknownError: Medflex does not know this cursor.
            ActionsUnreadableError: the page is nested too deeply to be read.
        """
        params: dict[str, Any] = {"size": ACTION_PAGE_SIZE} | ({} if after is None else {"after": after})
        response = self._request(Operation.READ_ACTIONS, "GET", ACTIONS_PATH, params=params, allowed=(200, 404))
        if response.status_code == 404:
            if after is not None:
                raise CursorUnknownError
            raise MedflexContractError(
                "Medflex has no list of partner actions for this token (HTTP 404): have it enabled there."
            )
        body = _actions_json(response)
        body = body if isinstance(body, dict) else {}
        items, cursor, links = body.get("data"), body.get("cursor"), body.get("links")
        # A cursor as the contract has it: JSON has characters that no database and no address can keep.
        if (
            not isinstance(items, list)
            or not isinstance(cursor, str)
            or not re.fullmatch(r"[!-~]+", cursor)
            or not isinstance(links, dict)
        ):
            raise UnknownOutcomeError("an unreadable page of partner actions", response.status_code)
        if body.get("count") != len(items) and len(items) < ACTION_PAGE_SIZE:
            # The cursor goes on behind what is not on the page.
            raise UnknownOutcomeError("a page of partner actions that leaves some out", response.status_code)
        return ActionPage(items, cursor, is_last=not links.get("next"))

    def answer(self, action_id: UUID, status_code: int, detail: str) -> AnswerTaken:
        """Say what became of a partner action; saying the same again does no harm.

        Args:
            detail: for the partner's log; without personal data.
        """
        response = self._request(
            Operation.ANSWER_ACTION,
            "POST",
            f"{ACTIONS_PATH}{action_id}/result/",
            data=orjson.dumps({"status_code": status_code, "detail": detail}),
            headers={"Content-Type": "application/json"},
            allowed=(204, 404, 409),
        )
        return {404: AnswerTaken.UNKNOWN_ACTION, 409: AnswerTaken.CONTRADICTED}.get(
            response.status_code, AnswerTaken.TAKEN
        )

    def _session(self) -> requests.Session:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # Repetition is the caller's: only it knows whether the record may still be sent.
            adapter = _Adapter(pool_connections=1, pool_maxsize=1, max_retries=0)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            # No proxy and no .netrc of the machine may see or change what is sent.
            session.trust_env = False
            # What one reply sets goes with no other request: Medflex knows who asks by the token.
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.verify = self.settings.ca_bundle or True
            session.headers["Authorization"] = f"Token {self.settings.token}"
            self._local.session, self._local.templates = session, {}
        return session

    def _prepared(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        data: bytes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> requests.PreparedRequest:
        """Return a request that can be sent. Batches differ from the thread's first one to the same path by body and
        headers only: to take all the rest apart anew for each takes a fifth of a request.
        """
        session, url = self._session(), self.settings.base_url + path
        if path not in _OPERATIONS or params:
            asked = requests.Request(method, url, headers=dict(headers), data=data, params=params)
            return session.prepare_request(asked)
        if path not in self._local.templates:
            self._local.templates[path] = session.prepare_request(requests.Request(method, url))
        request: requests.PreparedRequest = self._local.templates[path].copy()
        request.headers.update(headers)
        request.prepare_body(data, None)
        return request

    def _request(
        self, operation: Operation, method: str, path: str, *, allowed: tuple[int, ...] = (200,), **arguments: Any
    ) -> requests.Response:
        settings = self.settings
        begun = time.monotonic()
        ended: int | NoReply = NoReply.BROKEN_REPLY
        try:
            response = self._session().send(
                self._prepared(method, path, **arguments),
                timeout=(settings.connect_timeout, settings.timeout),
                allow_redirects=False,
            )
            ended = response.status_code
        except requests.exceptions.ConnectTimeout:
            ended = NoReply.NOT_CONNECTED
            raise NotProcessedError(None) from None
        except requests.exceptions.SSLError as error:
            ended = NoReply.UNTRUSTED if _not_trusted(error) else NoReply.TLS
            if not _not_trusted(error):
                # The stream broke after the handshake: the body may have arrived.
                raise UnknownOutcomeError("a broken TLS connection") from None
            raise _untrusted() from None
        except requests.exceptions.ConnectionError as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError):
                ended = NoReply.NOT_CONNECTED
                raise NotProcessedError(None) from None
            ended = NoReply.LOST_CONNECTION
            raise UnknownOutcomeError("a lost connection") from None
        except requests.exceptions.Timeout:
            ended = NoReply.TIMEOUT
            raise UnknownOutcomeError("a time-out") from None
        except requests.exceptions.InvalidURL:
            raise ConfigurationError(
                "The connection medflex_api has a host or port that is no URL: correct it."
            ) from None
        except requests.exceptions.RequestException as error:
            raise UnknownOutcomeError(f"a broken reply ({type(error).__name__})") from None
        finally:
            if self._observer is not None:
                self._observer.requested(operation, ended, time.monotonic() - begun)
        if response.status_code not in allowed:
            _raise_for_status(response)
        return response


def _raise_for_status(response: requests.Response) -> NoReturn:
    status = response.status_code
    wait = retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    if status in (401, 403):
        raise MedflexRefusedError(
            f"Medflex refuses the token (HTTP {status}): put a valid one into the password of the connection"
            " medflex_api: into the variable AIRFLOW_CONN_MEDFLEX_API where there is one, since what Airflow keeps is"
            " ignored then.",
            is_of_clinic=status == 403,
        )
    if status == 429:
        raise NotProcessedError(status, wait)
    if status == 409:
        # The same key is still being worked on: its outcome will be known under that key.
        raise UnknownOutcomeError("a request still in flight", status, wait)
    if status >= 500 or status == 408 or 200 <= status < 300:
        # Another 2xx is a success that the contract does not know: it may well have had its effect.
        raise UnknownOutcomeError(f"HTTP {status}", status, wait)
    if status == 404:
        raise MedflexContractError(
            "Medflex does not know this clinic's lpu_id for this token (HTTP 404): have it enabled there.",
            is_of_clinic=True,
        )
    raise MedflexContractError(
        f"Medflex refuses a whole request with HTTP {status}: compare include/contracts/medflex.openapi.yaml with what"
        " Medflex expects."
    )


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds to wait that a ``Retry-After`` header asks for, in both its forms; ``None`` if it has none.

    Args:
        value: seconds, or an HTTP date; a date in the past means no wait.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_PAUSE)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - now).total_seconds()), MAX_PAUSE)


def _not_trusted(error: BaseException) -> bool:
    """Tell whether a TLS error is about the certificate, that is, came before anything was sent."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, ssl.SSLCertVerificationError):
            return True
        inner = [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
        seen += [other for other in inner if isinstance(other, BaseException) and other not in seen]
    return False


def _untrusted() -> MedflexRefusedError:
    return MedflexRefusedError(
        "The TLS certificate of Medflex is not trusted: check the host of the connection medflex_api, and name its"
        " authority in the extra ca_bundle if it is not a public one."
    )


def _json(response: requests.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise UnknownOutcomeError("a reply that is no JSON", response.status_code) from None


def _actions_json(response: requests.Response) -> Any:
    """Read a page of partner actions, also where a value on it cannot be read: that must not hide the other actions.

    What stands for such a value is one that no field of an action takes.
    """
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        try:
            return json.loads(
                response.content.decode("utf-8", "replace"),
                # Python refuses one of thousands of digits; no id has more than 19.
                parse_int=lambda text: int(text) if len(text) <= 20 else None,
                parse_constant=lambda _: None,
            )
        except RecursionError:
            raise ActionsUnreadableError(
                "The page of Medflex's list of partner actions behind the ledger's cursor is nested too deeply to be"
                " read: have it mended there; reading goes on from that page."
            ) from None
        except ValueError:
            raise UnknownOutcomeError("a page of partner actions that is no JSON", response.status_code) from None


def _read_verdicts(http_status: int, body: Any, versions: Mapping[int, int]) -> BatchReply:
    """Sort the records of a reply; whatever it does not say clearly of a record is unknown for that record."""
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        raise UnknownOutcomeError("a reply without data", http_status)
    try:
        # Nearly always each record was accepted; that is seen without a look at each one's fields.
        accepted = {
            item["id"]: item["version"]
            for item in data
            if type(item["id"]) is int and type(item["status_code"]) is int and item["status_code"] == 204
        }
    except (TypeError, KeyError):
        accepted = {}
    if len(data) == len(accepted) and accepted == versions:
        return BatchReply(http_status, frozenset(accepted), {}, frozenset(), frozenset())
    verdicts: dict[int, tuple[int, tuple[str, ...]]] = {}
    doubtful: set[int] = set()
    for item in data:
        if not isinstance(item, dict) or type(item.get("id")) is not int:
            raise UnknownOutcomeError("a reply with unreadable verdicts", http_status)
        record_id = item["id"]
        if record_id not in versions:
            raise UnknownOutcomeError("a reply about records that were not sent", http_status)
        if record_id in verdicts or item.get("version") != versions[record_id]:
            doubtful.add(record_id)
        code = item.get("status_code")
        # Whatever is no number is no verdict.
        verdicts[record_id] = (code if type(code) is int else 0, _fields(item.get("errors")))
    by_code: dict[int, set[int]] = {204: set(), 400: set(), 409: set()}
    for record_id, (code, _) in verdicts.items():
        if record_id not in doubtful and code in by_code:
            by_code[code].add(record_id)
    known = by_code[204] | by_code[400] | by_code[409]
    return BatchReply(
        http_status=http_status,
        accepted=frozenset(by_code[204]),
        rejected={record_id: verdicts[record_id][1] for record_id in by_code[400]},
        outdated=frozenset(by_code[409]),
        unknown=frozenset(versions.keys() - known),
    )


def _fields(errors: Any) -> tuple[str, ...]:
    if not isinstance(errors, dict):
        return ("other",) if errors else ()
    return tuple(sorted({name if name in RECORD_FIELDS else "other" for name in errors}))


def settings_of(connection: Any) -> MedflexSettings:
    """Build settings from the Airflow connection ``medflex_api``.

    Host (with or without ``https://``), port and schema make the address, the password is the token; ``extra`` may hold
    ``timeout_seconds``, ``connect_timeout_seconds``, ``rate_per_second`` (0: no limit), ``batch_size`` (1-500),
    ``parallel``, ``attempts``, ``backoff_seconds``, ``max_backoff_seconds``, ``retry_budget_seconds``, ``compress``,
    ``ca_bundle`` (a file with the certificates of a private authority).

    Raises:
        ConfigurationError: something is missing or out of range.
    """
    host = _address(connection)
    extra: dict[str, Any] = connection.extra_dejson
    names = {
        "timeout_seconds": "timeout",
        "connect_timeout_seconds": "connect_timeout",
        "rate_per_second": "rate_per_second",
        "batch_size": "batch_size",
        "parallel": "parallel",
        "attempts": "attempts",
        "backoff_seconds": "backoff",
        "max_backoff_seconds": "max_backoff",
        "retry_budget_seconds": "retry_budget",
        "compress": "compress",
        "ca_bundle": "ca_bundle",
    }
    values: dict[str, Any] = {}
    for key, name in names.items():
        if key not in extra:
            continue
        value = extra[key]
        if name == "compress":
            good = isinstance(value, bool)
        elif name == "ca_bundle":
            good = isinstance(value, str) and Path(value).exists()
        elif name in ("batch_size", "parallel", "attempts"):
            good = type(value) is int and 1 <= value <= (MAX_BATCH if name == "batch_size" else 1000)
        else:
            # JSON knows no infinity, but Python's reader takes one, and no socket can wait for that long.
            good = type(value) in (int, float) and 0 <= value <= MAX_PAUSE and (value > 0 or "timeout" not in name)
        if not good:
            raise ConfigurationError(
                f"The connection medflex_api has an extra {key} that cannot be used: see docs/architecture.md."
            )
        values[name] = value
    return MedflexSettings(base_url=host, token=connection.password, **values)


def _address(connection: Any) -> str:
    """Return the base URL of the connection; raise :class:`ConfigurationError` when it, or the token, is unusable."""
    host = (connection.host or "").rstrip("/")
    if not host:
        raise ConfigurationError("The connection medflex_api has no host: fill in the address of Medflex.")
    if not connection.password:
        raise ConfigurationError("The connection medflex_api has no password: put Medflex's token there.")
    if not re.fullmatch(r"[!-~]+", connection.password):
        raise ConfigurationError(
            "The password of the connection medflex_api is no token: it has white space or letters that HTTP"
            " cannot carry."
        )
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    if not host.startswith(("http://", "https://")):
        raise ConfigurationError("The connection medflex_api has a schema other than http or https: correct it.")
    if connection.port:
        host = f"{host}:{connection.port}"
    return host


def unavailable(what: str) -> MedflexUnavailableError:
    """Return the error for a Medflex that keeps failing in the way ``what`` says."""
    return MedflexUnavailableError(
        f"Medflex could not be reached or kept failing ({what}): what was not acknowledged stays for the next attempt."
    )
