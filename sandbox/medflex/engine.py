"""What Medflex does with a request, without any network: the contract's behaviour and the faults that bend it.

A request is handled in two steps, so that whoever carries the bytes can wait between them on its own clock:
`admit` decides what will happen, `finish` makes it happen; `release` must follow, whatever happens in between.
"""

import email.utils
import hashlib
import hmac
import re
import threading
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from . import contract
from .contract import FieldErrors, Operation
from .faults import Fault, FaultBoard, FaultKind, _Armed
from .store import Store, Stored

MAX_BODY_BYTES = 8 * 1024 * 1024
LOG_LENGTH = 100_000
_INTEGER_FIELDS = ("id", "version", "doctor_id", "time_offset")


class Carriage(StrEnum):
    """What becomes of the connection."""

    ANSWER = "answer"
    HOLD = "hold"  # no reply; closed after `seconds`
    RESET = "reset"  # no reply; TCP RST


@dataclass(frozen=True)
class Request:
    """One HTTP request. Header names are lower case; `base_url` (scheme and host) goes into links."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    base_url: str


@dataclass(frozen=True)
class Reply:
    """One HTTP reply, or none (see `carriage`)."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    carriage: Carriage = Carriage.ANSWER
    seconds: float = 0.0


@dataclass
class LogEntry:
    """One request as the control port shows it: no body, no token. `started` is on the server's monotonic clock."""

    started: float
    method: str
    path: str
    operation: str | None
    key: str | None
    lpu_id: int | None
    records: int
    faults: list[str]
    status: int | None = None
    carriage: str = Carriage.ANSWER
    seconds: float = 0.0


@dataclass
class Admitted:
    """A request on its way from `admit` to `release`."""

    request: Request
    log: LogEntry
    wait: float = 0.0
    reply: Reply | None = None
    operation: Operation | None = None
    path_parameters: dict[str, str] = field(default_factory=dict)
    document: Any = None
    key: str | None = None
    holds_key: bool = False
    delivers_late: bool = False
    decisive: _Armed | None = None
    modifiers: list[_Armed] = field(default_factory=list)

    def bent_by(self, kind: FaultKind) -> list[_Armed]:
        """The modifiers of one kind."""
        return [armed for armed in self.modifiers if armed.fault.kind is kind]


class Refusal(Exception):  # noqa: N818 the answer to a bad request, not a fault of ours
    """Ends the handling of a request with an error reply."""

    def __init__(self, status: int, body: Mapping[str, Any] | str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.reply = json_reply(status, {"detail": body} if isinstance(body, str) else body, headers)


def json_reply(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply with a JSON body."""
    return Reply(status, orjson.dumps(body), {"content-type": "application/json", **(headers or {})})


class RateLimit:
    """A token bucket: `per_second` on average, one second's worth (at least one) at once."""

    def __init__(self, per_second: float, form: str, now: float) -> None:
        self.per_second, self.form = per_second, form
        self._room = self._size = max(1.0, per_second)
        self._at = now

    def wait(self, now: float) -> float:
        """0 when the request may pass, else the seconds until one may."""
        self._room = min(self._size, self._room + (now - self._at) * self.per_second)
        self._at = now
        if self._room >= 1.0:
            self._room -= 1.0
            return 0.0
        return (1.0 - self._room) / self.per_second


class Engine:
    """Medflex itself. Safe for several threads; one lock, since SQLite has one writer anyway.

    `clock` is a monotonic clock in seconds, `wall` the time of day (UTC); both may be fakes.
    """

    def __init__(
        self,
        store: Store,
        token: str,
        clock: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.store = store
        self.faults = FaultBoard()
        self.requests: deque[LogEntry] = deque(maxlen=LOG_LENGTH)
        self.latency_ms = 0.0
        self.rate_limit: RateLimit | None = None
        self._authorization = f"Token {token}".encode()
        self._clock, self._wall = clock, wall
        self._lock = threading.RLock()
        self._in_flight: set[str] = set()
        self._late: list[tuple[float | None, Admitted]] = []
        self._requests: Counter[str] = Counter()
        self._records: Counter[str] = Counter()
        self._replies: Counter[tuple[str, str]] = Counter()
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._handlers: dict[str, Callable[[Admitted, Operation, dict[str, Any]], Reply]] = {
            "listClinics": self._list_clinics,
            "putAppointments": self._write_records,
            "withdrawAppointments": self._write_records,
            "listAppointments": self._list_appointments,
            "listActions": self._list_actions,
            "answerAction": self._answer_action,
        }

    # The way of a request

    def admit(self, request: Request) -> Admitted:
        """Look at the request: who asks, how fast, which fault strikes, is its key in flight. No effect yet."""
        with self._lock:
            self.deliver_due()
            log = LogEntry(self._clock(), request.method, request.path, None, None, None, 0, [])
            self.requests.append(log)
            admitted = Admitted(request, log)
            try:
                self._admit(admitted)
            except Refusal as refusal:
                admitted.reply = refusal.reply
            self._requests[log.operation or "unknown"] += 1
            return admitted

    def finish(self, admitted: Admitted) -> Reply:
        """Do what the request asks and return the reply, both as the faults will have it."""
        with self._lock:
            self.deliver_due()
            reply = admitted.reply or self._finish(admitted)
            admitted.log.status = reply.status if reply.carriage is Carriage.ANSWER else None
            admitted.log.carriage = reply.carriage
            admitted.log.seconds = self._clock() - admitted.log.started
            outcome = str(reply.status) if reply.carriage is Carriage.ANSWER else str(reply.carriage)
            self._replies[admitted.log.operation or "unknown", outcome] += 1
            return reply

    def finish_later(self, admitted: Admitted, seconds: float) -> None:
        """Instead of `finish`, when the client has gone before a slow request was done: it takes effect all the same,
        after so many seconds, unless a fault keeps it from having one."""
        with self._lock:
            admitted.log.carriage = Carriage.HOLD
            kind = admitted.decisive.fault.kind if admitted.decisive else None
            if admitted.reply is None and kind not in (FaultKind.TIMEOUT_BEFORE_EFFECT, FaultKind.LATE_DELIVERY):
                admitted.delivers_late = True
                self._late.append((self._clock() + seconds, admitted))

    def release(self, admitted: Admitted) -> None:
        """The request is over (also when its connection broke): its key is in flight no more, unless it is late."""
        with self._lock:
            if admitted.holds_key and not admitted.delivers_late and admitted.key is not None:
                self._in_flight.discard(admitted.key)
                admitted.holds_key = False

    def _admit(self, admitted: Admitted) -> None:
        request, log = admitted.request, admitted.log
        admitted.operation, admitted.path_parameters = self._route(request)
        operation = admitted.operation
        log.operation = operation.operation_id
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), self._authorization):
            raise Refusal(401, "Authentication credentials were not provided or are wrong.", _CHALLENGE)
        if self.rate_limit is not None and (wait := self.rate_limit.wait(self._clock())):
            raise self._too_fast(wait, self.rate_limit.form)
        # A body that cannot be read is refused behind the faults: those must be able to strike any request.
        unreadable: Refusal | None = None
        try:
            admitted.document = _read_body(operation, request)
        except Refusal as refusal:
            unreadable = refusal
        log.lpu_id, records = _summary(request, admitted.document)
        log.records = len(records)
        log.key = request.headers.get("idempotency-key") if operation.takes_key else None
        admitted.wait = self.latency_ms / 1000
        admitted.decisive, admitted.modifiers = self.faults.strike(request.method, request.path, log.lpu_id, records)
        log.faults = [armed.fault.kind for armed in (admitted.decisive, *admitted.modifiers) if armed is not None]
        admitted.wait += sum(armed.fault.params.latency_ms for armed in admitted.bent_by(FaultKind.SLOW)) / 1000
        self._strike_before_reading(admitted)
        if unreadable is not None:
            raise unreadable
        if operation.takes_key:
            self._take_key(admitted)

    def _strike_before_reading(self, admitted: Admitted) -> None:
        fault = admitted.decisive.fault if admitted.decisive else None
        if fault is None:
            return
        if fault.kind is FaultKind.UNAUTHORIZED:
            status = fault.params.status or 401
            raise Refusal(status, "A fault was asked for.", _CHALLENGE if status == 401 else None)
        if fault.kind is FaultKind.RATE_LIMITED:
            raise self._too_fast(fault.params.retry_after, fault.params.retry_after_form)
        if fault.kind is FaultKind.STATUS and fault.params.when == "before":
            raise self._status(fault)
        if fault.kind is FaultKind.RESET_BEFORE_EFFECT:
            admitted.reply = Reply(0, carriage=Carriage.RESET)

    def _take_key(self, admitted: Admitted) -> None:
        admitted.key = admitted.log.key
        if admitted.reply is not None or admitted.bent_by(FaultKind.IGNORE_KEYS) or admitted.key is None:
            return
        if admitted.key in self._in_flight:
            raise Refusal(409, "A request with this Idempotency-Key is not finished yet.")
        self._in_flight.add(admitted.key)
        admitted.holds_key = True

    def _finish(self, admitted: Admitted) -> Reply:
        fault = admitted.decisive.fault if admitted.decisive else None
        kind = fault.kind if fault else None
        if fault is None or kind is None:
            return self._act(admitted)
        params = fault.params
        if kind is FaultKind.TIMEOUT_BEFORE_EFFECT:
            return Reply(0, carriage=Carriage.HOLD, seconds=params.seconds)
        if kind is FaultKind.LATE_DELIVERY:
            admitted.delivers_late = True
            self._late.append((None if params.delay is None else self._clock() + params.delay, admitted))
            if params.status is None:
                return Reply(0, carriage=Carriage.HOLD, seconds=params.seconds)
            return self._status(fault).reply
        reply = self._act(admitted)
        if kind is FaultKind.TIMEOUT_AFTER_EFFECT:
            return Reply(0, carriage=Carriage.HOLD, seconds=params.seconds)
        if kind is FaultKind.RESET_AFTER_EFFECT:
            return Reply(0, carriage=Carriage.RESET)
        if kind is FaultKind.STATUS:
            return self._status(fault).reply
        if kind is FaultKind.MALFORMED_BODY and reply.status < 300:
            return _malformed(reply, params.form)
        return reply

    def _act(self, admitted: Admitted) -> Reply:
        operation = admitted.operation
        try:
            if operation is None:
                raise _no_such_path()
            return self._handlers[operation.operation_id](admitted, operation, _parameters(admitted, operation))
        except Refusal as refusal:
            return refusal.reply

    def _route(self, request: Request) -> tuple[Operation, dict[str, str]]:
        allowed = []
        for operation in contract.operations().values():
            if match := operation.path.fullmatch(request.path):
                if operation.method == request.method:
                    return operation, match.groupdict()
                allowed.append(operation.method)
        if allowed:
            raise Refusal(405, f"Method {request.method} is not allowed here.", {"allow": ", ".join(allowed)})
        raise _no_such_path()

    def _too_fast(self, seconds: float | None, form: str) -> Refusal:
        return Refusal(429, "Too many requests.", self._retry_after(seconds, form))

    def _status(self, fault: Fault) -> Refusal:
        headers = self._retry_after(fault.params.retry_after, fault.params.retry_after_form)
        return Refusal(fault.params.status or 503, fault.params.detail, headers)

    def _retry_after(self, seconds: float | None, form: str) -> dict[str, str]:
        if seconds is None:
            return {}
        whole = int(-(-seconds // 1))
        if form == "seconds":
            return {"retry-after": str(whole)}
        return {"retry-after": email.utils.formatdate(self._wall().timestamp() + whole, usegmt=True)}

    # Late delivery

    def deliver_due(self) -> int:
        """Let the late writes take effect whose time has come; returns how many."""
        return self._deliver(lambda due: due is not None and due <= self._clock())

    def deliver_all(self) -> int:
        """Let every late write take effect now; returns how many."""
        return self._deliver(lambda _: True)

    def _deliver(self, is_due: Callable[[float | None], bool]) -> int:
        with self._lock:
            due = [admitted for at, admitted in self._late if is_due(at)]
            self._late = [(at, admitted) for at, admitted in self._late if not is_due(at)]
            for admitted in due:
                self._act(admitted)
                admitted.delivers_late = False
                self.release(admitted)
            return len(due)

    # Operations

    def _list_clinics(self, admitted: Admitted, _: Operation, given: dict[str, Any]) -> Reply:
        page, size = given["page"], given["size"]
        count = self.store.count_clinics()
        return _page(admitted.request, page, size, count, lambda: self.store.clinics((page - 1) * size, size))

    def _list_appointments(self, admitted: Admitted, _: Operation, given: dict[str, Any]) -> Reply:
        lpu_id, page, size = given["lpu_id"], given["page"], given["size"]
        self._require_clinic(lpu_id)
        count = self.store.count_visible(lpu_id)
        return _page(admitted.request, page, size, count, lambda: self.store.visible(lpu_id, (page - 1) * size, size))

    def _list_actions(self, admitted: Admitted, _: Operation, given: dict[str, Any]) -> Reply:
        after, size, place = given["after"], given["size"], 0
        if after is not None:
            found = self.store.place(after)
            if found is None:
                raise Refusal(404, "The cursor points nowhere.")
            place = found
        count = self.store.count_actions(place)
        delivered = self.store.actions(place, size)
        cursor = self.store.cursor(delivered[-1][0] if delivered else place)
        following = _link(admitted.request, {"after": cursor, "size": size}) if count > size else None
        return json_reply(
            200,
            {
                "links": {"next": following, "previous": None},
                "count": count,
                "num_pages": max(1, -(-count // size)),
                "cursor": cursor,
                "data": [action for _, action in delivered],
            },
        )

    def _answer_action(self, admitted: Admitted, operation: Operation, given: dict[str, Any]) -> Reply:
        if errors := operation.body_errors(admitted.document):
            raise Refusal(400, errors)
        id_ = given["id"].lower()
        if self.store.action(id_) is None:
            raise Refusal(404, "There is no such action.")
        status_code = int(admitted.document["status_code"])
        if self.store.result(id_) not in (None, status_code):
            raise Refusal(409, "Another result was given before.")
        self.store.keep_result(id_, status_code, admitted.document["detail"])
        return Reply(204)

    def _write_records(self, admitted: Admitted, operation: Operation, given: dict[str, Any]) -> Reply:
        """Share or withdraw: one transaction for the records, the log of versions and the reply under the key."""
        document, operation_id = admitted.document, operation.operation_id
        key = given["idempotency-key"]
        keeps_key = not admitted.bent_by(FaultKind.IGNORE_KEYS)
        body_hash = hashlib.sha256(contract.canonical_json(document)).digest()
        if keeps_key and (first := self.store.first_reply(key)) is not None:
            if first[:2] != (operation_id, body_hash):
                raise Refusal(422, "This Idempotency-Key was used for another request.")
            return Reply(200, first[2], {"content-type": "application/json"})
        broken = operation.body_errors(document)
        _require_envelope(document, broken)
        lpu_id = int(document["lpu_id"])
        self._require_clinic(lpu_id)
        withdraws = operation_id == "withdrawAppointments"
        item_schema = contract.schema("WithdrawnRecord" if withdraws else "Record")
        records = [_whole_numbers(record) for record in document["records"]]
        errors = _rejections(admitted, records)
        there = self.store.stored(lpu_id, [record["id"] for record in records])
        any_version = bool(admitted.bent_by(FaultKind.IGNORE_VERSIONS))
        rows: list[tuple[int, int, bytes | None, bytes | None, str | None]] = []
        verdicts = []
        for record in records:
            id_, version = record["id"], record["version"]
            wrong = errors.get(id_) or (contract.field_errors(item_schema, record) if broken else {})
            if not wrong and not withdraws:
                wrong = _beyond_schema(record)
            status = 400
            if not wrong and withdraws:
                status = 204 if any_version else _judge_version(there.get(id_), version, None)
                if status == 204 and there.get(id_) != Stored(version, None):
                    rows.append((id_, version, None, None, record["reason"]))
            elif not wrong:
                digest = bytes.fromhex(contract.record_digest(record))
                status = 204 if any_version else _judge_version(there.get(id_), version, digest)
                if status == 204 and there.get(id_) != Stored(version, digest):
                    rows.append((id_, version, digest, orjson.dumps(record), None))
            if status == 409:
                wrong = {"version": ["This version is not newer than the one there."]}
            self._verdicts[operation_id, str(status)] += 1
            verdicts.append({"id": id_, "version": version, "status_code": status, "errors": wrong or None})
        # The contract promises no order, so a client that counts on one must not get away with it.
        reply = json_reply(200, {"data": verdicts[::-1]})
        with self.store.transaction():
            self.store.write(lpu_id, rows)
            if keeps_key:
                self.store.keep_reply(key, operation_id, body_hash, reply.body)
        self._records[operation_id] += len(records)
        return reply

    def _require_clinic(self, lpu_id: int) -> None:
        if not self.store.clinic_exists(lpu_id):
            raise Refusal(404, "There is no such clinic, or the token does not see it.")

    # For the control port

    def add_actions(self, actions: list[Any], *, unchecked: bool = False) -> list[str]:
        """Queue partner actions; `id` and `created_at` are made where missing, other optional fields are null.

        Raises ContractError when one does not fit the contract; then none is queued. With `unchecked` they are queued
        as they are, and nothing is made: a reader gets what a Medflex that breaks its contract would send.
        """
        if unchecked:
            ids = [action.get("id") if isinstance(action, dict) else None for action in actions]
            return self._queue(
                [(str(id_ or uuid.uuid4()).lower(), item) for id_, item in zip(ids, actions, strict=True)]
            )
        complete = []
        for action in actions:
            made = {
                "id": str(uuid.uuid4()),
                "created_at": self._wall().isoformat(timespec="seconds").replace("+00:00", "Z"),
                "dt_start": None,
                "dt_end": None,
                "scenario": None,
                **action,
            }
            if not contract.schema("Action").is_valid(made):
                raise contract.ContractError("add_actions", contract.field_errors(contract.schema("Action"), made))
            complete.append({**made, "id": made["id"].lower()})
        return self._queue([(action["id"], action) for action in complete])

    def _queue(self, actions: list[tuple[str, Any]]) -> list[str]:
        with self._lock, self.store.transaction():
            for id_, action in actions:
                self.store.deliver_action(id_, action)
        return [id_ for id_, _ in actions]

    def repeat_action(self, id_: str) -> bool:
        """Deliver an action once more, at the end of the queue. False when there is none."""
        with self._lock:
            found = self.store.action(id_.lower())
            if found is not None:
                self.store.deliver_action(id_.lower(), found)
            return found is not None

    def forget_actions(self, *, keep: bool = False) -> None:
        """Make all cursors point nowhere; with `keep` the actions are listed on, else they are gone. Answers stay."""
        with self._lock:
            self.store.forget_actions(keep=keep)

    def set_rate_limit(self, per_second: float | None, form: str = "seconds") -> None:
        """At most so many requests per second from now on; None: no limit."""
        self.rate_limit = None if per_second is None else RateLimit(per_second, form, self._clock())

    def counters(self) -> dict[str, dict[str, Any]]:
        """Per operationId (`unknown`: no such path): requests, records that were judged, replies by status (or
        `hold`, `reset`), verdicts by status_code. A repeated reply adds no records and no verdicts."""
        with self._lock:
            return {
                name: {
                    "requests": self._requests[name],
                    "records": self._records[name],
                    "replies": {status: n for (op, status), n in self._replies.items() if op == name},
                    "verdicts": {status: n for (op, status), n in self._verdicts.items() if op == name},
                }
                for name in [*self._handlers, "unknown"]
            }

    def log(self) -> list[dict[str, Any]]:
        """The last requests, oldest first."""
        with self._lock:
            return [asdict(entry) for entry in self.requests]

    def forget_requests(self) -> None:
        """Empty the log and set the counters to zero."""
        with self._lock:
            self.requests.clear()
            for counter in (self._requests, self._records, self._replies, self._verdicts):
                counter.clear()

    def reset(self) -> None:
        """As new: no data, no keys, no faults, no limits, no late writes, empty log."""
        with self._lock:
            self.faults.remove(None)
            self.set_rate_limit(None)
            self.latency_ms = 0.0
            self._late.clear()
            self._in_flight.clear()
            self.forget_requests()
            self.store.clear()


_CHALLENGE = {"www-authenticate": "Token"}


def _no_such_path() -> Refusal:
    return Refusal(404, "There is no such path.")


def _read_body(operation: Operation, request: Request) -> Any:
    """The parsed JSON body, None for an operation without one. Raises Refusal."""
    if operation.body is None:
        return None
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "The body must be application/json.")
    body = request.body
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "gzip":
        try:
            unpacker = zlib.decompressobj(wbits=31)
            body = unpacker.decompress(body, MAX_BODY_BYTES + 1)
        except zlib.error:
            raise Refusal(400, "The body is not gzip.") from None
        if len(body) <= MAX_BODY_BYTES and not unpacker.eof:
            raise Refusal(400, "The gzip body is cut off.")
    elif encoding != "identity":
        raise Refusal(415, "The only encoding is gzip.")
    if len(body) > MAX_BODY_BYTES:
        raise Refusal(413, "The body is larger than 8 MiB.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refusal(400, "The body is not JSON.") from None


def _summary(request: Request, document: Any) -> tuple[int | None, list[Any]]:
    """(lpu_id, records) as far as they can be seen, for the log and for matching faults."""
    if isinstance(document, dict):
        lpu_id, records = document.get("lpu_id"), document.get("records")
        return lpu_id if type(lpu_id) is int else None, records if isinstance(records, list) else []
    given = dict(parse_qsl(request.query)).get("lpu_id", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else None, []


def _parameters(admitted: Admitted, operation: Operation) -> dict[str, Any]:
    """All parameters of the operation, checked and with defaults filled in. Raises Refusal 400."""
    query: dict[str, list[str]] = {}
    for name, text in parse_qsl(admitted.request.query, keep_blank_values=True):
        query.setdefault(name, []).append(text)
    given: dict[str, Any] = {}
    for parameter in operation.parameters:
        name = parameter.name
        if parameter.place == "query":
            values = query.get(name, [])
        elif parameter.place == "header":
            values = [admitted.request.headers[name]] if name in admitted.request.headers else []
        else:
            values = [admitted.path_parameters[name]]
        if not values:
            if parameter.required:
                raise Refusal(400, {name: ["This parameter is required."]})
            given[name] = parameter.default
            continue
        if len(values) > 1:
            raise Refusal(400, {name: ["Given more than once."]})
        value: Any = values[0]
        if parameter.is_integer:
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
                raise Refusal(400, {name: ["A whole number is required."]})
            value = int(value)
        if not parameter.validator.is_valid(value):
            raise Refusal(400, {name: contract.field_errors(parameter.validator, value).get("body", ["Not allowed."])})
        given[name] = value
    return given


def _require_envelope(document: Any, errors: FieldErrors) -> None:
    """Refuse what a reply per record could not answer: a bad envelope, an id or version not to be read, twins."""
    fatal = {
        name: texts
        for name, texts in errors.items()
        if not re.match(r"records\.\d+\.", name) or name.split(".", 2)[2] in ("id", "version")
    }
    if fatal or (errors and not set(document) <= {"lpu_id", "records"}):
        raise Refusal(400, fatal or errors)
    ids = [record["id"] for record in document["records"]]
    if len(set(ids)) != len(ids):
        raise Refusal(400, {"records": ["An id occurs twice."]})


def _whole_numbers(record: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only numbers, so 1.0 is an integer; make it one, since the digest is over 1."""
    partners = record.get("partners")
    if all(type(record.get(name, 0)) is int for name in _INTEGER_FIELDS) and not (
        isinstance(partners, list) and any(type(partner) is not int for partner in partners)
    ):
        return record

    def whole(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    changed = {name: whole(value) for name, value in record.items()}
    if isinstance(changed.get("partners"), list):
        changed["partners"] = [whole(partner) for partner in changed["partners"]]
    return changed


def _beyond_schema(record: dict[str, Any]) -> FieldErrors:
    """What the contract says in words only: the calendar has the day, partners ascend, texts are trimmed."""
    wrong: FieldErrors = {}
    for name in ("dt_start", "dt_end"):
        try:
            datetime.fromisoformat(record[name])
        except ValueError:
            wrong[name] = ["There is no such day or time."]
    if record["partners"] != sorted(record["partners"]):
        wrong["partners"] = ["The ids must ascend."]
    for name in ("first_name", "second_name"):
        text = record["client"][name]
        if text is not None and text != text.strip():
            wrong[f"client.{name}"] = ["The text must be trimmed."]
    return wrong


def _judge_version(there: Stored | None, version: int, digest: bytes | None) -> int:
    """204 when this write may happen or has happened, 409 when it comes too late. digest None: a withdrawal."""
    if there is None or version > there.version:
        return 204
    return 204 if version == there.version and digest == there.digest else 409


def _rejections(admitted: Admitted, records: list[dict[str, Any]]) -> dict[int, FieldErrors]:
    """The records that a reject_records fault turns away, by id."""
    rejected: dict[int, FieldErrors] = {}
    for armed in admitted.bent_by(FaultKind.REJECT_RECORDS):
        params = armed.fault.params
        for record in records:
            # One draw per record, whether it is named or not, so that the schedule depends on the seed alone.
            if armed.random.random() < params.fraction or record["id"] in params.ids:
                text = "A fault was asked for."
                if params.echo:
                    text = f"Not acceptable: {orjson.dumps(record.get('client', record)).decode()}"
                rejected[record["id"]] = {"client.mobile_phone" if "client" in record else "reason": [text]}
    return rejected


def _malformed(reply: Reply, form: str) -> Reply:
    """A reply that breaks the contract, made from a good one."""
    if not reply.body:
        # 204 has no body that could be broken; something on the way makes a 200 with a page of its own of it.
        return Reply(200, b"" if form == "empty" else b"<html>", {"content-type": "text/html"})
    if form == "empty":
        return Reply(reply.status, b"", reply.headers)
    if form == "truncated":
        # As it happens: a proxy cuts the text and counts what is left.
        return Reply(reply.status, reply.body[: len(reply.body) // 2], reply.headers)
    document = orjson.loads(reply.body)
    if form == "wrong_type":
        document["data"] = {"items": document["data"]}
    elif form == "missing_data":
        del document["data"]
    elif form == "missing_items":
        document["data"] = document["data"][: len(document["data"]) // 2]
    elif form in ("item_without_id", "bad_item"):
        for item in document["data"][:1]:
            name = "lpu_id" if "id" not in item else "id"
            if form == "item_without_id":
                del item[name]
            else:
                item.update({other: {"broken": True} for other in item if other != name})
    else:
        for item in document["data"]:
            name = "lpu_id" if "id" not in item else "id"
            item[name] = item[name] + 1_000_000_000 if isinstance(item[name], int) else str(uuid.UUID(int=0))
    return json_reply(reply.status, document, reply.headers)


def _page(request: Request, page: int, size: int, count: int, read: Callable[[], list[dict[str, Any]]]) -> Reply:
    pages = max(1, -(-count // size))
    if page > pages:
        raise Refusal(404, "There is no such page.")
    given = dict(parse_qsl(request.query))

    def link(number: int) -> str | None:
        return _link(request, {**given, "page": number}) if 1 <= number <= pages else None

    return json_reply(
        200,
        {
            "links": {"next": link(page + 1), "previous": link(page - 1)},
            "count": count,
            "num_pages": pages,
            "data": read(),
        },
    )


def _link(request: Request, query: Mapping[str, Any]) -> str:
    return f"{request.base_url}{request.path}?{urlencode(query)}"
