"""The last word on a run: its equations are checked as far as each shard has come, and what broke fails it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowFailException

from medflex.airflow.assets import APPOINTMENTS
from medflex.airflow.staging import Staging
from medflex.airflow.tasks import transfer
from medflex.airflow.tasks.parts import TransientFailure
from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.ledger.store import Ledger

WHOLE = {
    "extracted": 10, "eligible": 7, "withheld": 2, "quarantined": 1, "unchanged": 3, "planned": 4, "new": 2,
    "changed": 1, "again": 1, "accepted": 1, "rejected": 1, "to_retry": 1, "unknown": 1, "revoked": 3, "withdrawn": 2,
    "held": 1,
}  # fmt: skip
EVENT = SimpleNamespace(extra={})


@pytest.fixture
def settle(ledger_db: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """A function that settles a run of one shard, which has come as far as is said and counted what is said."""
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{tmp_path}")
    run = {"dag_id": "medflex_transfer", "run_id": "r"}
    states: dict[str, str] = {"plan_shards": "success", "at_work": "running"}
    asked = SimpleNamespace(
        task_id="at_work", map_index=None, try_number=3, max_tries=2,
        get_task_states=lambda dag_id, run_ids, task_ids: dict.fromkeys(run_ids, states),
    )  # fmt: skip
    context = {"dag_run": SimpleNamespace(**run), "outlet_events": {APPOINTMENTS: EVENT}, "ti": asked}
    monkeypatch.setattr(transfer, "get_current_context", lambda: context)
    monkeypatch.setattr(EVENT, "extra", {})
    now = datetime.now(UTC)
    clinic = {"clinic_id": 1, "lpu_id": 7, "access_state": "open", "closed_reason": None, "opens_at": None}

    def settled(
        stage: str = "loaded",
        withdraw_stage: str = "withdrawn",
        mode: str = "transfer",
        report: str | None = "file:///report",
        tasks: Mapping[str, str] | None = None,
        end: Callable[[], Any] = transfer.settle_run,
        **numbers: int,
    ) -> dict[str, int]:
        states.update(tasks or {})
        with Ledger(ledger_db) as ledger:
            key = ledger.start_run(
                **run, run_type="manual", mode=mode, anchor=now, clinic_ids=None, started_at=now, clinics=[clinic],
                shards=[Shard("open-01", (1,), AccessState.OPEN)],
            ).run_key  # fmt: skip
            ledger.set_stage(key, 0, stage)
            ledger.set_withdraw_stage(key, 0, withdraw_stage, None)
            ledger.save_numbers(key, pd.DataFrame([{"clinic_id": 1} | WHOLE | numbers]))
            ledger.set_report(key, report)
        return end()

    return settled


def test_a_run_whose_numbers_add_up_hands_them_on(settle: Callable[..., dict[str, int]]) -> None:
    numbers = settle()
    assert {name: numbers[name] for name in WHOLE} == WHOLE
    assert EVENT.extra == numbers


@pytest.mark.parametrize(
    ("stage", "numbers", "equation"),
    [
        ("withheld", {"withheld": 3}, "extracted = eligible"),
        ("validated", {"withheld": 3}, "extracted = eligible"),
        ("compared", {"unchanged": 4}, "eligible = unchanged"),
        ("compared", {"changed": 2}, "planned = new"),
        ("loaded", {"changed": 2}, "planned = new"),
        ("loaded", {"accepted": 2}, "planned = accepted"),
        ("planned", {"held": 2}, "revoked = withdrawn"),
    ],
)
def test_an_equation_that_does_not_hold_fails_the_run(
    settle: Callable[..., dict[str, int]], ledger_db: str, stage: str, numbers: dict[str, int], equation: str
) -> None:
    with pytest.raises(AirflowFailException, match=rf"do not add up: Shard open-01: {equation}"):
        settle(stage, **numbers)
    with psycopg.connect(ledger_db) as connection:
        (settled,) = connection.execute("SELECT outcome, problems FROM ledger.run").fetchall()
    assert settled[0] == "failed"
    assert f"Shard open-01: {equation}" in settled[1][0]


@pytest.mark.parametrize(
    ("stage", "withdraw_stage", "numbers"),
    [
        ("extracted", "withdrawn", {"withheld": 3}),
        ("validated", "withdrawn", {"unchanged": 4}),
        ("compared", "withdrawn", {"accepted": 2}),
        ("loaded", "planned", {"held": 2}),
    ],
)
def test_what_was_not_counted_to_its_end_is_no_broken_equation(
    settle: Callable[..., dict[str, int]], stage: str, withdraw_stage: str, numbers: dict[str, int]
) -> None:
    with pytest.raises(AirflowFailException, match="RunIncompleteError: 1 problems in this run: Shard open-01"):
        settle(stage, withdraw_stage, **numbers)


def test_a_plan_ends_where_it_was_compared_and_its_withdrawals_were_found(
    settle: Callable[..., dict[str, int]],
) -> None:
    settle("compared", "found", "plan", held=2, accepted=2)
    with pytest.raises(AirflowFailException, match="Shard open-01, withdrawals: its withdrawals did not come to their"):
        settle("compared", "planned", "plan")
    settle("skipped", "found", "plan", withheld=3)


def test_a_missing_report_fails_the_run(settle: Callable[..., dict[str, int]]) -> None:
    with pytest.raises(AirflowFailException, match="The quality report was not published"):
        settle(report=None)


def test_a_task_that_failed_before_it_wrote_anything_down_fails_a_run_that_was_good_before(
    settle: Callable[..., dict[str, int]],
) -> None:
    """The run is cleared, and what the ledger has is of its earlier pass."""
    # Of these the run knows by itself, or they end it by themselves.
    settle(tasks={"remove_staging": "failed", "shard.load_0": "skipped"})
    tasks = {"plan_shards": "failed", "shard.extract_0": "upstream_failed", "shard.load_1": "failed"}
    with pytest.raises(
        AirflowFailException, match=r": Tasks have failed: plan_shards, shard.load_1, shard.extract_0\. "
    ):
        settle(tasks=tasks)
    many = {f"shard.load_{number}": "failed" for number in range(20)}
    with pytest.raises(AirflowFailException, match=r"shard.load_16, and 12 more\. See"):
        settle(tasks=many)
    with pytest.raises(AirflowFailException, match=r": Tasks have failed: publish_quality_report\. "):
        settle(tasks=dict.fromkeys([*tasks, *many], "success") | {"publish_quality_report": "failed"})


def outcome(ledger_db: str) -> tuple[str, list[str]]:
    """What the ledger says became of the run."""
    with psycopg.connect(ledger_db) as connection:
        ((found, problems),) = connection.execute("SELECT outcome, problems FROM ledger.run").fetchall()
    return found, problems


def test_a_run_of_which_only_failed_tasks_were_cleared_ends_like_one_that_went_through(
    settle: Callable[..., dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report and the removal had succeeded, so they do not come again."""
    published: list[Any] = []

    def publish(ledger: Ledger, run: Any) -> None:
        published.append(run.run_id)
        ledger.set_report(run.run_key, "file:///new")

    # How a report is made is tested with the pages; here only whether it is.
    monkeypatch.setattr(transfer, "_publish_report", publish)
    staging = transfer._staging(transfer.get_current_context())
    staging.write(0, "eligible", 0, pa.table({"id": [1]}))
    settle(tasks={"publish_quality_report": "success", "remove_staging": "running"})
    # While it is being removed by its own task, or will be, that is left to it; and a report that is there is right.
    assert staging.parts(0, "eligible")
    assert not published
    settle(report=None, tasks={"remove_staging": "success"})
    assert not staging.folder.exists()
    assert published == ["r"]
    with pytest.raises(AirflowFailException, match="The quality report was not published"):
        settle(report=None, tasks={"publish_quality_report": "failed"})


def test_a_run_is_settled_though_what_was_left_out_cannot_be_made_up_for(
    settle: Callable[..., dict[str, int]], ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError("a text that may quote anything")

    monkeypatch.setattr(transfer, "_publish_report", away)
    monkeypatch.setattr(Staging, "remove", away)
    attempts = transfer.get_current_context()["ti"]
    monkeypatch.setattr(attempts, "try_number", 2)
    with pytest.raises(TransientFailure, match="settle_run failed with OSError"):
        settle(report=None, tasks={"publish_quality_report": "success", "remove_staging": "success"})
    assert outcome(ledger_db)[0] == "running"
    monkeypatch.setattr(attempts, "try_number", 3)
    with pytest.raises(AirflowFailException, match=r"2 problems in this run: A shard was begun anew behind the end"):
        settle(report=None, tasks={"publish_quality_report": "success", "remove_staging": "success"})
    found, problems = outcome(ledger_db)
    assert (found, len(problems)) == ("failed", 2)
    assert "clear remove_staging" in problems[0]
    assert "clear publish_quality_report" in problems[1]
    assert "quote" not in str(problems)


def test_a_run_that_was_marked_as_failed_is_failed_and_says_so(
    settle: Callable[..., dict[str, int]], ledger_db: str
) -> None:
    """Airflow skips what has not begun but the removal of what is staged, and takes its success for the run's."""
    staging = transfer._staging(transfer.get_current_context())
    staging.write(0, "eligible", 0, pa.table({"id": [1]}))
    with pytest.raises(AirflowFailException, match="RunIncompleteError: It was ended by hand before all was done"):
        settle("withheld", end=transfer.remove_staging, tasks={"settle_run": "skipped"})
    assert not staging.folder.exists()
    found, problems = outcome(ledger_db)
    assert found == "failed"
    assert problems == [
        "It was ended by hand before all was done; what is left is sent and withdrawn by the next runs."
    ]
    # In a second pass of a run as well, whose first one had ended well, and of one that was never planned.
    with pytest.raises(AirflowFailException, match="It was ended by hand"):
        settle(end=lambda: (transfer.settle_run(), transfer.remove_staging()), tasks={"settle_run": "skipped"})
    assert outcome(ledger_db) == ("failed", problems)

    # What did not add up is not forgotten over it.
    with pytest.raises(AirflowFailException, match="It was ended by hand"):
        settle("loaded", end=transfer.remove_staging, tasks={"settle_run": "skipped"}, accepted=2)
    with psycopg.connect(ledger_db) as connection:
        assert connection.execute("SELECT broken, cardinality(problems) FROM ledger.run").fetchone() == (1, 2)

    def cancelled() -> None:
        with psycopg.connect(ledger_db) as connection:
            connection.execute("DELETE FROM ledger.run")
        transfer.remove_staging()

    with pytest.raises(AirflowFailException, match="It was ended by hand"):
        settle(end=cancelled)
    # Where settle_run itself was marked as successful, the run stays so in Airflow.
    settle("withheld", end=transfer.remove_staging, tasks={"settle_run": "success"})
    assert outcome(ledger_db)[0] == "failed"


@pytest.mark.parametrize("state", ["running", "failed", "scheduled"])
def test_removing_leaves_a_run_alone_that_is_settled_by_its_own_task(
    settle: Callable[..., dict[str, int]], ledger_db: str, state: str
) -> None:
    settle(end=transfer.remove_staging, tasks={"settle_run": state})
    assert outcome(ledger_db) == ("running", [])
    settle(tasks={"settle_run": "success"})
    transfer.remove_staging()
    assert outcome(ledger_db) == ("succeeded", [])
