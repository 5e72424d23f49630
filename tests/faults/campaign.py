"""Many schedules at once: databases, processes, counts."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psycopg

from sandbox.medlock import LOGINS
from sandbox.postgres import Cluster
from tests.faults.events import make_schedule
from tests.faults.play import Outcome, Stage, play
from tests.faults.shrink import shrink, source

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 10
_stage: Stage


def make_databases(cluster: Cluster) -> None:
    """Make the templates that every process copies: a Medlock without rows, a ledger without rows."""
    for role in ("medlock_owner", *LOGINS, "ledger_owner"):
        cluster.create_role(role)
    cluster.create_database("medlock", "medlock_owner")
    with psycopg.connect(cluster.uri("medlock", "medlock_owner")) as connection:
        connection.execute((ROOT / "sandbox/medlock/schema.sql").read_text().encode())
    cluster.create_database("ledger", "ledger_owner")
    subprocess.run(
        [sys.executable, "-m", "medflex.ledger.migrate"],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT / "plugins"),
            "AIRFLOW_CONN_MEDFLEX_LEDGER": cluster.uri("ledger", "ledger_owner"),
        },
        check=True,
    )


def open_stage(cluster: Cluster, number: int) -> Stage:
    """A stage with databases of its own."""
    medlock, ledger = f"medlock_{number}", f"ledger_{number}"
    cluster.create_database(medlock, "medlock_owner", template="medlock")
    cluster.allow(medlock, "medlock_app")
    cluster.create_database(ledger, "ledger_owner", template="ledger")
    return Stage(
        cluster.uri(medlock, "medlock_owner"),
        cluster.uri(medlock, "medlock_app"),
        cluster.uri(ledger, "ledger_owner"),
        cluster.uri("postgres"),
    )


def play_one(cluster: Cluster, seed: int | None, to_shrink: int | None) -> int:
    """Play one schedule, cut it down if that is asked for, and print it with its trace; 1 if it fails."""
    logging.disable(logging.CRITICAL)
    with open_stage(cluster, 0) as stage:
        schedule = make_schedule(seed if seed is not None else int(to_shrink or 0))
        outcome = play(stage, schedule, thorough=True)
        if to_shrink is not None and outcome.violations:
            broken = {violation.invariant for violation in outcome.violations}

            def fails(candidate: object) -> bool:
                found = play(stage, candidate, thorough=True).violations  # type: ignore[arg-type]
                return bool(broken & {violation.invariant for violation in found})

            schedule = shrink(schedule, fails)
            outcome = play(stage, schedule, thorough=True)
        _print_outcome(source(schedule), outcome)
    return bool(outcome.violations)


def _print_outcome(title: str, outcome: Outcome) -> None:
    _say(title)
    _say("\n".join(outcome.trace))
    for violation in outcome.violations:
        _say(f"VIOLATED {violation.invariant}: {violation.text}")


def play_many(cluster: Cluster, first: int, number: int, processes: int, minutes: float) -> int:
    """Play so many schedules in several processes and print what happened; 1 if any has failed."""
    seeds = range(first, first + number)
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    counts: Counter[str] = Counter()
    violated: dict[str, list[int]] = defaultdict(list)
    began = told = time.monotonic()
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for process in range(processes):
        numbers.put(process)
    with context.Pool(processes, _begin, (cluster.data_dir, numbers)) as pool:
        for of_chunk, failures in pool.imap_unordered(_play_chunk, chunks):
            counts += of_chunk
            for seed, outcome in failures:
                for invariant in sorted({violation.invariant for violation in outcome.violations}):
                    violated[invariant].append(seed)
                _print_outcome(f"\nSeed {seed} (replay: python -m tests.faults --seed {seed})", outcome)
            now = time.monotonic()
            if now - told > 10:
                told = now
                each = (now - began) / counts["schedules"] * 1000
                bad = len({seed for found in violated.values() for seed in found})
                _say(f"{counts['schedules']} of {number} schedules, {each:.0f} ms each, {bad} failed")
            if minutes and now - began > minutes * 60:
                break
    _print_counts(counts, violated, time.monotonic() - began)
    return bool(violated)


def _print_counts(counts: Counter[str], violated: dict[str, list[int]], seconds: float) -> None:
    _say(f"\n{counts['schedules']} schedules in {seconds:.0f} s")
    for name in sorted(counts):
        _say(f"  {name:<32} {counts[name]:>10}")
    for invariant in ("I1", "I2", "I3", "I4", "I6", "error"):
        found = violated.get(invariant, [])
        shown = f" (seeds {', '.join(map(str, found[:20]))})" if found else ""
        _say(f"violations of {invariant:<6} {len(found):>8}{shown}")


def _begin(data_dir: Path, numbers: multiprocessing.Queue[int]) -> None:
    global _stage
    logging.disable(logging.CRITICAL)
    _stage = open_stage(Cluster(data_dir, durable=False), numbers.get())
    # What is imported stays: looking through it for garbage again and again takes a tenth of the time.
    gc.freeze()


def _play_chunk(seeds: range) -> tuple[Counter[str], list[tuple[int, Outcome]]]:
    counts: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        # A second quiet run and a search for names in one schedule of five; they find little and take long.
        outcome = play(_stage, make_schedule(seed), thorough=seed % 5 == 0)
        counts += outcome.counts
        if outcome.violations:
            failures.append((seed, Outcome(outcome.violations, outcome.trace)))
    return counts, failures


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
