"""Time from a refusal in Medlock to its withdrawal at Medflex: ``python -m bench.withdrawals``.

A whole Airflow with scheduler, executor and triggerer, as ``make demo`` starts it, in a folder of its own. Refusals are
committed at random moments, whether or not a run of ``medflex_withdraw`` is under way. Ends with 1 when the 95th
percentile is above a minute. With the default number of trials the figures also go to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from bench.document import write_section
from bench.figures import circumstances, histogram, percentile, read, row, say
from bench.world import BenchError
from sandbox.medflex.control import Control
from sandbox.stack import Stack

TRIALS = 100
LIMIT_SECONDS = 60.0
"""The 95th percentile has to be below this."""
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 600.0
"""So long is a withdrawal waited for; the safety net runs every 300 seconds."""
PAUSES = (0.5, 12.0)
"""Seconds between two refusals, drawn evenly: shorter and longer than a run of medflex_withdraw takes."""
DAG_ID = "medflex_withdraw"


@dataclass
class Trial:
    """One refusal. Times in seconds since 1970 (UTC) by this machine's clock; None: not yet.

    stored: what the ledger keeps as this record's time to withdraw, in seconds.
    """

    clinic_id: int
    appointment_id: int
    patient_id: int
    committed: float = 0.0
    shown: float | None = None
    acknowledged: float | None = None
    stored: float | None = None
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def to_medflex(self) -> float:
        """Seconds until Medflex no longer showed the record."""
        assert self.shown is not None
        return self.shown - self.committed

    @property
    def to_ledger(self) -> float:
        """Seconds until the ledger had Medflex's acknowledgement."""
        assert self.acknowledged is not None
        return self.acknowledged - self.committed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.withdrawals", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS, help="refusals (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of records and moments")
    options = parser.parse_args(arguments)
    if options.trials < 2:
        parser.error("give at least two trials")
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    command = f"python -m bench.withdrawals --trials {options.trials} --seed {options.seed}"
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder, started(Path(folder)) as stack:
            trials = measure(stack, options.trials, random.Random(options.seed))
            text = render(trials, begun=begun, load=load, runs=runs_of(stack), command=command)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    if options.trials == TRIALS:
        write_section("withdrawals", text)
    late = too_slow(trials)
    if late:
        print(late, file=sys.stderr)
    return 1 if late else 0


@contextmanager
def started(folder: Path) -> Iterator[Stack]:
    """A running stack whose first transfer, first look for revocations and first look at everything are over."""
    stack = Stack(folder / "stack", say=say)
    stack.start(appointments=20_000)
    try:
        if stack.follow(stack.run_day(None)) != "success":
            raise BenchError("The transfer that was to fill Medflex has failed: see its log with `make demo`.")
        deadline = time.monotonic() + 600
        looked = "SELECT 1 FROM ledger.watch WHERE name IN ('consent', 'sweep') AND value ->> 'after' IS NULL"
        while len(read(stack.ledger(), looked)) < 2:
            if time.monotonic() > deadline:
                raise BenchError("medflex_withdraw and medflex_sweep have not looked for anything within ten minutes.")
            time.sleep(1)
        yield stack
    finally:
        stack.stop()


def measure(stack: Stack, number: int, chance: random.Random) -> list[Trial]:
    """Let patients refuse one after another and wait for each withdrawal.

    Raises:
        BenchError: a withdrawal has not come within GIVE_UP_SECONDS.
    """
    trials = chosen(stack, number, chance)
    to_come, waiting, done = list(trials), list[Trial](), 0
    due = time.monotonic()
    with (
        psycopg.connect(stack.medlock_owner(), autocommit=True) as medlock,
        psycopg.connect(stack.ledger(), autocommit=True) as ledger,
        Control(stack.control_url) as control,
    ):
        while to_come or waiting:
            looked = time.monotonic()
            if to_come and looked >= due:
                trial = to_come.pop(0)
                medlock.execute(
                    "UPDATE medlock.patient SET refused_notifications = true, updated_at = now() WHERE id = %s",
                    [trial.patient_id],
                )
                trial.committed = time.time()
                waiting.append(trial)
                due = looked + chance.uniform(*PAUSES)
            gone = {record_id for _, record_id in control.tombstones()}
            now = time.time()
            for trial in waiting:
                if trial.shown is None and trial.appointment_id in gone:
                    trial.shown = now
            _note_acknowledgements(ledger, [trial for trial in waiting if trial.shown is not None])
            ended = [trial for trial in waiting if trial.acknowledged is not None]
            waiting = [trial for trial in waiting if trial.acknowledged is None]
            for trial in ended:
                done += 1
                say(f"{done:4} of {number}: {trial.to_medflex:6.1f} s, acknowledged after {trial.to_ledger:6.1f} s")
            if waiting and time.time() - waiting[0].committed > GIVE_UP_SECONDS:
                raise BenchError(f"A withdrawal has not come within {GIVE_UP_SECONDS:.0f} seconds.")
            time.sleep(max(0.0, looked + POLL_SECONDS - time.monotonic()))
    _add_stored_times(stack, trials)
    return trials


def chosen(stack: Stack, number: int, chance: random.Random) -> list[Trial]:
    """Records that Medflex shows, each of another patient, in random order.

    Raises:
        BenchError: there are not so many.
    """
    found = read(
        stack.ledger(),
        "SELECT DISTINCT ON (patient_id) clinic_id, appointment_id, patient_id FROM ledger.record"
        " WHERE state = 'sent' ORDER BY patient_id, appointment_id",
    )
    if len(found) < number:
        raise BenchError(f"Medflex shows records of {len(found)} patients only, and {number} trials were asked for.")
    return [Trial(*one) for one in chance.sample(found, number)]


def _note_acknowledgements(ledger: psycopg.Connection[Any], trials: Sequence[Trial]) -> None:
    if not trials:
        return
    withdrawn = ledger.execute(
        "SELECT appointment_id FROM ledger.record WHERE state = 'withdrawn' AND appointment_id = ANY(%s)",
        [[trial.appointment_id for trial in trials]],
    ).fetchall()
    now = time.time()
    for trial in trials:
        if (trial.appointment_id,) in withdrawn:
            trial.acknowledged = now


STEPS = {
    "noticed": "the watch has noticed it",
    "queued": "Airflow has made the run",
    "scheduled": "the scheduler has queued its task",
    "started": "the task's process has begun",
    "withdrawn": "Medflex no longer shows it",
}
"""Where the time goes, in order; each from the moment of the one before."""


def _add_stored_times(stack: Stack, trials: Sequence[Trial]) -> None:
    """Add what the ledger keeps, and from Airflow's database when the run that withdrew came into being."""
    stored = {
        found[0]: found[1:]
        for found in read(
            stack.ledger(),
            "SELECT item.appointment_id, extract(EPOCH FROM batch.resolved_at - item.revoked_at)::float8, run.run_id"
            " FROM ledger.batch CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.revoked_at)"
            " AS item (appointment_id, revoked_at) JOIN ledger.run USING (run_key)"
            " WHERE batch.operation = 'withdraw' AND batch.outcome = 'acknowledged'",
        )
    }
    airflow = stack.cluster.uri("airflow", "airflow")
    runs = {
        found[0]: [instant.timestamp() for instant in found[1:]]
        for found in read(
            airflow,
            "SELECT run_id, dag_run.queued_at, queued_dttm, task_instance.start_date FROM task_instance"
            " JOIN dag_run USING (dag_id, run_id) WHERE dag_id = %s AND task_id = 'withdraw_revoked_now'"
            " AND task_instance.start_date IS NOT NULL",
            [DAG_ID],
        )
    }
    events = sorted(
        found[0].timestamp()
        for found in read(
            airflow,
            "SELECT timestamp FROM asset_event JOIN asset ON asset.id = asset_id WHERE asset.name = 'medflex_consent'",
        )
    )
    for trial in trials:
        seconds, run_id = stored[trial.appointment_id]
        trial.stored = seconds
        if run_id not in runs:
            continue
        queued, scheduled, began = runs[run_id]
        noticed = next((event for event in events if event >= trial.committed), queued)
        last = trial.committed
        # A refusal that falls into a run which finds it still has waited for none of the steps before.
        for name, moment in (
            ("noticed", min(noticed, queued)),
            ("queued", queued),
            ("scheduled", scheduled),
            ("started", began),
            ("withdrawn", trial.shown or began),
        ):
            trial.steps[name] = max(0.0, moment - last)
            last = max(last, moment)


def runs_of(stack: Stack) -> dict[str, int]:
    """Return how many runs of medflex_withdraw there were, by type."""
    rows = read(
        stack.cluster.uri("airflow", "airflow"),
        "SELECT run_type, count(*) FROM dag_run WHERE dag_id = %s GROUP BY 1 ORDER BY 1",
        [DAG_ID],
    )
    return {str(name): int(number) for name, number in rows}


def too_slow(trials: Sequence[Trial]) -> str | None:
    """Return what is not as it has to be, in one sentence."""
    seconds = percentile([trial.to_ledger for trial in trials], 95)
    if seconds <= LIMIT_SECONDS:
        return None
    return (
        f"95 of 100 withdrawals took up to {seconds:.1f} seconds; {LIMIT_SECONDS:.0f} at most are wanted. The table of"
        " steps says where the time goes."
    )


def render(trials: Sequence[Trial], *, begun: datetime, load: float, runs: Mapping[str, int], command: str) -> str:
    """Return the section of the document.

    Args:
        begun: when the measurement began (UTC).
        load: the machine's load average before.
        runs: run type → number of runs of medflex_withdraw.
    """
    rows = {
        "until Medflex no longer shows the record": [trial.to_medflex for trial in trials],
        "until the ledger has the acknowledgement": [trial.to_ledger for trial in trials],
        "as the ledger keeps it": [trial.stored or 0.0 for trial in trials],
    }
    steps = {title: [trial.steps[name] for trial in trials if name in trial.steps] for name, title in STEPS.items()}
    told = ", ".join(f"{number} {name}" for name, number in runs.items())
    return "\n".join(
        [
            "## Time to withdraw",
            "",
            f"Written by `{command}`.",
            "",
            f"{len(trials)} patients refuse one after another in Medlock, {PAUSES[0]:g} to {PAUSES[1]:g} seconds apart"
            " (drawn evenly), while the whole stack of `make demo` runs: Airflow's scheduler, LocalExecutor and"
            " triggerer, 20,000 appointments, Medflex on the same machine. Measured from the return of the commit; the"
            f" sandbox Medflex is asked every {POLL_SECONDS * 1000:.0f} ms. What the ledger keeps counts from the"
            f" change stamp in Medlock. Runs of `{DAG_ID}`: {told}.",
            "",
            circumstances(begun, load),
            "",
            "| seconds | p50 | p95 | p99 | most |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(row(title, seconds) for title, seconds in rows.items()),
            "",
            f"The 95th percentile has to be below {LIMIT_SECONDS:.0f} seconds. Until the ledger has the"
            " acknowledgement:",
            "",
            "```text",
            *histogram([trial.to_ledger for trial in trials]),
            "```",
            "",
            "Where the time goes, each step from the end of the one before:",
            "",
            "| seconds until | p50 | p95 | p99 | most |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(row(title, seconds) for title, seconds in steps.items() if seconds),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
