"""How long the pages take with 20,000 clinics and 90 days of runs: ``python -m bench.pages``.

A whole Airflow as ``make demo`` starts it, in a folder of its own, with a crowd in Medlock and in the ledger; headless
Chromium opens each page as itself, until it is complete with all it loads. Beside it the same app's page that says that
there is no such clinic: what log-in, template and style cost without any data. Ends with 1 when a page takes longer
than a second. With the default numbers the figures also go to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from bench.crowd import fill, fill_medlock
from bench.document import write_section
from bench.figures import circumstances, read, say
from bench.world import BenchError
from sandbox.browser import BrowserError, chromium, session
from sandbox.stack import DAG_ID, Stack

CLINICS, DAYS, REPEATS = 20_000, 90, 5
LIMIT_SECONDS = 1.0
"""Each page has to be complete within this."""
FLOOR = "no such clinic"
NOT_AIRFLOW = ("scheduler", "dag-processor", "triggerer")
_SIZE = "() => performance.getEntriesByType('navigation')[0].decodedBodySize"
_COMPLETE = "() => performance.getEntriesByType('navigation')[0].loadEventEnd"


@dataclass(frozen=True)
class Timed:
    """A page's times in seconds, from asking for it until it was complete, in the order of the looks."""

    name: str
    seconds: tuple[float, ...]
    size: int


def pages(run_id: str) -> dict[str, str]:
    """Name → address of each page, those with the most to show among them."""
    from urllib.parse import urlencode

    run = urlencode({"dag_id": DAG_ID, "run_id": run_id})
    return {
        "clinics": "/medflex/clinics",
        "clinics, searched": "/medflex/clinics?q=7&state=open",
        "clinics, by share held back": "/medflex/clinics?sort=withheld&order=desc&page=200",
        "one clinic": "/medflex/clinics/1",
        "runs": "/medflex/runs",
        "a run": f"/medflex/runs/view?{run}",
        "a run's shard": f"/medflex/runs/view?{run}&shard=7",
        "withdrawals": "/medflex/withdrawals",
        "partner actions": "/medflex/actions",
        "quality": "/medflex/quality",
        FLOOR: "/medflex/clinics/999999999",
    }


def measure(stack: Stack, repeats: int) -> list[Timed]:
    """Open each page so many times; between two looks at the same page the others are looked at, so that nothing that
    is kept for some seconds is there still.
    """
    newest = "SELECT run_id FROM ledger.run WHERE dag_id = %s ORDER BY started_at DESC LIMIT 1"
    (run_id,) = read(stack.ledger(), newest, [DAG_ID])[0]
    addresses = pages(run_id)
    seconds: dict[str, list[float]] = {name: [] for name in addresses}
    sizes: dict[str, int] = {}
    with chromium() as browser, session(browser, stack.url, "viewer", stack.passwords()["viewer"]) as context:
        page = context.new_page()
        for number in range(repeats + 1):
            for name, address in addresses.items():
                answer = page.goto(address, wait_until="networkidle")
                if answer is None or answer.status != (404 if name == FLOOR else 200):
                    raise BenchError(f"The page {name} answered {answer.status if answer else 'nothing'}.")
                sizes[name] = page.evaluate(_SIZE)
                if number:  # the first look brings the server's imports and the reader's language
                    seconds[name].append(page.evaluate(_COMPLETE) / 1000)
            say(f"  {number} of {repeats}")
    return [Timed(name, tuple(times), sizes[name]) for name, times in seconds.items()]


def too_slow(timed: Sequence[Timed]) -> str | None:
    """Return one sentence if the limit was not kept."""
    slow = [one.name for one in timed if max(one.seconds) > LIMIT_SECONDS]
    return f"Not complete within {LIMIT_SECONDS:.0f} s: {', '.join(slow)}." if slow else None


def render(timed: Sequence[Timed], *, clinics: int, days: int, begun: datetime, load: float, command: str) -> str:
    """Return the figures as the section of docs/benchmarks.md."""
    floor = statistics.median(next(one for one in timed if one.name == FLOOR).seconds)
    lines = [
        f"`{command}`",
        "",
        circumstances(begun, load),
        "",
        f"{clinics:,} clinics in Medlock, {days} days of runs of as many clinics in the ledger. From asking for a page"
        " until all of it is there, in headless Chromium on the same machine; the first look is not counted.",
        "",
        "| page | KB | median, ms | most, ms | times the empty page |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in timed:
        median = statistics.median(one.seconds)
        lines.append(
            f"| {one.name} | {one.size / 1000:.0f} | {median * 1000:.0f} | {max(one.seconds) * 1000:.0f}"
            f" | {median / floor:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument(
        "--clinics", type=int, default=CLINICS, help="in Medlock and in each run (default: %(default)s)"
    )
    parser.add_argument("--days", type=int, default=DAYS, help="with a run each (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="looks at each page (default: %(default)s)")
    options = parser.parse_args(arguments)
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    command = f"python -m bench.pages --clinics {options.clinics} --days {options.days} --repeats {options.repeats}"
    with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder:
        stack = Stack(Path(folder) / "stack", say=say)
        try:
            stack.start(appointments=1)
            stack.services.stop(list(NOT_AIRFLOW))
            for title, uri, part in (
                ("Medlock", stack.medlock_owner(), lambda uri: fill_medlock(uri, options.clinics)),
                ("ledger", stack.ledger(), lambda uri: fill(uri, options.clinics, options.days)),
            ):
                started = time.monotonic()
                part(uri)
                with psycopg.connect(uri) as connection:
                    size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
                say(f"  {title} filled in {time.monotonic() - started:.0f} s: {size[0] / 1e9 if size else 0:.1f} GB")
            timed = measure(stack, options.repeats)
        except (BenchError, BrowserError) as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            stack.stop()
    text = render(timed, clinics=options.clinics, days=options.days, begun=begun, load=load, command=command)
    print(text)
    if (options.clinics, options.days, options.repeats) == (CLINICS, DAYS, REPEATS):
        write_section("pages", text)
    late = too_slow(timed)
    if late:
        print(late, file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
