"""Twenty thousand small clinics: planning, a real run of many shards, the scheduler and the pages: ``python -m
bench.scale``.

A whole Airflow as ``make demo`` starts it, in a folder of its own, with 20,000 clinics of some 20 appointments in
Medlock. Planning is measured in a process of its own: with an empty ledger, after real runs, and with a month of runs.
Two real runs go through the scheduler; Medflex has to show exactly what a plain query says, and the second run must
write nothing. What larger runs would cost Airflow is measured with its own code on runs whose tasks are only marked as
done. All figures go to bench/measured/scale.json; with the default numbers they also go to docs/benchmarks.md. Ends
with 1 when planning takes too long, a run is not settled, or Medflex shows something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg

from bench.document import write_section
from bench.figures import circumstances, read, say
from bench.task import PROJECT, peak_mb
from bench.world import BenchError
from medflex.airflow.tasks.transfer import TARGET_ROWS
from medflex.domain.access import AccessState
from medflex.domain.packing import MOST_SHARDS, pack_shards
from sandbox.browser import BrowserError, chromium, session
from sandbox.medflex.control import Control
from sandbox.postgres import Cluster
from sandbox.stack import DAG_ID, ENDED, RUN_TIME, RUN_ZONE, Stack, stack_environment

CLINICS, ROWS, SHARD_ROWS = 20_000, 20, 12_000
WAITING = 4
DECIDED = (40, 120, 400)
"""Numbers of shards for which the scheduler's work is measured."""
EXPECTED_ROWS = 300_000_000
HISTORY_DAYS = 30
WRITTEN, BATCH_SIZE = 200_000, 500
"""Records that are written to the ledger to see what they take."""
LIMIT_PLAN_SECONDS, LIMIT_INSTANCES = 30.0, 1_000
OPENS_IN = timedelta(minutes=4)
"""The waiting clinics' 24 hours are over so long after the first run has begun."""
OUTPUT = PROJECT / "bench" / "measured" / "scale.json"
STEPS = ("expanded", "no task begun", "half of the gates passed", "half of the gates passed, again")

_CLINICS = """
TRUNCATE medlock.clinic, medlock.staff, medlock.medflex_access, medlock.partner, medlock.clinic_partner, medlock.doctor,
    medlock.patient, medlock.appointment, medlock.smart_care_scenario, medlock.doctor_schedule,
    medlock.smart_care_message CASCADE;
INSERT INTO medlock.clinic (id, lpu_id, name, timezone)
SELECT number, 40000 + number, 'Clinic ' || number, 'Europe/Moscow' FROM generate_series(1, :clinics:) AS number;
INSERT INTO medlock.staff (id, clinic_id, full_name, login, role)
SELECT 10000000 + number, number, '-', 'scale-' || number, CASE WHEN number % 200 = 11 THEN 'registrar' ELSE 'head' END
FROM generate_series(1, :clinics:) AS number;
INSERT INTO medlock.medflex_access (clinic_id, enabled, changed_at, changed_by)
SELECT number, number % 10 <> 0, now() - (2 + number % 900) * interval '1 day', 10000000 + number
FROM generate_series(1, :clinics:) AS number WHERE number % 100 <> 1;
INSERT INTO medlock.partner (id, name, kind)
SELECT 100 + number, 'Partner ' || number, 'mailing' FROM generate_series(1, 30) AS number;
INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled, scenarios)
SELECT number, 101 + (number * 7 + place) % 30, number % 50 <> 7 AND place < 3, ARRAY['visit_reminder']
FROM generate_series(1, :clinics:) AS number CROSS JOIN generate_series(1, 3) AS place;
INSERT INTO medlock.doctor (id, clinic_id, full_name, speciality, medflex_banned, updated_at)
SELECT number * 2 + place, number, '-', '-', place = 1 AND number % 7 = 0, now() - interval '90 days'
FROM generate_series(1, :clinics:) AS number CROSS JOIN generate_series(0, 1) AS place;
INSERT INTO medlock.patient (
    id, clinic_id, last_name, first_name, patronymic, phone, refused_personal_data, refused_notifications,
    refused_marketing, updated_at
)
SELECT
    number * 100 + place, number, '-', 'Name', 'Patronymic', '+79' || lpad((number * 100 + place)::text, 9, '0'),
    place = 3, place = 5 AND number % 2 = 0, place = 7 OR place = 8, now() - interval '60 days'
FROM generate_series(1, :clinics:) AS number CROSS JOIN generate_series(1, 12) AS place;
INSERT INTO medlock.appointment (
    id, clinic_id, patient_id, doctor_id, starts_at, ends_at, status, is_anonymous, entry, created_at, updated_at
)
SELECT
    number * 1000 + place, number, number * 100 + 1 + place % 12, number * 2 + place % 2, moment,
    moment + interval '30 minutes', CASE WHEN place % 3 = 0 THEN 'completed' ELSE 'confirmed' END,
    place % 19 = 6, CASE WHEN place % 4 = 0 THEN 'online' ELSE 'direct' END, now() - interval '60 days',
    now() - interval '50 days'
FROM generate_series(1, :clinics:) AS number
CROSS JOIN LATERAL generate_series(1, (:rows: - 5 + number % 11)::int) AS place
CROSS JOIN LATERAL (
    SELECT
        (date_trunc('day', now() AT TIME ZONE 'Europe/Moscow') + ((number + place * 7) % 86 - 50) * interval '1 day'
         + (9 + place % 9) * interval '1 hour') AT TIME ZONE 'Europe/Moscow' AS moment
) AS at;
ANALYZE;
"""
# These are on, since so long that they open while the first run is under way.
_WAITING = """
UPDATE medlock.medflex_access SET changed_at = now() - interval '24 hours' + %s
WHERE clinic_id IN (SELECT clinic_id FROM medlock.medflex_access WHERE clinic_id %% 100 = 2 ORDER BY clinic_id LIMIT %s)
"""
_MAY_BE_SHARED = """
SELECT clinic.lpu_id, appointment.id
FROM medlock.appointment
JOIN medlock.clinic ON clinic.id = appointment.clinic_id
JOIN medlock.medflex_access ON medflex_access.clinic_id = clinic.id
JOIN medlock.staff ON staff.id = medflex_access.changed_by AND staff.role = 'head'
JOIN medlock.patient ON patient.id = appointment.patient_id
JOIN medlock.doctor ON doctor.id = appointment.doctor_id
WHERE medflex_access.enabled AND medflex_access.changed_at <= now() - interval '24 hours'
    AND EXISTS (SELECT FROM medlock.clinic_partner WHERE clinic_id = clinic.id AND enabled)
    AND NOT (refused_personal_data OR refused_notifications OR refused_marketing OR medflex_banned OR is_anonymous)
    AND (starts_at AT TIME ZONE 'Europe/Moscow')::date - %s BETWEEN -45 AND 30
    AND (starts_at AT TIME ZONE 'Europe/Moscow')::date - (now() AT TIME ZONE 'Europe/Moscow')::date BETWEEN -45 AND 30
"""
_TASKS = """
SELECT
    task_id, count(*), count(*) FILTER (WHERE state = 'success'), count(*) FILTER (WHERE state = 'skipped'),
    coalesce(sum(extract(EPOCH FROM end_date - start_date)), 0)::float8,
    coalesce(max(extract(EPOCH FROM end_date - start_date)), 0)::float8
FROM task_instance WHERE dag_id = %s AND run_id = %s GROUP BY task_id ORDER BY min(start_date) NULLS LAST
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["--child"]:
        return _child(json.loads(given[1]))
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--clinics", type=int, default=CLINICS, help="in Medlock (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="appointments of a clinic (default: %(default)s)")
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS, help="rows per shard (default: %(default)s)")
    parser.add_argument(
        "--decided", type=int, nargs="*", default=DECIDED, help="shards for the scheduler (default: %(default)s)"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing, tell again what was kept")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the grid and the pages")
    options = parser.parse_args(given)
    if options.render:
        write_section("scale", render(json.loads(OUTPUT.read_text(encoding="utf-8"))))
        return 0
    begun, load = datetime.now(UTC), os.getloadavg()[0]
    command = f"python -m bench.scale --clinics {options.clinics} --rows {options.rows}"
    command += f" --shard-rows {options.shard_rows}"
    try:
        with tempfile.TemporaryDirectory(prefix="medflex-bench-") as folder:
            figures = measure(Path(folder), options)
    except (BenchError, BrowserError) as error:
        print(error, file=sys.stderr)
        return 1
    figures |= {"command": command, "circumstances": circumstances(begun, load)}
    is_default = (options.clinics, options.rows, options.shard_rows) == (CLINICS, ROWS, SHARD_ROWS)
    is_default &= tuple(options.decided) == DECIDED
    text = render(figures)
    print(text)
    if is_default:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_section("scale", text)
    wrong = broken(figures)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


# -- what is measured ------------------------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start the stack, fill it, take all figures, stop it."""
    stack = Stack(folder / "stack", environment={"MEDFLEX_SHARD_ROWS": str(options.shard_rows)}, say=say)
    figures: dict[str, Any] = {"clinics": options.clinics, "shard_rows": options.shard_rows}
    stack.start(appointments=1)
    try:
        figures |= fill(stack, options.clinics, options.rows)
        figures["packing"] = packing()
        figures["planning"] = {"empty ledger": plan(stack, "empty")}
        figures["decisions"] = [decide(stack, shards, options.pictures) for shards in options.decided]
        with psycopg.connect(stack.medlock_owner()) as connection:
            connection.execute(_WAITING, [OPENS_IN, WAITING])
        figures["runs"] = [real_run(stack, "first", 0)]
        figures["runs"].append(real_run(stack, "nothing changed", 1))
        figures["planning"]["after two runs"] = plan(stack, "real")
        figures["pages"] = look(stack, figures["runs"][-1]["run_id"], options.pictures, "run")
        first = figures["runs"][0]
        figures["staged"] = {"rows": first["funnel"]["extracted"], "bytes": first["staged_bytes"]}
        figures["ledger"] = ledger_sizes(stack.ledger())
        stack.services.stop(["scheduler", "dag-processor", "triggerer"])
        figures["planning"][f"{HISTORY_DAYS} days of runs"] = plan(stack, "month", month(stack, options.clinics))
        figures["written"] = written(stack.cluster, empty_ledger(stack.cluster, "ledger_written"))
    except BaseException:
        say(f"Until then: {json.dumps(figures)}")
        raise
    finally:
        stack.stop()
    return figures


def fill(stack: Stack, clinics: int, rows: int) -> dict[str, int]:
    """Put the clinics into Medlock and tell Medflex of them; return how many there are of what."""
    started = time.monotonic()
    statement = _CLINICS.replace(":clinics:", str(clinics)).replace(":rows:", str(rows))
    with psycopg.connect(stack.medlock_owner(), autocommit=True) as connection:
        for part in statement.split(";\n"):
            connection.execute(part.encode())
        found = connection.execute("SELECT count(*) FROM medlock.appointment").fetchone()
    with Control(stack.control_url) as control:
        control.put_clinics(
            [{"lpu_id": 40000 + number, "name": "-", "time_offset": 180} for number in range(1, clinics + 1)]
        )
    say(f"  Medlock filled in {time.monotonic() - started:.0f} s")
    return {"appointments": int(found[0]) if found else 0}


def packing() -> dict[str, Any]:
    """Pack clinics of very different sizes, 300 million rows in all: shards, their sizes in rows, seconds."""
    sizes = np.random.default_rng(7).lognormal(0.0, 1.2, CLINICS)
    rows = np.maximum(1, (sizes / sizes.sum() * EXPECTED_ROWS)).astype("int64")
    clinics = pd.DataFrame({"clinic_id": range(CLINICS), "expected_rows": rows, "kind": AccessState.OPEN})
    clinics["opens_at"] = pd.Timestamp("2026-01-01", tz="UTC")
    # As on a day on which very many have just been switched on, or off.
    clinics.loc[clinics["clinic_id"] % 40 == 1, "kind"] = AccessState.WAITING
    clinics.loc[clinics["clinic_id"] % 20 == 2, "kind"] = AccessState.CLOSED
    started = time.perf_counter()
    shards = pack_shards(clinics, TARGET_ROWS)
    seconds = time.perf_counter() - started
    of_open = [int(rows[list(shard.clinic_ids)].sum()) for shard in shards if shard.kind == AccessState.OPEN]
    return {
        "rows": int(rows.sum()), "largest_clinic": int(rows.max()), "shards": len(shards),
        "open_shards": len(of_open), "least_rows": min(of_open), "mean_rows": int(np.mean(of_open)),
        "most_rows": max(of_open), "seconds": seconds,
    }  # fmt: skip


def plan(stack: Stack, name: str, ledger: str | None = None) -> dict[str, Any]:
    """Run ``plan_shards`` alone in a process of its own; the run that it writes down is removed again."""
    run_id = f"manual__scale_{name}"
    environment = stack_environment(stack)
    uri = ledger or stack.ledger()
    figures = _in_child({"what": "plan", "run_id": run_id}, environment | {"AIRFLOW_CONN_MEDFLEX_LEDGER": uri})
    with psycopg.connect(uri) as connection:
        connection.execute("DELETE FROM ledger.run WHERE run_id = %s", [run_id])
    say(f"  planned, {name}: {figures['seconds']:.1f} s, {figures['shards']} shards")
    return figures


def month(stack: Stack, clinics: int) -> str:
    """Make a second ledger with a month of runs of as many clinics; return its address."""
    from bench.crowd import fill as fill_ledger

    uri = empty_ledger(stack.cluster, "ledger_month")
    started = time.monotonic()
    fill_ledger(uri, clinics, HISTORY_DAYS)
    say(f"  a month of runs filled in {time.monotonic() - started:.0f} s")
    return uri


def empty_ledger(cluster: Cluster, name: str) -> str:
    """Make a ledger without rows in a database of its own; return its address."""
    cluster.create_database(name, "ledger_owner")
    uri = cluster.uri(name, "ledger_owner")
    environment = os.environ | {"AIRFLOW_CONN_MEDFLEX_LEDGER": uri, "PYTHONPATH": str(PROJECT / "plugins")}
    subprocess.run([sys.executable, "-m", "medflex.ledger.migrate"], env=environment, check=True, capture_output=True)
    return uri


def decide(stack: Stack, shards: int, pictures: Path | None) -> dict[str, Any]:
    """Measure the scheduler's decisions about a run of so many shards, and its grid; the run is removed again.

    The DAG is still paused, so that the stack's own scheduler lets it be.
    """
    stack._wait_for_dag(stack.airflow(), DAG_ID)
    environment = stack_environment(stack)
    run_id = f"manual__{shards}_shards"
    try:
        steps = _in_child({"what": "decide", "run_id": run_id, "shards": shards}, environment)
        grid = look(stack, run_id, pictures, f"{shards}-shards", pages=("grid",))
    finally:
        # Airflow deletes no run that is under way, and to end it properly takes it as long as to look at each instance.
        with psycopg.connect(stack.cluster.uri("airflow", "airflow")) as connection:
            connection.execute("UPDATE dag_run SET state = 'failed' WHERE run_id = %s", [run_id])
        stack.airflow().call("DELETE", f"/dags/{DAG_ID}/dagRuns/{run_id}", accept=(404,))
    say(f"  {shards} shards: " + ", ".join(f"{step['title']} {step['seconds']:.1f} s" for step in steps))
    return {"shards": shards, "steps": steps, "grid_seconds": grid["grid"]}


def real_run(stack: Stack, name: str, number: int) -> dict[str, Any]:
    """Let the scheduler make a run; return what it took, and whether Medflex shows what it has to.

    Raises:
        BenchError: the run failed, or Medflex shows something else than a plain query says.
    """
    airflow = stack.airflow()
    stack._wait_for_dag(airflow, DAG_ID)
    now = datetime.now(RUN_ZONE)
    day = now.date() if now.time() >= RUN_TIME else now.date() - timedelta(days=1)
    logical_date = datetime.combine(day, RUN_TIME, RUN_ZONE) + timedelta(seconds=number)
    with Control(stack.control_url) as control:
        control.forget_request_log()
    started = time.monotonic()
    run_id = airflow.trigger(DAG_ID, logical_date, {})
    if run_id is None:
        raise BenchError("There is a run of that date already.")
    airflow.unpause(DAG_ID)
    staged = 0
    while (state := airflow.run_state(DAG_ID, run_id)) not in ENDED:
        time.sleep(2)
        # It is removed at the end of the run, so at its most all of the run is there.
        staged = max(staged, _bytes_in(stack.folder / "staging"))
        for service in ("scheduler", "api-server", "triggerer"):
            stack.services.check(service)
    seconds = time.monotonic() - started
    names = ("task", "instances", "succeeded", "skipped", "seconds", "most_seconds")
    tasks = [
        dict(zip(names, row, strict=True))
        for row in read(stack.cluster.uri("airflow", "airflow"), _TASKS, [DAG_ID, run_id])
    ]
    ((run_key, outcome, problems),) = read(
        stack.ledger(), "SELECT run_key, outcome, problems FROM ledger.run WHERE run_id = %s", [run_id]
    )
    if state != "success" or outcome != "succeeded":
        raise BenchError(f"The run '{name}' ended as {state}, {outcome}: {' '.join(problems)[:2000]}")
    columns = ("extracted", "eligible", "withheld", "quarantined", "unchanged", "planned", "accepted", "rejected")
    ((*numbers,),) = read(
        stack.ledger(),
        f"SELECT {', '.join(f'coalesce(sum({column}), 0)::bigint' for column in columns)} FROM ledger.run_clinic"
        " WHERE run_key = %s",
        [run_key],
    )
    funnel = dict(zip(columns, numbers, strict=True))
    may_be = {(row[0], row[1]) for row in read(stack.medlock_owner(), _MAY_BE_SHARED, [day])}
    with Control(stack.control_url) as control:
        writes = sum(1 for request in control.request_log() if request["method"] == "POST")
        shown = set(control.records())
    if shown != may_be:
        raise BenchError(f"Medflex shows {len(shown - may_be)} records too many and {len(may_be - shown)} too few.")
    say(f"  run '{name}': {seconds:.0f} s, {len(shown):,} records shown, {writes} write requests")
    ((shards,),) = read(stack.ledger(), "SELECT count(*) FROM ledger.run_shard WHERE run_key = %s", [run_key])
    return {
        "name": name, "run_id": run_id, "seconds": seconds, "shards": shards, "tasks": tasks, "funnel": funnel,
        "shown": len(shown), "write_requests": writes, "staged_bytes": staged,
    }  # fmt: skip


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def look(stack: Stack, run_id: str, pictures: Path | None, name: str, pages: Sequence[str] = ()) -> dict[str, float]:
    """Open Airflow's grid and the Medflex pages in headless Chromium; return seconds until each could be used."""
    from urllib.parse import quote, urlencode

    run = f"/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"
    query = urlencode({"dag_id": DAG_ID, "run_id": run_id})
    addresses = {
        "grid": (run, "text=plan_shards"),
        "all instances of a task": (f"{run}/tasks/shard.withdraw_revoked/mapped", "text=open-"),
        "Medflex: the run": (f"/medflex/runs/view?{query}", "body"),
        "Medflex: clinics": ("/medflex/clinics", "body"),
    }
    times: dict[str, float] = {}
    with chromium() as browser, session(browser, stack.url, "viewer", stack.passwords()["viewer"]) as context:
        page = context.new_page()
        page.goto(f"/dags/{DAG_ID}", wait_until="networkidle", timeout=120_000)  # brings Airflow's own scripts
        for title, (address, selector) in addresses.items():
            if pages and title not in pages:
                continue
            started = time.perf_counter()
            page.goto(address, timeout=120_000)
            page.locator(selector).first.wait_for(timeout=120_000)
            times[title] = time.perf_counter() - started
            if pictures:
                page.wait_for_timeout(1500)
                pictures.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(pictures / f"{name}-{title.replace(' ', '-').replace(':', '')}.png"))
    return times


def written(cluster: Cluster, uri: str) -> dict[str, Any]:
    """What the ledger takes for records that are sent for the first time, and once more: bytes, WAL, seconds.

    uri: a ledger that is empty but for its tables.
    """
    from uuid import uuid4

    from medflex.ledger.store import BatchOutcome, Ledger

    chance = np.random.default_rng(3)
    figures: dict[str, Any] = {"records": WRITTEN, "batch_size": BATCH_SIZE}
    with Ledger(uri) as ledger:
        for version, name in enumerate(("sent", "sent again"), start=1):
            log_before = _wal(cluster)
            started = time.perf_counter()
            for clinic in range(1, WRITTEN // BATCH_SIZE + 1):
                holder = str(uuid4())
                epoch = ledger.acquire([clinic], holder)[clinic]
                ids = range(clinic * 100_000, clinic * 100_000 + BATCH_SIZE)
                intent = ledger.record_intent(
                    run_key=None, clinic_id=clinic, lpu_id=40_000 + clinic, operation="send", holder=holder,
                    epoch=epoch, appointment_ids=list(ids), versions=[version] * BATCH_SIZE,
                    digests=chance.integers(-(2**62), 2**62, BATCH_SIZE).tolist(), extracted_at=datetime.now(UTC),
                    patient_ids=chance.integers(10**6, 10**8, BATCH_SIZE).tolist(), partner_ids=[101, 102],
                )  # fmt: skip
                ledger.resolve(intent.batch_id, BatchOutcome("acknowledged", 200), datetime.now(UTC))
                ledger.release({clinic: epoch}, holder)
            figures[name] = {"seconds": time.perf_counter() - started, "wal_bytes": _wal(cluster) - log_before}
            figures[name] |= ledger_sizes(uri)
    return figures


def _wal(cluster: Cluster) -> int:
    with cluster.connect() as connection:
        row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
    return int(row[0]) if row else 0


def ledger_sizes(uri: str) -> dict[str, Any]:
    """Bytes of the ledger's tables (TOAST included) and of their indexes, and how many rows they have."""
    tables = ("record", "batch", "run_clinic", "run_decision", "run_validation")
    found: dict[str, Any] = {}
    for name in tables:
        ((rows, table, index),) = read(
            uri,
            f"SELECT count(*), pg_table_size('ledger.{name}'), pg_indexes_size('ledger.{name}') FROM ledger.{name}",
        )
        if rows:
            found[name] = {"rows": rows, "table_bytes": table, "index_bytes": index}
    return found


# -- processes of their own ------------------------------------------------------------------------------------------


def _in_child(asked: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    path = os.pathsep.join((str(PROJECT / "plugins"), str(PROJECT)))
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--child", json.dumps(asked)],
        env={**environment, "PYTHONPATH": path}, cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"{asked['what']} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.rstrip().rsplit("\n", 1)[-1])


def _child(asked: dict[str, Any]) -> int:
    figures: Any = _plan(asked["run_id"]) if asked["what"] == "plan" else _decide(asked["run_id"], asked["shards"])
    sys.stdout.write("\n" + json.dumps(figures) + "\n")
    return 0


def _plan(run_id: str) -> dict[str, Any]:
    from types import SimpleNamespace

    from airflow.sdk.execution_time.context import set_current_context

    from medflex.airflow.tasks import transfer

    queries: list[float] = []
    execute = psycopg.Cursor.execute

    def counted(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return execute(cursor, *args, **kwargs)
        finally:
            queries.append(time.perf_counter() - started)

    psycopg.Cursor.execute = counted  # type: ignore[method-assign]
    dag_run = SimpleNamespace(
        dag_id=DAG_ID, run_id=run_id, run_type="manual", run_after=datetime.now(UTC), partition_key=None, conf={}
    )
    context: Any = {"dag_run": dag_run, "ti": SimpleNamespace(try_number=1), "params": {"mode": "plan"}}
    started, worked = time.perf_counter(), time.process_time()
    with set_current_context(context):
        shards = transfer.plan_shards()
    return {
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked, "peak_mb": peak_mb(),
        "queries": len(queries), "query_seconds": sum(queries), "shards": len(shards),
    }  # fmt: skip


def _decide(run_id: str, shards: int) -> list[dict[str, Any]]:
    """The scheduler's own code on a run whose tasks are marked by hand: seconds, queries of each decision."""
    from airflow.models.dagbag import DBDagBag
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskmap import TaskMap
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, TaskInstanceState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from sqlalchemy import event, select, update

    bag, now, steps = DBDagBag(), datetime.now(UTC), list[dict[str, Any]]()
    done = {"state": TaskInstanceState.SUCCESS, "start_date": now, "end_date": now}
    with create_session() as session:
        dag = bag.get_latest_version_of_dag(DAG_ID, session=session)
        assert dag is not None
        dag.create_dagrun(
            run_id=run_id, logical_date=now, data_interval=(now, now), run_after=now, run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST, state=DagRunState.RUNNING, conf={}, start_date=now,
            session=session,
        )  # fmt: skip
        labels = [{"shard": number, "label": f"open-{number:03} · 20 clinics"} for number in range(shards)]
        session.flush()
        session.execute(update(TaskInstance).where(_is(TaskInstance, run_id, "plan_shards")).values(**done))
        session.add(TaskMap(DAG_ID, "plan_shards", run_id, -1, shards, None))
        XComModel.set(
            key="return_value", value=labels, dag_id=DAG_ID, task_id="plan_shards", run_id=run_id, session=session
        )
    for number, title in enumerate(STEPS):
        queries: list[None] = []

        def count(*_: Any, into: list[None] = queries) -> None:
            into.append(None)

        with create_session() as session:
            if number == 2:
                half = TaskInstance.map_index < shards // 2
                for task in ("shard.wait_for_activation", "shard.withdraw_revoked"):
                    session.execute(update(TaskInstance).where(_is(TaskInstance, run_id, task), half).values(**done))
                session.commit()
            event.listen(session.get_bind(), "before_cursor_execute", count)
            started, worked = time.perf_counter(), time.process_time()
            dag_run = session.scalars(select(DagRun).where(DagRun.run_id == run_id)).one()
            dag_run.dag = bag.get_dag_for_run(dag_run, session=session)
            dag_run.update_state(session=session, execute_callbacks=False)
            session.commit()
            seconds, cpu = time.perf_counter() - started, time.process_time() - worked
            event.remove(session.get_bind(), "before_cursor_execute", count)
        steps.append({"title": title, "seconds": seconds, "cpu_seconds": cpu, "queries": len(queries)})
    return steps


def _is(instance: Any, run_id: str, task_id: str) -> Any:
    from sqlalchemy import and_

    return and_(instance.dag_id == DAG_ID, instance.run_id == run_id, instance.task_id == task_id)


# -- what is told ----------------------------------------------------------------------------------------------------


def shard_tasks(figures: Mapping[str, Any]) -> set[str]:
    """The tasks that each shard has an instance of."""
    return {task["task"] for task in figures["runs"][0]["tasks"] if task["task"].startswith("shard.")}


def instances(figures: Mapping[str, Any]) -> int:
    """The most instances of mapped tasks that a run can have."""
    return len(shard_tasks(figures)) * MOST_SHARDS


def broken(figures: Mapping[str, Any]) -> list[str]:
    """Return what is not as it has to be, one sentence each."""
    wrong = [
        f"Planning took {one['seconds']:.0f} s ({name}); {LIMIT_PLAN_SECONDS:.0f} s at most are wanted."
        for name, one in figures["planning"].items()
        if one["seconds"] > LIMIT_PLAN_SECONDS
    ]
    if figures["packing"]["shards"] > MOST_SHARDS or instances(figures) > LIMIT_INSTANCES:
        wrong.append(f"A run can have more than {LIMIT_INSTANCES:,} mapped instances.")
    wrong += [
        f"The second run made {run['write_requests']} write requests; none is wanted."
        for run in figures["runs"][1:]
        if run["write_requests"]
    ]
    return wrong


def render(figures: Mapping[str, Any]) -> str:
    """Return the section of docs/benchmarks.md."""
    packed, runs = figures["packing"], figures["runs"]
    note = [figures["note"], ""] if "note" in figures else []
    lines = [
        "## 20,000 clinics" if figures["clinics"] == CLINICS else f"## {figures['clinics']:,} clinics",
        "",
        f"Written by `{figures['command']}`.",
        "",
        f"{figures['clinics']:,} clinics with {figures['appointments']:,} appointments, some switched off, never set,"
        " turned on by another than the head, waiting or without partners, in a whole Airflow as `make demo` starts it"
        f" (4 tasks at a time), with `MEDFLEX_SHARD_ROWS={figures['shard_rows']}`.",
        "",
        figures["circumstances"],
        "",
        *note,
        "### Planning",
        "",
        f"`plan_shards` in a process of its own; {LIMIT_PLAN_SECONDS:.0f} s at most are wanted.",
        "",
        "| ledger | s | CPU s | in queries, s | queries | peak MB | shards |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {one['seconds']:.1f} | {one['cpu_seconds']:.1f} | {one['query_seconds']:.1f}"
            f" | {one['queries']} | {one['peak_mb']:.0f} | {one['shards']} |"
            for name, one in figures["planning"].items()
        ),
        "",
        f"Packing alone, of {CLINICS:,} clinics with {packed['rows'] / 1e6:.0f} million expected rows (the largest has"
        f" {packed['largest_clinic']:,}), 500 of them waiting and 1,000 closed: {packed['shards']} shards,"
        f" {packed['open_shards']} of them open with {packed['least_rows']:,} to {packed['most_rows']:,} rows, in"
        f" {packed['seconds']:.1f} s.",
        "",
        "### Real runs",
        "",
        _row("", [f"run: {run['name']}" for run in runs]),
        f"| --- |{' ---: |' * len(runs)}",
        _row("shards", [run["shards"] for run in runs]),
        *(
            _row(name, [f"{run['funnel'][name]:,}" for run in runs])
            for name in ("extracted", "eligible", "unchanged", "accepted")
        ),
        _row("records that Medflex shows, all as a plain query says", [f"{run['shown']:,}" for run in runs]),
        _row("write requests", [f"{run['write_requests']:,}" for run in runs]),
        _row("seconds", [f"{run['seconds']:.0f}" for run in runs]),
        "",
        _row("task", ["instances", *(title for run in runs for title in (f"{run['name']}: mean s", "most"))]),
        f"| --- | ---: |{' ---: | ---: |' * len(runs)}",
        *_task_rows(runs),
        "",
        "### What a number of shards costs Airflow",
        "",
        "The scheduler's own decision about a run, made in each of its rounds as long as the run lasts and before it"
        " comes to any other DAG; and Airflow's grid in headless Chromium. The shards' tasks are marked as done by hand"
        " here.",
        "",
        f"| shards | instances | {' | '.join(f'{title}, s (CPU s)' for title in STEPS)} | queries at most | grid, s |",
        f"| ---: | ---: |{' ---: |' * (len(STEPS) + 2)}",
        *(
            f"| {one['shards']} | {one['shards'] * len(shard_tasks(figures)):,} | "
            + " | ".join(f"{step['seconds']:.1f} ({step['cpu_seconds']:.1f})" for step in one["steps"])
            + f" | {max(step['queries'] for step in one['steps']):,} | {one['grid_seconds']:.1f} |"
            for one in figures["decisions"]
        ),
        "",
        f"So there are never more than {MOST_SHARDS} shards: {instances(figures):,} mapped instances.",
        "",
        f"Pages with the run of {runs[-1]['shards']} shards, seconds until they can be used: "
        + ", ".join(f"{title} {seconds:.1f}" for title, seconds in figures["pages"].items())
        + ".",
    ]
    return "\n".join(lines)


def _task_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    of_run = [{task["task"]: task for task in run["tasks"]} for run in runs]
    rows = []
    for name, first in of_run[0].items():
        cells = [first["instances"]]
        for tasks in of_run:
            cells += [_each(tasks[name]), f"{tasks[name]['most_seconds']:.1f}"]
        if first["seconds"]:
            rows.append(_row(f"`{name.removeprefix('shard.')}`", cells))
    return rows


def _row(title: str, cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, (title, *cells)))} |"


def _each(task: Mapping[str, Any]) -> str:
    return f"{task['seconds'] / max(1, task['instances']):.1f}"


if __name__ == "__main__":
    sys.exit(main())
