"""The runbook knows everything that can be met at night, and its queries run on the ledger as it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pandas as pd
import psycopg
import pytest
from airflow.dag_processing.dagbag import DagBag

from medflex import errors
from medflex.airflow.tasks import release
from medflex.domain.access import AccessState, ClosedReason
from medflex.domain.alerts import AlertKind, Failure, Limits, judge
from medflex.domain.drift import Drift
from medflex.domain.last_look import Turned
from medflex.domain.packing import Shard
from medflex.domain.partner_actions import read_action
from medflex.domain.reasons import Reason
from medflex.domain.revocations import Revoked
from medflex.ledger.actions import ActionDecision
from medflex.ledger.store import BatchOutcome, Decision, Ledger
from scripts.generate_docs import DOCS, ROOT

RUNBOOK = (DOCS / "runbook.md").read_text()
QUERIES = [
    re.sub(r"^ {3}", "", text, flags=re.MULTILINE)
    for text in re.findall(r"^ *```sql\n(.*?)^ *```$", RUNBOOK, flags=re.MULTILINE | re.DOTALL)
]
COMMANDS = re.findall(r"^airflow .*$", RUNBOOK, flags=re.MULTILINE)
CLINIC, APPOINTMENT = 17, 1017


def section(heading: str) -> str:
    """Return the text below a heading, without what is below headings of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", RUNBOOK, flags=re.MULTILINE)
    assert found, heading
    rest = RUNBOOK[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: end.start()] if end else rest


def told(heading: str) -> set[str]:
    """Return the names that begin the rows of the tables below a heading; each row tells what to do."""
    rows = [line for line in section(heading).splitlines() if line.startswith("| ")]
    for row in rows:
        assert len(row.replace("\\|", "").strip("| ").split(" | ")) == 3, row
        assert all(cell.strip() for cell in row.strip("| ").split(" | ")), row
    return {name for row in rows for name in re.findall(r"^\| `([\w.]+)` \|", row)}


# What can be met


def test_each_task_of_each_dag_is_there_and_no_other() -> None:
    dags = DagBag(ROOT / "dags").dags
    assert len(dags) >= 5
    for dag_id, dag in dags.items():
        assert told(f"`{dag_id}`") == set(dag.task_dict), dag_id


def test_each_error_is_there_and_no_other() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert told("Errors") == kinds - {"MedflexPipelineError"}


def test_each_error_says_whether_airflow_tries_again() -> None:
    for line in section("Errors").splitlines():
        name = re.match(r"\| `(\w+)` \|", line)
        if name:
            assert ("Tried again" in line) == getattr(errors, name[1]).transient, name[1]


@pytest.mark.parametrize(
    ("heading", "codes"),
    [
        ("Why a record is not sent", set(Reason)),
        ("Why a clinic is closed", set(ClosedReason)),
        ("Why a record is dropped at the last look", set(Turned)),
        ("Why a record is withdrawn", set(Revoked)),
        ("Findings of a reconciliation", set(Drift)),
        ("Alerts", set(AlertKind)),
    ],
)
def test_each_code_is_there_and_no_other(heading: str, codes: set[str]) -> None:
    assert told(heading) == codes


@pytest.mark.parametrize(
    ("heading", "table", "column"),
    [("Of a record", "record", "state"), ("Of a batch", "batch", "outcome"), ("Of a question", "hold", "state")],
)
def test_each_state_that_the_ledger_knows_is_there(heading: str, table: str, column: str, ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as connection:
        (check,) = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [f"{table}_{column}_check"]
        ).fetchone() or ("",)
    states = set(re.findall(r"'(\w+)'", check))
    assert len(states) > 2
    assert told(heading) == states


def test_each_answer_is_explained() -> None:
    assert told("Questions") == set(release.OPTIONS)


# What is to be typed


@pytest.fixture
def busy_ledger(ledger_db: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A ledger in which everything that the runbook asks for has happened to one clinic."""
    now = datetime.now(UTC)
    with Ledger(ledger_db) as ledger:
        clinic = {"clinic_id": CLINIC, "lpu_id": 7017, "access_state": "open", "closed_reason": None, "opens_at": now}
        runs = [
            ledger.start_run(
                dag_id=dag_id,
                run_id="manual",
                run_type="manual",
                mode=mode,
                anchor=now,
                clinic_ids=None,
                started_at=now,
                clinics=[clinic],
                shards=[Shard("clinic 17", (CLINIC,), AccessState.OPEN)],
            )
            for dag_id, mode in (("medflex_transfer", "transfer"), ("medflex_reconcile", "reconcile"))
        ]
        run_key = runs[0].run_key
        ledger.save_decisions(
            run_key, "withhold", [CLINIC], [Decision(CLINIC, "withheld", ("no_partner",), [APPOINTMENT])]
        )
        ledger.save_findings(runs[1].run_key, {(CLINIC, 7017, "extra"): [APPOINTMENT]})
        epoch = ledger.acquire([CLINIC], "holder")[CLINIC]
        batch = {"run_key": run_key, "clinic_id": CLINIC, "lpu_id": 7017, "holder": "holder", "epoch": epoch}
        ids = [APPOINTMENT, 1, 2]
        sent = ledger.record_intent(
            **batch, operation="send", appointment_ids=ids, versions=[1, 1, 1], digests=[5, 6, 7]
        )
        ledger.resolve(sent.batch_id, BatchOutcome("acknowledged", 200, rejected={2: ["client"]}))
        withdrawn = ledger.record_intent(
            **batch,
            operation="withdraw",
            appointment_ids=[1],
            versions=[2],
            digests=None,
            reasons=["no_partner"],
            revoked_at=[now - timedelta(seconds=9)],
        )
        ledger.resolve(withdrawn.batch_id, BatchOutcome("acknowledged", 200))
        # Left open, as by a task that died.
        ledger.record_intent(**batch, operation="send", appointment_ids=[3], versions=[1], digests=[8])
        revoked = pd.DataFrame(
            {
                "clinic_id": [CLINIC],
                "appointment_id": [APPOINTMENT],
                "lpu_id": [7017],
                "reason": ["appointment_gone"],
                "by_absence": [True],
                "revoked_at": pd.Series([pd.NaT], dtype="datetime64[us, UTC]"),
            }
        )
        ledger.save_revocations(revoked, now, watch={"consent": {}})
        ledger.save_hold(revoked, live=1, found_at=now, run_key=run_key)
        ledger.note_contact(Failure.REFUSED)
        ledger.turn_alerts(judge, Limits())
        ledger.reserve_slot("medflex", 0.05)
        asked = {"lpu_id": 7017, "appointment_id": APPOINTMENT, "partner_id": 3, "base_version": 1}
        said = [{**asked, "id": str(uuid4()), "type": "confirm", "created_at": now.isoformat()} for _ in range(2)]
        actions = [action for item in said if (action := read_action(item))]
        decided, _ = actions
        ledger.store_actions(actions, "a cursor", "manual")
        ledger.save_decided([ActionDecision(decided.action_id, CLINIC, 204, "done", True, now, 9)], "manual")
    with psycopg.connect(ledger_db) as connection:
        yield connection


def test_the_runbook_has_its_queries_and_commands() -> None:
    assert len(QUERIES) > 15
    assert len(COMMANDS) > 4


def test_each_query_finds_what_it_is_for(busy_ledger: psycopg.Connection[tuple[object, ...]]) -> None:
    for query in QUERIES:
        with busy_ledger.transaction(force_rollback=True):
            assert busy_ledger.execute(query.encode()).rowcount > 0, query


@pytest.mark.parametrize("line", COMMANDS)
def test_each_airflow_command_is_understood(line: str) -> None:
    from airflow.cli.cli_parser import get_parser

    arguments = get_parser().parse_args(shlex.split(line)[1:])
    assert arguments.dag_id in DagBag(ROOT / "dags").dags


def test_parameters_in_commands_are_those_of_the_dag() -> None:
    import json

    dags = DagBag(ROOT / "dags").dags
    seen = 0
    for line in COMMANDS:
        words = shlex.split(line)
        dag = dags[next(word for word in words if word in dags)]
        for word in words:
            if word.startswith("{"):
                given = json.loads(word)
                assert set(given) <= set(dag.params)
                for name, value in given.items():
                    dag.params.get_param(name).resolve(value)
                seen += 1
    assert seen > 3
