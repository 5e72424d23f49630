"""What the pages read, from a real ledger that the product's own writers have filled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import psycopg
import pytest

from medflex.domain.funnel import NUMBERS, Funnel
from medflex.domain.messages import MessageLook, MessageWarning, Twice
from medflex.errors import LedgerRefusedError, LedgerUnavailableError
from medflex.ledger.overview import BUCKETS, LedgerOverview, OpenHolds
from medflex.ledger.report import funnel_text
from medflex.ledger.store import Decision, Ledger, Run
from medflex.quality.results import Severity
from sandbox.postgres import free_port
from tests.ledger.times import NOW, Time
from tests.ui import story

DAY = timedelta(days=1)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def ledger(ledger_db: str, time: Time) -> Iterator[Ledger]:
    with Ledger(ledger_db, now=time) as made:
        yield made


@pytest.fixture
def run(ledger: Ledger, ledger_db: str, time: Time) -> Run:
    def at_time(moment: object) -> None:
        time.now = moment  # type: ignore[assignment]

    return story.tell(ledger, ledger_db, NOW, at_time)


@pytest.fixture
def overview(ledger_db: str, time: Time) -> Iterator[LedgerOverview]:
    with LedgerOverview(ledger_db, now=time) as made:
        yield made


# -- runs


def test_the_numbers_are_those_of_the_text_report(run: Run, ledger_db: str, overview: LedgerOverview) -> None:
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    text = funnel_text(ledger_db, run.run_id)
    for name in ("extracted", "withheld", "quarantined", "eligible", "unchanged", "planned", "accepted", "rejected"):
        told = re.search(rf"^(?:− )?{name} +([\d,]+) ", text, re.MULTILINE)
        assert told is not None
        assert int(told[1].replace(",", "")) == getattr(line.funnel, name), name
    assert f"Clinics: {line.clinics_open} open, {line.clinics_waiting} waiting, {line.clinics_closed} closed" in text
    for reason in overview.reasons(line):
        assert f"      {reason.reason}: {reason.records}" in text
    assert (line.clinics, line.shards, line.shards_troubled, line.outcome) == (4, 2, 1, "failed")


def test_sums_that_were_kept_are_those_that_are_added_up(run: Run, ledger_db: str, overview: LedgerOverview) -> None:
    kept = overview.run("medflex_transfer", run.run_id)
    assert kept is not None
    assert kept.kept
    reasons, expectations = overview.reasons(kept), overview.expectations(kept)
    with psycopg.connect(ledger_db) as connection:
        for table in ("run_total", "run_reason", "run_expectation"):
            assert connection.execute(f"DELETE FROM ledger.{table}".encode()).rowcount > 0
    with LedgerOverview(ledger_db) as anew:
        added = anew.run("medflex_transfer", run.run_id)
        assert added is not None
        assert not added.kept
        assert replace(added, kept=True) == kept
        assert anew.reasons(added) == reasons
        assert anew.expectations(added) == expectations


def test_a_run_that_was_cleared_shows_no_sums_of_before(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    again = story.begin(ledger, run.run_id, NOW)
    line = overview.run("medflex_transfer", run.run_id)
    assert again.run_key == run.run_key
    assert line is not None
    assert (line.kept, line.outcome, line.funnel) == (False, "running", Funnel())
    assert overview.reasons(line) == []
    assert overview.expectations(line) == []


def test_settling_twice_keeps_the_last_sums(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    ledger.save_numbers(run.run_key, pd.DataFrame({"clinic_id": [2], "extracted": [51]}))
    ledger.settle_run(run.run_key, [])
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    assert (line.kept, line.funnel.extracted) == (True, 201)


def test_runs_come_newest_first_and_page_by_page(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    story.begin(ledger, "quick", NOW, dag_id="medflex_withdraw", mode="withdraw")
    assert [line.run_id for line in overview.runs()] == ["scheduled__2", "scheduled__1"]
    assert [line.run_id for line in overview.runs(size=1, skip=1)] == ["scheduled__1"]
    assert {line.run_id for line in overview.runs(None)} == {"scheduled__2", "scheduled__1", "quick"}
    assert overview.run("medflex_transfer", "quick") is None


def test_a_run_is_compared_with_the_whole_transfer_before_it(
    ledger: Ledger, run: Run, overview: LedgerOverview
) -> None:
    soon = NOW - timedelta(hours=1)
    for run_id, changes in {
        "some": {"clinic_ids": [1]}, "plan": {"mode": "plan"}, "old day": {"anchor": NOW - 9 * DAY},
    }.items():  # fmt: skip
        ledger.settle_run(story.begin(ledger, run_id, soon, **changes).run_key, [])
    story.begin(ledger, "never ended", soon)
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    before = overview.previous(line)
    assert before is not None
    assert before.run_id == "scheduled__1"
    assert before.funnel.extracted == line.funnel.extracted - 30
    assert overview.previous(before) is None
    assert overview.previous(replace(line, is_full=False)) is None


def test_shards_with_a_problem_come_first_and_add_up_to_the_run(run: Run, overview: LedgerOverview) -> None:
    shards = overview.shards(run.run_key)
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    assert [(shard.label, shard.clinics, shard.problem) for shard in shards] == [
        ("open-001", 1, "Medflex does not answer, see the log."), ("open-000", 2, None),
    ]  # fmt: skip
    for name in NUMBERS:
        assert sum(getattr(shard.funnel, name) for shard in shards) == getattr(line.funnel, name), name
    assert overview.shard(run.run_key, 0) == shards[1]
    assert overview.shard(run.run_key, 7) is None
    assert overview.shard_clinics(run.run_key, 0) == [1, 2]


def test_states_of_access_with_their_reasons(run: Run, overview: LedgerOverview) -> None:
    found = [(one.access_state, one.closed_reason, one.clinics) for one in overview.access_states(run.run_key)]
    assert found == [("open", None, 3), ("closed", "switched_off", 1)]
    assert [one.clinics for one in overview.access_states(run.run_key, 1)] == [1]


def test_a_record_counts_under_each_reason_and_once_under_the_first(run: Run, overview: LedgerOverview) -> None:
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    found = {(one.decision, one.reason): (one.records, one.first) for one in overview.reasons(line)}
    assert found == {
        ("withheld", "refused_marketing"): (12, 12), ("withheld", "anonymous_appointment"): (10, 3),
        ("quarantined", "phone_missing"): (7, 7),
    }  # fmt: skip
    assert sum(first for (decision, _), (_, first) in found.items() if decision == "withheld") == line.funnel.withheld
    of_one = {one.reason: one.records for one in overview.reasons(line, [3])}
    assert of_one == {"refused_marketing": 5, "phone_missing": 5}


def test_reasons_are_in_the_order_of_reports(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    codes = ("appointment_gone", "doctor_banned", "refused_personal_data", "phone_missing")
    ledger.save_decisions(run.run_key, "last_look", [1], [Decision(1, "dropped", (code,), [1]) for code in codes])
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    dropped = [one.reason for one in overview.reasons(replace(line, kept=False)) if one.decision == "dropped"]
    assert dropped == ["refused_personal_data", "doctor_banned", "phone_missing", "appointment_gone"]


def test_some_ids_of_each_reason(run: Run, overview: LedgerOverview) -> None:
    (sample,) = overview.decided_ids(run.run_key, "quarantined", size=4)
    assert (sample.code, sample.ids) == ("phone_missing", [(1, 21), (1, 22), (3, 36), (3, 37)])
    (sample,) = overview.decided_ids(run.run_key, "quarantined", [3], size=2)
    assert sample.ids == [(3, 36), (3, 37)]
    several = {sample.code: len(sample.ids) for sample in overview.decided_ids(run.run_key, "withheld", size=4)}
    assert several == {"refused_marketing": 4, "anonymous_appointment": 4}


def test_rejected_records_by_the_field_that_medflex_named(run: Run, overview: LedgerOverview) -> None:
    (sample,) = overview.rejected_ids(run.run_key)
    assert (sample.code, sample.ids, sample.records) == ("mobile_phone", [(1, 42)], 1)
    assert overview.rejected_ids(run.run_key, [3]) == []


def test_batches_of_a_run_and_of_some_clinics(run: Run, overview: LedgerOverview) -> None:
    sent, withdrawn = overview.batches(run.run_key)
    assert (sent.operation, sent.records, sent.rejected, sent.outcome, sent.http_status) == (
        "send", 2, 1, "acknowledged", 200,
    )  # fmt: skip
    assert (withdrawn.operation, withdrawn.records, withdrawn.resolved_at) == ("withdraw", 2, NOW + 4 * timedelta(0, 1))
    assert overview.batches(run.run_key, [2, 3]) == []
    assert overview.batches(run.run_key, skip=1) == [withdrawn]


# -- results


def test_a_failure_in_one_shard_is_one_of_the_run_and_the_worst_come_first(run: Run, overview: LedgerOverview) -> None:
    line = overview.run("medflex_transfer", run.run_id)
    assert line is not None
    found = overview.expectations(line)
    assert [(one.suite, one.name, one.outcome, one.shards, one.shards_failed, one.unexpected) for one in found] == [
        ("source", "appointment_unique", "critical", 2, 1, 3), ("source", "status_known", "warning", 2, 1, 4),
        ("run", "status_known", "passed", 1, 0, 0), ("run", "appointment_unique", "passed", 1, 0, 0),
    ]  # fmt: skip
    assert (found[1].evaluated, found[1].missing, found[1].unexpected_share) == (100, 20, 0.05)
    assert found[0].columns == ["status"]


def test_results_of_one_shard(run: Run, overview: LedgerOverview) -> None:
    found = overview.shard_expectations(run.run_key, 0)
    assert [(one.name, one.outcome) for one in found] == [("status_known", "warning"), ("appointment_unique", "passed")]
    assert overview.shard_expectations(run.run_key, 9) == []


def test_a_warning_that_could_not_be_judged_anywhere_is_critical(ledger: Ledger, overview: LedgerOverview) -> None:
    run = story.begin(ledger, "r", NOW)
    for shard, severity in enumerate([Severity.WARNING, Severity.CRITICAL]):
        failed = {"status_known": 1}
        ledger.save_validation(run.run_key, shard, "source", story.result("source", "x", failed, status_known=severity))
    line = overview.run("medflex_transfer", "r")
    assert line is not None
    assert overview.expectations(line)[0].outcome == "critical"


def test_the_result_of_the_whole_run_is_no_shards_result(ledger: Ledger, run: Run) -> None:
    assert [item["suite"] for item in ledger.validations(run.run_key)] == ["source", "source"]


def test_quality_over_runs_oldest_first(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    ledger.settle_run(story.begin(ledger, "some clinics", NOW, clinic_ids=[1]).run_key, [])
    ledger.settle_run(story.begin(ledger, "without results", NOW + DAY).run_key, [])
    first, second, third = overview.quality()
    assert [one.run_id for one in (first, second, third)] == ["scheduled__1", "scheduled__2", "without results"]
    assert first.by_rule["source", "status_known"].outcome == "passed"
    assert second.by_rule["source", "status_known"].outcome == "warning"
    assert third.by_rule == {}
    assert [one.run_id for one in overview.quality(2)] == ["scheduled__2", "without results"]


def test_the_trend_of_quality_is_that_of_todays_windows(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    """A backfill of older days would fill the whole strip with runs of other windows."""
    for run_id, anchor, is_of_today in (("noted", NOW, False), ("of an older version", NOW - 50 * DAY, None)):
        begun = story.begin(ledger, run_id, NOW + DAY, anchor=anchor, is_of_today=is_of_today)
        ledger.settle_run(begun.run_key, [])
    assert [one.run_id for one in overview.quality()] == ["scheduled__1", "scheduled__2"]


def test_messages_that_patients_get_twice(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    assert overview.messages(run.run_key) is None
    warning = MessageWarning(1, Twice.DOUBLED, "greeting", (7,), 3, (41, 42, 43))
    ledger.save_messages(run.run_key, MessageLook(NOW, (warning,), "Medlock does not answer.", None))
    with LedgerOverview(ledger._conninfo) as anew:
        found = anew.messages(run.run_key)
    assert found is not None
    look, (total,) = found
    assert (look.overlaps_problem, look.doubled_problem) == ("Medlock does not answer.", None)
    assert (total.kind, total.scenario, total.clinics, total.appointments, total.clinic_ids) == (
        "doubled", "greeting", 1, 3, [1],
    )  # fmt: skip


# -- withdrawals


def test_open_withdrawals_oldest_first_with_those_that_are_late(run: Run, overview: LedgerOverview) -> None:
    found = overview.open_withdrawals(900.0)
    assert (found.records, found.late, found.all_lines) == (3, 1, 2)
    assert [(line.clinic_id, line.records, line.late, line.seconds) for line in found.lines] == [
        (1, 2, 1, 3600.0), (3, 1, 0, 5.0),
    ]  # fmt: skip
    short = overview.open_withdrawals(1.0, size=1)
    assert (short.records, short.late, short.all_lines, len(short.lines)) == (3, 3, 2, 1)


def test_nothing_open_is_nothing(ledger_db: str) -> None:
    with LedgerOverview(ledger_db) as empty:
        found = empty.open_withdrawals(900.0)
        assert (found.records, found.late, found.all_lines, found.lines) == (0, 0, 0, [])
        assert empty.open_holds() == OpenHolds(0, 0, [])
        assert empty.withdraw_times([NOW]).total.p95 is None
        assert (empty.runs(), empty.quality(), empty.newest_actions()) == ([], [], [])


def test_questions_that_wait_for_a_person(run: Run, overview: LedgerOverview) -> None:
    (hold,) = overview.open_holds().lines
    assert (hold.clinic_id, hold.records, hold.live, hold.reasons) == (2, 2, 50, ["appointment_gone"])


def test_questions_beyond_those_shown_are_counted(ledger: Ledger, run: Run) -> None:
    with psycopg.connect(ledger._conninfo) as connection:
        connection.execute(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)"
            " VALUES (1, %s, '{1, 2, 3}', '{101, 101, 101}', array_fill('appointment_gone'::text, '{3}'), 9)",
            [NOW],
        )
    with LedgerOverview(ledger._conninfo) as overview:
        found = overview.open_holds(1)
    assert (found.records, found.all_lines, [hold.clinic_id for hold in found.lines]) == (5, 2, [2])


def test_times_to_withdraw_in_all_by_day_by_reason_and_by_length(
    ledger: Ledger, run: Run, overview: LedgerOverview
) -> None:
    days = [NOW - 2 * DAY, NOW - DAY, NOW]
    found = overview.withdraw_times(days)
    assert (found.total.records, found.total.p50, found.total.p95, found.total.longest) == (2, 24.0, 304.0, 304.0)
    assert [one.records for one in found.by_day] == [0, 0, 2]
    assert {reason: one.p95 for reason, one in found.by_reason.items()} == {
        "doctor_banned": 304.0, "refused_marketing": 24.0,
    }  # fmt: skip
    assert len(found.buckets) == len(BUCKETS) + 1
    assert [place for place, records in enumerate(found.buckets) if records] == [
        BUCKETS.index(20.0) + 1, BUCKETS.index(300.0) + 1,
    ]  # fmt: skip
    # The same as the ledger's own list of them, which the benchmarks use.
    assert sorted(ledger.times_to_withdraw(NOW - DAY)["seconds"]) == [24.0, 304.0]
    assert overview.withdraw_times([NOW + DAY]).total.records == 0


def test_percentiles_are_those_of_a_sorted_list(ledger: Ledger, time: Time, overview: LedgerOverview) -> None:
    seconds = [0.5, 1.25, 3.0, 9.94, 9.96, 10.4, 11.6, 59.9, 60.1, 61.0, 125.0, 4000.0]
    epoch = ledger.acquire([1], "story")[1]
    batch = ledger.record_intent(
        run_key=None, clinic_id=1, lpu_id=101, operation="withdraw", holder="story", epoch=epoch,
        appointment_ids=list(range(12)), versions=[1] * 12, digests=None, reasons=["doctor_banned"] * 12,
        revoked_at=[NOW - timedelta(seconds=one) for one in seconds],
    )  # fmt: skip
    from medflex.ledger.store import BatchOutcome

    ledger.resolve(batch.batch_id, BatchOutcome("acknowledged", 200, unknown=[11]))
    found = overview.withdraw_times([NOW]).total
    assert found.records == 11
    assert (found.p50, found.p95, found.longest) == (pytest.approx(10.4, abs=0.5), 125.0, 125.0)


# -- partner actions


def test_actions_by_type_and_decision(run: Run, overview: LedgerOverview) -> None:
    found = {(one.type, one.status_code, one.reason): one.actions for one in overview.action_counts(NOW - DAY)}
    assert found == {
        ("cancel", 204, "done"): 1, ("notification", 204, "recorded"): 2, ("cancel", 404, "not_shared"): 1,
        (None, 400, "malformed"): 1,
    }  # fmt: skip
    assert overview.action_counts(NOW) == []


def test_how_long_partners_waited(run: Run, overview: LedgerOverview) -> None:
    times = {one.type: one for one in overview.action_times(NOW - DAY)}
    assert set(times) == {"cancel", "notification", None}
    assert (times["cancel"].actions, times["cancel"].decided_p50, times["cancel"].answered_p95) == (2, 60.0, 60.0)


def test_what_waits_and_since_when(run: Run, overview: LedgerOverview) -> None:
    found = overview.waiting_actions()
    assert (found.undecided, found.unanswered, found.unshared) == (1, 0, 1)
    assert found.undecided_since == NOW - timedelta(minutes=10)
    assert found.unshared_since == NOW - timedelta(minutes=9)


def test_the_newest_actions_come_first(run: Run, overview: LedgerOverview) -> None:
    found = overview.newest_actions(size=2)
    assert [(one.type, one.status_code) for one in found] == [("confirm", None), (None, 400)]
    assert [one.action_id.int for one in overview.newest_actions(size=9, skip=4)] == [2, 1]
    assert len(overview.newest_actions(clinic_id=1)) == 5


# -- access


def test_reading_cannot_change_anything(run: Run, overview: LedgerOverview) -> None:
    with pytest.raises(LedgerUnavailableError, match="25006"):
        overview._rows("DELETE FROM ledger.run RETURNING run_key")


def test_a_page_reads_one_state_of_the_ledger(ledger: Ledger, run: Run, overview: LedgerOverview) -> None:
    assert len(overview.runs()) == 2
    story.begin(ledger, "meanwhile", NOW)
    assert len(overview.runs()) == 2


def test_a_read_that_takes_too_long_is_cut_off(overview: LedgerOverview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medflex.ledger.overview.TIMEOUT_SECONDS", 1)
    with pytest.raises(LedgerUnavailableError, match="does not answer"):
        overview._rows("SELECT pg_sleep(30)")


def test_a_server_that_is_away_and_a_ledger_without_tables(new_database: object) -> None:
    with pytest.raises(LedgerUnavailableError), LedgerOverview(f"postgresql://x:y@127.0.0.1:{free_port()}/x") as away:
        away.runs()
    with pytest.raises(LedgerRefusedError, match="migrate"), LedgerOverview(new_database()) as empty:  # type: ignore[operator]
        empty.runs()
