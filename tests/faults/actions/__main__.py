"""``python -m tests.faults.actions --actions 10000 --seed 0``: a storm of so many partner actions, and what it came to.

``--trace``: print all that happened.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT)]

from sandbox.postgres import Cluster  # noqa: E402 - the product is not installed but on this path
from tests.faults.actions.ground import open_ground  # noqa: E402
from tests.faults.actions.storm import Outcome, rage  # noqa: E402
from tests.faults.campaign import make_databases  # noqa: E402


def main() -> int:
    """Let storms rage as the command line asks; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.actions", description=__doc__)
    parser.add_argument("--actions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many storms, with this seed and the next ones")
    parser.add_argument("--trace", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    # Whoever stops this gets its Postgres stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = False
    with tempfile.TemporaryDirectory(prefix="medflex-storm-", dir=_memory()) as folder:
        # Postgres runs as another user, which must be able to pass.
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder) / "postgres", durable=False)
        cluster.start()
        try:
            make_databases(cluster)
            ground = open_ground(cluster, "medlock", "ledger")
            with ground.stage:
                for seed in range(given.seed, given.seed + given.seeds):
                    began = time.monotonic()
                    outcome = rage(ground, seed, given.actions)
                    _print(seed, outcome, time.monotonic() - began, given.trace)
                    failed |= bool(outcome.violations)
        finally:
            cluster.stop()
    return failed


def _print(seed: int, outcome: Outcome, seconds: float, trace: bool) -> None:
    if trace:
        _say("\n".join(outcome.trace))
    decided = sum(outcome.reasons.values())
    _say(f"seed {seed}: {decided} actions in {seconds:.0f} s, {seconds / max(decided, 1) * 1000:.1f} ms each")
    for title, counts in (
        ("decisions", outcome.reasons),
        ("what was odd about actions", outcome.odd),
        ("edits of the clinics", outcome.edits),
        ("what happened", outcome.counts),
    ):
        _say(f"  {title}: {_listed(counts)}")
    _say(f"  violations: {len(outcome.violations)}")
    for violation in outcome.violations:
        _say(f"    {violation}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(
        f"{name} {number}" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of our own in memory


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
