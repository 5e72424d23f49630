"""What the pages read: runs, withdrawals, partner actions, quality. Ids, counts, codes and times only.

Reading takes no locks that anybody waits for and cannot change anything. Everything that one page reads is of the same
instant, so its numbers agree with each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from medflex.domain.funnel import NUMBERS, Funnel
from medflex.domain.messages import MessageLook
from medflex.domain.reasons import REASONS
from medflex.ledger.clinic_overview import TRANSFER, ClinicOverview
from medflex.ledger.connection import translated_ledger_errors
from medflex.sql import query

TIMEOUT_SECONDS = 10
"""So long may one statement take: a page that takes longer is no help."""
BUCKETS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Bounds of the histogram of times to withdraw, in seconds; a time on a bound counts above it."""

_PLACES = {reason.value: place for place, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class RunLine:
    """A run and its sums. ``is_full``: over all clinics; ``kept``: its sums were kept when it was settled."""

    run_key: int
    dag_id: str
    run_id: str
    run_type: str
    mode: str
    anchor: datetime
    is_full: bool
    started_at: datetime
    settled_at: datetime | None
    outcome: str
    problems: list[str]
    report: str | None
    clinics: int
    clinics_open: int
    clinics_waiting: int
    clinics_closed: int
    shards: int
    shards_troubled: int
    funnel: Funnel
    kept: bool


@dataclass(frozen=True)
class ShardLine:
    """A shard of a run and the sums over its clinics."""

    shard: int
    label: str
    kind: str
    clinics: int
    stage: str
    skipped_because: str | None
    problem: str | None
    withdraw_stage: str
    withdraw_problem: str | None
    extracted_at: datetime | None
    funnel: Funnel


@dataclass(frozen=True)
class ReasonCount:
    """Of a decision (withheld, quarantined, dropped, revoked, held) for how many records a reason holds.

    ``first``: how many count under it once, since it is their first reason.
    """

    decision: str
    reason: str
    records: int
    first: int


@dataclass(frozen=True)
class AccessCount:
    """How many clinics of a run were in this state; the reason is told of closed ones."""

    access_state: str
    closed_reason: str | None
    clinics: int


@dataclass(frozen=True)
class Expectation:
    """An expectation's outcome over all shards of a run."""

    suite: str
    name: str
    place: int
    columns: list[str]
    severity: str
    shards: int
    shards_failed: int
    evaluated: int
    unexpected: int
    missing: int
    exception_class: str | None

    @property
    def outcome(self) -> str:
        """``passed``, or how bad the failure is: ``critical``, ``warning``, ``info``."""
        return self.severity if self.shards_failed else "passed"

    @property
    def unexpected_share(self) -> float:
        """Of the rows that have a value, from 0 to 1."""
        judged = self.evaluated - self.missing
        return self.unexpected / judged if judged > 0 else 0.0


@dataclass(frozen=True)
class BatchLine:
    """One request; ``outcome`` is ``None`` while it is not known."""

    batch_id: int
    clinic_id: int
    lpu_id: int
    operation: str
    records: int
    rejected: int
    outdated: int
    unknown: int
    outcome: str | None
    http_status: int | None
    created_at: datetime
    looked_at: datetime | None
    resolved_at: datetime | None


@dataclass(frozen=True)
class Sample:
    """Some ids of one reason (or rejected field), as (clinic id, appointment id); ``records``: how many there are."""

    code: str
    ids: list[tuple[int, int]]
    records: int | None = None


@dataclass(frozen=True)
class MessageTotal:
    """Messages that patients get twice, of one kind and scenario; the clinics with the most appointments are named."""

    kind: str
    scenario: str
    clinics: int
    appointments: int
    clinic_ids: list[int]


@dataclass(frozen=True)
class Waiting:
    """Records of a clinic that wait for their withdrawal for one reason; times are those of the oldest."""

    clinic_id: int
    reason: str
    records: int
    late: int
    revoked_at: datetime
    found_at: datetime
    seconds: float


@dataclass(frozen=True)
class OpenWithdrawals:
    """What is to be withdrawn: all in numbers, and the lines that wait longest (``lines`` of ``all_lines``)."""

    records: int
    late: int
    all_lines: int
    lines: list[Waiting]


@dataclass(frozen=True)
class HoldLine:
    """A question that waits for a person: rows of a clinic that have vanished in numbers."""

    hold_id: int
    clinic_id: int
    found_at: datetime
    records: int
    live: int
    asked_in: str | None
    asked_at: datetime | None
    reasons: list[str]


@dataclass(frozen=True)
class OpenHolds:
    """Questions that wait for a person: all in numbers, and those that wait longest (``lines`` of ``all_lines``)."""

    records: int
    all_lines: int
    lines: list[HoldLine]


@dataclass(frozen=True)
class Times:
    """How long some withdrawals took, in seconds; ``None`` of nothing. Exact to a tenth below ten, else to a second."""

    records: int
    p50: float | None
    p95: float | None
    longest: float | None


@dataclass(frozen=True)
class WithdrawTimes:
    """Times to withdraw. ``buckets`` has one number more than :data:`BUCKETS`; ``by_day`` is parallel to the days asked
    for; ``by_reason`` has the most frequent reason first.
    """

    total: Times
    buckets: list[int]
    by_day: list[Times]
    by_reason: dict[str, Times]


@dataclass(frozen=True)
class ActionCount:
    """How many actions of a type (``None``: unreadable) had this ruling; ``contradicted``: Medflex has another one."""

    type: str | None
    status_code: int
    reason: str
    actions: int
    contradicted: int


@dataclass(frozen=True)
class ActionTimes:
    """Median and 95th percentile of the seconds from reading an action to deciding it, and to Medflex's receipt."""

    type: str | None
    actions: int
    decided_p50: float | None
    decided_p95: float | None
    answered_p50: float | None
    answered_p95: float | None


@dataclass(frozen=True)
class WaitingActions:
    """Actions that wait for a decision, for Medflex to take the answer, for their change to be shared; since when."""

    undecided: int
    undecided_since: datetime | None
    unanswered: int
    unanswered_since: datetime | None
    unshared: int
    unshared_since: datetime | None


@dataclass(frozen=True)
class ActionLine:
    """One partner action."""

    seq: int
    action_id: UUID
    clinic_id: int | None
    lpu_id: int | None
    appointment_id: int | None
    partner_id: int | None
    type: str | None
    read_at: datetime
    deliveries: int
    status_code: int | None
    reason: str | None
    is_effect: bool | None
    decided_at: datetime | None
    answer: str | None
    answered_at: datetime | None
    shared_at: datetime | None


@dataclass(frozen=True)
class QualityRun:
    """A run in the history of expectations. ``by_rule`` is empty for a run without kept results."""

    run_key: int
    dag_id: str
    run_id: str
    anchor: datetime
    started_at: datetime
    report: str | None
    by_rule: dict[tuple[str, str], Expectation] = field(default_factory=dict)


class LedgerOverview(ClinicOverview):
    """Reads for one page. To be used as a context manager; what it reads is the ledger as of its first read.

    Args:
        conninfo: libpq connection string or URI.
        now: fixed source of the present for tests; ``None`` uses the database server's clock.

    Raises (all methods):
        LedgerUnavailableError: the database does not answer, or takes longer than :data:`TIMEOUT_SECONDS`.
        LedgerRefusedError: it refuses the log-in, or its schema is missing or old.
    """

    def __init__(self, conninfo: str, now: Any = None) -> None:
        self._conninfo = conninfo
        self._now = now
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        with translated_ledger_errors():
            if self._connection is None:
                connection = psycopg.connect(self._conninfo, connect_timeout=10, row_factory=dict_row)
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                self._connection = connection
                connection.execute(f"SET statement_timeout = '{TIMEOUT_SECONDS}s'".encode())
                # Compiling these queries takes longer than running them.
                connection.execute("SET jit = off")
            return self._connection.execute(sql.encode(), parameters).fetchall()

    def _present(self) -> datetime | None:
        return self._now() if self._now else None

    # -- runs --------------------------------------------------------------------------------------------------------

    def runs(self, dag_id: str | None = TRANSFER, size: int = 50, skip: int = 0) -> list[RunLine]:
        """Return runs of a DAG (``None``: of all), the newest first."""
        return self._runs({"dag_id": dag_id, "run_id": None, "size": size, "skip": skip})

    def run(self, dag_id: str, run_id: str) -> RunLine | None:
        """Return one run, or ``None`` if the ledger does not know it."""
        return next(iter(self._runs({"dag_id": dag_id, "run_id": run_id, "size": 1, "skip": 0})), None)

    def _runs(self, parameters: dict[str, Any]) -> list[RunLine]:
        return [self._run(row) for row in self._rows(query("ledger/pages/runs"), parameters)]

    def _run(self, row: dict[str, Any]) -> RunLine:
        kept = row["clinics"] is not None
        if not kept:
            row |= self._rows(query("ledger/pages/run_totals"), {"run_key": row["run_key"]})[0]
        return RunLine(funnel=_funnel(row), kept=kept, **row)

    def previous(self, run: RunLine) -> RunLine | None:
        """Return the run that this one is compared with: the transfer of all clinics before it.

        ``None`` if there is none, or if this one is not over all clinics.
        """
        if not run.is_full:
            return None
        rows = self._rows(query("ledger/pages/previous_run"), {"dag_id": run.dag_id, "started_at": run.started_at})
        return self.run(run.dag_id, rows[0]["run_id"]) if rows else None

    def access_states(self, run_key: int, shard: int | None = None) -> list[AccessCount]:
        """Return how many clinics were open, waiting, or closed and why; the most frequent first."""
        rows = self._rows(query("ledger/pages/access_states"), {"run_key": run_key, "shard": shard})
        return [AccessCount(**row) for row in rows]

    def shards(self, run_key: int, size: int = 1000, skip: int = 0) -> list[ShardLine]:
        """Return the shards of a run: those with a problem first, then those with records that did not get through."""
        return self._shards({"run_key": run_key, "shard": None, "size": size, "skip": skip})

    def shard(self, run_key: int, shard: int) -> ShardLine | None:
        """Return one shard of a run, or ``None``."""
        return next(iter(self._shards({"run_key": run_key, "shard": shard, "size": 1, "skip": 0})), None)

    def _shards(self, parameters: dict[str, Any]) -> list[ShardLine]:
        rows = self._rows(query("ledger/pages/shards"), parameters)
        return [ShardLine(funnel=_funnel(row), **row) for row in rows]

    def shard_clinics(self, run_key: int, shard: int) -> list[int]:
        """Return the clinics of a shard, in order."""
        rows = self._rows(
            "SELECT clinic_ids FROM ledger.run_shard WHERE run_key = %(run_key)s AND shard = %(shard)s",
            {"run_key": run_key, "shard": shard},
        )
        return sorted(rows[0]["clinic_ids"]) if rows else []

    def reasons(self, run: RunLine, clinic_ids: Sequence[int] | None = None) -> list[ReasonCount]:
        """Return how many records each reason held back, by decision and in the order of reports."""
        if run.kept and clinic_ids is None:
            rows = self._rows(query("ledger/pages/kept_reasons"), {"run_key": run.run_key})
        else:
            rows = self._rows(query("ledger/pages/run_reasons"), {"run_key": run.run_key, "clinic_ids": clinic_ids})
        found = [ReasonCount(row["decision"], row["reason"], row["records"], row["records_first"]) for row in rows]
        return sorted(found, key=lambda one: (one.decision, _PLACES.get(one.reason, len(_PLACES)), one.reason))

    def decided_ids(
        self, run_key: int, decision: str, clinic_ids: Sequence[int] | None = None, size: int = 20
    ) -> list[Sample]:
        """Return some of the appointments that were kept back for a decision, under each of its reasons."""
        rows = self._rows(
            query("ledger/pages/decided_ids"),
            {"run_key": run_key, "decision": decision, "clinic_ids": clinic_ids, "size": size},
        )
        return _samples((row["reason"], row["clinic_id"], row["appointment_id"], None) for row in rows)

    def rejected_ids(self, run_key: int, clinic_ids: Sequence[int] | None = None, size: int = 20) -> list[Sample]:
        """Return some of the records that Medflex rejected, under each field it named (empty: none is known)."""
        rows = self._rows(
            query("ledger/pages/rejected_ids"), {"run_key": run_key, "clinic_ids": clinic_ids, "size": size}
        )
        return _samples((row["field"], row["clinic_id"], row["appointment_id"], row["records"]) for row in rows)

    def batches(
        self, run_key: int, clinic_ids: Sequence[int] | None = None, size: int = 200, skip: int = 0
    ) -> list[BatchLine]:
        """Return the requests of a run for these clinics (``None``: for all), oldest first."""
        rows = self._rows(
            query("ledger/pages/batches"),
            {"run_key": run_key, "clinic_ids": clinic_ids, "size": size, "skip": skip},
        )
        return [BatchLine(**row) for row in rows]

    def expectations(self, run: RunLine) -> list[Expectation]:
        """Return each expectation's outcome over all shards: failures first, the worst before the others."""
        name = "kept_expectations" if run.kept else "run_expectations"
        return _worst_first(
            _expectation(row) for row in self._rows(query(f"ledger/pages/{name}"), {"run_key": run.run_key})
        )

    def shard_expectations(self, run_key: int, shard: int) -> list[Expectation]:
        """Return the same of one shard."""
        found = []
        for row in self._rows(query("ledger/pages/shard_results"), {"run_key": run_key, "shard": shard}):
            for place, one in enumerate(row["result"]["results"]):
                found.append(
                    Expectation(
                        suite=row["result"]["suite"],
                        name=one["name"],
                        place=place,
                        columns=one["columns"],
                        severity=one["severity"],
                        shards=1,
                        shards_failed=int(not one["success"]),
                        evaluated=one["evaluated"],
                        unexpected=one["unexpected"],
                        missing=one["missing"],
                        exception_class=one["exception_class"],
                    )
                )
        return _worst_first(found)

    def messages(self, run_key: int, shown: int = 5) -> tuple[MessageLook, list[MessageTotal]] | None:
        """Return what a run found of messages that patients get twice (R15), or ``None`` if it has not looked."""
        looks = self._rows(
            "SELECT since, overlaps_problem, doubled_problem FROM ledger.message_look WHERE run_key = %(run_key)s",
            {"run_key": run_key},
        )
        if not looks:
            return None
        look = MessageLook(looks[0]["since"], (), looks[0]["overlaps_problem"], looks[0]["doubled_problem"])
        rows = self._rows(query("ledger/message_totals"), {"run_key": run_key, "shown": shown})
        return look, [MessageTotal(**row) for row in rows]

    # -- withdrawals -------------------------------------------------------------------------------------------------

    def open_withdrawals(self, deadline_seconds: float, size: int = 100) -> OpenWithdrawals:
        """Return what may no longer be shared and is not yet acknowledged as withdrawn, the oldest first.

        Args:
            deadline_seconds: what is open for longer is late.
        """
        rows = self._rows(
            query("ledger/pages/open_revocations"),
            {"deadline_seconds": deadline_seconds, "size": size, "now": self._present()},
        )
        names = ("clinic_id", "reason", "records", "late", "revoked_at", "found_at", "seconds")
        lines = [Waiting(**{name: row[name] for name in names}) for row in rows]
        first = rows[0] if rows else {"all_records": 0, "all_late": 0, "all_rows": 0}
        return OpenWithdrawals(first["all_records"], first["all_late"], first["all_rows"], lines)

    def open_holds(self, size: int = 100) -> OpenHolds:
        """Return the questions that wait for a person, the oldest first."""
        rows = self._rows(query("ledger/pages/open_holds"), {"size": size})
        totals = [(row.pop("all_records"), row.pop("all_rows")) for row in rows]
        records, all_lines = totals[0] if totals else (0, 0)
        return OpenHolds(records, all_lines, [HoldLine(**row) for row in rows])

    def withdraw_times(self, days: Sequence[datetime]) -> WithdrawTimes:
        """Return how long withdrawals took that Medflex acknowledged since the first of these days.

        Args:
            days: starts of days, aware, ascending; at least one.
        """
        rows = self._rows(query("ledger/pages/times_to_withdraw"), {"days": list(days)})
        by_day: dict[int, list[dict[str, Any]]] = {}
        by_reason: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["is_reason"]:
                by_reason.setdefault(row["reason"] or "", []).append(row)
            else:
                by_day.setdefault(row["day"], []).append(row)
        buckets = [0] * (len(BUCKETS) + 1)
        for row in (row for mine in by_day.values() for row in mine):
            buckets[sum(row["about"] >= bound for bound in BUCKETS)] += row["records"]
        return WithdrawTimes(
            total=_times(row for mine in by_day.values() for row in mine),
            buckets=buckets,
            by_day=[_times(by_day.get(place, ())) for place in range(1, len(days) + 1)],
            by_reason=dict(
                sorted(
                    ((reason, _times(mine)) for reason, mine in by_reason.items()),
                    key=lambda item: (-item[1].records, item[0]),
                )
            ),
        )

    # -- partner actions ---------------------------------------------------------------------------------------------

    def action_counts(self, since: datetime) -> list[ActionCount]:
        """Return what partners asked for and what was decided since then, the most frequent first."""
        rows = self._rows(query("ledger/pages/action_counts"), {"since": since})
        return sorted((ActionCount(**row) for row in rows), key=lambda one: (-one.actions, one.reason, str(one.type)))

    def action_times(self, since: datetime) -> list[ActionTimes]:
        """Return how long partners waited for what was decided since then, by type."""
        rows = self._rows(query("ledger/pages/action_times"), {"since": since})
        nothing = (None, None)
        return sorted(
            (
                ActionTimes(row["type"], row["actions"], *(row["decided"] or nothing), *(row["answered"] or nothing))
                for row in rows
            ),
            key=lambda one: str(one.type),
        )

    def waiting_actions(self) -> WaitingActions:
        """Return how many actions wait for what."""
        return WaitingActions(**self._rows(query("ledger/pages/waiting_actions"))[0])

    def newest_actions(self, size: int = 50, skip: int = 0, clinic_id: int | None = None) -> list[ActionLine]:
        """Return the actions that were read last, of all clinics or of one (then only decided ones), newest first."""
        rows = self._rows(query("ledger/pages/newest_actions"), {"clinic_id": clinic_id, "size": size, "skip": skip})
        return [ActionLine(**row) for row in rows]

    # -- quality -----------------------------------------------------------------------------------------------------

    def quality(self, runs: int = 30, dag_id: str = TRANSFER) -> list[QualityRun]:
        """Return each expectation's outcome in the last transfers of all clinics, the oldest run first."""
        found: dict[int, QualityRun] = {}
        for row in self._rows(query("ledger/pages/expectation_history"), {"dag_id": dag_id, "runs": runs}):
            about = {name: row.pop(name) for name in ("run_key", "dag_id", "run_id", "anchor", "started_at", "report")}
            run = found.setdefault(about["run_key"], QualityRun(**about))
            if row["suite"] is not None:
                run.by_rule[row["suite"], row["name"]] = _expectation(row)
        return list(found.values())


def _funnel(row: dict[str, Any]) -> Funnel:
    """Take the numbers of the funnel out of a row; a clinic that came to nothing counts as nothing."""
    return Funnel(**{name: row.pop(name) or 0 for name in NUMBERS})


def _expectation(row: Mapping[str, Any]) -> Expectation:
    return Expectation(**{name: value for name, value in row.items() if name != "run_key"})


_WORST = {"critical": 0, "warning": 1, "info": 2, "passed": 3}
_SUITES = {"source": 0, "outgoing": 1, "run": 2}


def _worst_first(found: Iterable[Expectation]) -> list[Expectation]:
    return sorted(found, key=lambda one: (_WORST[one.outcome], _SUITES.get(one.suite, 3), one.place))


def _samples(rows: Iterable[tuple[str, int, int, int | None]]) -> list[Sample]:
    ids: dict[str, list[tuple[int, int]]] = {}
    records: dict[str, int | None] = {}
    for code, clinic_id, appointment_id, number in rows:
        ids.setdefault(code, []).append((clinic_id, appointment_id))
        records[code] = number
    return [Sample(code, mine, records[code]) for code, mine in ids.items()]


def _times(rows: Iterable[Mapping[str, Any]]) -> Times:
    """Median, 95th percentile (each the smallest time that so many did not exceed) and the longest time."""
    counted: Counter[float] = Counter()
    longest: float | None = None
    for row in rows:
        counted[row["about"]] += row["records"]
        longest = row["longest"] if longest is None else max(longest, row["longest"])
    total = counted.total()
    if not total:
        return Times(0, None, None, None)

    def share(wanted: float) -> float:
        passed = 0
        for seconds in sorted(counted):
            passed += counted[seconds]
            if passed >= wanted * total:
                return seconds
        raise AssertionError

    return Times(total, share(0.5), share(0.95), longest)
