"""What the tasks of ``medflex_withdraw`` and ``medflex_sweep`` do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context, get_current_context

from medflex.airflow.environment import number
from medflex.airflow.tasks.parts import open_ledger, open_medflex, open_medlock, speaking, start_run, told
from medflex.clock import CLOCKS_DIFFER, SystemClock
from medflex.errors import WithdrawalsLateError
from medflex.ledger import watches as watches

if TYPE_CHECKING:
    from medflex.airflow.withdrawing import Withdrawer, WithdrawResult

log = logging.getLogger(__name__)

CLOCK = SystemClock()
DEADLINE_SECONDS = 900.0
"""So long may it take from a change in Medlock to Medflex's acknowledgement before somebody is alerted."""
ATTEMPTS = 2
"""So often at most a look asks Medflex about one batch. The next look asks again, and new refusals, also of other
clinics, wait for this one to end, or for leases that it holds: each time-out is more than a minute."""

TRY_AGAIN = timedelta(minutes=5)
"""So long after a search for deleted rows was begun and has noted nothing another one is started."""
BEGUN_ANEW = timedelta(hours=1)
"""After so long without a look nobody can tell whether the watch is silent: as while the DAG was paused or Medlock
away. A look that takes as long as it may is no such pause."""


@speaking
def withdraw_revoked_now() -> dict[str, int]:
    """Withdraw what was revoked since the last look, and what is left of earlier ones.

    Returns the numbers of revoked, withdrawn, held … records. A run that finds nothing leaves no trace in the ledger.
    """
    return _withdraw(lambda withdrawer: withdrawer.quick(), _note_woken)


@speaking
def sweep() -> dict[str, int]:
    """Look at all that Medflex shows, if that is due, for some minutes; withdraw what may not be shared.

    Returns the numbers of revoked, withdrawn, held … records. A run that finds nothing leaves no trace in the ledger.
    """
    return _withdraw(lambda withdrawer: withdrawer.sweep_further())


@speaking
def start_what_is_left(of: str) -> None:
    """Start what this run has left to another one, however it has ended: by what the ledger says is due.

    Args:
        of: the watch of the run: ``watches.CONSENT`` or ``watches.SWEEP``.
    """
    from medflex.airflow.assets import CONSENT, GO_ON_ALIAS, SWEEP

    context = get_current_context()
    with open_ledger() as ledger:
        watch, sweep, tried = (ledger.watch(name) for name in (of, watches.SWEEP, watches.SWEEP_TRIED))
        # A clinic that fails comes last: that something was answered before it shows that Medflex is there.
        is_away = ledger.is_failing(context["dag_run"].start_date)
        was_killed = ledger.is_unsettled(context["dag_run"].dag_id, context["dag_run"].run_id)
    started = context["dag_run"].start_date
    # What an earlier run has noted was started then: where each run fails at once, the clock starts the next one.
    if watch is None or (started is not None and watch[0] < started - CLOCKS_DIFFER):
        return
    events = context["outlet_events"][GO_ON_ALIAS]
    # One that is under way goes on by itself; one that has failed is tried again by the clock.
    is_free = tried is None or (sweep is not None and sweep[0] >= tried[0]) or CLOCK.now() - tried[0] > TRY_AGAIN
    if is_free and ("sweep_due_since" in watch[1] or watch[1].get("after") is not None):
        log.info("Rows were deleted, or not all that Medflex shows was looked at yet: medflex_sweep is started.")
        events.add(SWEEP)
    elif is_free and was_killed and of == watches.SWEEP:
        log.info("The search was killed amid withdrawing: medflex_sweep is started to bring over what it had found.")
        events.add(SWEEP)
    # Where Medflex is away, there is nothing to hurry for.
    if "cut_short_since" in watch[1] and not is_away:
        log.info("Not all clinics that permit less were looked at: medflex_withdraw is started.")
        events.add(CONSENT)


def _note_woken(context: Context, ledger: Any) -> None:
    """Note that the watch has started this run: by the clock alone a refusal waits for minutes, and nothing fails.

    Where looks begin, or go on after a pause, is noted as well: from then on the watch is expected to tell something.
    """
    now = CLOCK.now()
    # An event of a task is what an earlier run has left.
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    last = ledger.watch(watches.CONSENT)
    if (
        any(event.source_task_id is None for event in events)
        or last is None
        or now - last[0] > BEGUN_ANEW
        or ledger.watch(watches.WOKEN) is None
    ):
        ledger.note_watch(watches.WOKEN, now, {})


def _withdraw(
    look: Callable[[Withdrawer], WithdrawResult], note: Callable[[Context, Any], None] | None = None
) -> dict[str, int]:
    """Let a look withdraw, write down what became of it, and return the numbers.

    Args:
        note: writes into the ledger what is to be known of the run before it looks.
    """
    from medflex.airflow.withdrawing import Withdrawer

    context = get_current_context()
    with open_ledger() as ledger, open_medlock() as medlock:
        ledger.check_schema()
        if note is not None:
            note(context, ledger)
        ledger.settle_interrupted(context["dag_run"].dag_id)
        runs: list[int] = []
        # Begun anew, a run forgets what it was told of.
        earlier = ledger.withdrawals_so_far(context["dag_run"].dag_id, context["dag_run"].run_id)

        def begin_run(clinic_ids: Sequence[int]) -> int:
            known = earlier[0]["clinic_id"].tolist()
            runs.append(_begin_run(context, ledger, medlock, sorted({*clinic_ids, *known})))
            return runs[-1]

        withdrawer = Withdrawer(
            client=open_medflex(ledger, attempts=ATTEMPTS),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            # One run at a time, so the next one takes over at once what a killed one held.
            holder=context["dag_run"].dag_id,
            run_key=None,
            begin_run=begin_run,
        )
        result = look(withdrawer)
        for run_key in runs:
            numbers, decisions = result.behind(*earlier)
            clinic_ids = numbers["clinic_id"].tolist()
            ledger.save_numbers(run_key, numbers)
            ledger.save_decisions(run_key, "revoke", clinic_ids, decisions)
            problems = [str(problem) for problem in result.problems]
            ledger.set_withdraw_stage(run_key, 0, "withdrawn", " ".join(problems) or None)
            ledger.settle_run(run_key, problems)
        return told(result, context, ledger)


def _begin_run(context: Context, ledger: Any, medlock: Any, clinic_ids: Sequence[int]) -> int:
    from medflex.domain.access import AccessState
    from medflex.domain.packing import Shard

    now = CLOCK.now()
    clinics = medlock.clinics(clinic_ids, now)
    gone = sorted(set(clinic_ids) - set(clinics["clinic_id"]))
    run = start_run(
        context,
        ledger,
        clinics,
        gone,
        mode="withdraw",
        anchor=now,
        clinic_ids=None,
        started_at=now,
        shards=[Shard("withdrawals", tuple(clinic_ids), AccessState.OPEN)],
    )
    return int(run.run_key)


@speaking
def report_lateness() -> None:
    """Fail while something has waited for its withdrawal for longer than it may; ``medflex_alerts`` tells it, once.

    Raises:
        WithdrawalsLateError: a revocation is open for too long, or nobody has looked for any for as long.
    """
    from medflex.airflow import metrics

    deadline = deadline_seconds()
    with open_ledger() as ledger:
        metrics.standing(ledger, deadline)
        late = ledger.late_revocations(deadline)
        watch = ledger.watch(watches.CONSENT)
        sentence = None
        if late.records:
            sentence = (
                f"{late.records} records of {late.clinics} clinics may no longer be shared since"
                f" {late.oldest:%Y-%m-%d %H:%M:%S} UTC or later and are not withdrawn yet, more than {deadline:.0f}"
                " seconds: see why withdraw_revoked_now fails."
            )
        elif watch is not None and _since(watch[1], "cut_short_since", deadline):
            sentence = (
                f"Clinics permit less since {watch[1]['cut_short_since'][:19]} UTC or later, and not all of them were"
                f" looked at yet, after more than {deadline:.0f} seconds: Medflex takes withdrawals slowly, or see why"
                " withdraw_revoked_now fails."
            )
        elif watch is None or CLOCK.now() - watch[0] > timedelta(seconds=deadline):
            since = f"since {watch[0]:%Y-%m-%d %H:%M:%S} UTC" if watch else "yet"
            sentence = (
                f"Nobody has looked {since} for what may no longer be shared, more than {deadline:.0f} seconds: see why"
                " withdraw_revoked_now fails."
            )
        if sentence:
            raise WithdrawalsLateError(sentence)
        log.info("Nothing is late.")


def _since(noted: Mapping[str, Any], name: str, seconds: float) -> bool:
    """Tell whether a look has noted something for longer than so many seconds."""
    since = noted.get(name)
    return since is not None and CLOCK.now() - datetime.fromisoformat(since) > timedelta(seconds=seconds)


def deadline_seconds() -> float:
    """Return the deadline of a withdrawal (``MEDFLEX_WITHDRAW_DEADLINE_SECONDS``, default 15 minutes)."""
    return number("MEDFLEX_WITHDRAW_DEADLINE_SECONDS", DEADLINE_SECONDS, most=86_400, unit="seconds")
