"""The product's metrics, a closed list, and how they are emitted: through Airflow's own StatsD or OpenTelemetry.

Tags come from closed lists; whatever else is given becomes ``other``, so that neither an id nor anything of a person
can get into a tag, and the number of series stays bounded. Emitting never fails a task, and costs a few microseconds
while Airflow's metrics are off.

Imported inside tasks only: it draws in the domain's codes, and with them pandas.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, ParamSpec

from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats

from medflex.airflow.hooks.medflex import AnswerTaken, NoReply, Operation
from medflex.domain.access import AccessState
from medflex.domain.drift import Drift
from medflex.domain.funnel import NUMBERS
from medflex.domain.last_look import ERASED, Turned
from medflex.domain.partner_actions import ActionType, Ruling
from medflex.domain.reasons import REASONS, WITHHOLDING
from medflex.domain.revocations import Revoked
from medflex.quality.results import Severity

log = logging.getLogger(__name__)

P = ParamSpec("P")

OTHER = "other"
"""What a tag says whose value is on no list."""
MOST_TIMINGS = 1000
"""So many times are emitted per task and metric at most, taken evenly; a mass revocation has as many as records."""
UNREADABLE = "unreadable"
"""The type of a partner action that names none."""
_UNKNOWN = "unknown"


class Kind(StrEnum):
    """What the back end does with the values of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    TIMING = "timing"


def _codes(*enums: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(getattr(item, "value", item)) for enum in enums for item in enum))


REASONS_OF_STAGE: Mapping[str, tuple[str, ...]] = {
    "withhold": _codes(REASONS),
    "last_look": _codes(WITHHOLDING, ERASED, Turned),
    "revoke": _codes(REASONS, Turned, Revoked),
}
"""Stage → the reasons that can be given there."""

TAGS: Mapping[str, tuple[str, ...]] = {
    "mode": ("transfer", "plan", "resync"),
    "scope": ("all", "some"),
    "stage": NUMBERS,
    "at": tuple(REASONS_OF_STAGE),
    "reason": _codes(*REASONS_OF_STAGE.values()),
    "state": _codes(AccessState),
    "severity": (Severity.CRITICAL.value, Severity.WARNING.value),
    "cause": ("explicit", "absence"),
    "operation": _codes(Operation),
    "status": (*(str(status.value) for status in HTTPStatus), *_codes(NoReply)),
    "status_code": ("204", "400", "409", _UNKNOWN),
    "type": (*_codes(ActionType), UNREADABLE),
    "decision": _codes(Ruling),
    "answer": _codes(AnswerTaken),
    "result": ("changed", "sent", "rejected", "unchanged", "not_shared", "waiting"),
    "drift": _codes(Drift),
}
"""Tag → the values that it can have, besides ``other``."""


@dataclass(frozen=True)
class Metric:
    """One metric. name: as given to Airflow, which puts its prefix before it. unit: of its values."""

    name: str
    kind: Kind
    unit: str
    tags: tuple[str, ...]
    meaning: str


RUN_RECORDS = Metric(
    "medflex.run.records",
    Kind.GAUGE,
    "records",
    ("stage", "mode", "scope"),
    "The funnel of the last run of `medflex_transfer`, summed over its clinics.",
)
RUN_REASONS = Metric(
    "medflex.run.reasons",
    Kind.GAUGE,
    "records",
    ("at", "reason", "mode", "scope"),
    "Why records of the last run were not sent (`withhold`), dropped (`last_look`), withdrawn or held (`revoke`);"
    " a record counts under each of its reasons.",
)
RUN_CLINICS = Metric(
    "medflex.run.clinics", Kind.GAUGE, "clinics", ("state", "mode", "scope"), "The last run's clinics by their access."
)
RUN_PROBLEMS = Metric(
    "medflex.run.problems",
    Kind.GAUGE,
    "problems",
    ("mode", "scope"),
    "Problems of the last run; above 0 it failed.",
)
VALIDATION_FAILURES = Metric(
    "medflex.validation.failures",
    Kind.COUNTER,
    "expectations",
    ("severity",),
    "Expectations that did not hold.",
)
WITHDRAW_TIME = Metric(
    "medflex.withdrawals.time",
    Kind.TIMING,
    "ms",
    ("cause",),
    "From the commit in Medlock (of an absence: from when it was found) to Medflex's acknowledgement; one value per"
    " change and batch.",
)
WITHDRAWALS_OPEN = Metric(
    "medflex.withdrawals.open",
    Kind.GAUGE,
    "records",
    (),
    "Records that may no longer be shared and whose withdrawal is not acknowledged.",
)
WITHDRAWALS_LATE = Metric(
    "medflex.withdrawals.late",
    Kind.GAUGE,
    "records",
    (),
    "Those of them that are open for longer than the deadline.",
)
WITHDRAWALS_OLDEST = Metric(
    "medflex.withdrawals.oldest", Kind.GAUGE, "s", (), "How long the oldest of them is open; 0: none is."
)
WITHDRAWALS_HELD = Metric(
    "medflex.withdrawals.held", Kind.GAUGE, "records", (), "Records whose withdrawal waits for a person."
)
HOLDS_OPEN = Metric("medflex.holds.open", Kind.GAUGE, "questions", (), "Questions that wait for a person.")
LOOK_AGE = Metric(
    "medflex.look.age", Kind.GAUGE, "s", (), "Since somebody last looked for what may no longer be shared."
)
TRANSFER_AGE = Metric(
    "medflex.transfer.age", Kind.GAUGE, "s", (), "Since a transfer of all clinics last succeeded; absent: never."
)
REQUESTS = Metric(
    "medflex.requests",
    Kind.COUNTER,
    "requests",
    ("operation", "status"),
    "Requests to Medflex by HTTP status or, where there was no reply, by how they ended.",
)
REQUEST_TIME = Metric(
    "medflex.request.time", Kind.TIMING, "ms", ("operation",), "How long a request to Medflex took, answered or not."
)
VERDICTS = Metric(
    "medflex.verdicts",
    Kind.COUNTER,
    "records",
    ("operation", "status_code"),
    "Medflex's verdicts on records that were sent or withdrawn; `unknown`: the reply left them out.",
)
ACTIONS_READ = Metric("medflex.actions.read", Kind.COUNTER, "actions", (), "Partner actions that were new.")
ACTIONS_DECIDED = Metric(
    "medflex.actions.decided", Kind.COUNTER, "actions", ("type", "decision"), "Partner actions by what was decided."
)
ACTIONS_ANSWERED = Metric(
    "medflex.actions.answered", Kind.COUNTER, "actions", ("answer",), "Answers by what Medflex said to them."
)
ANSWER_TIME = Metric(
    "medflex.actions.time", Kind.TIMING, "ms", (), "From reading a partner action to Medflex taking the answer."
)
ACTIONS_SHARED = Metric(
    "medflex.actions.shared",
    Kind.COUNTER,
    "appointments",
    ("result",),
    "Appointments that partners changed, by what became of sharing the change at once.",
)
ACTIONS_UNDECIDED = Metric(
    "medflex.actions.undecided", Kind.GAUGE, "actions", (), "Partner actions that wait for a decision."
)
ACTIONS_UNANSWERED = Metric(
    "medflex.actions.unanswered", Kind.GAUGE, "actions", (), "Decisions that Medflex has not taken."
)
ACTIONS_OLDEST = Metric(
    "medflex.actions.oldest", Kind.GAUGE, "s", (), "How long the oldest of both waits; 0: none does."
)
COMPARED = Metric("medflex.reconcile.compared", Kind.COUNTER, "records", (), "Records compared with Medflex.")
DRIFTED = Metric(
    "medflex.reconcile.drifted", Kind.COUNTER, "records", ("drift",), "Records that differed, by how they did."
)

METRICS: tuple[Metric, ...] = tuple(item for item in list(vars().values()) if isinstance(item, Metric))
"""All metrics, in the order of the documentation."""


# -- emitting --------------------------------------------------------------------------------------------------------


def are_on() -> bool:
    """Tell whether Airflow emits metrics, for what costs more than a call to emit."""
    return any(conf.getboolean("metrics", name) for name in ("statsd_on", "statsd_datadog_enabled", "otel_on"))


def emit(metric: Metric, value: float, **tags: object) -> None:
    """Emit one value; of a counter its increment, of a timing seconds.

    Whatever goes wrong in the back end is told in the log by its type, and is the task's business in no other way.
    """
    try:
        known = {name: _known(name, tags.get(name)) for name in metric.tags}
        if metric.kind is Kind.COUNTER:
            if value:
                stats.incr(metric.name, int(value), tags=known)
        elif metric.kind is Kind.GAUGE:
            # StatsD takes a sign for a change of the gauge's value.
            stats.gauge(metric.name, max(value, 0), tags=known)
        else:
            stats.timing(metric.name, timedelta(seconds=max(value, 0)), tags=known)
    except Exception as error:
        log.warning("The metric %s could not be emitted (%s).", metric.name, type(error).__name__)


def _known(tag: str, value: object) -> str:
    text = str(getattr(value, "value", value))
    return text if text in TAGS[tag] else OTHER


def _emit_all(metric: Metric, seconds: Sequence[float], **tags: object) -> None:
    step = max(1, -(-len(seconds) // MOST_TIMINGS))
    for value in sorted(seconds)[step - 1 :: step]:
        emit(metric, value, **tags)


class RequestMetrics:
    """Emits what the Medflex client observes; an :class:`medflex.airflow.hooks.medflex.Observer`."""

    def requested(self, operation: Operation, ended: int | NoReply, seconds: float) -> None:
        """Count a request and time it."""
        emit(REQUESTS, 1, operation=operation, status=ended)
        emit(REQUEST_TIME, seconds, operation=operation)

    def judged(self, operation: Operation, verdicts: Mapping[int | None, int]) -> None:
        """Count the records of a batch by their status codes."""
        for code, records in verdicts.items():
            emit(VERDICTS, records, operation=operation, status_code=_UNKNOWN if code is None else code)


def _harmless(function: Callable[P, None]) -> Callable[P, None]:
    """Let what goes wrong while the ledger is asked for numbers be told by its type, and fail nothing."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            log.warning("The metrics of %s could not be emitted (%s).", function.__name__, type(error).__name__)

    return wrapper


@_harmless
def run_settled(
    ledger: Any, run: Any, *, funnel: Mapping[str, int], states: Mapping[str, int], problems: Sequence[str]
) -> None:
    """Emit what a run of ``medflex_transfer`` came to.

    Args:
        ledger: asked for the reasons.
        run: the ledger's run.
        funnel: its numbers, by name.
        states: access state → clinics.
        problems: what went wrong, one entry each.
    """
    if not are_on():
        return
    of_run = {"mode": run.mode, "scope": "all" if run.clinic_ids is None else "some"}
    for stage in NUMBERS:
        emit(RUN_RECORDS, funnel[stage], stage=stage, **of_run)
    totals = ledger.reason_totals(run.run_key)
    # Also those that nothing was held back for, or the last run's numbers would stay.
    for at, reasons in REASONS_OF_STAGE.items():
        for reason in reasons:
            emit(RUN_REASONS, totals.get((at, reason), 0), at=at, reason=reason, **of_run)
    for state in AccessState:
        emit(RUN_CLINICS, states.get(state.value, 0), state=state, **of_run)
    emit(RUN_PROBLEMS, len(problems), **of_run)


def validated(results: Iterable[Any]) -> None:
    """Count the expectations of suites that did not hold."""
    for result in results:
        emit(VALIDATION_FAILURES, len(result.critical_failures), severity=Severity.CRITICAL)
        emit(VALIDATION_FAILURES, len(result.warnings), severity=Severity.WARNING)


def withdrawn(delays: Iterable[tuple[bool, float]]) -> None:
    """Emit the times to withdraw: (by absence, seconds) each."""
    found = list(delays)
    for by_absence, cause in ((False, "explicit"), (True, "absence")):
        _emit_all(WITHDRAW_TIME, [seconds for absence, seconds in found if absence is by_absence], cause=cause)


@_harmless
def standing(ledger: Any, deadline_seconds: float) -> None:
    """Emit what is open now.

    Args:
        ledger: asked for it.
        deadline_seconds: a revocation that is open for longer is late.
    """
    if not are_on():
        return
    now = ledger.standing(deadline_seconds)
    for metric, value in (
        (WITHDRAWALS_OPEN, now.revocations),
        (WITHDRAWALS_LATE, now.late_revocations),
        (WITHDRAWALS_OLDEST, now.oldest_revocation_seconds),
        (WITHDRAWALS_HELD, now.held_records),
        (HOLDS_OPEN, now.holds),
        (ACTIONS_UNDECIDED, now.undecided_actions),
        (ACTIONS_UNANSWERED, now.unanswered_actions),
        (ACTIONS_OLDEST, now.oldest_action_seconds),
        (TRANSFER_AGE, now.transfer_age_seconds),
        (LOOK_AGE, now.look_age_seconds),
    ):
        if value is not None:
            emit(metric, value)


def actions_read(new: int) -> None:
    """Count partner actions that were new."""
    emit(ACTIONS_READ, new)


def actions_decided(rulings: Mapping[tuple[str, str], int]) -> None:
    """Count decisions: (type, ruling) → number."""
    for (kind, ruling), number in rulings.items():
        emit(ACTIONS_DECIDED, number, type=kind, decision=ruling)


def actions_answered(answers: Mapping[str, int], delays: Sequence[float]) -> None:
    """Count what Medflex said to answers, and emit how many seconds after reading each was told."""
    for answer, number in answers.items():
        emit(ACTIONS_ANSWERED, number, answer=answer)
    _emit_all(ANSWER_TIME, delays)


def actions_shared(numbers: Mapping[str, int]) -> None:
    """Count what became of appointments that partners have changed."""
    for result, number in numbers.items():
        emit(ACTIONS_SHARED, number, result=result)


def reconciled(compared: int, found: Mapping[Drift, int]) -> None:
    """Count what was compared with Medflex, and what differed."""
    emit(COMPARED, compared)
    for drift, number in found.items():
        emit(DRIFTED, number, drift=drift)
