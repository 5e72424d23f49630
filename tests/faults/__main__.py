"""``python -m tests.faults 100000``: play that many fault schedules and print what happened and what was violated.

``python -m tests.faults --seed 17``: play one, print its trace. ``--shrink 17``: cut it down to what it takes to fail.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT)]

from sandbox.postgres import Cluster  # noqa: E402 - the product is not installed but on this path
from tests.faults.campaign import make_databases, play_many, play_one  # noqa: E402


def main() -> int:
    """Play the seeds that the command line asks for; 1 if any invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="?", default=0, help="how many schedules to play")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long (0: when all are played)")
    parser.add_argument("--seed", type=int, help="play this one and print its trace")
    parser.add_argument("--shrink", type=int, help="cut this one down to what it takes to fail")
    given = parser.parse_args()
    # Whoever stops this gets its Postgres stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="medflex-faults-", dir=_memory()) as folder:
        # Postgres runs as another user, which must be able to pass.
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder) / "postgres", durable=False)
        cluster.start()
        try:
            make_databases(cluster)
            if given.seed is not None or given.shrink is not None:
                return play_one(cluster, given.seed, given.shrink)
            return play_many(cluster, given.first, given.seeds, given.processes, given.minutes)
        finally:
            cluster.stop()


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of our own in memory


if __name__ == "__main__":
    sys.exit(main())
