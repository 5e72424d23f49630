"""Withdrawals, releases and reconciliation, run by Airflow's own task runner against real parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psycopg
import pytest
from airflow.configuration import conf as airflow_settings
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult
from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor

from medflex.airflow.assets import CONSENT, HELD, HELD_ALIAS, SWEEP
from medflex.airflow.tasks import reconcile, release, transfer
from medflex.airflow.tasks import withdraw as withdraw_tasks
from medflex.airflow.tasks.parts import TransientFailure
from medflex.airflow.tasks.withdraw import ATTEMPTS
from medflex.airflow.withdrawing import Withdrawer
from medflex.domain.access import AccessState
from medflex.domain.funnel import Funnel
from medflex.domain.packing import Shard
from medflex.errors import MedflexUnavailableError
from medflex.ledger import watches
from sandbox.medflex.faults import Match
from sandbox.postgres import Cluster
from tests.airflow.dag_runs import run_dag, run_transfer, task_states
from tests.airflow.leaks import database_text, folder_text, found_canaries
from tests.airflow.test_loading import load, planned
from tests.airflow.test_reconciling import of_clinic, vanish
from tests.airflow.test_withdrawing import REFUSE, SWITCHES, of_patients, shown_ids, some, withdraw
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]

NUMBERS = ("revoked", "withdrawn", "withdraw_to_retry", "withdraw_unknown", "permitted_again", "held")
PLANNED = ("eligible", "unchanged", "planned", "new", "changed", "again", "revoked", "held")


@pytest.fixture
def shared(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex."""
    assert not load(filled_world, planned(filled_world)).problems
    return filled_world


def numbers(world: World, run: Any, names: Iterable[str] = NUMBERS) -> dict[str, int]:
    """Return those of a run's numbers that are not zero."""
    names = tuple(names)
    (row,) = world.read_ledger(
        f"SELECT {', '.join(f'sum({name})::int' for name in names)} FROM ledger.run_clinic JOIN ledger.run"
        " USING (run_key) WHERE run_id = %s",
        [run.run_id],
    )
    return {name: number for name, number in zip(names, row, strict=True) if number}


def decisions(world: World, run: Any) -> set[tuple[Any, ...]]:
    """Return which records a run found revoked or held, and why."""
    rows = world.read_ledger(
        "SELECT decision, clinic_id, reasons, id FROM ledger.run_decision JOIN ledger.run USING (run_key),"
        " unnest(appointment_ids) AS id WHERE run_id = %s AND stage = 'revoke'",
        [run.run_id],
    )
    return {(decision, clinic_id, *reasons, id_) for decision, clinic_id, reasons, id_ in rows}


def events(airflow: Cluster, run: Any, asset: Asset = HELD) -> int:
    """Return how many events a run has added to an asset; HELD makes ``medflex_release`` ask."""
    with psycopg.connect(airflow.uri("airflow")) as connection:
        row = connection.execute(
            "SELECT count(*) FROM asset_event JOIN asset ON asset.id = asset_id WHERE asset.name = %s"
            " AND source_run_id = %s",
            [asset.name, run.run_id],
        ).fetchone()
    assert row is not None
    return int(row[0])


def holds(world: World) -> list[tuple[Any, ...]]:
    return world.read_ledger("SELECT clinic_id, cardinality(appointment_ids), state FROM ledger.hold ORDER BY 1")


def no_canary(world: World, airflow: Cluster, text: str, sent: object = None) -> None:
    """Look for personal data where none may be. sent: what Medflex has shown, if it shows that no more."""
    assert found_canaries([("logs", text)]) == []
    assert found_canaries(database_text(airflow.uri("airflow"))) == []
    assert found_canaries(database_text(world.ledger)) == []
    assert found_canaries(folder_text(world.data_docs)) == []
    # The search is worth something: the same canaries are in what Medflex shows.
    assert found_canaries([("medflex", str(sent or world.shown()))]) != []


def delete_clinic(world: World, clinic_id: int) -> None:
    for table in ("medflex_access", "clinic_partner", "smart_care_scenario", "staff"):
        world.edit(f"DELETE FROM medlock.{table} WHERE clinic_id = %s", [clinic_id])
    world.edit("DELETE FROM medlock.clinic WHERE id = %s", [clinic_id])


def test_nothing_stands_before_a_withdrawal_and_what_has_vanished_waits_for_a_person(
    filled_world: World,
    airflow_db: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    log_text: Callable[[], str],
) -> None:
    """Gate closed, validation failed, batches rejected; an empty extract, a third of the rows gone: all in one run."""
    world = filled_world
    # Only a clinic that had rows before is missed when it comes back empty.
    assert run_transfer().state == "success"
    monkeypatch.setattr(transfer, "TARGET_ROWS", 1)  # One shard per clinic.
    before = world.shown()
    ids = {clinic_id: {key[1] for key in before if key[0] == of_clinic(world, clinic_id)} for clinic_id in (1, 2, 3)}
    # Clinic 1: its head turns the switch off, so that the gate closes.
    world.edit(SWITCHES["switched off"].replace("= 2", "= 1"))
    # Clinic 2: one appointment is moved to next year, all others are gone, so that nothing is extracted.
    moved = min(ids[2])
    world.edit("DELETE FROM medlock.appointment WHERE clinic_id = 2 AND id <> %s", [moved])
    later = "interval '300 days'"
    world.edit(
        f"UPDATE medlock.appointment SET starts_at = starts_at + {later}, ends_at = ends_at + {later},"
        " updated_at = now() WHERE id = %s",
        [moved],
    )
    # Clinic 3: a third of the rows is gone, one patient refuses, and Medflex rejects what is sent.
    third = sorted(ids[3])[: len(ids[3]) // 3]
    refusing = max(ids[3])
    refused = of_patients(world, [refusing])
    gone_by_itself = set(third) - refused
    world.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [third])
    world.edit(REFUSE.format("refused_personal_data", "true"), [[refusing]])
    world.edit("UPDATE medlock.appointment SET status = 'no_show' WHERE clinic_id = 3")
    sending = Match(path_prefix="/appointments/batch/", lpu_id=of_clinic(world, 3))
    world.control.add_fault("reject_records", fraction=1.0, echo=True, match=sending)

    run = run_transfer()
    assert run.state == "failed"
    states = task_states(run)
    assert sorted(states["shard.withdraw_revoked", index] for index in range(3)) == ["success"] * 3
    assert "skipped" in [states["shard.wait_for_activation", index] for index in range(3)]
    assert "failed" in [states["shard.validate", index] for index in range(3)]
    assert numbers(world, run, ["rejected"])["rejected"] > 0
    assert {key[1] for key in before} - shown_ids(world) == ids[1] | {moved} | refused
    gone = {1: len(ids[1]), 2: 1, 3: len(refused)}
    assert numbers(world, run) == {
        "revoked": sum(gone.values()) + len(ids[2]) - 1 + len(gone_by_itself),
        "withdrawn": sum(gone.values()),
        "held": len(ids[2]) - 1 + len(gone_by_itself),
    }
    told = {(what, clinic_id, reason) for what, clinic_id, reason, _ in decisions(world, run)}
    assert told == {
        ("revoked", 1, "clinic_not_active"),
        ("revoked", 2, "moved_out_of_window"),
        ("revoked", 3, "refused_personal_data"),
        ("held", 2, "appointment_gone"),
        ("held", 3, "appointment_gone"),
    }
    # Nothing was withdrawn by absence; a person is asked, once.
    assert holds(world) == [(2, len(ids[2]) - 1, "open"), (3, len(gone_by_itself), "open")]
    assert events(airflow_db, run) >= 1
    (outcome, problems) = world.read_ledger("SELECT outcome, problems FROM ledger.run WHERE run_id = %s", [run.run_id])[
        0
    ]
    assert outcome == "failed"
    assert "critical" in str(problems)
    assert "withdrawals" not in str(problems)
    no_canary(world, airflow_db, log_text(), before)


def test_a_plan_shows_the_withdrawals_of_the_next_real_run(shared: World, airflow_db: Cluster) -> None:
    """Refusals, rows gone below and above the threshold, a re-grant, changes; a clinic that has vanished by itself."""
    first, granted, deleted = some(shared, 3)
    back = of_patients(shared, [granted])
    shared.edit(REFUSE.format("refused_marketing", "true"), [[granted]])
    assert withdraw(shared, [1]).total("withdrawn") == len(back)
    shared.edit(REFUSE.format("refused_marketing", "NULL"), [[first]])
    shared.edit(REFUSE.format("refused_marketing", "false"), [[granted]])
    shared.edit("DELETE FROM medlock.appointment WHERE id = %s", [deleted])
    shared.edit("UPDATE medlock.appointment SET status = 'no_show', updated_at = now() WHERE clinic_id = 3")
    many = some(shared, 20, 3)
    shared.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [many])
    delete_clinic(shared, 2)
    of_gone = {id_ for lpu_id, id_ in shared.shown() if lpu_id not in (of_clinic(shared, 1), of_clinic(shared, 3))}

    requests = shared.sent()
    foretold = run_transfer(mode="plan")
    assert foretold.state == "success", task_states(foretold)
    assert shared.sent() == requests
    assert holds(shared) == []
    assert events(airflow_db, foretold) == 0
    happened = run_transfer()
    assert happened.state == "success", task_states(happened)
    assert numbers(shared, foretold, PLANNED) == numbers(shared, happened, PLANNED)
    assert decisions(shared, foretold) == decisions(shared, happened)
    assert holds(shared) == [(2, len(of_gone), "open"), (3, 20, "open")]
    assert {("held", 2, "clinic_gone", id_) for id_ in of_gone} <= decisions(shared, happened)
    assert not {deleted, *of_patients(shared, [first])} & shown_ids(shared)
    assert back | of_gone | set(many) <= shown_ids(shared)
    expected = shared.expected()
    assert {key: record for key, record in shared.shown().items() if key[1] not in of_gone | set(many)} == expected


def test_withdrawals_that_fail_fail_the_run_and_one_ordinary_run_heals_it(
    shared: World, log_text: Callable[[], str]
) -> None:
    shared.connect_medflex(attempts=1)
    ids = some(shared, 1)
    gone = of_patients(shared, ids)
    shared.edit(REFUSE.format("refused_marketing", "true"), [ids])
    shared.edit(SWITCHES["switched off"])
    (kept,) = some(shared, 1, 3)
    shared.edit("UPDATE medlock.appointment SET status = 'no_show' WHERE id = %s", [kept])
    fault = shared.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=503)
    run = run_transfer()
    assert run.state == "failed"
    states = task_states(run)
    assert "failed" in {state for (task, _), state in states.items() if task == "shard.withdraw_revoked"}
    # What may be shared is sent all the same.
    assert {state for (task, _), state in states.items() if task == "shard.load"} - {"skipped"} == {"success"}
    assert shared.control.records()[of_clinic(shared, 3), kept]["status"] == "failure"
    assert "withdrawals: Medflex could not be reached or kept failing (HTTP 503)" in log_text()
    assert gone <= shown_ids(shared)
    shared.control.remove_fault(fault)
    healed = run_transfer()
    assert healed.state == "success", task_states(healed)
    assert shared.shown() == shared.expected()
    assert shared.read_ledger("SELECT count(*) FROM ledger.revocation") == [(0,)]


def test_the_quick_lane_leaves_a_run_only_where_it_found_something_and_alerts_once(
    shared: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    of_runs = "SELECT run_id, mode, outcome FROM ledger.run ORDER BY run_key"
    nothing = run_dag("medflex_withdraw")
    assert nothing.state == "success", task_states(nothing)
    assert shared.read_ledger(of_runs) == []

    ids = some(shared, 1)
    gone = of_patients(shared, ids)
    shared.edit(REFUSE.format("refused_personal_data", "true"), [ids])
    shared.connect_medflex(attempts=5)
    shared.control.add_fault("status", match={"path_prefix": "/appointments/withdraw/"}, status=503)
    shared.monkeypatch.setenv("MEDFLEX_WITHDRAW_DEADLINE_SECONDS", "0.01")
    log_text()
    shared.control.forget_request_log()
    failed = run_dag("medflex_withdraw")
    # Others' refusals wait for this look to end, and the next one asks again.
    asked = [item for item in shared.control.request_log() if item["path"].startswith("/appointments/withdraw/")]
    assert len(asked) == ATTEMPTS < 5
    shared.connect_medflex(attempts=1)
    states = {task: state for (task, _), state in task_states(failed).items()}
    assert states == {
        "withdraw_revoked_now": "failed",
        "report_lateness": "failed",
        "start_what_is_left": "success",
        "withdrawn": "upstream_failed",
    }
    sentence = f"{len(gone)} records of 1 clinics may no longer be shared since"
    text = log_text()
    assert sentence in text
    again = run_dag("medflex_withdraw")
    assert again.state == "failed"
    text += (second := log_text())
    assert sentence in second
    # Somebody else tells it: once, and as part of that Medflex does not answer.
    assert shared.read_ledger("SELECT count(*) FROM ledger.alert") == [(0,)]
    assert [row[0] for row in shared.read_ledger("SELECT failure FROM ledger.contact")] == ["away"]

    shared.control.clear_faults()
    shared.monkeypatch.delenv("MEDFLEX_WITHDRAW_DEADLINE_SECONDS")
    healed = run_dag("medflex_withdraw")
    assert healed.state == "success", task_states(healed)
    text += log_text()
    assert shared.read_ledger("SELECT failing_since FROM ledger.contact") == [(None,)]
    assert numbers(shared, healed) == {"revoked": len(gone), "withdrawn": len(gone)}
    assert shared.read_ledger(of_runs) == [
        (failed.run_id, "withdraw", "failed"),
        (again.run_id, "withdraw", "failed"),
        (healed.run_id, "withdraw", "succeeded"),
    ]
    assert shared.shown() == shared.expected()
    no_canary(shared, airflow_db, text)


def test_deleted_rows_are_searched_for_by_runs_of_their_own(shared: World, airflow_db: Cluster) -> None:
    first = run_dag("medflex_withdraw")
    # Nobody has looked yet.
    assert (first.state, events(airflow_db, first, SWEEP)) == ("success", 1)
    swept = run_dag("medflex_sweep")
    assert (swept.state, events(airflow_db, swept, SWEEP)) == ("success", 0)
    ids = [some(shared, 1, clinic_id)[0] for clinic_id in (1, 2, 3)]
    shared.edit("DELETE FROM medlock.appointment WHERE id = ANY(%s)", [ids])
    # A sweep pauses for ten times its duration.
    with psycopg.connect(shared.ledger, autocommit=True) as connection:
        connection.execute("UPDATE ledger.watch SET looked_at = looked_at - interval '1 hour' WHERE name LIKE 'sweep%'")
    assert events(airflow_db, run_dag("medflex_withdraw"), SWEEP) == 1
    assert set(ids) <= shown_ids(shared)
    assert shared.read_ledger("SELECT 1 FROM ledger.run") == []

    with shared.monkeypatch.context() as patch:
        patch.setattr(Withdrawer, "many_live_rows", 1)
        patch.setattr(Withdrawer, "sweep_time", timedelta(0))
        runs = [run_dag("medflex_sweep") for _ in range(3)]
    assert [events(airflow_db, run, SWEEP) for run in runs] == [1, 1, 0]
    assert [numbers(shared, run) for run in runs] == [{"revoked": 1, "withdrawn": 1}] * 3
    assert not set(ids) & shown_ids(shared)
    # What is not due leaves no trace.
    assert run_dag("medflex_sweep").state == "success"
    assert shared.read_ledger("SELECT dag_id, run_id, outcome FROM ledger.run ORDER BY run_key") == [
        ("medflex_sweep", run.run_id, "succeeded") for run in runs
    ]


def test_a_look_that_is_cut_short_starts_the_next_one(shared: World, airflow_db: Cluster) -> None:
    run_dag("medflex_withdraw")
    for clinic_id in (1, 2):
        shared.edit(SWITCHES["switched off"].replace("= 2", f"= {clinic_id}"))
    with shared.monkeypatch.context() as patch:
        patch.setattr(Withdrawer, "live_rows", 1)
        patch.setattr(Withdrawer, "narrowed_time", timedelta(0))
        runs = [run_dag("medflex_withdraw") for _ in range(2)]
    assert [events(airflow_db, run, CONSENT) for run in runs] == [1, 0]
    assert {lpu_id for lpu_id, _ in shared.control.records()} == {of_clinic(shared, 3)}


def test_a_run_tells_what_all_of_its_attempts_have_withdrawn(shared: World, airflow_db: Cluster) -> None:
    """The first attempt withdraws one clinic's records and not another's, the second those."""
    run_dag("medflex_withdraw")
    ids = {clinic_id: some(shared, 1, clinic_id) for clinic_id in (1, 3)}
    gone = {clinic_id: of_patients(shared, of_clinic_) for clinic_id, of_clinic_ in ids.items()}
    for of_clinic_ in ids.values():
        shared.edit(REFUSE.format("refused_personal_data", "true"), [of_clinic_])
    shared.control.add_fault("status", match={"lpu_id": of_clinic(shared, 3)}, status=503)
    shared.connect_medflex(attempts=1)
    outlets = _Outlets()
    context: dict[str, Any] = {
        "dag_run": SimpleNamespace(dag_id="medflex_withdraw", run_id="tried twice", run_type="manual"),
        "outlet_events": outlets,
        "triggering_asset_events": {},
    }
    shared.monkeypatch.setattr(withdraw_tasks, "get_current_context", lambda: context)
    with pytest.raises(MedflexUnavailableError):
        withdraw_tasks.withdraw_revoked_now.__wrapped__()
    shared.control.clear_faults()
    assert withdraw_tasks.withdraw_revoked_now()["withdrawn"] == len(gone[3])
    run = SimpleNamespace(run_id="tried twice")
    everything = len(gone[1]) + len(gone[3])
    assert numbers(shared, run) == {"revoked": everything, "withdrawn": everything}
    assert {(clinic_id, id_) for _, clinic_id, _, id_ in decisions(shared, run)} == {
        (clinic_id, id_) for clinic_id, found in gone.items() for id_ in found
    }


def _event(source_task_id: str | None) -> AssetEventDagRunReferenceResult:
    """An event as Airflow gives it to a task; the watch's has no task that made it."""
    return AssetEventDagRunReferenceResult.model_validate(
        {
            "asset": {"name": CONSENT.name, "uri": CONSENT.uri, "extra": {}},
            "extra": {},
            "source_task_id": source_task_id,
            "source_dag_id": source_task_id and "medflex_withdraw",
            "source_run_id": source_task_id and "a run",
            "source_map_index": source_task_id and -1,
            "source_aliases": [],
            "timestamp": datetime.now(UTC),
        }
    )


def test_it_is_noted_when_the_watch_has_last_started_a_look(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime.now(UTC)
    # Nobody has looked yet: from now on the watch is expected to tell something. So it is behind an earlier release.
    for _ in range(2):
        with psycopg.connect(shared.ledger) as connection:
            connection.execute("DELETE FROM ledger.watch WHERE name = 'woken'")
        assert run_dag("medflex_withdraw").state == "success"

    def woken(*events: str | None, ago: timedelta, looked_ago: timedelta | None = timedelta(minutes=5)) -> bool:
        """Tell whether a run with these events notes it."""
        with shared.parts() as (_, ledger, _):
            assert ledger.watch(watches.WOKEN)[0] >= began
            at = datetime.now(UTC) - ago
            ledger.note_watch(watches.WOKEN, at, {})
            if looked_ago is None:
                with psycopg.connect(shared.ledger) as connection:
                    connection.execute("DELETE FROM ledger.watch WHERE name = 'consent'")
            else:
                ledger.note_watch(watches.CONSENT, datetime.now(UTC) - looked_ago, {})
            context: dict[str, Any] = {
                "dag_run": SimpleNamespace(dag_id="medflex_withdraw", run_id="run", run_type="asset_triggered"),
                "outlet_events": _Outlets(),
                "triggering_asset_events": TriggeringAssetEventsAccessor.build([_event(item) for item in events]),
            }
            monkeypatch.setattr(withdraw_tasks, "get_current_context", lambda: context)
            withdraw_tasks.withdraw_revoked_now()
            noted: datetime = ledger.watch(watches.WOKEN)[0]
            ledger.note_watch(watches.WOKEN, datetime.now(UTC), {})
            return noted > at

    hour = timedelta(hours=1)
    assert woken(None, ago=hour)
    assert woken("start_what_is_left", None, ago=hour)
    assert not woken(ago=hour)
    # What an earlier run has left is no news from Medlock.
    assert not woken("start_what_is_left", ago=hour)
    # The DAG was paused, or Medlock away: what was told meanwhile nobody knows.
    assert woken(ago=9 * hour, looked_ago=2 * hour)
    assert woken(ago=9 * hour, looked_ago=None)


@pytest.mark.parametrize(
    ("tasks", "work", "mode"),
    [(transfer, transfer.withdraw_revoked, "transfer"), (reconcile, reconcile.reconcile, "reconcile")],
    ids=["transfer", "reconcile"],
)
def test_a_shard_tells_what_all_of_its_attempts_have_withdrawn(
    shared: World, tasks: Any, work: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; of another shard of the run nothing is touched, and a run that is planned anew forgets."""
    now, run = datetime.now(UTC), SimpleNamespace(dag_id=f"medflex_{mode}", run_id="tried twice")
    monkeypatch.setattr(tasks, "get_current_context", lambda: {"dag_run": run, "outlet_events": _Outlets()})

    def plan() -> int:
        clinics = [{"clinic_id": clinic_id, "access_state": "open"} for clinic_id in (1, 2, 3)]
        shards = [Shard("two", (1, 3), AccessState.OPEN), Shard("other", (2,), AccessState.OPEN)]
        with shared.parts() as (_, ledger, _):
            return ledger.start_run(
                dag_id=run.dag_id, run_id=run.run_id, run_type="manual", mode=mode, anchor=now, clinic_ids=None,
                started_at=now, clinics=clinics, shards=shards,
            ).run_key  # fmt: skip

    run_key = plan()
    ids = {clinic_id: some(shared, 1, clinic_id) for clinic_id in (1, 2, 3)}
    gone = {clinic_id: of_patients(shared, of_clinic_) for clinic_id, of_clinic_ in ids.items()}
    for of_clinic_ in ids.values():
        shared.edit(REFUSE.format("refused_personal_data", "true"), [of_clinic_])
    work({"shard": 1, "label": "other"})
    withdrawing = Match(path_prefix="/appointments/withdraw/", lpu_id=of_clinic(shared, 3))
    shared.control.add_fault("status", match=withdrawing, status=503)
    shared.connect_medflex(attempts=1)
    with pytest.raises(TransientFailure):
        work({"shard": 0, "label": "two"})
    assert numbers(shared, run, ["withdrawn"]) == {"withdrawn": len(gone[1]) + len(gone[2])}
    shared.control.clear_faults()
    work({"shard": 0, "label": "two"})
    everything = sum(map(len, gone.values()))
    assert numbers(shared, run) == {"revoked": everything, "withdrawn": everything}
    assert {(clinic_id, id_) for _, clinic_id, _, id_ in decisions(shared, run)} == {
        (clinic_id, id_) for clinic_id, found in gone.items() for id_ in found
    }
    with shared.parts() as (_, ledger, _):
        for _, of_shard in ledger.run_clinics(run_key).groupby("shard"):
            assert Funnel.of(of_shard).withdrawal_violations() == []
    assert plan() == run_key
    work({"shard": 0, "label": "two"})
    assert (numbers(shared, run), decisions(shared, run)) == ({}, set())


def test_what_is_left_is_started_unless_it_is_under_way_or_medflex_is_away(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime.now(UTC)

    def started(of: str, begun: datetime = start) -> set[str]:
        outlets = _Outlets()
        run = SimpleNamespace(dag_id="medflex_sweep", run_id="the run", start_date=begun)
        context = {"dag_run": run, "outlet_events": outlets}
        monkeypatch.setattr(withdraw_tasks, "get_current_context", lambda: context)
        withdraw_tasks.start_what_is_left(of)
        return {asset.name for item in outlets.values() for asset in item.added}

    def note(name: str, minutes: float, **value: Any) -> None:
        with shared.parts() as (_, ledger, _):
            ledger.note_watch(name, start + timedelta(minutes=minutes), value)

    assert started("consent") == set()
    note("consent", 0, sweep_due_since="now", cut_short_since="now")
    assert started("consent") == {"medflex_sweep", "medflex_consent"}
    # An earlier run has noted it: this one has failed.
    assert started("consent", start + timedelta(minutes=5)) == set()
    with shared.parts() as (_, ledger, _):
        ledger.note_contact("away")
        # A clinic that fails comes last: Medflex may have answered before that.
        assert started("consent") == {"medflex_sweep", "medflex_consent"}
        assert started("consent", datetime.now(UTC)) == {"medflex_sweep"}
        ledger.note_contact(None)
    # A search has begun and noted nothing: it is at work, or has failed.
    note("sweep", -9, deleted="", seconds=1.0, after=None)
    note("sweep_tried", -1)
    assert started("consent") == {"medflex_consent"}
    note("sweep_tried", -6)
    assert started("consent") == {"medflex_sweep", "medflex_consent"}
    note("sweep_tried", -1)
    note("sweep", -1, deleted="", seconds=1.0, after=7)
    assert started("sweep") == started("consent") - {"medflex_consent"} == {"medflex_sweep"}
    note("sweep", 0, deleted="", seconds=1.0, after=None)
    assert started("sweep") == set()
    # It was begun, and nobody has said what became of it.
    with shared.parts() as (_, ledger, _):
        run = ledger.start_run(
            dag_id="medflex_sweep", run_id="the run", run_type="manual", mode="withdraw", anchor=start, clinic_ids=None,
            started_at=start, clinics=[], shards=[],
        )  # fmt: skip
        assert started("sweep") == {"medflex_sweep"}
        ledger.settle_run(run.run_key, ["Medflex could not be reached."])
    assert started("sweep") == set()


class _Outlets(dict[Any, Any]):
    """What a task adds to its outlets."""

    def __missing__(self, key: Any) -> Any:
        added: list[Any] = []
        self[key] = SimpleNamespace(added=added, add=added.append)
        return self[key]


def test_a_persons_answer_is_written_down_and_carried_out(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions behind ``medflex_release``; that Airflow asks and waits is shown with the whole stack."""
    context: dict[str, Any] = {
        "dag_run": SimpleNamespace(dag_id="medflex_release", run_id="first"),
        "outlet_events": _Outlets(),
    }
    monkeypatch.setattr(release, "get_current_context", lambda: context)
    assert release.list_holds() == []
    gone = {clinic_id: some(shared, 15, clinic_id) for clinic_id in (1, 2, 3)}
    shared.edit("CREATE TABLE aside AS SELECT * FROM medlock.appointment")
    shared.edit(
        "DELETE FROM medlock.appointment WHERE id = ANY(%s)",
        [[id_ for of_clinic_ in gone.values() for id_ in of_clinic_]],
    )
    live = len([key for key in shared.shown() if key[0] == of_clinic(shared, 1)])
    assert withdraw(shared, [1, 2, 3]).asked == 3

    questions = release.list_holds()
    assert [item["subject"] for item in questions] == [
        f"Clinic {clinic_id}: withdraw 15 records that are gone from Medlock?" for clinic_id in (1, 2, 3)
    ]
    assert f"15 of the {live} records of clinic 1" in questions[0]["body"]
    assert "- 15 × `appointment_gone`" in questions[0]["body"]
    # A task that runs again asks the same; another run has nothing to ask.
    assert release.list_holds() == questions
    context["dag_run"].run_id = "second"
    assert release.list_holds() == []
    first, second, third = (item["hold_id"] for item in questions)

    def answer(*chosen: str, at: datetime | None = None) -> dict[str, Any]:
        return {
            "chosen_options": list(chosen), "responded_by_user": {"id": "vera", "name": "Vera"},
            "responded_at": at or datetime.now(UTC),
        }  # fmt: skip

    for wrong in (answer(), answer("Withdraw", "Keep"), answer("yes"), {}):
        with pytest.raises(AirflowFailException, match="none of Withdraw and Keep"):
            release.carry_out(first, wrong)
    # The question is another run's: an answer given here is one to something else, and counts for nothing.
    assert release.carry_out(first, answer("Withdraw")) == {}
    assert release.carry_out(second, answer("Keep")) == {}
    assert shared.read_ledger("SELECT DISTINCT state FROM ledger.hold") == [("open",)]
    context["dag_run"].run_id = "first"
    # Nor does one that was given before this was asked: list_holds was cleared by itself, and has put it in the place
    # of another question.
    assert release.carry_out(first, answer("Withdraw", at=datetime.now(UTC) - timedelta(hours=1))) == {}
    assert release.carry_out(second, answer("Keep", at=datetime.now(UTC) - timedelta(hours=1))) == {}
    assert shared.read_ledger("SELECT DISTINCT state FROM ledger.hold") == [("open",)]
    # One of the rows is back before the answer comes: it stays.
    back = gone[1][0]
    shared.edit("INSERT INTO medlock.appointment SELECT * FROM aside WHERE id = %s", [back])
    before = shown_ids(shared)
    assert release.carry_out(first, answer("Withdraw"))["withdrawn"] == 14
    assert before - shown_ids(shared) == {*gone[1]} - {back}
    assert release.carry_out(second, answer("Keep")) == {}
    assert {*gone[2], *gone[3]} <= shown_ids(shared)
    # Carried out again, or answered otherwise later on: the first answer stands.
    requests = shared.sent()
    assert release.carry_out(first, answer("Withdraw"))["withdrawn"] == 0
    assert release.carry_out(first, answer("Keep")) == {}
    assert release.carry_out(second, answer("Withdraw")) == {}
    # A question that answered itself: the rows are there again.
    shared.edit("INSERT INTO medlock.appointment SELECT * FROM aside WHERE id = ANY(%s)", [gone[3]])
    withdraw(shared, [3])
    assert release.carry_out(third, answer("Withdraw")) == {}
    assert shared.sent() == requests
    decided = shared.read_ledger("SELECT clinic_id, state, decided_by FROM ledger.hold ORDER BY clinic_id")
    assert decided == [(1, "released", "vera"), (2, "kept", "vera"), (3, "obsolete", None)]
    assert withdraw(shared, [1, 2, 3]).asked == 0
    assert context["outlet_events"] == {}


def test_more_questions_than_one_run_can_ask_are_asked_by_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow maps tasks over a limited number of them: beyond it nobody would be asked anything."""
    assert airflow_settings.getint("core", "max_map_length") > release.MOST_QUESTIONS
    monkeypatch.setattr(release, "MOST_QUESTIONS", 3)

    def asked(run_id: str) -> tuple[list[int], int]:
        """Return the holds that a run asks about, in the order of their clinics, and how many events it adds."""
        outlets = _Outlets()
        run = SimpleNamespace(dag_id="medflex_release", run_id=run_id)
        monkeypatch.setattr(release, "get_current_context", lambda: {"dag_run": run, "outlet_events": outlets})
        found = [item["hold_id"] for item in release.list_holds()]
        return found, len([asset for asset in outlets[HELD_ALIAS].added if asset == HELD])

    with world.parts() as (_, ledger, _):
        for clinic_id in (9, 8, 7, 6, 5, 4, 3):
            records = pd.DataFrame(
                {"clinic_id": [clinic_id], "appointment_id": [1], "lpu_id": [1], "reason": ["appointment_gone"]}
            )
            ledger.save_hold(records, live=1, found_at=datetime.now(UTC), run_key=None)
        first = asked("first")
        assert first == ([3, 2, 1], 1)
        # A task that runs again asks the same, whoever else has asked meanwhile.
        assert asked("second") == ([6, 5, 4], 1)
        assert asked("first") == first
        assert asked("third") == ([7], 0)
        assert ledger.unasked_holds() == 0
        # Airflow's own cleaning removes runs that wait, too: after a month somebody is asked again.
        later(world, "29 days")
        assert ledger.unasked_holds() == 0
        later(world, "2 days")
        assert ledger.unasked_holds() == 7
        # What has stood in a run for a week is asked anew, since that run may be gone; each run's own comes first.
        later(world, "8 days")
        assert asked("second") == ([6, 5, 4], 1)
        ledger.decide_hold(2, "obsolete", None)
        assert asked("first") == ([7, 3, 1], 1)
        later(world, "8 days")
        assert asked("fourth") == ([4, 3, 1], 1)
        assert asked("fifth") == ([7, 6, 5], 1)
        assert asked("sixth") == ([], 0)


def later(world: World, time: str) -> None:
    with psycopg.connect(world.ledger) as connection:
        connection.execute("UPDATE ledger.hold SET asked_at = asked_at - %s::interval", [time])


def test_a_reconciliation_tells_repairs_and_lets_the_transfer_send_what_was_missing(
    shared: World, airflow_db: Cluster, monkeypatch: pytest.MonkeyPatch, log_text: Callable[[], str]
) -> None:
    missing = {(of_clinic(shared, clinic_id), some(shared, 1, clinic_id)[0]) for clinic_id in (1, 3)}
    vanish(shared, missing)
    ids = some(shared, 2, 2)
    gone = of_patients(shared, ids)
    shared.edit(REFUSE.format("refused_marketing", "true"), [ids])
    findings = (
        "SELECT kind, clinic_id, lpu_id, appointment_ids FROM ledger.finding JOIN ledger.run USING (run_key)"
        " WHERE run_id = %s"
    )
    expected = sorted(("missing", 1 if key[0] == of_clinic(shared, 1) else 3, key[0], [key[1]]) for key in missing)

    requests = shared.sent()
    dry = run_dag("medflex_reconcile", dry_run=True)
    assert dry.state == "success", task_states(dry)
    assert shared.sent() == requests
    assert sorted(shared.read_ledger(findings, [dry.run_id])) == expected
    assert task_states(dry)["transfer_parameters", -1] == task_states(dry)["transfer", -1] == "skipped"
    assert numbers(shared, dry) == {}

    real = run_dag("medflex_reconcile")
    assert real.state == "success", task_states(real)
    assert sorted(shared.read_ledger(findings, [real.run_id])) == expected
    assert numbers(shared, real) == {"revoked": len(gone), "withdrawn": len(gone)}
    modes = "SELECT run_id, mode, outcome FROM ledger.run ORDER BY run_key"
    assert shared.read_ledger(modes)[:2] == [
        (dry.run_id, "dry_run", "succeeded"),
        (real.run_id, "reconcile", "succeeded"),
    ]
    with psycopg.connect(airflow_db.uri("airflow")) as connection:
        (conf,) = connection.execute(
            "SELECT conf FROM dag_run WHERE dag_id = 'medflex_transfer' ORDER BY id DESC LIMIT 1"
        ).fetchone() or (None,)
    assert conf == {"mode": "transfer", "clinic_ids": [1, 3], "accept_row_counts": False}
    assert run_transfer(**conf).state == "success"
    assert shared.shown() == shared.expected()
    assert missing <= set(shared.shown())
    no_canary(shared, airflow_db, log_text())

    # Nothing has to be sent any more; nothing can be, of a clinic that nobody knows.
    dag_run = SimpleNamespace(dag_id="medflex_reconcile", run_id=dry.run_id, run_type="manual", conf=None)
    context = {"dag_run": dag_run, "params": {}}
    monkeypatch.setattr(reconcile, "get_current_context", lambda: context)
    with pytest.raises(AirflowSkipException):
        reconcile.transfer_parameters()
    for given, sentence in (
        ({"clinic_ids": [999]}, "Neither Medlock nor the ledger knows clinic 999"),
        ({"clinic_ids": []}, "clinic_ids must be a list"),
        ({"dry_run": "no"}, "dry_run must be true or false"),
        ({"dryrun": True}, "no parameter dryrun"),
    ):
        dag_run.conf = given
        with pytest.raises(AirflowFailException, match=sentence):
            reconcile.plan_comparison()
