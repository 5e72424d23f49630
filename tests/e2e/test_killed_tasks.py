"""kill -9 of real task processes at every durable step, and of Airflow's own parts, under the real scheduler.

Whatever dies, and wherever: the next attempt brings Medflex, the ledger and Medlock to agreement.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

import sandbox.stack
from sandbox.medflex.control import Control, Match
from sandbox.stack import PROJECT, Stack
from tests.e2e.test_daily_transfer import edit, shown_and_expected, wait_for

pytestmark = [pytest.mark.timeout(900), pytest.mark.e2e]

CLINICS = 6
SETTINGS = {
    # A task whose supervisor has died is missed by its heartbeat only; the default is five minutes.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}

# One pair per clinic: the first attempt dies at the first, the second at the other, and the third has to do.
LOAD = (
    ("before acquire", "after acquire"),
    ("after fold_open_batches", "after set_stage"),
    ("after record_intents", "after post_batch"),
    ("before post_batch", "after resolve_together"),
    ("before resolve_together, both", "before save_numbers"),
    ("after save_numbers", "before set_stage"),
)
WITHDRAW = (
    ("before save_revocations", "after save_revocations"),
    ("before acquire", "after acquire"),
    ("after fold_open_batches", "before record_intents"),
    ("after record_intents", "before post_batch"),
    ("after post_batch, both", "before resolve_together"),
    ("after resolve_together", "after save_numbers"),
)
WITHDRAW_NOW = (
    ("after save_revocations", "before acquire"),
    ("after acquire", "after fold_open_batches"),
    ("after record_intents", "before post_batch"),
    ("after post_batch", "before resolve_together"),
    ("after resolve_together",),
    ("after record_intents, both",),
)
RECONCILE = (
    ("after acquire", "before correct_records"),
    ("after fold_open_batches", "after correct_records"),
    ("after release", "after save_revocations"),
    ("after record_intents", "after post_batch"),
    ("after resolve_together", "after save_findings"),
    ("after set_withdraw_stage", "after save_numbers"),
)


SWEEP = ("before save_revocations", "after save_revocations", "after acquire", "after post_batch")


class Airflow:
    """The stack, whose tasks die when they are told to."""

    def __init__(self, folder: Path) -> None:
        self.plugins = folder / "plugins"
        for made in ("orders", "done"):
            (self.plugins / made).mkdir(parents=True)
        for part in ("medflex", "medflex_plugin.py"):
            (self.plugins / part).symlink_to(PROJECT / "plugins" / part)
        shutil.copy(Path(__file__).with_name("kill_points.py"), self.plugins / "sitecustomize.py")
        (self.plugins / ".airflowignore").write_text("medflex/\nsitecustomize.py\n")
        dags = folder / "dags"
        dags.mkdir()
        for file in (PROJECT / "dags").glob("*.py"):
            # Nothing is different but the pause before another attempt.
            text = file.read_text().replace('retry_delay": timedelta(seconds=30)', 'retry_delay": timedelta(seconds=3)')
            (dags / file.name).write_text(text.replace("timedelta(seconds=10)", "timedelta(seconds=3)"))
        self.stack = Stack(folder / "stack", dags=dags, plugins=self.plugins)
        self.survivors: list[psutil.Process] = []
        """What outlives a service that was killed is no service's any more."""

    def order(self, task_id: str, deaths: Sequence[str], index: int = -1) -> None:
        """Let the next attempts of a task instance die, one at each of these moments."""
        for number, death in enumerate(deaths):
            (self.plugins / "orders" / f"{task_id}@{index}.{number}").write_text(death)

    def open_orders(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.plugins / "orders").iterdir()}

    def one_clinic_per_shard(self) -> None:
        (self.plugins / "one_clinic_per_shard").touch()

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Make a run by hand and return its id."""
        body = {"logical_date": None, "conf": conf or {}}
        return str(self.stack.airflow().call("POST", f"/dags/{dag_id}/dagRuns", body=body)["dag_run_id"])

    def pause(self, dag_id: str, paused: bool = True) -> None:
        self.stack.airflow().call("PATCH", f"/dags/{dag_id}", body={"is_paused": paused})

    def states(self, dag_id: str) -> dict[str, str]:
        """Return the state of each run of a DAG."""
        rows = self.read("airflow", "SELECT run_id, state FROM dag_run WHERE dag_id = %s", [dag_id])
        return dict(rows)

    def quiet(self, *dag_ids: str) -> bool:
        """Whether no run of these DAGs is queued or under way."""
        return all(state in ("success", "failed") for dag_id in dag_ids for state in self.states(dag_id).values())

    def attempts(self, dag_id: str, run_id: str, task_id: str) -> set[tuple[int, int, str]]:
        """Return map index, number of attempts and state of a task's instances."""
        return set(
            self.read(
                "airflow",
                "SELECT map_index, try_number, state FROM task_instance WHERE dag_id = %s AND run_id = %s"
                " AND task_id = %s",
                [dag_id, run_id, task_id],
            )
        )

    def read(self, database: str, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        owner = {"airflow": "airflow", "medlock": "medlock_owner", "ledger": "ledger_owner"}[database]
        with psycopg.connect(self.stack.cluster.uri(database, owner)) as connection:
            return connection.execute(sql.encode(), parameters or None).fetchall()

    def refuse(self, clinic_id: int, number: int = 2) -> list[int]:
        """Let patients refuse of whom Medflex shows records; return their ids."""
        found = self.read(
            "ledger",
            "SELECT DISTINCT patient_id FROM ledger.record WHERE clinic_id = %s AND state = 'sent'"
            " ORDER BY patient_id LIMIT %s",
            [clinic_id, number],
        )
        patients = [row[0] for row in found]
        assert len(patients) == number
        edit(
            self.stack,
            "UPDATE medlock.patient SET refused_personal_data = true, updated_at = now() WHERE id = ANY(%s)",
            [patients],
        )
        return patients

    def delete(self, clinic_id: int) -> None:
        """Delete two appointments that Medflex shows."""
        found = self.read(
            "ledger",
            "SELECT appointment_id FROM ledger.record WHERE clinic_id = %s AND state = 'sent'"
            " ORDER BY appointment_id LIMIT 2",
            [clinic_id],
        )
        assert len(found) == 2
        edit(self.stack, "DELETE FROM medlock.appointment WHERE id = ANY(%s)", [[row[0] for row in found]])

    def kill(self, name: str) -> None:
        """Kill a service and nothing that it has started."""
        process = self.stack.services.process(name)
        assert process is not None
        self.survivors += process.children(recursive=True)
        process.kill()
        wait_for(lambda: not self.stack.services.is_running(name), f"the end of the {name}")

    def agreed(self) -> bool:
        """Whether Medflex shows exactly what may be shared."""
        shown, expected = shown_and_expected(self.stack, self.last_run())
        return shown == expected

    def last_run(self) -> str:
        # Of the transfers: what is shown is of their day, also when a withdrawal runs after midnight in a clinic.
        (row,) = self.read(
            "ledger", "SELECT run_id FROM ledger.run WHERE dag_id = 'medflex_transfer' ORDER BY run_key DESC LIMIT 1"
        )
        return str(row[0])

    def check(self) -> None:
        """Assert what has to hold whenever nothing is under way."""
        assert self.open_orders() == {}
        shown, expected = shown_and_expected(self.stack, self.last_run())
        assert shown == expected
        with Control(self.stack.control_url) as control:
            versions = defaultdict(list)
            for write in control.applied():
                versions[write["lpu_id"], write["id"]].append(write["version"])
        assert [key for key, given in versions.items() if given != sorted(set(given))] == []
        for what, sql in {
            "batches without outcome": "SELECT batch_id FROM ledger.batch WHERE outcome IS NULL",
            "leases that are held": "SELECT clinic_id, holder FROM ledger.lease WHERE holder IS NOT NULL",
            "open revocations": "SELECT clinic_id, appointment_id FROM ledger.revocation",
            "records in doubt": "SELECT clinic_id, appointment_id, state FROM ledger.record"
            " WHERE state IN ('sending', 'withdrawing')",
        }.items():
            assert (what, self.read("ledger", sql)) == (what, [])
        staging = self.stack.folder / "staging"
        assert [path for path in staging.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Six open clinics whose appointments are at Medflex."""
    environment = sandbox.stack.stack_environment

    def with_settings(stack: Stack) -> dict[str, str]:
        made = environment(stack) | SETTINGS
        medflex = json.loads(made["AIRFLOW_CONN_MEDFLEX_API"])
        # Several batches per clinic, so that others are on their way when a task dies.
        medflex["extra"] |= {"batch_size": 15, "timeout_seconds": 20}
        return made | {"AIRFLOW_CONN_MEDFLEX_API": json.dumps(medflex)}

    patch = pytest.MonkeyPatch()
    patch.setattr(sandbox.stack, "stack_environment", with_settings)
    made = Airflow(tmp_path_factory.mktemp("killed"))
    stack = made.stack
    try:
        stack.start(appointments=700, clinics=CLINICS)
        edit(
            stack,
            "UPDATE medlock.medflex_access SET enabled = true, changed_at = now() - interval '2 days'"
            " WHERE clinic_id = ANY(%s)",
            [list(range(1, CLINICS + 1))],
        )
        assert stack.follow(stack.run_day(None)) == "success"
        wait_for(lambda: made.quiet("medflex_withdraw") and made.states("medflex_withdraw"), "a first quick look")
        # Else it would withdraw refusals before the task that is to die gets to them; it is due once only.
        swept = "SELECT 1 FROM ledger.watch WHERE name = 'sweep' AND value ->> 'after' IS NULL"
        wait_for(lambda: made.quiet("medflex_sweep") and made.read("ledger", swept), "a first look at everything", 700)
        made.check()
        yield made
    finally:
        stack.stop()
        for process in made.survivors:
            if process.is_running():
                process.kill()
        patch.undo()


@pytest.fixture
def no_reconciliation(airflow: Airflow) -> Iterator[None]:
    """At each half hour one begins, and would withdraw refusals before the task that is to die gets to them."""
    airflow.pause("medflex_reconcile")
    wait_for(lambda: airflow.quiet("medflex_reconcile"), "no reconciliation under way")
    yield
    airflow.pause("medflex_reconcile", paused=False)


@pytest.mark.usefixtures("no_reconciliation")
def test_a_transfer_whose_withdrawals_and_loads_are_killed_at_each_step_ends_green_and_exact(airflow: Airflow) -> None:
    airflow.pause("medflex_withdraw")
    airflow.one_clinic_per_shard()
    for clinic_id in range(1, CLINICS + 1):
        airflow.refuse(clinic_id)
    # All that is left is sent again with another doctor's visit length: several batches per clinic.
    edit(
        airflow.stack, "UPDATE medlock.appointment SET ends_at = ends_at + interval '5 minutes', updated_at = now()", []
    )
    for index in range(CLINICS):
        airflow.order("shard.withdraw_revoked", WITHDRAW[index], index)
        airflow.order("shard.load", LOAD[index], index)
    run_id = airflow.trigger("medflex_transfer")
    assert airflow.stack.follow(run_id) == "success"
    for task in ("withdraw_revoked", "load"):
        found = airflow.attempts("medflex_transfer", run_id, f"shard.{task}")
        assert found == {(index, 3, "success") for index in range(CLINICS)}
    airflow.check()
    airflow.pause("medflex_withdraw", paused=False)


@pytest.mark.usefixtures("no_reconciliation")
@pytest.mark.parametrize("deaths", WITHDRAW_NOW, ids=lambda deaths: ", then ".join(deaths))
def test_a_quick_withdrawal_that_is_killed_is_brought_to_its_end_by_the_next_attempt(
    airflow: Airflow, deaths: tuple[str, ...]
) -> None:
    wait_for(lambda: airflow.quiet("medflex_withdraw"), "no withdrawal under way")
    # One that the clock has begun since is none of these: it may take the order.
    before = {run_id for run_id, state in airflow.states("medflex_withdraw").items() if state in ("success", "failed")}
    airflow.order("withdraw_revoked_now", deaths)
    airflow.refuse(1 + WITHDRAW_NOW.index(deaths) % CLINICS)
    wait_for(lambda: not airflow.open_orders(), "the task to die as ordered")
    wait_for(lambda: airflow.agreed() and airflow.quiet("medflex_withdraw"), "the refusal to be withdrawn")
    ended = {run_id: state for run_id, state in airflow.states("medflex_withdraw").items() if run_id not in before}
    assert set(ended.values()) == {"success"}
    airflow.check()


@pytest.mark.usefixtures("no_reconciliation")
@pytest.mark.parametrize("death", SWEEP)
def test_what_a_search_for_deleted_rows_had_found_when_it_was_killed_is_withdrawn_by_the_next_run(
    airflow: Airflow, death: str
) -> None:
    wait_for(lambda: airflow.quiet("medflex_withdraw", "medflex_sweep"), "no withdrawal under way")
    airflow.order("sweep", (death,))
    airflow.delete(1 + SWEEP.index(death) % CLINICS)
    wait_for(lambda: not airflow.open_orders(), "the task to die as ordered", 360)
    # Five minutes later at most: an attempt more would be another piece. What arrived is not known before that.
    open_batches = "SELECT 1 FROM ledger.batch WHERE outcome IS NULL"
    wait_for(
        lambda: (
            airflow.agreed()
            and airflow.quiet("medflex_withdraw", "medflex_sweep")
            and not airflow.read("ledger", open_batches)
        ),
        "the rows to be withdrawn",
        360,
    )
    airflow.check()


def test_a_reconciliation_that_is_killed_at_each_step_ends_green_and_exact(airflow: Airflow) -> None:
    wait_for(lambda: airflow.quiet("medflex_withdraw"), "no withdrawal under way")
    airflow.pause("medflex_withdraw")
    airflow.one_clinic_per_shard()
    for clinic_id in range(1, CLINICS + 1):
        airflow.refuse(clinic_id, 1)
        # Of one record the ledger knows nothing any more, of another it has forgotten the last acknowledgement.
        with psycopg.connect(airflow.stack.ledger()) as ledger:
            records = ledger.execute(
                "SELECT appointment_id FROM ledger.record WHERE clinic_id = %s AND state = 'sent'"
                " ORDER BY appointment_id DESC LIMIT 2",
                [clinic_id],
            ).fetchall()
            ledger.execute("DELETE FROM ledger.record WHERE appointment_id = %s", records[0])
            ledger.execute(
                "UPDATE ledger.record SET version = version - 1, state = 'sending' WHERE appointment_id = %s",
                records[1],
            )
    for index in range(CLINICS):
        airflow.order("reconcile", RECONCILE[index], index)
    airflow.pause("medflex_reconcile", paused=False)
    run_id = airflow.trigger("medflex_reconcile")
    wait_for(lambda: airflow.states("medflex_reconcile")[run_id] in ("success", "failed"), "the reconciliation", 300)
    # A run by the clock may have taken orders over from this one.
    assert {state for _, _, state in airflow.attempts("medflex_reconcile", run_id, "reconcile")} == {"success"}
    assert airflow.states("medflex_reconcile")[run_id] == "success"
    wait_for(lambda: airflow.quiet("medflex_reconcile", "medflex_transfer"), "what it has sent anew", 300)
    airflow.check()
    airflow.pause("medflex_withdraw", paused=False)


def test_a_refusal_reaches_medflex_though_the_triggerer_was_killed(airflow: Airflow) -> None:
    stack = airflow.stack
    wait_for(lambda: airflow.quiet("medflex_withdraw"), "no withdrawal under way")
    airflow.kill("triggerer")
    airflow.refuse(2)
    stack.start()
    wait_for(lambda: airflow.agreed() and airflow.quiet("medflex_withdraw"), "the refusal to be withdrawn", 120)
    airflow.check()


def test_a_refusal_during_a_withdrawal_reaches_medflex_though_the_scheduler_was_killed(airflow: Airflow) -> None:
    stack = airflow.stack
    wait_for(lambda: airflow.quiet("medflex_withdraw"), "no withdrawal under way")
    with Control(stack.control_url) as control:
        fault = control.add_fault("slow", match=Match(path_prefix="/appointments/withdraw/"), latency_ms=8000)
        airflow.refuse(3)
        running = (
            "SELECT 1 FROM task_instance WHERE dag_id = 'medflex_withdraw' AND task_id = 'withdraw_revoked_now'"
            " AND state = 'running'"
        )
        wait_for(lambda: airflow.read("airflow", running), "the withdrawal to be under way")
        wait_for(
            lambda: airflow.read("ledger", "SELECT 1 FROM ledger.batch WHERE outcome IS NULL"), "its request to be out"
        )
        airflow.refuse(4)
        airflow.kill("scheduler")
        control.remove_fault(fault)
    stack.start()
    wait_for(lambda: airflow.agreed() and airflow.quiet("medflex_withdraw"), "both to be withdrawn", 240)
    airflow.check()
