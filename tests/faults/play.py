"""Plays a schedule and has it judged."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from sandbox.medflex.engine import Engine
from sandbox.medflex.faults import Fault, FaultKind, Match, Params
from sandbox.medflex.store import Store
from tests.faults import product
from tests.faults.events import Event, Schedule
from tests.faults.judge import Judge, Violation
from tests.faults.machine import BASE_URL, STEP_SECONDS, TOKEN, Connections, FakeClock, Machine, Process
from tests.faults.medlock import JUNK_PHONES, Medlock, digits_of, typed

BEGINNING = datetime(2027, 3, 10, tzinfo=UTC)
LEDGER_TABLES_KEPT = ("schema_version",)


@dataclass
class Outcome:
    """What a schedule came to."""

    violations: list[Violation]
    trace: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    now: datetime | None = None


class Stage:
    """The two databases and the store of Medflex, used for one schedule after the other.

    Args:
        medlock_owner: connection string of a Medlock that may be emptied; ``medlock``: the product's to the same.
        ledger: connection string of a migrated ledger that may be emptied.
        admin: a superuser's connection string to the same server.
    """

    def __init__(self, medlock_owner: str, medlock: str, ledger: str, admin: str) -> None:
        self.owner = psycopg.connect(medlock_owner, autocommit=True)
        self.ledger = psycopg.connect(ledger, autocommit=True)
        self._admin = psycopg.connect(admin, autocommit=True)
        self.connections = Connections(medlock, ledger, self._admin)
        memory = Path("/dev/shm")  # noqa: S108 - memory if there is any, else a folder of our own
        self._folder = Path(tempfile.mkdtemp(prefix="medflex-faults-", dir=memory if memory.is_dir() else None))
        self.store = Store(self._folder)
        self.medlock = Medlock(self.owner)
        tables = self.ledger.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'").fetchall()
        names = sorted({name for (name,) in tables} - set(LEDGER_TABLES_KEPT))
        self._ledger_tables = names
        # Children before their parents.
        self._empty_ledger = ";".join(
            f"DELETE FROM ledger.{name}" for name in sorted(names, key=lambda name: (name == "run", name))
        ).encode()
        self._played = 0

    def empty(self) -> None:
        """Make ledger and Medflex new; Medlock is filled by the schedule."""
        with self.ledger.transaction():
            self.ledger.execute(self._empty_ledger)
        self.store.clear()
        self._played += 1
        if self._played % 100 == 0:
            for name in self._ledger_tables:
                self.ledger.execute(f"VACUUM ledger.{name}".encode())
            for name in self.medlock.rows:
                self.owner.execute(f"VACUUM medlock.{name}".encode())

    def close(self) -> None:
        """Close all connections and remove the store."""
        self.connections.close()
        self.store.close()
        for connection in (self.owner, self.ledger, self._admin):
            connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def play(stage: Stage, schedule: Schedule, *, thorough: bool = False) -> Outcome:
    """Play a schedule to its end, heal everything, make one quiet run, and judge.

    thorough: also search the ledger for names and phones, and make a second quiet run, which must write nothing.
    """
    return Play(stage, schedule).to_the_end(thorough)


class Play:
    """One schedule being played; ``do_<name>`` is what an event does."""

    def __init__(self, stage: Stage, schedule: Schedule) -> None:
        # The product's jitter is random; the same dice make it the same.
        random.seed(schedule.dice)
        self.stage, self.schedule = stage, schedule
        self.clock = FakeClock(BEGINNING + timedelta(hours=schedule.hour))
        stage.empty()
        stage.medlock.fill(schedule.clinics, self.clock.now())
        self.medlock = stage.medlock
        self.engine = Engine(stage.store, TOKEN, clock=self.clock.monotonic, wall=self.clock.now)
        numbers = range(1, len(schedule.clinics) + 1)
        stage.store.put_clinics([(lpu, "clinic", 180) for n in numbers for lpu in (7000 + n, 7100 + n)])
        self.machine = Machine(stage.connections, self.engine, self.clock)
        self.machine.settings = {"batch_size": schedule.batch_size, "rate_per_second": schedule.rate}
        self.machine.ignores_versions = schedule.ignore_versions
        self.judge = Judge(self.machine, self.medlock, stage.store)
        self._new = 0
        self._fired: Counter[str] = Counter()
        self._bend()

    def __enter__(self) -> Play:
        self._patched = self.machine.patched(light=self.schedule.dice % 8 != 0)
        self._patched.__enter__()
        self.judge.look()
        return self

    def __exit__(self, *error: Any) -> None:
        self._patched.__exit__(*error)

    def to_the_end(self, thorough: bool) -> Outcome:
        """Let everything happen and judge."""
        with self:
            for event in self.schedule.events:
                self.happen(event)
            return self.finish(thorough)

    def finish(self, thorough: bool = False) -> Outcome:
        """Heal everything, make one quiet run, and judge."""
        machine, judge = self.machine, self.judge
        self._heal_all()
        shown = judge.shown()
        self._quiet_run("quiet")
        if self.schedule.late_last:
            machine.note(f"{self.engine.deliver_all()} late writes arrive")
            if self.schedule.ignore_versions:
                self._quiet_run("quiet again")
        judge.judge_end(self.stage.ledger, shown, self.schedule.ignore_versions)
        if thorough:
            judge.judge_personal_data(self.stage.ledger)
            writes = judge.writes
            self._quiet_run("second quiet")
            if judge.writes != writes:
                judge.blame("I2", "a second quiet run writes")
            judge.judge_end(self.stage.ledger, {}, self.schedule.ignore_versions)
        machine.counts["schedules"] += 1
        machine.counts.update({f"fault {kind}": number for kind, number in self._fired.items()})
        return Outcome(judge.violations, machine.trace, machine.counts, self.clock.now())

    def happen(self, event: Event) -> None:
        """Let one event happen."""
        name, *arguments = event
        self.clock.sleep(STEP_SECONDS)
        self.machine.note(f"{name} {' '.join(map(str, arguments))}".rstrip())
        self.machine.counts[f"event {name}"] += 1
        getattr(self, f"do_{name}")(*arguments)
        for process in self.machine.processes:
            if process.error is not None:
                self.judge.blame("error", f"{process.name} {process.result}: {process.error}")
        self.judge.look()

    def _stamp(self, lag: int) -> datetime:
        return self.clock.now() - timedelta(seconds=lag)

    def _of(self, column: str, key: int) -> list[int]:
        return [id_ for id_, row in self.medlock.rows["appointment"].items() if row[column] == key]

    # -- Medlock -----------------------------------------------------------------------------------------------------

    def do_patient(self, id_: int, column: str, value: Any, lag: int) -> None:
        self.medlock.set("patient", id_, self._stamp(lag), **{column: value})

    def do_doctor(self, id_: int, column: str, value: Any, lag: int) -> None:
        self.medlock.set("doctor", id_, self._stamp(lag), **{column: value})

    def do_appointment(self, id_: int, column: str, value: Any, lag: int) -> None:
        if column == "patient_id" and id_ in self.medlock.rows["appointment"]:
            self.judge.turned([id_], refused=True)
        self.medlock.set("appointment", id_, self._stamp(lag), **{column: value})

    def do_move(self, id_: int, hours: int, lag: int) -> None:
        row = self.medlock.rows["appointment"].get(id_)
        if row:
            step = timedelta(hours=hours)
            times = {"starts_at": row["starts_at"] + step, "ends_at": row["ends_at"] + step}
            self.medlock.set("appointment", id_, self._stamp(lag), **times)

    def do_length(self, id_: int, minutes: int, lag: int) -> None:
        row = self.medlock.rows["appointment"].get(id_)
        if row:
            ends_at = row["starts_at"] + timedelta(minutes=minutes)
            self.medlock.set("appointment", id_, self._stamp(lag), ends_at=ends_at)

    def do_phone(self, id_: int, number: int, lag: int) -> None:
        """Another phone; a negative number is junk."""
        phone = JUNK_PHONES[-number] if number < 0 else typed(digits_of(id_, number), number)
        if phone is not None and number >= 0:
            self.medlock.phones[phone] = digits_of(id_, number)
        self.medlock.set("patient", id_, self._stamp(lag), phone=phone)

    def do_name(self, id_: int, number: int, lag: int) -> None:
        self.medlock.set("patient", id_, self._stamp(lag), first_name=f"Имярек{id_}" + "ович" * number)

    def do_switch(self, clinic_id: int, enabled: bool | None, person: int) -> None:
        """``person``: 1 is the head of the clinic, 2 its registrar, 9 nobody."""
        values = {"enabled": enabled, "changed_at": self.clock.now(), "changed_by": clinic_id * 10 + person}
        self.medlock.set("medflex_access", clinic_id, **values)

    def do_open(self, clinic_id: int) -> None:
        """As if the head had turned the switch on two days ago, so that the clinic is open at once."""
        values = {"enabled": True, "changed_at": self.clock.now() - timedelta(days=2), "changed_by": clinic_id * 10 + 1}
        self.medlock.set("medflex_access", clinic_id, **values)

    def do_link(self, clinic_id: int, partner_id: int, enabled: bool) -> None:
        if not enabled:
            self.judge.turned(self._of("clinic_id", clinic_id), refused=True)
        if not self.medlock.set("clinic_partner", (clinic_id, partner_id), enabled=enabled):
            self.medlock.add("clinic_partner", clinic_id=clinic_id, partner_id=partner_id, enabled=enabled)

    def do_lpu(self, clinic_id: int, number: int) -> None:
        self.judge.turned(self._of("clinic_id", clinic_id), refused=True)
        self.medlock.set("clinic", clinic_id, lpu_id=7000 + 100 * number + clinic_id)

    def do_vanish(self, table: str, ids: tuple[int, ...]) -> None:
        gone = set(ids)
        if table != "appointment":
            gone = {id_ for key in ids for id_ in self._of(f"{table}_id", key)}
        self.judge.turned(gone & self.medlock.rows["appointment"].keys(), refused=False)
        self.medlock.delete(table, ids)

    def do_bring_back(self) -> None:
        self.medlock.bring_back(self._stamp(0))

    def do_new(self, clinic_id: int, patient: int, doctor: int, hours: int) -> None:
        self._new += 1
        starts_at = self.clock.now() + timedelta(hours=hours)
        row = self.medlock.new_appointment(clinic_id, 100 + self._new, patient, doctor, starts_at)
        self.medlock.add("appointment", **row, created_at=self._stamp(0), updated_at=self._stamp(0))

    # -- time, Medflex, processes ------------------------------------------------------------------------------------

    def do_pass(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.engine.deliver_due()

    def do_fault(self, kind: str, params: dict[str, Any], where: dict[str, Any]) -> None:
        if kind == FaultKind.DOWN:
            self.engine.faults.add(Fault(kind=FaultKind.DOWN))
            return
        where = dict(where)
        match = Match(path_prefix=where.pop("path", "/"))
        self.engine.faults.add(
            Fault(kind=FaultKind(kind), match=match, params=Params(**params), seed=self.schedule.dice, **where)
        )

    def do_duplicate(self, number: int) -> None:
        self.machine.duplicates = number

    def do_heal(self) -> None:
        """Medflex is well again; what is late stays late."""
        self._count_struck()
        self.engine.faults.remove(None)
        self._bend()

    def do_deliver(self) -> None:
        self.machine.note(f"{self.engine.deliver_all()} late writes arrive")

    def do_run(self, kind: str, holder: int, plan: tuple[tuple[int, str], ...]) -> None:
        self.machine.start(f"{kind}/{holder}", product.guarded(kind, str(holder)), dict(plan))

    def do_resume(self, number: int, plan: tuple[tuple[int, str], ...]) -> None:
        paused = self.machine.paused()
        if paused:
            paused[number % len(paused)].go_on(dict(plan))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _heal_all(self) -> None:
        machine = self.machine
        machine.note("everything is healed")
        for process in machine.paused():
            process.kill()
        self.do_heal()
        machine.duplicates = 0
        if not self.schedule.late_last:
            self.do_deliver()
        # Longer than a lease, so that nobody waits for the dead; and as long as Medflex asked for.
        self.do_pass(400)
        row = self.stage.ledger.execute(
            "SELECT extract(EPOCH FROM max(next_at) - %s)::float8 FROM ledger.rate WHERE name = %s",
            [self.clock.now(), urlsplit(BASE_URL).netloc],
        ).fetchone()
        if row and row[0]:
            self.do_pass(max(0.0, row[0]))
        self.judge.look()

    def _quiet_run(self, name: str) -> None:
        kinds = ["daily"]
        if self.schedule.ignore_versions or self.schedule.ignore_keys:
            kinds = ["reconcile", "daily"]
        for kind in kinds:
            process: Process = self.machine.start(f"{name} {kind}", product.guarded(kind, name), {})
            if process.error is not None:
                self.judge.blame("error", f"{process.name} {process.result}: {process.error}")
            elif "problems" in process.result or "Error" in process.result:
                self.judge.blame("I2", f"the {name} {kind} run is not quiet: {process.result}")
        self.judge.look()

    def _bend(self) -> None:
        """Medflex ignores what it ignores for good."""
        for on, kind in (
            (self.schedule.ignore_keys, FaultKind.IGNORE_KEYS),
            (self.schedule.ignore_versions, FaultKind.IGNORE_VERSIONS),
        ):
            if on:
                self.engine.faults.add(Fault(kind=kind))

    def _count_struck(self) -> None:
        for item in self.engine.faults.listing():
            self._fired[item["fault"]["kind"]] += item["fired"]
