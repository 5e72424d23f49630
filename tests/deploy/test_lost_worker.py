"""A host with a Celery worker is lost, and nobody brings it back: the run ends green by itself, and exactly right.

Two workers, of which each has its own home and reaches staging through the object store only. Times are those of
docker-compose.yml, except where SETTINGS says otherwise. Minutes of work: in ``make test-long`` only.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg
import pytest

from sandbox.medflex.control import Match
from sandbox.stack import DAG_ID
from tests.deploy.cluster import WORKERS, Deployment, wait_for
from tests.deploy.tap import Tap
from tests.domain.oracles.loop import expected_records

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

log = logging.getLogger(__name__)
USER, PASSWORD = "head-1", "made up for this test 2"
CLINICS = list(range(1, 11))
BATCH = 12
WORK = ("withdraw_revoked", "extract", "withhold", "validate", "plan_changes", "load")
"""The tasks of a shard that a worker does."""
KINDS = {"extract", "clinics", "eligible", "plan"}
SETTINGS = {
    # A task that went into the queue and was lost with a worker is sent again after this; production: 300.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
}


class World:
    """The deployment, and what is asked about its runs."""

    def __init__(self, deployment: Deployment, tap: Tap) -> None:
        self.deployment, self.tap = deployment, tap
        self.control = deployment.medflex.control
        self.airflow = deployment.airflow(USER, PASSWORD)

    def read(self, database: str, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.uri(database)) as connection:
            return connection.execute(sql.encode(), parameters or None).fetchall()

    def edit(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Change something in Medlock."""
        with psycopg.connect(self.uri("medlock")) as connection:
            connection.execute(sql.encode(), parameters or None)

    def uri(self, database: str) -> str:
        variables = self.deployment.variables
        if database == "medlock":
            return self.deployment.medlock.uri("medlock", "medlock_owner", variables["DEMO_MEDLOCK_PASSWORD"])
        return self.deployment.postgres.uri(database, database, variables[f"POSTGRES_{database.upper()}_PASSWORD"])

    def change(self, clinic_ids: Sequence[int] = CLINICS) -> None:
        """Let every appointment of these clinics be another than Medflex shows."""
        self.edit(
            "UPDATE medlock.appointment SET ends_at = ends_at + interval '5 minutes', updated_at = now()"
            " WHERE clinic_id = ANY(%s)",
            [list(clinic_ids)],
        )

    # Runs

    def runs(self) -> list[str]:
        """Return the ids of the runs, oldest first."""
        sql = "SELECT run_id FROM dag_run WHERE dag_id = %s ORDER BY queued_at"
        return [run_id for (run_id,) in self.read("airflow", sql, [DAG_ID])]

    def trigger(self, **conf: Any) -> str:
        return str(
            self.airflow.call("POST", f"/dags/{DAG_ID}/dagRuns", body={"logical_date": None, "conf": conf})[
                "dag_run_id"
            ]
        )

    def follow(self, run_id: str, seconds: float = 900) -> float:
        """Wait for the end of a run; return how many seconds that took."""
        began = time.monotonic()
        wait_for(
            f"the end of {run_id}", lambda: self.airflow.run_state(DAG_ID, run_id) in ("success", "failed"), seconds
        )
        assert self.airflow.run_state(DAG_ID, run_id) == "success", self.airflow.task_states(DAG_ID, run_id)
        return time.monotonic() - began

    def instances(self, run_id: str, state: str, like: str = "%") -> list[tuple[str, int, int, int | None, str]]:
        """Return task id, map index, try number, process id and Celery's id of a run's task instances."""
        return self.read(
            "airflow",
            "SELECT task_id, map_index, try_number, pid, external_executor_id FROM task_instance"
            " WHERE run_id = %s AND state = %s AND task_id LIKE %s ORDER BY 1, 2",
            [run_id, state, like],
        )

    def attempts(self, run_id: str) -> Counter[int]:
        """Return how many task instances took how many attempts."""
        return Counter(tries for _, _, tries, _, _ in self.instances(run_id, "success"))

    def worker_of(self, pid: int | None) -> str | None:
        """Return the worker in which a process lives."""
        for worker in WORKERS:
            if pid in {process.pid for process in self.deployment.tree(worker)}:
                return worker
        return None

    def start_workers(self) -> None:
        """Bring back what the test before has killed, and wait until nothing is under way."""
        self.deployment.start(*WORKERS)
        self.deployment.wait_healthy(*WORKERS)
        left = "SELECT 1 FROM dag_run WHERE state IN ('queued', 'running')"
        wait_for("no run under way", lambda: not self.read("airflow", left), 600)

    def worked_on(self, run_id: str) -> dict[tuple[str, int], set[str]]:
        """Return on which workers each mapped task ran, by the logs that each keeps in its own home."""
        found = defaultdict(set)
        for worker in WORKERS:
            for file in (self.deployment.folder / worker / "logs").rglob("attempt=*.log"):
                match = re.search(r"/run_id=([^/]+)/task_id=shard\.(\w+)/map_index=(\d+)/", str(file))
                if match and match[1] == run_id and match[2] in WORK:
                    found[match[2], int(match[3])].add(worker)
        return dict(found)

    # What has to hold

    def numbers(self, run_id: str) -> dict[str, int]:
        """Return the sums of a run's funnel."""
        names = ("planned", "accepted", "rejected", "to_retry", "unknown", "dropped")
        sums = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
        (row,) = self.read(
            "ledger",
            f"SELECT {sums} FROM ledger.run_clinic JOIN ledger.run USING (run_key) WHERE run_id = %s",
            [run_id],
        )
        return dict(zip(names, row, strict=True))

    def check(self, run_id: str) -> None:
        """Assert that Medflex, the ledger and staging are as after a run in which nothing went wrong."""
        numbers = self.numbers(run_id)
        planned = numbers.pop("planned")
        assert planned == sum(numbers.values()) == numbers["accepted"] > 0
        # Nothing lost, nothing that may not be there: by the independent loop.
        ((oldest,),) = self.read("ledger", "SELECT min(anchor) FROM ledger.run")
        with psycopg.connect(self.uri("medlock")) as connection:
            now = datetime.now(UTC)
            windows = [expected_records(connection, now=now, day=day) for day in (oldest, now)]
        shown = self.control.records()
        assert compare({key: without_version(record) for key, record in shown.items()}, *windows) == {}
        # Nothing twice: each version of a record has taken effect once, in order, and stands in one request only.
        given = defaultdict(list)
        for write in self.control.applied():
            given[write["lpu_id"], write["id"]].append(write["version"])
        assert {key: versions for key, versions in given.items() if versions != sorted(set(versions))} == {}
        keys: dict[tuple[int, int, int], set[str]] = defaultdict(set)
        sent = {str(request["key"]) for request in self.control.request_log() if request["operation"]}
        for key, lpu_id, ids, versions in self.read(
            "ledger", "SELECT idempotency_key::text, lpu_id, appointment_ids, versions FROM ledger.batch"
        ):
            for record, version in zip(ids, versions, strict=True):
                if key in sent:
                    keys[lpu_id, record, version].add(key)
        assert {what: found for what, found in keys.items() if len(found) > 1} == {}
        assert set(keys) >= {(*record, version) for record, versions in given.items() for version in versions}
        # The ledger knows what Medflex has.
        known = self.read(
            "ledger", "SELECT lpu_id, appointment_id, version FROM ledger.record WHERE state IN ('sent', 'aged_out')"
        )
        assert {(lpu_id, record): version for lpu_id, record, version in known} == {
            key: record["version"] for key, record in shown.items()
        }
        for what, sql in {
            "batches without outcome": "SELECT batch_id FROM ledger.batch WHERE outcome IS NULL",
            "leases that are held": "SELECT clinic_id, holder FROM ledger.lease WHERE holder IS NOT NULL",
            "records in doubt": "SELECT appointment_id FROM ledger.record WHERE state IN ('sending', 'withdrawing')",
        }.items():
            assert (what, self.read("ledger", sql)) == (what, [])
        assert self.staged() == []

    def staged(self) -> list[str]:
        """Return the keys in the bucket for staging."""
        program = (
            "import boto3, json, os\n"
            "c = json.loads(os.environ['AIRFLOW_CONN_MEDFLEX_STORAGE'])\n"
            "s3 = boto3.client('s3', aws_access_key_id=c['login'], aws_secret_access_key=c['password'], **c['extra'])\n"
            "found = s3.get_paginator('list_objects_v2').paginate(Bucket='medflex-staging')\n"
            "print(json.dumps([o['Key'] for page in found for o in page.get('Contents', [])]))"
        )
        return list(json.loads(self.deployment.run("storage-buckets", ["python", "-c", program])))


def without_version(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "version"}


def compare(shown: dict[Any, Any], first: dict[Any, Any], last: dict[Any, Any]) -> dict[Any, str]:
    """Return what is wrong with each record that is not as expected; of what it says, nothing.

    first, last: what may be shared by the windows of the first run's day and of today. They differ in a day at either
    end when midnight has passed in a clinic since then: these records may be there, and need not.
    """
    may = first | last
    wrong = dict.fromkeys((first.keys() & last.keys()) - shown.keys(), "is missing")
    wrong |= dict.fromkeys(shown.keys() - may.keys(), "may not be there")
    return wrong | {key: "is another" for key in shown.keys() & may.keys() if shown[key] != may[key]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Ten clinics, a shard for each that is open; the daily run has brought all of them over."""

    def change(variables: dict[str, str]) -> None:
        medflex = json.loads(variables["AIRFLOW_CONN_MEDFLEX_API"])
        # Several batches per clinic, of which some are on their way while others are waiting.
        medflex["extra"] |= {"batch_size": BATCH, "parallel": 2}
        variables["AIRFLOW_CONN_MEDFLEX_API"] = json.dumps(medflex)
        variables["MEDFLEX_SHARD_ROWS"] = "1"

    deployment = Deployment(tmp_path_factory.mktemp("lost"), change=change, settings=SETTINGS)
    try:
        deployment.start_servers()
        with Tap(deployment.ports["s3"]) as tap:
            deployment.elsewhere["http://storage:8333"] = tap.url
            found = World(deployment, tap)
            deployment.fill_medlock(2_000, len(CLINICS))
            found.edit(
                "UPDATE medlock.medflex_access SET enabled = true, changed_at = now() - interval '2 days'"
                " WHERE clinic_id = ANY(%s)",
                [CLINICS],
            )
            deployment.start_airflow(USER, PASSWORD)
            wait_for("the DAG", lambda: found.airflow.dag(DAG_ID) is not None)
            found.airflow.unpause(DAG_ID)
            # The day's own run comes by itself.
            wait_for("the daily run", lambda: bool(found.runs()))
            log.info("The daily run took %.0f s", found.follow(found.runs()[0]))
            yield found
    finally:
        deployment.stop()


def test_two_workers_share_many_shards_through_the_object_store(world: World) -> None:
    run_id = world.runs()[0]
    worked = world.worked_on(run_id)
    shards = {shard for _, shard in worked}
    log.info("%d shards, %s, attempts %s", len(shards), world.numbers(run_id), world.attempts(run_id))
    assert len(shards) >= 8
    assert set(worked) == {(task, shard) for task in WORK for shard in shards}
    for worker in WORKERS:
        assert len({shard for (_, shard), workers in worked.items() if worker in workers}) >= 4, worker
    # What one worker staged the other one has read, with nothing in common but the store.
    split = [shard for shard in shards if len(set.union(*(worked[task, shard] for task in WORK[1:]))) == 2]
    assert split
    written: dict[int, set[str]] = defaultdict(set)
    read: dict[int, set[str]] = defaultdict(set)
    for request in world.tap.requests:
        match = re.search(r"^/medflex-staging/runs/.*/(\d{5})/([a-z]+)-0001/\d{5}\.parquet$", request.path)
        if match and request.method in ("PUT", "GET"):
            (written if request.method == "PUT" else read)[int(match[1])].add(match[2])
    assert written == dict.fromkeys(shards, KINDS)
    assert read == dict.fromkeys(shards, KINDS)
    # And nothing beside it: the store's own folder is the only one with staged data.
    for worker in WORKERS:
        assert list((world.deployment.folder / worker).rglob("*.parquet")) == []
    world.check(run_id)


def test_a_worker_that_dies_amid_a_load_costs_nothing_but_time(world: World) -> None:
    world.start_workers()
    world.change()
    lpus = dict(world.read("medlock", "SELECT id, lpu_id FROM medlock.clinic"))
    before = Counter(write["lpu_id"] for write in world.control.applied())
    slow = world.control.add_fault("slow", match=Match(path_prefix="/appointments/batch/"), latency_ms=4_000)
    run_id = world.trigger()
    caught: list[tuple[str, int, int, int]] = []

    def some_but_not_all() -> bool:
        """Whether Medflex has a part of a load that is under way, and a lot is still to come."""
        for _, index, tries, pid, _ in world.instances(run_id, "running", "shard.load"):
            worker = world.worker_of(pid)
            rows = world.read(
                "ledger",
                "SELECT clinic_id, planned FROM ledger.run_clinic JOIN ledger.run USING (run_key)"
                " WHERE run_id = %s AND shard = %s",
                [run_id, index],
            )
            planned = sum(row[1] or 0 for row in rows)
            received = sum(received_of(lpus[row[0]]) for row in rows)
            if worker and tries == 1 and 0 < received <= planned - 4 * BATCH:
                caught.append((worker, index, received, planned))
                return True
        return False

    def received_of(lpu_id: int) -> int:
        return sum(1 for _ in world.control.applied(lpu_id)) - before[lpu_id]

    wait_for("a load of which Medflex has a part", some_but_not_all, 600)
    worker, index, received, planned = caught[0]
    dead = world.deployment.kill(worker)
    killed_at = time.monotonic()
    world.control.remove_fault(slow)
    lost = [(task, shard) for task, shard, _, pid, _ in world.instances(run_id, "running") if pid in dead]
    assert ("shard.load", index) in lost
    # Whoever is dead sends nothing: that some are missing is so for good, until somebody sends them anew.
    open_batches = world.read("ledger", "SELECT count(*) FROM ledger.batch WHERE outcome IS NULL")
    assert open_batches[0][0] >= 1
    world.follow(run_id)
    seconds = time.monotonic() - killed_at
    log.info(
        "Killed %s with %s after %d of %d batches of shard %d; green after %.0f s, attempts %s, %s",
        worker, lost, received // BATCH, -(-planned // BATCH), index, seconds, world.attempts(run_id),
        world.numbers(run_id),
    )  # fmt: skip
    assert world.deployment.tree(worker) == []
    # What ran there, and nothing else, was tried once more.
    again = {(task, shard) for task, shard, tries, _, _ in world.instances(run_id, "success") if tries > 1}
    assert again == set(lost)
    assert {tries for _, _, tries, _, _ in world.instances(run_id, "success")} == {1, 2}
    (survivor,) = set(WORKERS) - {worker}
    assert world.worked_on(run_id)["load", index] == {worker, survivor}
    world.check(run_id)


def test_a_worker_that_dies_while_it_stages_leaves_no_half_of_it(world: World) -> None:
    world.start_workers()
    world.change(CLINICS[:4])
    world.tap.hold(r"^PUT /medflex-staging/.*/extract-0001/00000\.parquet$")
    run_id = world.trigger(clinic_ids=CLINICS[:4])
    wait_for("half of a staged part", lambda: world.tap.held is not None, 600)
    assert world.tap.held is not None
    port = world.tap.held.port
    (worker,) = [
        worker
        for worker in WORKERS
        for process in world.deployment.tree(worker)
        if port in {connection.laddr.port for connection in connections(process)}
    ][:1]
    index = int(world.tap.held.path.split("/")[-3])
    world.deployment.kill(worker)
    killed_at = time.monotonic()
    world.tap.let_go(whole=False)
    world.follow(run_id)
    seconds = time.monotonic() - killed_at
    log.info("Killed %s in extract of shard %d; green after %.0f s, %s", worker, index, seconds, world.attempts(run_id))
    tries = {shard: tries for task, shard, tries, _, _ in world.instances(run_id, "success", "shard.extract")}
    assert tries[index] == 2
    world.check(run_id)


def test_a_worker_that_dies_while_the_run_is_settled_does_not_turn_it_red(world: World) -> None:
    world.start_workers()
    world.change(CLINICS[:2])
    run_id = world.trigger(clinic_ids=CLINICS[:2])
    wait_for("plan_shards", lambda: bool(world.instances(run_id, "success", "plan_shards")))
    with psycopg.connect(world.uri("ledger")) as lock:
        # From now on nobody but settle_run writes there.
        lock.execute("LOCK TABLE ledger.run_total IN EXCLUSIVE MODE")
        stuck = "SELECT 1 FROM pg_locks WHERE relation = 'ledger.run_total'::regclass AND NOT granted"
        wait_for("settle_run to write its sums", lambda: bool(world.read("ledger", stuck)), 600)
        ((_, _, _, pid, _),) = world.instances(run_id, "running", "settle_run")
        worker = world.worker_of(pid)
        assert worker is not None
        world.deployment.kill(worker)
        killed_at = time.monotonic()
    world.follow(run_id)
    log.info("Killed %s in settle_run; green after %.0f s", worker, time.monotonic() - killed_at)
    assert [tries for _, _, tries, _, _ in world.instances(run_id, "success", "settle_run")] == [2]
    world.check(run_id)


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Let processes stand still; those that are still there afterwards go on."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections("tcp"))
    except psutil.Error:
        return []


def test_what_a_worker_had_taken_and_not_begun_is_sent_again_as_often_as_it_takes(world: World) -> None:
    world.start_workers()
    world.change(CLINICS[:2])
    taken: list[str] = []

    def is_taken() -> bool:
        taken[:] = [
            worker
            for _, _, _, _, celery_id in world.instances(run_id, "queued", "plan_shards")
            for worker in WORKERS
            if celery_id and f"[{celery_id}] received" in world.deployment.processes.log(worker).read_text()
        ]
        return bool(taken)

    # Both go on taking what is queued, and none begins with it.
    with frozen([process for worker in WORKERS for process in world.deployment.tree(worker)[1:]]):
        run_id = world.trigger(clinic_ids=CLINICS[:2])
        wait_for("plan_shards to be taken", is_taken)
        world.deployment.kill(taken[0])
        killed_at = time.monotonic()
        sent_again = "SELECT count(*) FROM log WHERE run_id = %s AND event = 'stuck in queued reschedule'"
        # One more than Airflow allows for by default before it fails a task that has done nothing wrong.
        wait_for("plan_shards to be sent thrice", lambda: world.read("airflow", sent_again, [run_id])[0][0] >= 3, 240)
    world.follow(run_id)
    seconds = time.monotonic() - killed_at
    log.info("Killed %s with plan_shards taken; green after %.0f s, %s", taken[0], seconds, world.attempts(run_id))
    # None of it was an attempt.
    assert {tries for _, _, tries, _, _ in world.instances(run_id, "success")} == {1}
    world.check(run_id)
