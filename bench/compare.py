"""This product beside what people would use instead, and beside the floor: ``python -m bench.compare``.

On the same data, machine and receiver: this product in a whole Airflow as ``make demo`` starts it; a plain Airflow task
in the same one; dlt; and the least that reading and sending take. Days: the first one, one with 1 % changed, one with
nothing changed. All measurements go to bench/measured/compare.json; with the default sizes and repetitions the table
also goes to docs/benchmarks.md. Ends with 1 when a figure is not as it has to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pandas as pd
import psutil
import psycopg

from bench.compare_report import judge, render
from bench.document import write_section
from bench.figures import read, say
from bench.receiver import HOST, ROWS, SEND, TOKEN, WITHDRAW, Client
from bench.receiver import started as receiver_started
from bench.task import PROJECT
from bench.work import ONCE, TASKS
from bench.world import BenchError
from medflex.airflow.hooks.medlock import Medlock, windows_json
from medflex.domain.phone import unreadable_phones
from medflex.domain.window import clinic_windows, zone_or_none
from medflex.sql import query
from sandbox.medlock import LOGINS
from sandbox.medlock.generate import create_schema, generate
from sandbox.stack import DAG_ID, ENDED, RUN_TIME, RUN_ZONE, Stack, stack_environment

SIZES = (100_000, 2_000_000)
MIDDLE = 1_000_000
"""At this size only the product's own work is measured: by two sizes alone nobody can tell what is fixed of it."""
REPEAT = 3
FLOOR_PAIRS = 2
"""So often in each round the extraction is measured beside COPY, by turns the one and the other first."""
CLINICS = 300
GENERATED_PER_ROW = 1.15
"""So many appointments make one inside the window of an open clinic."""
SLICE = 20_000
"""Of so many rows those are posted one by one whose time is extrapolated, at sizes above ALL_ONE_BY_ONE."""
ALL_ONE_BY_ONE = 200_000
LATENCY_MS = 50.0
PARTS = ("floors", "plain", "lean", "records", "dlt", "product", "latency", "work")
BENCH = PROJECT / "bench"
OUTPUT = BENCH / "measured" / "compare.json"
VENV = PROJECT / ".cache" / "bench-venv"
PLAIN = {"plain": "bench_plain_batches", "lean": "bench_plain_lean", "records": "bench_plain_records"}
SAMPLE_SECONDS = 0.1
TITLE_LOOKS = 50
"""A process that has no task's title after so many looks is none of a task."""
GIVE_UP_SECONDS = 3600.0
_TASK_PROCESS = re.compile(rb"airflow worker -- ([0-9a-f-]{36})")
_TICKS = os.sysconf("SC_CLK_TCK")
_INNER = """
INNER JOIN bench.clinic_window USING (clinic_id, lpu_id, partners)
WHERE permitted.starts_at >= clinic_window.starts_from + interval '1 day'
"""
_SENT = """
SELECT
    permitted.appointment_id,
    permitted.starts_at >= clinic_window.starts_from + interval '1 day' AS inner_day,
    md5(ROW(
        permitted.doctor_id, permitted.starts_at, permitted.ends_at, permitted.status, permitted.entry,
        permitted.first_name, permitted.patronymic, permitted.phone
    )::text) AS said
FROM bench.permitted
INNER JOIN bench.clinic_window USING (clinic_id, lpu_id, partners)
"""
_SENT_AGAIN = f"""
SELECT count(*) FILTER (WHERE after.inner_day), count(*)
FROM ({_SENT}) AS after
LEFT JOIN bench.before USING (appointment_id)
WHERE before.said IS DISTINCT FROM after.said
"""
_WITHDRAWN = f"""
SELECT count(*) FILTER (WHERE before.inner_day), count(*)
FROM bench.before
WHERE NOT EXISTS (SELECT FROM ({_SENT}) AS after WHERE after.appointment_id = before.appointment_id)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help=f"sizes (default: {' and '.join(map(str, SIZES))})")
    parser.add_argument("--repeat", type=int, default=REPEAT, help="measurements of each kind (default: %(default)s)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts with commas between (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the measurements go (default: %(default)s)")
    options = parser.parse_args(arguments)
    sizes, parts = tuple(options.rows or SIZES), options.only.split(",")
    if min(sizes) < 500 or options.repeat < 1 or not set(parts) <= set(PARTS):
        parser.error(f"give at least 500 rows, one repetition, and parts of {', '.join(PARTS)}")
    told = "".join(f" --rows {size}" for size in sizes) + f" --repeat {options.repeat}"
    told += "" if parts == list(PARTS) else f" --only {options.only}"
    # Ended from outside, it ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "dlt" in parts:
        prepare_venv()
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder:
            measured = compare(Path(folder), sizes, options.repeat, parts, options.output)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    measured["command"] = f"python -m bench.compare{told}"
    measured["verdicts"] = [vars(verdict) for verdict in judge(measured)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(measured, indent=1) + "\n")
    text = render(measured)
    print(text)
    if sizes == SIZES and options.repeat >= REPEAT and parts == list(PARTS):
        write_section("comparison", text)
    return 0 if all(verdict.met for verdict in judge(measured)) else 1


def compare(folder: Path, sizes: Sequence[int], repeat: int, parts: Sequence[str], output: Path) -> dict[str, Any]:
    """Measure everything; return what goes to compare.json."""
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    with started(folder) as bench:
        measured: dict[str, Any] = {
            "begun": begun.isoformat(timespec="seconds"),
            "load_before": load,
            "repeat": repeat,
            "machine": {
                "cores": os.cpu_count(),
                "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
                "system": f"{platform.system()} {platform.machine()}",
            },
            "versions": {"python": platform.python_version(), "postgresql": bench.describe_postgres()}
            | {name: version(name) for name in LIBRARIES},
            "sizes": {},
            "measurements": bench.measured,
        }
        unfinished = output.with_suffix(".unfinished.json")
        for size in (*sizes, MIDDLE) if tuple(sizes) == SIZES and "work" in parts else sizes:
            measured["sizes"][str(size)] = bench.fill(size)
            for number in range(1, repeat + 1):
                Round(bench, size, number, number == 1).measure(parts if size in sizes else ("work",))
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_text(json.dumps(measured, indent=1))
        measured["seconds"] = (datetime.now(UTC) - begun).total_seconds()
    measured["versions"] |= {"dlt": bench.dlt_version}
    unfinished.unlink()
    return measured


LIBRARIES = (
    "apache-airflow", "apache-airflow-providers-postgres", "pandas", "pyarrow", "adbc-driver-postgresql", "psycopg",
    "great-expectations", "requests",
)  # fmt: skip


def prepare_venv() -> None:
    """Make the environment of dlt, or make it anew when its lock has changed. Every file's hash is checked."""
    lock, stamp = BENCH / "requirements.txt", VENV / "installed-lock"
    if stamp.exists() and stamp.read_text() == lock.read_text():
        return
    say("Installing dlt into .cache/bench-venv …")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)], check=True)
    python = str(VENV / "bin" / "python")
    install = [*uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(lock)]
    subprocess.run(install, check=True)
    stamp.write_text(lock.read_text())


def make_views(owner: str, anchor: datetime) -> tuple[str, int]:
    """Make what the other contenders read, with the windows of the clinics that are open now.

    Returns the windows as the product's query wants them, and the number of these clinics.
    """
    now = datetime.now(UTC)
    with Medlock(owner) as reader:
        clinics = reader.clinics(None, now)
    clinics = clinics[clinics["state"] == "open"]
    windows = clinic_windows(clinics, anchor, now, cut_to_today=True)
    partners = [
        ",".join(map(str, ids)) if zone_or_none(zone) else ""  # R17: nothing is sent where no zone tells its times.
        for ids, zone in zip(clinics["partner_ids"], clinics["timezone"], strict=True)
    ]
    rows = windows.assign(lpu_id=clinics["lpu_id"].to_numpy(), partners=partners)
    columns = ["clinic_id", "lpu_id", "partners", "starts_from", "starts_before"]
    with psycopg.connect(owner) as medlock:
        medlock.execute((BENCH / "contenders" / "windows.sql").read_bytes())
        medlock.execute(_same_query().encode())
        medlock.execute((BENCH / "contenders" / "permitted.sql").read_bytes())
        found = medlock.execute("SELECT DISTINCT phone FROM medlock.patient WHERE phone IS NOT NULL").fetchall()
        phones = pd.Series([phone for (phone,) in found], dtype="str")
        for table, named, items in (
            ("clinic_window", columns, rows[columns].itertuples(index=False)),
            ("unreadable_phone", ["phone"], ([phone] for phone in phones[unreadable_phones(phones)])),
        ):
            with medlock.cursor().copy(f"COPY bench.{table} ({', '.join(named)}) FROM STDIN".encode()) as copy:
                for row in items:
                    copy.write_row(row)
            medlock.execute(f"ANALYZE bench.{table}".encode())
    return windows_json(windows), len(rows)


def _same_query() -> str:
    """The product's query as a view, with the windows out of the benchmark's table."""
    text, ours = query("medlock/appointments"), "jsonb_to_recordset(current_setting('medflex.windows')::jsonb)"
    begin = text.index(ours)
    end = text.index(")", begin + len(ours)) + 1
    rows = f"{text[:begin]} bench.clinic_window AS clinic_window {text[end:]}"
    return (
        "CREATE OR REPLACE VIEW bench.appointments AS SELECT clinic_window.lpu_id, clinic_window.partners, read.*,"
        # No join: with a cursor, as dlt reads, Postgres would look through the list anew for each row.
        " coalesce(read.phone NOT IN (SELECT phone FROM bench.unreadable_phone), FALSE) AS phone_is_readable"
        f" FROM ({rows}) AS read INNER JOIN bench.clinic_window AS clinic_window USING (clinic_id)"
    )


@contextmanager
def started(folder: Path) -> Iterator[Bench]:
    """A running stack whose Medflex is the receiver."""
    with ExitStack() as stack_of:
        receiver = stack_of.enter_context(receiver_started(folder / "receiver.log"))
        medflex = {
            "conn_type": "http", "schema": "http", "host": HOST, "port": receiver.port, "password": TOKEN,
            "extra": {"rate_per_second": 0},
        }  # fmt: skip
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        bundles = [
            {"name": "dags-folder", "classpath": local, "kwargs": {}},
            {"name": "bench", "classpath": local, "kwargs": {"path": str(BENCH / "dags")}},
        ]
        environment = {
            "AIRFLOW_CONN_MEDFLEX_API": json.dumps(medflex),
            "AIRFLOW_CONN_BENCH_RECEIVER": json.dumps({"conn_type": "http", "host": receiver.url}),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }
        stack = Stack(folder / "stack", environment=environment, say=say)
        stack_of.callback(stack.stop)
        stack.start(appointments=500)
        bench = Bench(stack, receiver, folder)
        # Airflow makes the process that it forks tasks from when the first one begins, once in its life.
        bench.run_dag(DAG_ID, mode="plan")
        yield bench


class Bench:
    """The running servers, and what was measured on them so far."""

    def __init__(self, stack: Stack, receiver: Client, folder: Path) -> None:
        self.stack, self.receiver, self.folder = stack, receiver, folder
        self.measured: list[dict[str, Any]] = []
        self.windows = ""
        self.dlt_version = ""
        self._airflow = stack.airflow()
        self._airflow_db = stack.cluster.uri("airflow", "airflow")
        now = datetime.now(RUN_ZONE)
        day = now.date() if now.time() >= RUN_TIME else now.date() - timedelta(days=1)
        self.anchor = datetime.combine(day, RUN_TIME, RUN_ZONE)
        self._made: Counter[str] = Counter()

    def describe_postgres(self) -> str:
        """Return the server's version and its memory, such as "18.1 (shared_buffers 1GB, work_mem 32MB)"."""
        # Who finds a table in memory, and who writes to a file what does not fit into it, depends on these.
        names = ("server_version", "shared_buffers", "work_mem")
        rows = read(self.stack.cluster.uri("postgres"), "SELECT current_setting(unnest(%s::text[]))", [[*names]])
        version, buffers, work = (value for (value,) in rows)
        return f"{version} (shared_buffers {buffers}, work_mem {work})"

    # -- data -------------------------------------------------------------------------------------------------------

    def fill(self, size: int) -> dict[str, Any]:
        """Make a Medlock with about ``size`` appointments inside the windows of open clinics; tell what is in it."""
        begun = time.monotonic()
        cluster = self.stack.cluster
        cluster.drop_database("medlock")
        cluster.create_database("medlock", "medlock_owner")
        for role in LOGINS:
            cluster.allow("medlock", role)
        owner = self.stack.medlock_owner()
        create_schema(owner)
        world = generate(owner, appointments=int(size * GENERATED_PER_ROW), clinics=CLINICS, opens_in=timedelta(0))
        with psycopg.connect(owner) as medlock:
            # A run has a task of its own for each clinic that waits, and on this day none does: the data are measured.
            medlock.execute(
                "UPDATE medlock.medflex_access SET changed_at = now() - interval '30 days'"
                " WHERE enabled AND changed_at BETWEEN now() - interval '25 hours' AND now()"
            )
            # The generator stamps some rows ahead of the clock: a cursor that has seen these sees no change of today.
            medlock.execute(
                "UPDATE medlock.appointment SET updated_at = now() - interval '1 hour' WHERE updated_at > now()"
            )
        with psycopg.connect(owner, autocommit=True) as medlock:
            # All of it, or the server would do the rest by itself while something is measured.
            medlock.execute("VACUUM (ANALYZE)")
        self.windows, number = make_views(owner, self.anchor.astimezone(UTC))
        ((extracted,),) = read(owner, "SELECT count(*) FROM bench.appointments")
        ((permitted,),) = read(owner, "SELECT count(*) FROM bench.permitted")
        seconds = time.monotonic() - begun
        say(f"{size:,}: {extracted:,} appointments in the windows of {number} open clinics, {seconds:.0f} s")
        return {
            "generated": world.rows, "open_clinics": number, "extracted": extracted, "permitted": permitted,
            "seconds_to_make": seconds,
        }  # fmt: skip

    def rows_of(self, view: str, by: str, *, inner: bool = False) -> dict[int, set[int]]:
        """Return which appointments a view has as the data are now: clinic_id or lpu_id → ids. ``permitted`` has those
        that may be shared, ``unruled`` all in the windows.

        inner: without the first day of each window. Once midnight has passed in a clinic a run does not send it any
        more, and what was sent of it stays.
        """
        sql = f"SELECT {by}, array_agg(appointment_id) FROM bench.{view} {_INNER if inner else ''} GROUP BY 1"
        return {key: set(ids) for key, ids in read(self.stack.medlock_owner(), sql)}

    def change(self, number: int) -> dict[str, tuple[int, int]]:
        """Change 1 % of the data: 0.5 % of the appointments, the phone of 0.3 % of the patients; 0.2 % refuse.

        Returns how many ``records`` have to be sent again and how many ``withdrawn`` for that, by SQL: at least (see
        ``rows_of``) and at most.
        """
        with psycopg.connect(self.stack.medlock_owner()) as medlock:
            medlock.execute("DROP TABLE IF EXISTS bench.before")
            medlock.execute(f"CREATE TABLE bench.before AS {_SENT}".encode())
            medlock.execute(
                "UPDATE medlock.appointment SET updated_at = now(),"
                " status = CASE WHEN status = 'confirmed' THEN 'cancelled' ELSE 'confirmed' END WHERE id %% 200 = %s",
                [number % 200],
            )
            medlock.execute(
                "UPDATE medlock.patient SET updated_at = now(), phone = '+7916' || lpad((id %% 10000000)::text, 7, '0')"
                " WHERE id %% 1000 = ANY(%s)",
                [[(3 * number + step) % 1000 for step in range(3)]],
            )
            medlock.execute(
                "UPDATE medlock.patient SET updated_at = now(), refused_marketing = TRUE WHERE id %% 500 = %s",
                [number % 500],
            )
            found = {
                name: medlock.execute(sql.encode()).fetchone() or (0, 0)
                for name, sql in (("records", _SENT_AGAIN), ("withdrawn", _WITHDRAWN))
            }
            medlock.execute("DROP TABLE bench.before")
        return {name: (int(inner), int(every)) for name, (inner, every) in found.items()}

    def forget(self) -> None:
        """Empty the ledger and the receiver, so that the next run is a first one."""
        cluster = self.stack.cluster
        cluster.drop_database("ledger")
        cluster.create_database("ledger", "ledger_owner")
        self.process([sys.executable, "-m", "medflex.ledger.migrate"])
        self.receiver.reset()

    def settle(self) -> None:
        """Let nothing of what came before happen while the next thing is measured."""
        with self.stack.cluster.connect() as connection:
            connection.execute("CHECKPOINT")

    # -- processes --------------------------------------------------------------------------------------------------

    def process(self, command: list[str]) -> Any:
        """Run a program in the stack's environment; return the JSON of its last line, if it is any."""
        environment = stack_environment(self.stack)
        environment["PYTHONPATH"] = os.pathsep.join((str(PROJECT / "plugins"), str(PROJECT)))
        done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(command[1:])[:300]} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
        last = done.stdout.rstrip().rsplit("\n", 1)[-1]
        return json.loads(last) if last.startswith("{") else None

    def run_dag(self, dag_id: str, **conf: Any) -> dict[str, Any]:
        """Trigger a DAG as a user does and wait for its end; return what the run cost.

        Raises:
            BenchError: it failed.
        """
        deadline = time.monotonic() + 120
        while not self._made[dag_id] and self._airflow.dag(dag_id) is None:
            if time.monotonic() > deadline:
                raise BenchError(f"Airflow knows no DAG {dag_id}: {self._airflow.import_errors()}")
            time.sleep(0.5)
        self.settle()
        self.receiver.counts()
        # The first run is that of the last due date: an unpaused DAG without one makes it by itself.
        logical_date = self.anchor + timedelta(seconds=self._made[dag_id])
        with _Sampler() as sampler:
            run_id = self._airflow.trigger(dag_id, logical_date, conf)
            if not self._made[dag_id]:
                self._airflow.unpause(dag_id)
            run = self._wait_for(dag_id, str(run_id))
        counts = self.receiver.counts()
        self._made[dag_id] += 1
        ((number,),) = read(self._airflow_db, "SELECT count(*) FROM dag_run WHERE dag_id = %s", [dag_id])
        if number != self._made[dag_id]:
            raise BenchError(f"Airflow has made a run of {dag_id} by itself: start again, after 03:00 in Moscow.")
        tasks = read(
            self._airflow_db,
            "SELECT id::text, task_id, map_index, try_number, state,"
            " extract(EPOCH FROM end_date - start_date)::float8 FROM task_instance WHERE dag_id = %s AND run_id = %s"
            " ORDER BY start_date",
            [dag_id, run_id],
        )
        if run.state != "success" or any(row[3] > 1 for row in tasks):
            bad = [f"{row[1]} [{row[2]}] {row[4]}, attempt {row[3]}" for row in tasks if row[4] != "success"]
            raise BenchError(f"The run {run_id} of {dag_id} is {run.state}, not without trouble: {bad}")
        found = []
        for key, task_id, map_index, _, state, seconds in tasks:
            if seconds is None or state == "skipped":
                continue
            peak, cpu = sampler.seen.get(key, (0.0, 0.0))
            found.append({"task": task_id.removeprefix("shard."), "map_index": map_index, "seconds": round(seconds, 3),
                          "peak_mb": round(peak, 1), "cpu_seconds": cpu})  # fmt: skip
        return {
            "run_id": run_id,
            "seconds": run.seconds,
            "queued_seconds": run.queued,
            "peak_mb": max(item["peak_mb"] for item in found),
            "cpu_seconds": sum(item["cpu_seconds"] for item in found),
            "tasks": found,
            **_requests(counts),
        }

    def _wait_for(self, dag_id: str, run_id: str) -> Any:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        with psycopg.connect(self._airflow_db, autocommit=True) as connection:
            while time.monotonic() < deadline:
                row = connection.execute(
                    "SELECT state, extract(EPOCH FROM end_date - queued_at)::float8,"
                    " extract(EPOCH FROM start_date - queued_at)::float8 FROM dag_run"
                    " WHERE dag_id = %s AND run_id = %s",
                    [dag_id, run_id],
                ).fetchone()
                if row is not None and row[0] in ENDED:
                    return SimpleNamespace(state=row[0], seconds=row[1], queued=row[2])
                time.sleep(0.5)
        raise BenchError(f"The run {run_id} of {dag_id} has not ended within {GIVE_UP_SECONDS:.0f} seconds.")

    def returned(self, dag_id: str, run_id: str) -> Any:
        """Return what the task ``send`` of a run has returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/send/xcomEntries/return_value"
        value = self._airflow.call("GET", path)["value"]
        return json.loads(value) if isinstance(value, str) else value


def _requests(counts: Counter[str]) -> dict[str, int]:
    return {
        "writes": counts[SEND] + counts[WITHDRAW] + counts[ROWS],
        "requests": counts["requests"],
        "bytes": counts["bytes"],
        "unpacked_bytes": counts["unpacked"],
        "records": counts["records"],
        "withdrawn": counts["withdrawn"],
    }


@dataclass
class _Process:
    """A process that was looked at: which task instance's it is, if it has said so, and how often it was looked at."""

    key: str | None = None
    looks: int = 0


class _Sampler:
    """Watches the processes of Airflow's tasks: ``seen`` is task instance id → peak MB (RSS), CPU seconds."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        known: dict[str, _Process] = {}
        while not self._over.wait(SAMPLE_SECONDS):
            self.look(known)

    def look(self, known: dict[str, _Process]) -> None:
        """Look at each process once. ``known``: what earlier looks have found, by process id."""
        there = {entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        for pid in known.keys() - there:
            del known[pid]
        for pid in there:
            process = known.setdefault(pid, _Process())
            # The title comes after the start of the process, so that one without is looked at again; not for ever, as
            # looking costs the time that is measured.
            if process.key is None and process.looks >= TITLE_LOOKS:
                continue
            process.looks += 1
            entry = Path("/proc", pid)
            try:
                if process.key is None:
                    title = _TASK_PROCESS.match((entry / "cmdline").read_bytes())
                    process.key = title[1].decode() if title else None
                if process.key is not None:
                    self._note(entry, process.key)
            except (OSError, ValueError, IndexError):
                del known[pid]

    def _note(self, entry: Path, key: str) -> None:
        # VmHWM only grows, so that a look now and then misses what was added within the last moment at most.
        peak = int((entry / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        times = (entry / "stat").read_text().rpartition(")")[2].split()
        cpu = (int(times[11]) + int(times[12])) / _TICKS
        before = self.seen.get(key, (0.0, 0.0))
        self.seen[key] = (max(before[0], peak), max(before[1], cpu))


class Round:
    """One measurement of each kind at one size, in the order in which the data allow it."""

    def __init__(self, bench: Bench, size: int, number: int, first: bool) -> None:
        self.bench, self.size, self.number, self.first = bench, size, number, first
        self.recording = bench.folder / f"bodies-{size}"

    def measure(self, parts: Sequence[str]) -> None:
        """Measure these parts."""
        if "floors" in parts:
            self._floors()
        for part in PLAIN:
            if part in parts:
                self._plain(part)
        if "dlt" in parts:
            for what in ("dlt", "dlt+unruled"):
                self._dlt(what, "first", self.bench.folder / f"{what}-{self.size}-{self.number}")
        if "product" in parts or "dlt" in parts:
            self._days(parts)
        if "latency" in parts:
            self._latency()
        if "work" in parts:
            self._work()
            self._post()

    def _note(self, what: str, day: str, **figures: Any) -> None:
        said = {"size": self.size, "what": what, "day": day, "repeat": self.number, **figures}
        said["load"] = round(os.getloadavg()[0], 2)
        self.bench.measured.append(said)
        extra = "".join(f", {figures[key]:,.0f} {unit}" for key, unit in _TOLD.items() if figures.get(key))
        say(f"{self.size:9,} {what:12} {day:9} {self.number}: {figures['seconds']:8.2f} s{extra}")

    # -- the floors --------------------------------------------------------------------------------------------------

    def _floor(self, what: str, **asked: Any) -> Any:
        self.bench.settle()
        asked |= {"what": what, "postgres": self.bench.stack.cluster.uri("medlock", "medlock_app")}
        return self.bench.process([sys.executable, "-m", "bench.floors", json.dumps(asked)])

    def _floors(self) -> None:
        for pair in range(FLOOR_PAIRS):
            for what in ("copy", "pandas") if (self.number + pair) % 2 else ("pandas", "copy"):
                found = self._floor(what, windows=self.bench.windows)
                self._note(what, "-", seconds=found["seconds"], rows=found["rows"], peak_mb=found["peak_mb"])

    def _post(self) -> None:
        bench = self.bench
        bench.receiver.reset()
        found = self._floor("post", recording=str(self.recording), port=bench.receiver.port)
        counts = _requests(bench.receiver.counts())
        self._note("post", "-", seconds=found["seconds"], rows=counts["records"], peak_mb=found["peak_mb"], **counts)

    # -- what people would use instead --------------------------------------------------------------------------------

    def _plain(self, what: str) -> None:
        bench, dag_id = self.bench, PLAIN[what]
        is_slice = what == "records" and self.size > ALL_ONE_BY_ONE
        bench.receiver.reset()
        run = bench.run_dag(dag_id, **({"limit": SLICE} if is_slice else {}))
        sent = bench.returned(dag_id, run["run_id"])
        if not is_slice:
            self._same(what, bench.receiver.shown(), bench.rows_of("permitted", "clinic_id"))
        self._note(what, "first", **run, sending=sent["seconds"], is_slice=is_slice)

    def _dlt(self, what: str, day: str, folder: Path, *, check: bool = True) -> None:
        bench = self.bench
        bench.settle()
        bench.receiver.reset()
        uri = bench.stack.cluster.uri("medlock", "medlock_app", driver="psycopg2")
        view = "unruled" if what == "dlt+unruled" else "permitted"
        asked = {
            "postgres": uri, "view": view, "receiver": bench.receiver.url, "folder": str(folder),
            "incremental": what == "dlt+cursor",
        }  # fmt: skip
        script = str(BENCH / "contenders" / "dlt_pipeline.py")
        begun = time.perf_counter()
        said = bench.process([str(VENV / "bin" / "python"), script, json.dumps(asked)])
        seconds = time.perf_counter() - begun
        if check:
            self._same(what, bench.receiver.shown(), bench.rows_of(view, "clinic_id"))
        bench.dlt_version = said["dlt"]
        counts = _requests(bench.receiver.counts())
        self._note(what, day, seconds=seconds, inside=said["seconds"], peak_mb=said["peak_mb"], **counts)

    # -- this product ------------------------------------------------------------------------------------------------

    def _days(self, parts: Sequence[str]) -> None:
        bench = self.bench
        product, dlt = "product" in parts, "dlt" in parts
        folder = bench.folder / f"dlt-{self.size}-incremental"
        if dlt and self.first:
            self._dlt("dlt+cursor", "first", folder)
        if product:
            bench.forget()
            self._product("first")
        changes = bench.change(self.number)
        for day in ("changed", "unchanged"):
            if product:
                self._product(day, changes=changes if day == "changed" else None)
        for day in ("changed", "unchanged"):
            if dlt:
                self._dlt("dlt+cursor", day, folder, check=False)

    def _product(self, day: str, what: str = "product", changes: dict[str, tuple[int, int]] | None = None) -> None:
        bench = self.bench
        run = bench.run_dag(DAG_ID)
        ledger = bench.stack.ledger()
        ((run_key, eligible),) = read(
            ledger,
            "SELECT run_key, sum(eligible)::bigint FROM ledger.run_clinic"
            " WHERE run_key = (SELECT max(run_key) FROM ledger.run) GROUP BY 1",
        )
        rows = dict(read(ledger, "SELECT shard, sum(extracted)::bigint FROM ledger.run_clinic WHERE run_key = %s"
                         " AND extracted IS NOT NULL GROUP BY 1", [run_key]))  # fmt: skip
        figures: dict[str, Any] = {"eligible": eligible, "extracted": sum(rows.values()), "shards": len(rows)}
        if day == "first":
            sizes = read(
                ledger,
                "SELECT relname, pg_total_relation_size(oid) FROM pg_class"
                " WHERE relnamespace = 'ledger'::regnamespace AND relkind = 'r' ORDER BY 2 DESC",
            )
            figures["ledger_bytes"] = {name: number for name, number in sizes if number >= 65_536}
        self._same(
            f"The run {run['run_id']}", bench.receiver.shown(), bench.rows_of("permitted", "lpu_id"),
            bench.rows_of("permitted", "lpu_id", inner=True),
        )  # fmt: skip
        for name, (least, most) in (changes or {}).items():
            if not least <= run[name] <= most:
                raise BenchError(f"The run {run['run_id']} has {run[name]} {name}, and {least} to {most} are right.")
        self._note(what, day, **run, **figures)

    @staticmethod
    def _same(
        what: str, shown: dict[int, set[int]], may: dict[int, set[int]], must: dict[int, set[int]] | None = None
    ) -> None:
        more = sum(len(ids - may.get(key, set())) for key, ids in shown.items())
        less = sum(len(ids - shown.get(key, set())) for key, ids in (may if must is None else must).items())
        if more or less:
            raise BenchError(f"{what} shows {more} records that it should not, and leaves {less} out.")

    def _latency(self) -> None:
        bench = self.bench
        bench.forget()
        bench.receiver.set(latency_ms=LATENCY_MS)
        try:
            self._product("first", "latency")
        finally:
            bench.receiver.set()

    def _work(self) -> None:
        """The first run's tasks one after the other, each in a process that does nothing else."""
        bench = self.bench
        bench.forget()
        bench.receiver.set(record=self.recording)
        run = {"run_id": f"work {self.size} {self.number}", "mode": "transfer", "run_after": bench.anchor.isoformat()}
        shards: list[dict[str, Any]] = []
        of_task: dict[str, dict[str, Any]] = {}
        staged: dict[str, int] = {}
        for task in TASKS:
            bench.settle()
            if task == "remove_staging":
                staged = self._staged()
            asked = {**run, "task": task, "shards": shards}
            said = bench.process([sys.executable, "-m", "bench.work", orjson.dumps(asked).decode()])
            calls = said["calls"]
            if task == "plan_shards":
                shards = calls[0]["result"]
            if task == "look_at_gate":
                is_open = [call["result"]["is_open"] for call in calls]
            if task == "withdraw_revoked":
                shards = [shard for shard, there in zip(shards, is_open, strict=True) if there]
            of_task[task] = {
                "seconds": sum(call["seconds"] for call in calls),
                "cpu_seconds": sum(call["cpu_seconds"] for call in calls),
                "imports": sum(call["imports"] for call in calls),
                "peak_mb": said["peak_mb"],
                "calls": 1 if task in ONCE else len(calls),
            }
        bench.receiver.set()
        counts = bench.receiver.counts()
        seconds = sum(item["seconds"] for item in of_task.values())
        imports = sum(item["imports"] for item in of_task.values())
        self._note("work", "first", seconds=seconds, imports=imports, tasks=of_task, staged_bytes=staged,
                   shards=len(shards), **_requests(counts))  # fmt: skip

    def _staged(self) -> dict[str, int]:
        """Bytes that lie in staging, by what they are."""
        found: dict[str, int] = defaultdict(int)
        for file in (self.bench.stack.folder / "staging").rglob("*"):
            if file.is_file():
                found[file.parent.name.rpartition("-")[0]] += file.stat().st_size
        return dict(found)


_TOLD = {"peak_mb": "MB", "writes": "writes", "records": "records", "withdrawn": "withdrawn", "imports": "s imports"}


if __name__ == "__main__":
    sys.exit(main())
