"""When somebody is to be told that something is wrong, and when that it is over. Pure: what is known goes in, what
changes comes out.

An alert is *raised* when a state begins to matter and *cleared* when it has been over for some minutes (``CALM``), once
each. Whether Medflex can be reached is a *cause*: what waits because of it is folded into that one alert, and told in
its own right only where it still holds some time after the cause is over (``GRACE``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class AlertKind(StrEnum):
    """What can be wrong."""

    MEDFLEX_AWAY = "medflex_away"
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - no secret
    LATE_WITHDRAWALS = "late_withdrawals"
    WITHDRAWALS_STOPPED = "withdrawals_stopped"
    WATCH_SILENT = "watch_silent"
    SWEEP_STOPPED = "sweep_stopped"
    ACTIONS_WAITING = "actions_waiting"
    ACTIONS_UNREAD = "actions_unread"
    DAILY_RUN_MISSED = "daily_run_missed"
    CRITICAL_VALIDATION = "critical_validation"
    HELD_ABSENCES = "held_absences"
    CONSERVATION_BROKEN = "conservation_broken"
    RECORDS_REJECTED = "records_rejected"
    STAGING_LEFT = "staging_left"


READING = timedelta(minutes=30)
"""So long may reading what partners ask for take, from the moment at which it was due."""

TITLES = {
    AlertKind.MEDFLEX_AWAY: "Medflex does not answer",
    AlertKind.TOKEN_REFUSED: "Medflex refuses us",
    AlertKind.LATE_WITHDRAWALS: "Withdrawals are late",
    AlertKind.WITHDRAWALS_STOPPED: "Nobody looks for what may no longer be shared",
    AlertKind.WATCH_SILENT: "Changes in Medlock are not watched",
    AlertKind.SWEEP_STOPPED: "Nobody looks for deleted rows",
    AlertKind.ACTIONS_WAITING: "Partner actions wait",
    AlertKind.ACTIONS_UNREAD: "Nobody reads what partners ask for",
    AlertKind.DAILY_RUN_MISSED: "The daily transfer is missing",
    AlertKind.CRITICAL_VALIDATION: "Validation has stopped the sending for clinics",
    AlertKind.HELD_ABSENCES: "Vanished records wait for an answer",
    AlertKind.CONSERVATION_BROKEN: "The numbers of a run do not add up",
    AlertKind.RECORDS_REJECTED: "Medflex rejects many records",
    AlertKind.STAGING_LEFT: "Nobody removes what is left in staging",
}

CAUSES = (AlertKind.MEDFLEX_AWAY, AlertKind.TOKEN_REFUSED)


class Failure(StrEnum):
    """Why a contact with Medflex was not a good one."""

    AWAY = "away"
    """Not reached, no reply in time, 5xx, or nothing but 429."""
    REFUSED = "refused"
    """401, 403, or a certificate that is not trusted."""


@dataclass(frozen=True)
class Limits:
    """For how long what may wait before somebody is told, and how much may be rejected.

    withdraw: a withdrawal, and the look for what is to be withdrawn. woken: looks that go on without being started by
    the watch, which starts one every hour at least. sweep: the search for deleted rows, from when it is due or has last
    come further; the daily run finds them, too. away: Medflex, while something is known to wait for it. silent:
    Medflex, while nothing is; what partners want cannot be read then. actions: a partner's action. reading: what
    partners ask for, until it is read: ``READING`` and the longest time between two slots of its schedule. daily: a
    daily run after its start. staging: what runs have left in staging, until it is looked for; that is done once a day.
    rejected, rejected_share: so many records of a daily run, and such a part of them and the accepted ones, may be
    rejected newly: single ones are a matter of their data, and are tried again by each run.
    """

    withdraw: timedelta = timedelta(minutes=15)
    woken: timedelta = timedelta(hours=3)
    sweep: timedelta = timedelta(hours=1)
    away: timedelta = timedelta(minutes=10)
    silent: timedelta = timedelta(minutes=30)
    actions: timedelta = timedelta(minutes=30)
    reading: timedelta = READING
    daily: timedelta = timedelta(hours=3)
    staging: timedelta = timedelta(hours=36)
    rejected: int = 100
    rejected_share: float = 0.1

    def grace(self, kind: AlertKind) -> timedelta:
        """For how long a consequence may still hold after its cause is over."""
        if kind is AlertKind.ACTIONS_UNREAD:
            # Its next slot may be that far away.
            return self.reading - READING + GRACE
        return self.daily if kind is AlertKind.DAILY_RUN_MISSED else GRACE


CALM = timedelta(minutes=5)
"""So long has something to be over before it counts as over: what comes and goes is one alert."""
GRACE = timedelta(minutes=15)
"""So long may what a cause has held up take to be made up for: three runs of ``medflex_withdraw``."""
BUSY = timedelta(minutes=30)
"""So much longer may the next look for revocations take while Medflex lets requests hang: as long as its task may."""
DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Facts:
    """What the ledger knows at one moment, ``as_of``.

    Instants are aware; ``None``: there is nothing, or it never happened.

    good_since, failing_since: since when contacts with Medflex have been good, or have not. revoked: records that wait
    for their withdrawal; late_*: those for longer than they may. looked_at: when the last look for revocations came to
    its end. woken_at: when the watch has last started one, or looks have begun. cut_short_since: since when looks leave
    clinics that permit less to the next one. sweep_stands_since: since when a search for deleted rows is due and has
    come no further. complete_at: start of the last daily run that brought everything over; failed_run_at: of the last
    one, if it has failed; last_run_at: of the last one. hurt_run_until: the end of the last one (now, while it goes
    on), if a part of it has failed. shards, undone_shards: of the last one that should be done, all and what was not
    brought over. told_run_at: start of the daily run that the last cause has held up, as its end has told. missed_at:
    when Airflow's deadline for a daily run passed. critical_clinics: whose data the validation has stopped. questions,
    held_records: what a person is asked about. unanswered: decided, and Medflex was not told. actions_read_at: when
    reading what partners ask for last came to its end. staging_removed_at: when removing what runs have left in staging
    did. rejecting_run, rejecting_at: key and start of the last daily run that should be done and in which Medflex has
    judged anything, or had nothing to, and whether it brought everything over; judged, rejected: its records that
    Medflex has taken or rejected, and those rejected. rejected_before: what was rejected already of the clinics of that
    run, by the one before. rejected_fields: for which fields, most frequent first, where they are many.
    """

    as_of: datetime
    good_since: datetime | None = None
    failing_since: datetime | None = None
    failed_at: datetime | None = None
    failure: str | None = None
    revoked: int = 0
    revoked_since: datetime | None = None
    late_records: int = 0
    late_clinics: int = 0
    looked_at: datetime | None = None
    woken_at: datetime | None = None
    cut_short_since: datetime | None = None
    sweep_stands_since: datetime | None = None
    complete_at: datetime | None = None
    first_run_at: datetime | None = None
    failed_run_at: datetime | None = None
    last_run_at: datetime | None = None
    hurt_run_until: datetime | None = None
    shards: int = 0
    undone_shards: int = 0
    told_run_at: datetime | None = None
    missed_at: datetime | None = None
    critical_clinics: int = 0
    critical_since: datetime | None = None
    broken_runs: int = 0
    broken_since: datetime | None = None
    questions: int = 0
    held_records: int = 0
    held_since: datetime | None = None
    undecided: int = 0
    undecided_since: datetime | None = None
    unanswered: int = 0
    unanswered_since: datetime | None = None
    actions_read_at: datetime | None = None
    staging_removed_at: datetime | None = None
    rejecting_run: int | None = None
    rejecting_at: datetime | None = None
    is_rejecting_run_complete: bool = True
    judged: int = 0
    rejected: int = 0
    rejected_before: int = 0
    rejected_fields: Sequence[str] = ()

    def are_many_rejected(self, limits: Limits) -> bool:
        """Tell whether so much is rejected newly that it is no matter of single records.

        What was rejected is planned again by each run, and what was accepted only where it has changed: over time, what
        is rejected for its data alone would be a large part of the day's.
        """
        new = max(0, self.rejected - self.rejected_before)
        accepted = self.judged - self.rejected
        return new > limits.rejected and new > limits.rejected_share * (accepted + new)


@dataclass(frozen=True)
class Open:
    """An alert that was raised and not cleared. facts: its numbers as of the last round. held_up: what it has held up,
    each number at its highest.
    """

    kind: AlertKind
    since: datetime
    raised_at: datetime
    sentence: str
    calm_since: datetime | None = None
    held_up: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Raise:
    """Somebody is to be told that something is wrong."""

    kind: AlertKind
    since: datetime
    sentence: str
    facts: Mapping[str, int]
    held_up: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RaiseAnew:
    """It stands, and has become worse in a way that somebody is to be told."""

    kind: AlertKind
    sentence: str
    facts: Mapping[str, int]


@dataclass(frozen=True)
class Keep:
    """It stands, or is not over for long enough: nobody is told."""

    kind: AlertKind
    calm_since: datetime | None
    facts: Mapping[str, int]
    held_up: Mapping[str, int]


@dataclass(frozen=True)
class Clear:
    """Somebody is to be told that it is over."""

    kind: AlertKind
    sentence: str
    held_up: Mapping[str, int]


Change = Raise | RaiseAnew | Keep | Clear


@dataclass(frozen=True)
class _Condition:
    since: datetime
    sentence: str
    facts: Mapping[str, int]


def judge(
    facts: Facts, standing: Mapping[AlertKind, Open], cause_over_at: datetime | None, limits: Limits
) -> list[Change]:
    """Return what becomes of each alert: those that stand are kept, cleared or raised anew, others may be raised.

    Args:
        standing: the alerts that were raised and not cleared.
        cause_over_at: when a cause was last cleared.
    """
    held_up = _held_up(facts)
    late = _consequences(facts, limits)
    changes: list[Change] = []
    is_caused = False
    for kind in CAUSES:
        if kind in standing:
            change = _stand_by(kind, standing[kind], facts, held_up, limits)
            changes.append(change)
            if isinstance(change, Clear):
                cause_over_at = facts.as_of
            else:
                is_caused = True
    # What was told before Medflex failed is not told again as what it holds up.
    fresh = {kind: condition for kind, condition in late.items() if kind not in standing}
    if not is_caused and (cause := _cause(facts, fresh, limits)) is not None:
        kind, condition = cause
        if kind not in standing:
            is_caused = True
            changes.append(Raise(kind, condition.since, condition.sentence, condition.facts, held_up))

    def is_excused(kind: AlertKind) -> bool:
        if is_caused or (cause_over_at is not None and facts.as_of - cause_over_at < limits.grace(kind)):
            return True
        # Its end has told that it held the daily run up: the next one is waited for.
        return (
            kind is AlertKind.DAILY_RUN_MISSED
            and facts.told_run_at is not None
            and facts.as_of - facts.told_run_at <= DAY + limits.daily
        )

    is_slow = facts.failing_since is not None or is_excused(AlertKind.LATE_WITHDRAWALS)
    others = _others(facts, standing, limits, is_slow=is_slow)
    conditions = late | others
    for kind in AlertKind:
        if kind in CAUSES:
            continue
        found = conditions.get(kind)
        excused = kind not in others and is_excused(kind)
        if kind in standing:
            # While requests fail it may yet become a cause.
            excused = excused or facts.failing_since is not None
            changes.append(_keep_or_clear(kind, standing[kind], found, facts, excused=excused))
        elif found is not None and not excused:
            changes.append(Raise(kind, found.since, found.sentence, found.facts))
    return changes


# -- what holds ------------------------------------------------------------------------------------------------------


def _cause(facts: Facts, late: Mapping[AlertKind, _Condition], limits: Limits) -> tuple[AlertKind, _Condition] | None:
    """Tell whether it matters that Medflex cannot be spoken to.

    A refusal does at once: it does not pass by itself. Silence does when something that must not wait has waited for
    too long, or when it lasts: the time that counts is that between the first and the last attempt, so that one
    failure after which nobody has tried is none. What nobody has tried for long is not known to fail.
    """
    since, last = facts.failing_since, facts.failed_at
    if since is None or last is None:
        return None
    numbers = _held_up(facts)
    waits = ", ".join(_told(numbers)) or "nothing is known to wait, but what partners ask for cannot be read"
    if facts.failure == Failure.REFUSED:
        return AlertKind.TOKEN_REFUSED, _Condition(
            since,
            f"Medflex refuses our token or shows a certificate that is not trusted, since {_at(since)}; nothing is sent"
            f" and nothing withdrawn, unless it is only some clinics (HTTP 403) for which it may not work. Waiting:"
            f" {waits}. Put a valid token into the connection medflex_api: into the"
            " variable AIRFLOW_CONN_MEDFLEX_API where there is one, since what Airflow keeps is ignored then.",
            numbers,
        )
    lasts = last - since
    if facts.as_of - last > limits.silent:
        return None
    if not (late or lasts >= limits.silent or (lasts >= limits.away and any(numbers.values()))):
        return None
    return AlertKind.MEDFLEX_AWAY, _Condition(
        since,
        f"Medflex has not answered since {_at(since)} (no connection, no reply in time, HTTP 5xx, or only 429)."
        f" Waiting: {waits}. Nothing is lost and everything is tried again by itself: ask whoever runs Medflex.",
        numbers,
    )


def _consequences(facts: Facts, limits: Limits) -> dict[AlertKind, _Condition]:
    """Return what waits for longer than it may, and would also do so because Medflex cannot be spoken to."""
    found = {}
    if facts.late_records and facts.revoked_since is not None:
        found[AlertKind.LATE_WITHDRAWALS] = _Condition(
            facts.revoked_since,
            f"{facts.late_records} records of {facts.late_clinics} clinics may no longer be shared since"
            f" {_at(facts.revoked_since)} or later and are still shown, for more than {_long(limits.withdraw)}: see why"
            " withdraw_revoked_now fails.",
            {"records": facts.late_records, "clinics": facts.late_clinics},
        )
    elif facts.cut_short_since is not None and facts.as_of - facts.cut_short_since > limits.withdraw:
        found[AlertKind.LATE_WITHDRAWALS] = _Condition(
            facts.cut_short_since,
            f"Clinics permit less since {_at(facts.cut_short_since)} or later, and not all of them were looked at yet,"
            f" after more than {_long(limits.withdraw)}: Medflex takes withdrawals slowly, or see why"
            " withdraw_revoked_now fails.",
            {"records": 0, "clinics": 0},
        )
    if facts.unanswered and facts.unanswered_since and facts.as_of - facts.unanswered_since > limits.actions:
        found[AlertKind.ACTIONS_WAITING] = _waiting(facts, facts.unanswered_since)
    if facts.actions_read_at is not None and facts.as_of - facts.actions_read_at > limits.reading:
        found[AlertKind.ACTIONS_UNREAD] = _Condition(
            facts.actions_read_at,
            f"Nobody has read what partners ask for since {_at(facts.actions_read_at)}, so what they have confirmed,"
            " cancelled or moved is not in Medlock: see whether medflex_partner_actions is paused or why its"
            " read_actions fails.",
            {"minutes": int((facts.as_of - facts.actions_read_at).total_seconds() // 60)},
        )
    if (daily := _daily(facts, limits)) is not None:
        found[AlertKind.DAILY_RUN_MISSED] = daily
    return found


_BEFORE = "before"
"""The number that was rejected before such an alert began; it is kept with the alert."""


def _rejected(facts: Facts, alert: Open | None, limits: Limits) -> _Condition | None:
    """It begins with what is rejected newly, and stands as long as many more are rejected than before it began.

    Compared with the run before, it would be over a day later, though nothing was mended. The share does not count
    then: it would end on a day on which much else has changed.
    """
    before = facts.rejected_before
    if alert is not None and _BEFORE in alert.facts:
        before = alert.facts[_BEFORE]
        # Of the clinics that a run has left out it does not tell that anything was mended.
        holds = facts.rejected - before > limits.rejected or not facts.is_rejecting_run_complete
    else:
        holds = facts.are_many_rejected(limits)
    if not holds or facts.rejecting_at is None:
        return None
    fields = f", most of all for {', '.join(facts.rejected_fields)}" if facts.rejected_fields else ""
    return _Condition(
        facts.rejecting_at,
        f"Medflex has rejected {facts.rejected} of {facts.judged} records of the transfer of"
        f" {_at(facts.rejecting_at)}, {before} in the one before{fields}; partners do not see them, or see an earlier"
        " version. Ask whoever runs Medflex whether a rule has changed, else mend the data in Medlock; they are sent"
        " again by each transfer.",
        {"rejected": facts.rejected, "judged": facts.judged, _BEFORE: before},
    )


def _others(
    facts: Facts, standing: Mapping[AlertKind, Open], limits: Limits, *, is_slow: bool
) -> dict[AlertKind, _Condition]:
    """Return what holds whether Medflex answers or not.

    Args:
        is_slow: whether the task that looks for revocations may be waiting for Medflex.
    """
    found = {}
    begun = facts.looked_at or facts.first_run_at
    if begun is not None and facts.as_of - begun > limits.withdraw + (BUSY if is_slow else timedelta(0)):
        found[AlertKind.WITHDRAWALS_STOPPED] = _Condition(
            begun,
            f"Nobody has looked since {_at(begun)} for what may no longer be shared: see whether medflex_withdraw is"
            " paused or why withdraw_revoked_now fails.",
            {"minutes": int((facts.as_of - begun).total_seconds() // 60)},
        )
    # Measured by the last look: where nobody looks, that is what is wrong.
    if facts.woken_at is not None and facts.looked_at is not None and facts.looked_at - facts.woken_at > limits.woken:
        found[AlertKind.WATCH_SILENT] = _Condition(
            facts.woken_at,
            f"Since {_at(facts.woken_at)} no change in Medlock has started medflex_withdraw, so it looks by its clock"
            " only, and a refusal takes effect within five minutes instead of one: see whether a triggerer runs, and"
            " what its log says of changes that cannot be watched.",
            {"minutes": int((facts.looked_at - facts.woken_at).total_seconds() // 60)},
        )
    if facts.sweep_stands_since is not None and facts.as_of - facts.sweep_stands_since > limits.sweep:
        found[AlertKind.SWEEP_STOPPED] = _Condition(
            facts.sweep_stands_since,
            "Rows were deleted in Medlock, or more were edited at once than a look goes over, or all that partners see"
            f" was never looked at, and since {_at(facts.sweep_stands_since)} nobody has come further with that: see"
            " whether medflex_sweep is paused or why its task fails.",
            {"minutes": int((facts.as_of - facts.sweep_stands_since).total_seconds() // 60)},
        )
    if facts.critical_clinics and facts.critical_since is not None:
        found[AlertKind.CRITICAL_VALIDATION] = _Condition(
            facts.critical_since,
            f"A critical expectation has failed in the transfer of {_at(facts.critical_since)}: nothing is sent for"
            f" {facts.critical_clinics} clinics. Read the run's quality report; mend the source and clear the"
            " shard from extract on, or, where a clinic is rightly empty, let it through as the runbook says.",
            {"clinics": facts.critical_clinics},
        )
    if facts.questions and facts.held_since is not None:
        found[AlertKind.HELD_ABSENCES] = _Condition(
            facts.held_since,
            f"{facts.held_records} records of {facts.questions} clinics have vanished from Medlock since"
            f" {_at(facts.held_since)}; partners still see them until a person answers under Required Actions.",
            {"records": facts.held_records, "clinics": facts.questions},
        )
    if facts.broken_runs and facts.broken_since is not None:
        found[AlertKind.CONSERVATION_BROKEN] = _Condition(
            facts.broken_since,
            f"The numbers of {facts.broken_runs} runs do not add up, the first of {_at(facts.broken_since)}:"
            " a fault of the program. Keep the run and its logs, tell the developers, and reconcile its clinics.",
            {"runs": facts.broken_runs},
        )
    if (rejected := _rejected(facts, standing.get(AlertKind.RECORDS_REJECTED), limits)) is not None:
        found[AlertKind.RECORDS_REJECTED] = rejected
    if facts.staging_removed_at is not None and facts.as_of - facts.staging_removed_at > limits.staging:
        found[AlertKind.STAGING_LEFT] = _Condition(
            facts.staging_removed_at,
            f"Since {_at(facts.staging_removed_at)} nobody has removed what runs have left in staging: names and phones"
            " may lie there. See whether medflex_housekeeping is paused or why its remove_old_staging fails, and"
            " trigger it.",
            {"hours": int((facts.as_of - facts.staging_removed_at).total_seconds() // 3600)},
        )
    # Whatever Medflex does: that nothing was decided is not its fault.
    if facts.undecided and facts.undecided_since and facts.as_of - facts.undecided_since > limits.actions:
        found[AlertKind.ACTIONS_WAITING] = _waiting(facts, facts.undecided_since)
    return found


def _waiting(facts: Facts, since: datetime) -> _Condition:
    return _Condition(
        since,
        f"{facts.undecided} partner actions wait for a decision and {facts.unanswered} for Medflex to take the answer,"
        f" the first since {_at(since)}: see which task of medflex_partner_actions fails, or whether it is paused.",
        {"undecided": facts.undecided, "unanswered": facts.unanswered},
    )


def _daily(facts: Facts, limits: Limits) -> _Condition | None:
    """The last daily run that brought everything over began too long ago, or Airflow's deadline for one has passed."""
    last = facts.complete_at or (facts.first_run_at - DAY if facts.first_run_at is not None else None)
    overdue = last is not None and facts.as_of - last > DAY + limits.daily
    if not overdue and facts.missed_at is None:
        return None
    failed = f" The one of {_at(facts.failed_run_at)} has failed." if facts.failed_run_at is not None else ""
    done = f"since the run of {_at(facts.complete_at)}" if facts.complete_at is not None else "yet"
    undone = _undone(facts, limits)
    if facts.last_run_at is not None and undone > facts.shards:
        failed += f" None has begun since {_at(facts.last_run_at)}."
    elif undone:
        failed += f" {undone} of {facts.shards} shards were not brought over."
    since = facts.missed_at if facts.missed_at is not None else (last or facts.as_of) + DAY + limits.daily
    return _Condition(
        since,
        f"No daily transfer has brought everything over {done}.{failed} See what its settle_run says, whether the DAG"
        " is paused and the scheduler up; then clear the failed tasks or trigger medflex_transfer.",
        {
            "hours": int((facts.as_of - last).total_seconds() // 3600) if last is not None else 0,
            _EXTENT: undone,
        },
    )


def _undone(facts: Facts, limits: Limits) -> int:
    """Return how many shards were not brought over; where the last run did not even begin, more than there are."""
    is_absent = facts.last_run_at is not None and facts.as_of - facts.last_run_at > DAY + limits.daily
    return facts.shards + 1 if is_absent else facts.undone_shards


def _held_up(facts: Facts) -> dict[str, int]:
    """Return how much waits for Medflex."""
    since = facts.failing_since
    # A daily run a part of which failed while Medflex was failing, or just before that was noticed.
    run = facts.hurt_run_until is not None and since is not None and facts.hurt_run_until > since - timedelta(hours=1)
    return {"withdrawals": facts.revoked, "answers": facts.unanswered, "daily_runs": int(run)}


# -- what becomes of an alert that stands ----------------------------------------------------------------------------

_EXTENT = "undone_shards"
"""The number that is news when it grows: else a clinic in trouble for days would hide that all others fail as well."""


def _stand_by(kind: AlertKind, alert: Open, facts: Facts, numbers: Mapping[str, int], limits: Limits) -> Change:
    """A cause stands until a contact is good and all are for some minutes.

    Where Medflex was away and has refused us for long since, somebody else has to act: that is another cause.
    """
    names = sorted({*alert.held_up, *numbers})
    held_up = {name: max(alert.held_up.get(name, 0), numbers.get(name, 0)) for name in names}
    if facts.failing_since is not None:
        if kind is not AlertKind.MEDFLEX_AWAY or facts.failure != Failure.REFUSED:
            return Keep(kind, None, numbers, held_up)
        refused_since = alert.calm_since or facts.as_of
        if facts.as_of - refused_since < limits.away:
            return Keep(kind, refused_since, numbers, held_up)
        return Clear(kind, f"Medflex answers again since {_at(refused_since)}, and refuses us.", held_up)
    calm_since = facts.good_since or alert.calm_since or facts.as_of
    if facts.as_of - calm_since < CALM:
        return Keep(kind, calm_since, numbers, held_up)
    text = f"Medflex answers again since {_at(calm_since)}, after {_long(calm_since - alert.since)}."
    if held := _told(held_up):
        text += f" It held up: {', '.join(held)}."
    if left := _told({**numbers, "daily_runs": 0}):
        text += f" Still waiting: {', '.join(left)}; it is made up for by itself."
    if held_up.get("daily_runs"):
        text += " What the daily transfer could not send goes out with the next one, or now if you trigger it."
    return Clear(kind, text, held_up)


def _keep_or_clear(kind: AlertKind, alert: Open, found: _Condition | None, facts: Facts, *, excused: bool) -> Change:
    if found is not None:
        told, now = alert.facts.get(_EXTENT), found.facts.get(_EXTENT)
        if told is None or now is None or now <= told:
            return Keep(kind, None, found.facts, alert.held_up)
        if excused:
            return Keep(kind, None, {**found.facts, _EXTENT: told}, alert.held_up)
        return RaiseAnew(kind, found.sentence, found.facts)
    calm_since = alert.calm_since or facts.as_of
    if facts.as_of - calm_since < CALM:
        return Keep(kind, calm_since, {}, alert.held_up)
    return Clear(kind, f"It is over since {_at(calm_since)}, after {_long(calm_since - alert.since)}.", alert.held_up)


# -- words -----------------------------------------------------------------------------------------------------------


def _told(numbers: Mapping[str, int]) -> Sequence[str]:
    words = {"withdrawals": "withdrawals", "answers": "answers to partners", "daily_runs": "daily transfer"}
    return [f"{numbers[name]} {word}" for name, word in words.items() if numbers.get(name)]


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def _long(span: timedelta) -> str:
    minutes = max(0, round(span.total_seconds() / 60))
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
