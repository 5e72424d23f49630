"""How the sandbox Medflex misbehaves on demand. Faults live in memory: a restarted server is a healthy one."""

import random
import textwrap
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FaultKind(StrEnum):
    """What goes wrong. "Before" and "after" are seen from the effect: the store is unchanged, or changed."""

    TIMEOUT_BEFORE_EFFECT = "timeout_before_effect"
    TIMEOUT_AFTER_EFFECT = "timeout_after_effect"
    RESET_BEFORE_EFFECT = "reset_before_effect"
    RESET_AFTER_EFFECT = "reset_after_effect"
    STATUS = "status"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    MALFORMED_BODY = "malformed_body"
    LATE_DELIVERY = "late_delivery"
    SLOW = "slow"
    REJECT_RECORDS = "reject_records"
    IGNORE_KEYS = "ignore_keys"
    IGNORE_VERSIONS = "ignore_versions"
    DOWN = "down"


# These bend how a request is handled and go together with each other and with one fault of the other kinds.
MODIFIERS = frozenset({FaultKind.SLOW, FaultKind.REJECT_RECORDS, FaultKind.IGNORE_KEYS, FaultKind.IGNORE_VERSIONS})


class Params(BaseModel):
    """Settings of a fault; each kind reads its own and the rest must stay away."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(ge=0, description="time-outs, late_delivery: hold that long, then close")] = 30.0
    status: Annotated[
        int | None, Field(ge=400, le=599, description="status, unauthorized, late_delivery: that of the reply")
    ] = None
    when: Annotated[Literal["before", "after"], Field(description="status: seen from the effect")] = "before"
    detail: Annotated[str, Field(description="status: text of the error")] = "A fault was asked for."
    retry_after: Annotated[
        int | None, Field(description="rate_limited, status: seconds from now, negative: in the past; null: no header")
    ] = None
    retry_after_form: Annotated[
        Literal["seconds", "http_date"], Field(description="rate_limited, status: how retry_after is written")
    ] = "seconds"
    latency_ms: Annotated[float, Field(ge=0, description="slow: wait before the effect")] = 0.0
    form: Annotated[
        Literal[
            "truncated",
            "wrong_type",
            "missing_data",
            "missing_items",
            "wrong_ids",
            "item_without_id",
            "bad_item",
            "empty",
        ],
        Field(description="malformed_body; the effect has happened. item_without_id, bad_item: the first of data"),
    ] = "truncated"
    fraction: Annotated[float, Field(ge=0, le=1, description="reject_records: this share of them, by the seed")] = 0.0
    ids: Annotated[frozenset[int], Field(description="reject_records: these appointments")] = frozenset()
    echo: Annotated[
        bool, Field(description="reject_records: the error text quotes the record, as careless servers do")
    ] = False
    delay: Annotated[
        float | None, Field(ge=0, description="late_delivery: take effect after so many seconds; null: on command")
    ] = None


_READS: dict[FaultKind, frozenset[str]] = {
    FaultKind.TIMEOUT_BEFORE_EFFECT: frozenset({"seconds"}),
    FaultKind.TIMEOUT_AFTER_EFFECT: frozenset({"seconds"}),
    FaultKind.RESET_BEFORE_EFFECT: frozenset(),
    FaultKind.RESET_AFTER_EFFECT: frozenset(),
    FaultKind.STATUS: frozenset({"status", "when", "detail", "retry_after", "retry_after_form"}),
    FaultKind.RATE_LIMITED: frozenset({"retry_after", "retry_after_form"}),
    FaultKind.UNAUTHORIZED: frozenset({"status"}),
    FaultKind.MALFORMED_BODY: frozenset({"form"}),
    FaultKind.LATE_DELIVERY: frozenset({"delay", "status", "seconds"}),
    FaultKind.SLOW: frozenset({"latency_ms"}),
    FaultKind.REJECT_RECORDS: frozenset({"fraction", "ids", "echo"}),
    FaultKind.IGNORE_KEYS: frozenset(),
    FaultKind.IGNORE_VERSIONS: frozenset(),
    FaultKind.DOWN: frozenset(),
}


def described() -> str:
    """The faults with the params that each reads, and what these mean, as two tables for a person."""
    reads = {kind.value: [name for name in Params.model_fields if name in _READS[kind]] for kind in FaultKind}
    rows = {kind: " ".join(names) or "-" for kind, names in reads.items()}
    lines = ["faults, and the names that each knows:", *_table(rows | {"each but down": "skip probability seed"})]
    about = {
        name: f"{field.description} ({', '.join(get_args(field.annotation))})"
        if get_origin(field.annotation) is Literal
        else str(field.description)
        for name, field in Params.model_fields.items()
    }
    return "\n".join([*lines, "", "names, for which faults, and what they say:", *_table(about)])


def _table(rows: dict[str, str]) -> list[str]:
    return [
        line
        for name, text in rows.items()
        for line in textwrap.wrap(text, 110, initial_indent=f"  {name:<22} ", subsequent_indent=" " * 25)
    ]


class Match(BaseModel):
    """Which requests a fault looks at; what is left out matches all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["GET", "POST"] | None = None
    path_prefix: str = "/"
    lpu_id: int | None = None
    record_id: int | None = None

    def covers(self, method: str, path: str, lpu_id: int | None, records: Sequence[Any]) -> bool:
        """True when the fault looks at such a request."""
        return (
            self.method in (None, method)
            and path.startswith(self.path_prefix)
            and (self.lpu_id is None or self.lpu_id == lpu_id)
            and (
                self.record_id is None
                or any(isinstance(item, dict) and item.get("id") == self.record_id for item in records)
            )
        )


class Fault(BaseModel):
    """One fault. Of the requests it covers it lets `skip` through, then looks at every `every`-th, fires with
    `probability` (by its own seed, so a schedule repeats), and is spent after `times` (None: never)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    match: Match = Match()
    times: Annotated[int | None, Field(ge=1)] = None
    skip: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] = 1
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: int = 0
    params: Params = Params()

    @model_validator(mode="after")
    def _params_fit_the_kind(self) -> Self:
        foreign = self.params.model_fields_set - _READS[self.kind]
        if foreign:
            reads = ", ".join(sorted(_READS[self.kind])) or "none"
            raise ValueError(f"fault {self.kind} does not read {', '.join(sorted(foreign))}; its params: {reads}")
        if self.kind is FaultKind.UNAUTHORIZED and self.params.status not in (None, 401, 403):
            raise ValueError("fault unauthorized: status must be 401 or 403")
        if self.kind is FaultKind.DOWN and self != Fault.model_construct(kind=self.kind):
            raise ValueError("fault down closes the port for all until it is removed; it takes no other settings")
        return self


class _Armed:
    """A fault with its memory."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.fired = 0
        self.random = random.Random(fault.seed)  # a schedule that repeats, not a secret

    def fires(self) -> bool:
        """Count one covered request and say whether the fault strikes it."""
        if self.fault.times is not None and self.fired >= self.fault.times:
            return False
        self.seen += 1
        behind = self.seen - self.fault.skip
        if behind < 1 or behind % self.fault.every or self.random.random() >= self.fault.probability:
            return False
        self.fired += 1
        return True


class FaultBoard:
    """All faults that are switched on, in the order in which they came."""

    def __init__(self) -> None:
        self._armed: dict[int, _Armed] = {}
        self._last_id = 0

    def add(self, fault: Fault) -> int:
        """Switch a fault on; returns its id."""
        self._last_id += 1
        self._armed[self._last_id] = _Armed(fault)
        return self._last_id

    def remove(self, fault_id: int | None) -> bool:
        """Switch one fault off, or all (None). False when there is no such fault."""
        if fault_id is None:
            self._armed.clear()
            return True
        return self._armed.pop(fault_id, None) is not None

    def listing(self) -> list[dict[str, Any]]:
        """What is on: {"id", "seen", "fired", "fault"}."""
        return [
            {"id": id_, "seen": armed.seen, "fired": armed.fired, "fault": armed.fault.model_dump(mode="json")}
            for id_, armed in self._armed.items()
        ]

    def is_down(self) -> bool:
        """True while a `down` fault is on."""
        return any(armed.fault.kind is FaultKind.DOWN for armed in self._armed.values())

    def strike(
        self, method: str, path: str, lpu_id: int | None, records: Sequence[Any]
    ) -> tuple[_Armed | None, list[_Armed]]:
        """The fault that decides this request, if any, and the modifiers that bend it."""
        decisive: _Armed | None = None
        modifiers: list[_Armed] = []
        for armed in self._armed.values():
            if armed.fault.kind is FaultKind.DOWN or not armed.fault.match.covers(method, path, lpu_id, records):
                continue
            if armed.fault.kind in MODIFIERS:
                if armed.fires():
                    modifiers.append(armed)
            elif decisive is None and armed.fires():
                decisive = armed
        return decisive, modifiers
