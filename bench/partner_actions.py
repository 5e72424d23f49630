"""How long partners' actions take to reach Medlock, and how many are worked off: ``python -m bench.partner_actions``.

First a whole Airflow as ``make demo`` starts it, in a folder of its own, with the default schedule: partners confirm at
random moments. Then the same steps without Airflow work off a queue of a mix of actions, beside the bare minimum: one
transaction that locks and changes an appointment and notes it, and one request that answers. Ends with 1 when the 95th
percentile is above three minutes, or fewer than 100 actions a second are worked off. With the default numbers the
figures also go to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import requests

from bench.document import write_section
from bench.figures import circumstances, histogram, percentile, read, row, say
from bench.withdrawals import started
from bench.world import BenchError
from sandbox.medflex.control import Control
from sandbox.partners import Partners
from sandbox.stack import Stack

TRIALS = 100
ACTIONS = 10_000
LIMIT_SECONDS = 180.0
"""The 95th percentile has to be below this."""
LIMIT_RATE = 100.0
"""So many actions a second have to be worked off at least."""
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 900.0
PAUSES = (0.5, 12.0)
"""Seconds between two actions, drawn evenly."""
DAG_ID = "medflex_partner_actions"
RUN = "bench"


@dataclass
class Trial:
    """One confirmation. Times in seconds since 1970 (UTC) by this machine's clock; None: not yet."""

    lpu_id: int
    appointment_id: int
    partner_id: int
    version: int
    action_id: str = ""
    asked: float = 0.0
    changed: float | None = None
    answered: float | None = None


@dataclass(frozen=True)
class Backlog:
    """How long each step took for so many actions, in seconds; the bare minimum beside it."""

    actions: int
    deliveries: int
    read: float
    apply: float
    answer: float
    bare_transactions: float
    bare_requests: float
    decisions: dict[str, int]

    @property
    def seconds(self) -> float:
        """All three steps, one after the other."""
        return self.read + self.apply + self.answer

    @property
    def rate(self) -> float:
        """Actions per second."""
        return self.actions / self.seconds


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.partner_actions", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS, help="confirmations (default: %(default)s)")
    parser.add_argument("--actions", type=int, default=ACTIONS, help="actions to work off (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of appointments, actions and moments")
    options = parser.parse_args(arguments)
    if options.trials < 2 or options.actions < 100:
        parser.error("give at least two trials and a hundred actions")
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    command = f"python -m bench.partner_actions --trials {options.trials} --actions {options.actions}"
    command += f" --seed {options.seed}"
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder, started(Path(folder)) as stack:
            trials = measure(stack, options.trials, random.Random(options.seed))
            backlog = work_off(stack, options.actions, options.seed)
            text = render(trials, backlog, begun=begun, load=load, command=command)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    if (options.trials, options.actions) == (TRIALS, ACTIONS):
        write_section("partner actions", text)
    failures = too_slow(trials, backlog)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def measure(stack: Stack, number: int, chance: random.Random) -> list[Trial]:
    """Let partners confirm one appointment after another, and wait for each change and each answer.

    Raises:
        BenchError: a change has not come within GIVE_UP_SECONDS.
    """
    trials = chosen(stack, number, chance)
    to_come, waiting, done = list(trials), list[Trial](), 0
    due = time.monotonic()
    with (
        psycopg.connect(stack.medlock_owner(), autocommit=True) as medlock,
        Control(stack.control_url) as control,
    ):
        while to_come or waiting:
            looked = time.monotonic()
            if to_come and looked >= due:
                trial = to_come.pop(0)
                trial.asked = time.time()
                (trial.action_id,) = control.add_actions(
                    [
                        {
                            "type": "confirm",
                            "lpu_id": trial.lpu_id,
                            "appointment_id": trial.appointment_id,
                            "partner_id": trial.partner_id,
                            "base_version": trial.version,
                        }
                    ]
                )
                waiting.append(trial)
                due = looked + chance.uniform(*PAUSES)
            confirmed = medlock.execute(
                "SELECT id FROM medlock.appointment WHERE status = 'confirmed' AND id = ANY(%s)",
                [[trial.appointment_id for trial in waiting]],
            ).fetchall()
            results = control.results() if any(trial.changed and not trial.answered for trial in waiting) else {}
            now = time.time()
            for trial in waiting:
                if trial.changed is None and (trial.appointment_id,) in confirmed:
                    trial.changed = now
                if trial.changed is not None and trial.answered is None and trial.action_id in results:
                    trial.answered = now
                    done += 1
                    say(f"{done:4} of {number}: {trial.changed - trial.asked:6.1f} s")
            waiting = [trial for trial in waiting if trial.answered is None]
            if waiting and time.time() - waiting[0].asked > GIVE_UP_SECONDS:
                raise BenchError(f"A confirmation has not come back within {GIVE_UP_SECONDS:.0f} seconds.")
            time.sleep(max(0.0, looked + POLL_SECONDS - time.monotonic()))
    return trials


def chosen(stack: Stack, number: int, chance: random.Random) -> list[Trial]:
    """Unconfirmed appointments of the coming days that Medflex shows, in random order.

    Raises:
        BenchError: there are not so many.
    """
    found = read(
        stack.medlock_owner(),
        "SELECT id FROM medlock.appointment WHERE status = 'unconfirmed' AND starts_at > now() + interval '1 day'",
    )
    ids = {id_ for (id_,) in found}
    with Control(stack.control_url) as control:
        shown = [
            Trial(lpu_id, id_, record["partners"][0], record["version"])
            for (lpu_id, id_), record in control.records().items()
            if id_ in ids
        ]
    if len(shown) < number:
        raise BenchError(f"Medflex shows {len(shown)} unconfirmed appointments only, {number} trials were asked for.")
    return chance.sample(sorted(shown, key=lambda trial: trial.appointment_id), number)


def work_off(stack: Stack, number: int, seed: int) -> Backlog:
    """Put a mix of actions into the queue and work it off, each step by itself; Airflow looks on."""
    from medflex.airflow.acting import ActionReader, Actor, Answerer
    from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings
    from medflex.airflow.hooks.medlock_actions import MedlockActions
    from medflex.clock import SystemClock
    from medflex.ledger.store import Ledger

    _pause_when_idle(stack)
    settings = MedflexSettings(base_url=stack.medflex_url, token=stack.token, rate_per_second=0)
    with (
        Control(stack.control_url) as control,
        Ledger(stack.ledger()) as ledger,
        MedlockActions(stack.cluster.uri("medlock", "medlock_actions")) as medlock,
    ):
        partners = Partners(seed=seed, hostile=0.05, repeat=0.1, disorder=0.1)
        now = datetime.now(UTC)
        partners.look(control.records(), now)
        made = [delivery.action for delivery in partners.deliveries(number, now)]
        for start in range(0, number, 500):
            control.add_actions(made[start : start + 500], unchecked=True)
        client, clock = MedflexClient(settings), SystemClock()
        before = read(stack.ledger(), "SELECT count(*) FROM ledger.partner_action")[0][0]
        begin = time.perf_counter()
        ActionReader(client=client, ledger=ledger, clock=clock).read(RUN)
        have_read = time.perf_counter()
        actor = Actor(
            medlock=medlock,
            ledger=ledger,
            clock=clock,
            digest_key=str(stack.setting("digest key", str)).encode(),
            run_id=RUN,
        )
        applied = actor.apply()
        have_applied = time.perf_counter()
        answered = Answerer(client=client, ledger=ledger, clock=clock).answer(RUN)
        have_answered = time.perf_counter()
        if applied.problems or answered.problems:
            raise BenchError(f"Not all was worked off: {[*applied.problems, *answered.problems][0]}")
        actions = read(stack.ledger(), "SELECT count(*) FROM ledger.partner_action")[0][0] - before
    by_reason: Counter[str] = Counter()
    for (_, reason), count in applied.rulings.items():
        by_reason[reason] += count
    return Backlog(
        actions=actions,
        deliveries=number,
        read=have_read - begin,
        apply=have_applied - have_read,
        answer=have_answered - have_applied,
        bare_transactions=_bare_transactions(stack, actions),
        bare_requests=_bare_requests(stack, actions),
        decisions=dict(by_reason.most_common()),
    )


def _pause_when_idle(stack: Stack) -> None:
    """Pause the DAG between two runs: the run of a paused DAG does not come to its end."""
    airflow, deadline = stack.airflow(), time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        if not _is_running(stack):
            airflow.pause(DAG_ID)
            if not _is_running(stack):
                return
            airflow.unpause(DAG_ID)
        time.sleep(1)
    raise BenchError(f"A run of {DAG_ID} does not come to its end.")


def _is_running(stack: Stack) -> bool:
    return bool(
        read(
            stack.cluster.uri("airflow", "airflow"),
            "SELECT 1 FROM dag_run WHERE dag_id = %s AND state IN ('queued', 'running')",
            [DAG_ID],
        )
    )


def _bare_transactions(stack: Stack, number: int) -> float:
    """Seconds for so many transactions that lock an appointment, set its status to what it is, and note it."""
    with psycopg.connect(stack.medlock_owner(), autocommit=True) as connection:
        connection.execute("CREATE TABLE medlock.bench (id uuid PRIMARY KEY, at timestamptz)")
        ids = [id_ for (id_,) in connection.execute("SELECT id FROM medlock.appointment LIMIT %s", [number])]
        begin = time.perf_counter()
        for place in range(number):
            id_ = ids[place % len(ids)]
            with connection.transaction():
                connection.execute("SELECT id FROM medlock.appointment WHERE id = %s FOR NO KEY UPDATE", [id_])
                connection.execute("UPDATE medlock.appointment SET status = status WHERE id = %s", [id_])
                connection.execute("INSERT INTO medlock.bench VALUES (%s, clock_timestamp())", [uuid.uuid4()])
        seconds = time.perf_counter() - begin
        connection.execute("DROP TABLE medlock.bench")
    return seconds


def _bare_requests(stack: Stack, number: int) -> float:
    """Seconds for so many answers by a bare client, one after the other: the same one each time."""
    with Control(stack.control_url) as control:
        action_id, result = next(iter(control.results().items()))
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {stack.token}"
        begin = time.perf_counter()
        for _ in range(number):
            session.post(f"{stack.medflex_url}/actions/{action_id}/result/", json=result, timeout=60)
        return time.perf_counter() - begin


def too_slow(trials: Sequence[Trial], backlog: Backlog) -> list[str]:
    """Return what is not as it has to be, a sentence each."""
    failures = []
    seconds = percentile(_changes(trials), 95)
    if seconds > LIMIT_SECONDS:
        failures.append(f"95 of 100 actions took up to {seconds:.1f} seconds; {LIMIT_SECONDS:.0f} at most are wanted.")
    if backlog.rate < LIMIT_RATE:
        failures.append(f"{backlog.rate:.0f} actions a second were worked off; {LIMIT_RATE:.0f} at least are wanted.")
    return failures


def render(trials: Sequence[Trial], backlog: Backlog, *, begun: datetime, load: float, command: str) -> str:
    """Return the section of the document; ``begun`` and ``load`` as for ``circumstances``."""
    changes = _changes(trials)
    answers = [trial.answered - trial.asked for trial in trials if trial.answered is not None]
    bare = backlog.bare_transactions + backlog.bare_requests
    steps = {
        "read into the ledger": (backlog.read, None),
        "decided and carried out": (backlog.apply, backlog.bare_transactions),
        "answered": (backlog.answer, backlog.bare_requests),
        "all, one after the other": (backlog.seconds, bare),
    }
    decisions = ", ".join(f"{count:,} `{reason}`" for reason, count in backlog.decisions.items())
    return "\n".join(
        [
            "## Partner actions",
            "",
            f"Written by `{command}`.",
            "",
            circumstances(begun, load),
            "",
            f"{len(trials)} appointments are confirmed by partners, {PAUSES[0]:g} to {PAUSES[1]:g} seconds apart (drawn"
            f" evenly), while the whole stack of `make demo` runs with the default schedule of `{DAG_ID}`, every two"
            " minutes. Measured from the moment at which Medflex has the action; Medlock is asked every"
            f" {POLL_SECONDS * 1000:.0f} ms.",
            "",
            "| seconds | p50 | p95 | p99 | most |",
            "| --- | ---: | ---: | ---: | ---: |",
            row("until Medlock's row is changed", changes),
            row("until Medflex has the answer", answers),
            "",
            f"The 95th percentile of the first has to be below {LIMIT_SECONDS:.0f} seconds:",
            "",
            "```text",
            *histogram(changes),
            "```",
            "",
            f"A queue of {backlog.deliveries:,} deliveries ({backlog.actions:,} actions, the rest repetitions), a"
            " mix of all types with some out of order and some hostile, worked off by one process of each step without"
            " a limit of the rate, Airflow idle beside it. The bare minimum is a transaction that locks and updates an"
            " appointment and inserts a row, and a request with the answer, one after the other.",
            "",
            "| step | seconds | actions a second | times the bare minimum |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {title} | {seconds:.1f} | {backlog.actions / seconds:,.0f} |"
                f" {'–' if floor is None else f'{seconds / floor:.1f}'} |"
                for title, (seconds, floor) in steps.items()
            ),
            "",
            f"At least {LIMIT_RATE:.0f} a second are wanted. Decisions: {decisions}.",
            "",
        ]
    )


def _changes(trials: Sequence[Trial]) -> list[float]:
    return [trial.changed - trial.asked for trial in trials if trial.changed is not None]


if __name__ == "__main__":
    sys.exit(main())
