"""What the ledger forgets and what it never forgets, on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.domain.partner_actions import KEPT_DAYS, Action, ActionType, is_from_the_future, is_too_old
from medflex.ledger import retention
from medflex.ledger.retention import ACTION_DAYS, ANSWER_DAYS, KEPT_RUNS, LedgerRetention
from medflex.ledger.store import BatchOutcome, Decision, Ledger, Run
from medflex.ledger.sums import SUM_TABLES
from medflex.sql import SQL_FOLDER
from tests.ledger.times import NOW, Time

CLINIC, LPU = 17, 40017
DAY = timedelta(days=1)
OF_A_RUN = (
    "run_shard",
    "run_clinic",
    "run_decision",
    "run_validation",
    "finding",
    "message_look",
    "message_warning",
    *SUM_TABLES,
)


@pytest.fixture
def forgetful(ledger_db: str, time: Time) -> Iterator[LedgerRetention]:
    with closing(LedgerRetention(ledger_db, now=time)) as made:
        yield made


class Past:
    """Puts into the ledger what happened some time ago."""

    def __init__(self, ledger: Ledger, time: Time, uri: str) -> None:
        self.ledger, self.time, self.uri = ledger, time, uri
        self.number = 0

    def run(
        self,
        age: timedelta,
        *,
        dag_id: str = "medflex_transfer",
        settled: bool = True,
        problems: Sequence[str] = (),
        clinic_ids: list[int] | None = None,
        backfill_of: timedelta = timedelta(0),
    ) -> Run:
        """A run with a shard, numbers, a decision, a validation, a finding and a warning, ``age`` before now."""
        self.number += 1
        at = NOW - age
        made = self.ledger.start_run(
            dag_id=dag_id, run_id=f"run {self.number}", run_type="scheduled", mode="transfer", anchor=at - backfill_of,
            clinic_ids=clinic_ids, started_at=at, shards=[Shard("open", (CLINIC,), AccessState.OPEN)],
            clinics=[{"clinic_id": CLINIC, "lpu_id": LPU, "access_state": "open", "closed_reason": None,
                      "opens_at": None}],
        )  # fmt: skip
        self.ledger.save_decisions(
            made.run_key, "withhold", [CLINIC], [Decision(CLINIC, "withheld", ("doctor_banned",), [1, 2])]
        )
        result = {"name": "rows_present", "columns": [], "severity": "warning", "success": True, "evaluated": 2}
        self.ledger.save_validation(
            made.run_key, 0, "source", {"rows": 2, "results": [result | {"unexpected": 0, "missing": 0}]}
        )
        self.write(
            "INSERT INTO ledger.finding (run_key, clinic_id, lpu_id, kind, appointment_ids)"
            " VALUES (%s, %s, %s, 'missing', '{1}')",
            [made.run_key, CLINIC, LPU],
        )
        self.write(
            "INSERT INTO ledger.message_look (run_key, looked_at, since) VALUES (%s, %s, %s)", [made.run_key, at, at]
        )
        self.write(
            "INSERT INTO ledger.message_warning (run_key, clinic_id, kind, scenario, partner_ids)"
            " VALUES (%s, %s, 'overlap', 'greeting', '{5}')",
            [made.run_key, CLINIC],
        )
        if settled:
            self.time.now = at
            self.ledger.settle_run(made.run_key, problems)
            self.time.now = NOW
        return made

    def batch(self, age: timedelta, appointment_id: int, *, run: Run | None = None, resolved: bool = True) -> int:
        """A batch of one record, written down ``age`` before now."""
        at = NOW - age
        ((batch_id,),) = self.read(
            "INSERT INTO ledger.batch (run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions,"
            " digests, looked_at, created_at) VALUES (%s, %s, %s, 'send', 1, %s, '{1}', '{5}', %s, %s)"
            " RETURNING batch_id",
            [run.run_key if run else None, CLINIC, LPU, [appointment_id], at, at],
        )
        if resolved:
            self.time.now = at
            assert self.ledger.resolve(batch_id, BatchOutcome("acknowledged", 200))
            self.time.now = NOW
        return int(batch_id)

    def hold(self, state: str, age: timedelta, clinic_id: int = CLINIC, run: Run | None = None) -> int:
        """A held absence that was found, and unless open decided, ``age`` before now."""
        ((key,),) = self.read(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live, state, decided_at,"
            " run_key) VALUES (%s, %s, '{1}', '{1}', '{row_deleted}', 9, %s, %s, %s) RETURNING hold_id",
            [clinic_id, NOW - age, state, None if state == "open" else NOW - age, run.run_key if run else None],
        )
        return int(key)

    def action(self, decided: timedelta | None, answered: timedelta | None) -> UUID:
        """A partner action, decided and answered so long ago, or not at all."""
        action_id = uuid4()
        at, told = (None if age is None else NOW - age for age in (decided, answered))
        self.write(
            "INSERT INTO ledger.partner_action (action_id, read_at, read_in, status_code, reason, is_effect,"
            " decided_at, answer, answered_at) VALUES (%s, %s, 'run', %s, %s, %s, %s, %s, %s)",
            [
                action_id,
                NOW - 1000 * DAY,
                *((None,) * 3 if at is None else (204, "done", True)),
                at,
                None if told is None else "taken",
                told,
            ],
        )
        return action_id

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.uri) as connection:
            return connection.execute(sql.encode(), parameters).fetchall()

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        with psycopg.connect(self.uri) as connection:
            connection.execute(sql.encode(), parameters)

    def column(self, table: str, column: str) -> list[Any]:
        return [row[0] for row in self.read(f"SELECT {column} FROM ledger.{table} ORDER BY {column}")]


@pytest.fixture
def past(ledger: Ledger, time: Time, ledger_db: str) -> Past:
    return Past(ledger, time, ledger_db)


def fillers(past: Past, **more: Any) -> None:
    """As many young runs as are kept anyway, so that age alone decides about the others."""
    for _ in range(KEPT_RUNS):
        past.run(DAY, **more)


# -- runs


def test_an_old_run_goes_with_all_that_hangs_on_it_and_its_batches_lose_the_reference_only(
    past: Past, forgetful: LedgerRetention
) -> None:
    old, young = past.run(121 * DAY), past.run(119 * DAY)
    of_old = past.batch(121 * DAY, 1, run=old)
    of_young = past.batch(119 * DAY, 2, run=young)
    past.hold("open", 121 * DAY, run=old)
    fillers(past)
    assert forgetful.prune_runs(120) == 1
    assert past.column("run", "run_key")[0] == young.run_key
    for table in OF_A_RUN:
        assert old.run_key not in past.column(table, "run_key"), table
        assert young.run_key in past.column(table, "run_key"), table
    assert past.read("SELECT batch_id, run_key FROM ledger.batch ORDER BY batch_id") == [
        (of_old, None),
        (of_young, young.run_key),
    ]
    assert past.column("hold", "run_key") == [None]
    assert forgetful.prune_runs(120) == 0


def test_the_day_is_24_hours_and_counts_from_the_end_of_the_run(past: Past, forgetful: LedgerRetention) -> None:
    fillers(past)
    past.run(120 * DAY)  # exactly as old as runs are kept
    gone = past.run(120 * DAY + timedelta(seconds=1))
    # A run that waited: started earlier, settled later.
    waited = past.run(121 * DAY, settled=False)
    past.time.now = NOW - 119 * DAY
    past.ledger.settle_run(waited.run_key, [])
    past.time.now = NOW
    before = past.column("run", "run_key")
    fillers(past)
    assert forgetful.prune_runs(120) == 1
    assert set(before) - set(past.column("run", "run_key")) == {gone.run_key}


def test_the_last_settled_runs_of_each_dag_stay_however_old(past: Past, forgetful: LedgerRetention) -> None:
    of_transfer = [past.run(timedelta(days=1000 - number)).run_key for number in range(KEPT_RUNS + 3)]
    of_other = [past.run(900 * DAY, dag_id="medflex_reconcile").run_key for _ in range(KEPT_RUNS + 1)]
    assert forgetful.prune_runs(1) == 4
    assert past.column("run", "run_key") == of_transfer[3:] + of_other[1:]
    assert forgetful.prune_runs(1) == 0


@pytest.mark.parametrize(
    "others",
    [{"problems": ["Shard x: it failed."]}, {"clinic_ids": [CLINIC]}, {"backfill_of": 30 * DAY}],
    ids=["failed", "of some clinics", "backfills"],
)
def test_runs_of_another_kind_do_not_push_out_those_that_later_ones_are_judged_by(
    past: Past, forgetful: LedgerRetention, others: dict[str, Any]
) -> None:
    """``reason_history`` looks at the last seven full, successful runs of their own day."""
    full = [past.run(timedelta(days=20 - number)).run_key for number in range(7)]
    for number in range(3 * KEPT_RUNS):
        past.run(timedelta(days=5, minutes=-number), **others)
    latest = past.run(timedelta(0), settled=False)
    for run_key in full:
        past.write("UPDATE ledger.run_clinic SET extracted = 5 WHERE run_key = %s", [run_key])
    before = past.ledger.reason_history(latest.run_key)
    forgetful.prune_runs(1)
    after = past.ledger.reason_history(latest.run_key)
    assert sorted(after["run_key"]) == sorted(before["run_key"]) == full


def test_a_run_without_an_end_stays_until_it_is_twice_as_old(past: Past, forgetful: LedgerRetention) -> None:
    fillers(past)
    waiting = past.run(239 * DAY, settled=False)
    lost = past.run(241 * DAY, settled=False)
    assert forgetful.prune_runs(120) == 1
    keys = past.column("run", "run_key")
    assert waiting.run_key in keys
    assert lost.run_key not in keys


def test_a_run_that_is_cleared_while_old_ones_go_stays(
    past: Past, forgetful: LedgerRetention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the removal an old run starts anew."""
    old = [past.run(200 * DAY) for _ in range(2)]
    fillers(past)
    asked = retention.query

    def meanwhile(name: str) -> str:
        if name == "ledger/retention_delete_run":
            past.write("UPDATE ledger.run SET started_at = %s, settled_at = NULL WHERE run_key = %s",
                       [NOW, old[1].run_key])  # fmt: skip
        return asked(name)

    monkeypatch.setattr(retention, "query", meanwhile)
    assert forgetful.prune_runs(120) == 1
    keys = past.column("run", "run_key")
    assert old[0].run_key not in keys
    assert old[1].run_key in keys


# -- batches and records


def test_old_batches_go_in_chunks_and_an_open_intent_never(past: Past, forgetful: LedgerRetention) -> None:
    past.batch(2000 * DAY, 1, resolved=False)
    for number in range(2, 12):
        past.batch(401 * DAY, number)
    past.batch(401 * DAY, 12, resolved=False)
    for number in range(13, 16):
        past.batch(399 * DAY, number)
    assert forgetful.prune_batches(400, chunk=4) == 10
    assert past.read("SELECT appointment_ids[1], outcome FROM ledger.batch ORDER BY batch_id") == [
        (1, None),
        (12, None),
        (13, "acknowledged"),
        (14, "acknowledged"),
        (15, "acknowledged"),
    ]
    assert forgetful.prune_batches(400, chunk=4) == 0
    # The open ones still count: what they carried may be at Medflex.
    assert {int(row.appointment_id): row.state for row in past.ledger.known([CLINIC]).itertuples()}[1] == "sending"
    past.ledger.fold_open_batches([CLINIC])
    assert forgetful.prune_batches(400, chunk=4) == 2


def test_each_chunk_is_a_transaction_of_its_own(
    past: Past, forgetful: LedgerRetention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, what was removed is gone, and the next time goes on."""
    for number in range(9):
        past.batch(500 * DAY, number)
    asked, looks = retention.query, iter(range(2))

    def stop(name: str) -> str:
        if next(looks, None) is None:
            raise KeyboardInterrupt
        return asked(name)

    monkeypatch.setattr(retention, "query", stop)
    with pytest.raises(KeyboardInterrupt):
        forgetful.prune_batches(400, chunk=3)
    assert len(past.column("batch", "batch_id")) == 3
    monkeypatch.undo()
    assert forgetful.prune_batches(400, chunk=3) == 3


def test_records_and_versions_outlive_everything(past: Past, forgetful: LedgerRetention) -> None:
    old = past.run(2000 * DAY)
    for number in range(5):
        past.batch(2000 * DAY, number, run=old)
    past.write("UPDATE ledger.record SET state = 'withdrawn' WHERE appointment_id = 4")
    past.write("UPDATE ledger.record SET state = 'aged_out' WHERE appointment_id = 3")
    fillers(past)
    before = past.read("SELECT * FROM ledger.record ORDER BY appointment_id")
    assert len(before) == 5
    forgetful.prune_runs(1)
    forgetful.prune_batches(1)
    forgetful.prune_holds(1)
    forgetful.prune_writers(1)
    forgetful.prune_actions()
    assert past.read("SELECT * FROM ledger.record ORDER BY appointment_id") == before
    assert past.column("batch", "batch_id") == []


def test_no_query_of_housekeeping_removes_records_leases_or_the_rate() -> None:
    texts = {path.stem: path.read_text() for path in (SQL_FOLDER / "ledger").glob("retention_*.sql")}
    removed_from = {
        line.split("FROM ")[1].split()[0] for text in texts.values() for line in text.splitlines() if "DELETE" in line
    }
    assert removed_from == {
        "ledger.run",
        "ledger.batch",
        "ledger.hold",
        "ledger.writer",
        "ledger.partner_action",
        "ledger.alert",
        "ledger.missed_deadline",
    }


# -- holds and writers


def test_answered_questions_go_and_open_ones_stay(past: Past, forgetful: LedgerRetention) -> None:
    waiting = past.hold("open", 1000 * DAY, clinic_id=1)
    for state in ("released", "kept", "obsolete"):
        past.hold(state, 121 * DAY)
    young = past.hold("kept", 119 * DAY)
    assert forgetful.prune_holds(120, chunk=2) == 3
    assert past.column("hold", "hold_id") == [waiting, young]
    assert forgetful.prune_holds(120, chunk=2) == 0


def test_an_answer_stays_as_long_as_withdrawals_go_by_it(past: Past, forgetful: LedgerRetention) -> None:
    from medflex.airflow.withdrawing import ASKED_FOR

    assert ANSWER_DAYS * DAY > ASKED_FOR
    in_use = past.hold("kept", 13 * DAY)
    past.hold("kept", 15 * DAY)
    assert forgetful.prune_holds(1) == 1
    assert past.column("hold", "hold_id") == [in_use]


def test_marks_of_ended_attempts_go_after_thirty_days(past: Past, forgetful: LedgerRetention) -> None:
    def mark(holder: str, at: datetime) -> None:
        past.write("INSERT INTO ledger.writer (holder, started_at) VALUES (%s, %s)", [holder, at])

    for number in range(5):
        mark(f"old {number}", NOW - 31 * DAY)
    mark("young", NOW - 29 * DAY)
    assert forgetful.prune_writers(chunk=2) == 5
    assert past.column("writer", "holder") == ["young"]


# -- partner actions


def test_actions_go_when_they_are_decided_and_answered_long_ago_and_waiting_ones_stay(
    past: Past, forgetful: LedgerRetention
) -> None:
    age = ACTION_DAYS * DAY
    for number in range(5):
        past.action(age + timedelta(seconds=1 + number), DAY)
    kept = {
        past.action(age, age),
        past.action(2 * age, None),  # Medflex has not taken the answer
        past.action(None, None),
    }
    assert forgetful.prune_actions(chunk=2) == 5
    assert set(past.column("partner_action", "action_id")) == kept
    assert forgetful.prune_actions(chunk=2) == 0


def test_an_action_that_is_forgotten_is_refused_for_its_age_should_it_come_again() -> None:
    """Whatever was carried out was not asked for from the future; so much later it is too old, by any clock."""
    assert ACTION_DAYS > KEPT_DAYS + 1
    for ahead in (timedelta(0), DAY - timedelta(seconds=1)):
        action = Action(uuid4(), 1, 1, 1, ActionType.CONFIRM, 1, None, None, None, created_at=NOW + ahead)
        assert not is_from_the_future(action, NOW)
        slow_clock = NOW + ACTION_DAYS * DAY - timedelta(hours=23)
        assert is_too_old(action, slow_clock)


# -- cost


def test_a_run_goes_by_the_indexes_of_what_refers_to_it(past: Past) -> None:
    """Removing a run must not read the whole of a table that refers to it."""
    referring = past.read(
        "SELECT conrelid::regclass::text, (SELECT attname FROM pg_attribute WHERE attrelid = conrelid"
        " AND attnum = conkey[1]), EXISTS (SELECT FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1]"
        " AND indpred IS NULL) FROM pg_constraint WHERE confrelid = 'ledger.run'::regclass AND contype = 'f'"
    )
    assert {table.removeprefix("ledger.") for table, _, _ in referring} == {*OF_A_RUN, "batch", "hold"}
    assert [row for row in referring if not row[2]] == []
