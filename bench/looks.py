"""How long the looks for what may no longer be shared take at size: ``python -m bench.looks``.

Against a real Medlock, ledger and sandbox Medflex, without Airflow: what a run of ``medflex_withdraw`` and one of
``medflex_sweep`` do, each in a process of its own. The ledger's records are put there as a transfer of the same
appointments would leave them. Ends with 1 when a refusal waits for the search for deleted rows. With the default
number of appointments the figures also go to docs/benchmarks.md, and to bench/measured/looks.json for docs/capacity.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import psycopg

from bench.document import write_section
from bench.figures import circumstances, say
from bench.task import PROJECT
from bench.world import BenchError, World, started

APPOINTMENTS = 4_000_000
EDITED_SHARE = 8
"""Every so many-th appointment is edited within the two hours that a look goes back."""
LOOKS = 5
OUTPUT = PROJECT / "bench" / "measured" / "looks.json"
COUNTED_SECONDS = 30.0
"""So long Postgres is given to count a deletion."""

_SHARED = """
COPY (
    SELECT
        appointment.clinic_id, appointment.id, clinic.lpu_id, 1, 'sent', 1, 1, now() - interval '3 days',
        appointment.patient_id,
        (
            SELECT array_agg(link.partner_id) FROM medlock.clinic_partner AS link
            WHERE link.clinic_id = appointment.clinic_id AND link.enabled
        )
    FROM medlock.appointment
    JOIN medlock.clinic ON clinic.id = appointment.clinic_id
    JOIN medlock.patient ON patient.id = appointment.patient_id
    JOIN medlock.doctor ON doctor.id = appointment.doctor_id
    WHERE
        NOT appointment.is_anonymous AND NOT doctor.medflex_banned AND NOT patient.refused_personal_data
        AND NOT patient.refused_notifications AND NOT patient.refused_marketing
) TO STDOUT
"""
"""About what may be shared; the rest is found, and taken out again, by a first sweep."""
_RECORDS = """
COPY ledger.record (
    clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest, changed_at, patient_id, partner_ids
) FROM STDIN
"""
_LONG_AGO = "UPDATE medlock.appointment SET updated_at = now() - interval '3 days'"
_EDIT = """
UPDATE medlock.appointment SET updated_at = now() - interval '20 minutes' - random() * interval '1 hour'
WHERE id %% %s = 0
"""
_REFUSE = """
UPDATE medlock.patient SET refused_marketing = true, updated_at = now()
WHERE id = (SELECT patient_id FROM medlock.appointment WHERE id = %s)
"""


@dataclass(frozen=True)
class Look:
    """One look: seconds until it has withdrawn what it found, and how many records that were."""

    seconds: float
    withdrawn: int
    held: int
    sweep_is_due: bool


@dataclass
class Measured:
    """Seconds of looks; ``edits`` of appointments lie within two hours.

    quick: with nothing edited. beside: while a sweep goes on. far, near: with the edits, over all of them and over
    those of ten minutes.
    """

    appointments: int
    records: int
    edits: int = 0
    sweep: float = 0.0
    sweep_beside: float = 0.0
    quick: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    far: float = 0.0
    near: list[float] = field(default_factory=list)

    @property
    def per_record(self) -> float:
        """Seconds for each record that Medflex shows, of a search for deleted rows."""
        return self.sweep / self.records

    @property
    def per_edit(self) -> float:
        """Seconds for each edit, of a look over them."""
        return max(0.0, self.far - median(self.near)) / self.edits


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.looks", description=__doc__)
    parser.add_argument("--appointments", type=int, default=APPOINTMENTS, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.appointments < 10_000:
        parser.error("give at least 10,000 appointments")
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder, started(Path(folder)) as world:
            found = measure(world, options.appointments)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    text = render(found, begun=begun, load=load, command=f"python -m bench.looks --appointments {options.appointments}")
    print(text)
    if options.appointments == APPOINTMENTS:
        write_section("looks", text)
        OUTPUT.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    slow = waits(found)
    if slow:
        print(slow, file=sys.stderr)
    return 1 if slow else 0


def measure(world: World, appointments: int) -> Measured:
    """Fill both databases and look.

    Raises:
        BenchError: a look found something else than it should.
    """
    say(f"{appointments:,} appointments are generated and put into the ledger.")
    world.fill(appointments)
    world.forget()
    owner, ledger_uri = world.cluster.uri("medlock", "medlock_owner"), world.environment["AIRFLOW_CONN_MEDFLEX_LEDGER"]
    with (
        psycopg.connect(owner, autocommit=True) as medlock,
        psycopg.connect(ledger_uri, autocommit=True) as ledger,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes,
    ):

        def look(lane: str) -> Look:
            return processes.submit(_look, lane, world.environment, world.medflex.url, world.medflex.token).result()

        medlock.execute(_LONG_AGO)
        _copy(medlock, ledger)
        for connection in (medlock, ledger):
            connection.execute("VACUUM ANALYZE")
        look("quick")
        first = look("sweep_further")
        say(f"{first.held} records that may not be shared after all are taken out again.")
        ledger.execute(
            "DELETE FROM ledger.record USING ledger.hold, unnest(hold.appointment_ids) AS held (id)"
            " WHERE record.clinic_id = hold.clinic_id AND record.appointment_id = held.id"
        )
        ledger.execute("TRUNCATE ledger.hold, ledger.revocation")
        look("quick")
        (records,) = ledger.execute("SELECT count(*) FROM ledger.record WHERE state = 'sent'").fetchone() or (0,)
        found = Measured(appointments, records)
        ids = [
            row[0]
            for row in ledger.execute(
                # One of each patient: a refusal takes all of them.
                "SELECT min(appointment_id) FROM ledger.record WHERE state = 'sent' GROUP BY patient_id"
                " ORDER BY patient_id % 9973 LIMIT 1000"
            )
        ]

        def refusal(*, also_swept: bool = False) -> float:
            medlock.execute(_REFUSE, [ids.pop()])
            looked = look("quick")
            # A sweep may come first.
            if not (looked.withdrawn or also_swept) or looked.held:
                raise BenchError(f"A refusal should have been withdrawn, and {looked} came of it.")
            return looked.seconds

        refusal()  # The first one has all to read into memory.
        found.quick = [refusal() for _ in range(LOOKS)]
        say("Rows are deleted.")
        for beside in (False, True):
            _delete(medlock, ledger, ids.pop())
            if not beside:
                found.sweep = look("sweep_further").seconds
                continue
            sweep = processes.submit(_look, "sweep_further", world.environment, world.medflex.url, world.medflex.token)
            while not sweep.done():
                found.beside.append(refusal(also_swept=True))
            if not sweep.result().withdrawn:
                raise BenchError("The sweep has not found the deleted row.")
            found.sweep_beside = sweep.result().seconds
        found.edits = medlock.execute(_EDIT, [EDITED_SHARE]).rowcount
        say(f"{found.edits:,} appointments are edited.")
        medlock.execute("VACUUM ANALYZE medlock.appointment")
        # As after a day without a look that went far.
        ledger.execute("UPDATE ledger.watch SET value = '{}' WHERE name = 'consent'")
        found.far = refusal()
        found.near = [refusal() for _ in range(LOOKS)]
    return found


def _look(lane: str, environment: Mapping[str, str], url: str, token: str) -> Look:
    """Look as a task does, in this process; the time without its start."""
    from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings
    from medflex.airflow.hooks.medlock import Medlock
    from medflex.airflow.withdrawing import Withdrawer
    from medflex.clock import SystemClock
    from medflex.ledger.store import Ledger

    settings = MedflexSettings(base_url=url, token=token, rate_per_second=0.0)
    with (
        Medlock(environment["AIRFLOW_CONN_MEDLOCK_DB"]) as medlock,
        Ledger(environment["AIRFLOW_CONN_MEDFLEX_LEDGER"]) as ledger,
    ):
        begun = time.monotonic()
        result = getattr(
            Withdrawer(
                client=MedflexClient(settings),
                medlock=medlock,
                ledger=ledger,
                clock=SystemClock(),
                holder=lane,
                run_key=None,
            ),
            lane,
        )()
        return Look(
            time.monotonic() - begun, result.total("withdrawn"), result.total("held"), bool(result.sweep_is_due)
        )


def _copy(medlock: psycopg.Connection, ledger: psycopg.Connection) -> None:
    with medlock.cursor().copy(_SHARED.encode()) as source, ledger.cursor().copy(_RECORDS.encode()) as target:
        for part in source:
            target.write(part)


def _delete(medlock: psycopg.Connection, ledger: psycopg.Connection, appointment_id: int) -> None:
    """Delete an appointment, wait until Postgres has counted it, and let the last sweep lie long ago."""
    counted = "SELECT pg_stat_get_tuples_deleted('medlock.appointment'::regclass)"
    before = medlock.execute(counted).fetchone()
    with psycopg.connect(medlock.info.dsn, password=medlock.info.password, autocommit=True) as other:
        other.execute("DELETE FROM medlock.appointment WHERE id = %s", [appointment_id])
    deadline = time.monotonic() + COUNTED_SECONDS
    while medlock.execute(counted).fetchone() == before:
        if time.monotonic() > deadline:
            raise BenchError(f"Postgres has not counted a deletion within {COUNTED_SECONDS:.0f} seconds.")
        time.sleep(0.1)
    ledger.execute("UPDATE ledger.watch SET looked_at = looked_at - interval '1 day' WHERE name = 'sweep'")


def waits(found: Measured) -> str | None:
    """Return whether a refusal waits for the sweep, in one sentence."""
    slowest = max(found.beside)
    if slowest < found.sweep_beside / 2:
        return None
    return (
        f"A look for refusals took {slowest:.1f} s while a sweep of {found.sweep_beside:.1f} s went on: it seems to"
        " have waited for it. Give more appointments if the sweep was that short."
    )


def render(found: Measured, *, begun: datetime, load: float, command: str) -> str:
    """Return the section of the document.

    Args:
        begun: when the measurement began (UTC).
        load: the machine's load average before.
    """
    rows: dict[str, Sequence[float]] = {
        "search for deleted rows: all records are looked up": [found.sweep],
        "the same with looks for refusals beside it": [found.sweep_beside],
        "look for refusals, nothing else has changed": found.quick,
        "look for refusals while the search goes on": found.beside,
        f"look over {found.edits:,} edits of two hours": [found.far],
        "the looks after it, over edits of ten minutes": found.near,
    }
    return "\n".join(
        [
            "## Looks for revocations at size",
            "",
            f"Written by `{command}`.",
            "",
            f"{found.appointments:,} appointments in the window, of which Medflex shows {found.records:,}. Each look"
            " finds a patient's refusal or a deleted row and ends with Medflex's acknowledgement; without the start of"
            " a process and without Airflow. The search for deleted rows is a DAG of its own (`medflex_sweep`); before"
            " it was, a refusal waited for all of it.",
            "",
            circumstances(begun, load),
            "",
            "| seconds | times | median | most |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {title} | {len(seconds)} | {median(seconds):.2f} | {max(seconds):.2f} |"
                for title, seconds in rows.items()
            ),
            "",
            f"{1e6 * found.per_record:.1f} µs per record for the search, {1e6 * found.per_edit:.1f} µs per edit for a"
            " look over them.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
