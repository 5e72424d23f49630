"""Two days of a small ledger, written by the product's own writers: for tests of what the pages read and show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
import psycopg

from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.ledger.store import BatchOutcome, Decision, Ledger, Run
from medflex.ledger.sums import RUN_SUITE_SHARD
from medflex.quality.results import ExpectationResult, Severity, SuiteResult

DAY = timedelta(days=1)
LPU = {1: 101, 2: 102, 3: 103}
NUMBERS = {
    # clinic: the columns of _ALL
    1: (100, 10, 2, 88, 80, 8, 8, 7, 1, 2, 2),
    2: (50, 0, 0, 50, 50, 0, 0, 0, 0, 0, 0),
    3: (20, 5, 5, 10, 6, 4, 4, 4, 0, 0, 0),
}
_COLUMNS = ("extracted", "withheld", "quarantined", "eligible", "unchanged", "new", "planned", "accepted", "rejected")
_ALL = (*_COLUMNS, "revoked", "withdrawn")


def begin(ledger: Ledger, run_id: str, at: datetime, **changes: Any) -> Run:
    """Write down a transfer of the three clinics in two shards."""
    given: dict[str, Any] = {
        "dag_id": "medflex_transfer", "run_id": run_id, "run_type": "scheduled", "mode": "transfer", "anchor": at,
        "clinic_ids": None, "started_at": at,
        "shards": [Shard("open-000", (1, 2), AccessState.OPEN), Shard("open-001", (3,), AccessState.OPEN)],
        "clinics": [
            {"clinic_id": key, "lpu_id": lpu, "access_state": "open", "closed_reason": None, "opens_at": None}
            for key, lpu in LPU.items()
        ] + [{"clinic_id": 9, "lpu_id": None, "access_state": "closed", "closed_reason": "switched_off",
              "opens_at": None}],
    }  # fmt: skip
    return ledger.start_run(**(given | changes))


def numbers(ledger: Ledger, run: Run, more: int = 0) -> None:
    """Set the funnel of each clinic; ``more`` unchanged records are added to the first one's."""
    rows = [(key, *values) for key, values in NUMBERS.items()]
    frame = pd.DataFrame(rows, columns=["clinic_id", *_ALL])
    for name in ("changed", "again", "dropped", "to_retry", "unknown", "held", "permitted_again"):
        frame[name] = 0
    frame.loc[0, ["extracted", "eligible", "unchanged"]] += more
    ledger.save_numbers(run.run_key, frame)


def result(suite: str, shard: str, failed: dict[str, int] | None = None, **severities: Severity) -> dict[str, Any]:
    """A result of two expectations, some of them failed with so many unexpected rows."""
    found = []
    for name, severity in {"status_known": Severity.WARNING, "appointment_unique": Severity.CRITICAL}.items():
        unexpected = (failed or {}).get(name, 0)
        kind = severities.get(name, severity)
        found.append(ExpectationResult(name, "expect_x", ("status",), kind, not unexpected, 50, unexpected, 0.0, 10))
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(SuiteResult(suite, shard, 50, tuple(found)))))
    return document


def tell(ledger: Ledger, conninfo: str, now: datetime, at_time: Callable[[datetime], None]) -> Run:
    """Write the story down, ending now; return the newest run, in which the second shard has a problem.

    Args:
        at_time: sets the clock of ``ledger``.
    """
    at_time(now - DAY)
    before = begin(ledger, "scheduled__1", now - DAY)
    numbers(ledger, before)
    ledger.save_decisions(before.run_key, "withhold", [1], [Decision(1, "withheld", ("doctor_banned",), [11, 12])])
    ledger.save_validation(before.run_key, 0, "source", result("source", "open-000"))
    ledger.settle_run(before.run_key, [])

    at_time(now)
    run = begin(ledger, "scheduled__2", now)
    numbers(ledger, run, more=30)
    ledger.save_decisions(
        run.run_key, "withhold", [1, 3],
        [
            Decision(1, "withheld", ("refused_marketing", "anonymous_appointment"), [11, 12, 13, 14, 15, 16, 17]),
            Decision(1, "withheld", ("anonymous_appointment",), [18, 19, 20]),
            Decision(1, "quarantined", ("phone_missing",), [21, 22]),
            Decision(3, "withheld", ("refused_marketing",), [31, 32, 33, 34, 35]),
            Decision(3, "quarantined", ("phone_missing",), [36, 37, 38, 39, 40]),
        ],
    )  # fmt: skip
    ledger.save_validation(run.run_key, 0, "source", result("source", "open-000", {"status_known": 4}))
    ledger.save_validation(run.run_key, 1, "source", result("source", "open-001", {"appointment_unique": 3}))
    ledger.save_validation(run.run_key, RUN_SUITE_SHARD, "run", result("run", "all"))
    ledger.set_stage(run.run_key, 0, "loaded")
    ledger.set_problem(run.run_key, 1, "Medflex does not answer, see the log.")
    epoch = ledger.acquire([1], "story")[1]
    about = {"run_key": run.run_key, "clinic_id": 1, "lpu_id": 101, "holder": "story", "epoch": epoch}
    sent = ledger.record_intent(operation="send", appointment_ids=[41, 42], versions=[1, 1], digests=[1, 2], **about)  # type: ignore[arg-type]
    at_time(now + timedelta(seconds=1))
    ledger.resolve(sent.batch_id, BatchOutcome("acknowledged", 200, rejected={42: ("mobile_phone",)}))
    at_time(now)
    gone = ledger.record_intent(
        operation="withdraw", appointment_ids=[51, 52], versions=[2, 2], digests=None,
        reasons=["refused_marketing", "doctor_banned"],
        revoked_at=[now - timedelta(seconds=20), now - timedelta(seconds=300)], **about,
    )  # type: ignore[arg-type]  # fmt: skip
    at_time(now + timedelta(seconds=4))
    ledger.resolve(gone.batch_id, BatchOutcome("acknowledged", 200))
    at_time(now)
    ledger.settle_run(run.run_key, ["Shard open-001: Medflex does not answer, see the log."])
    with psycopg.connect(conninfo) as connection:
        connection.execute(
            "INSERT INTO ledger.revocation VALUES (1, 61, 101, 'refused_marketing', FALSE, %(long)s, %(long)s),"
            " (1, 62, 101, 'refused_marketing', FALSE, %(now)s, %(now)s), (3, 63, 103, 'doctor_banned', FALSE, %(now)s,"
            " %(now)s)",
            {"long": now - timedelta(hours=1), "now": now - timedelta(seconds=5)},
        )
        connection.execute(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)"
            " VALUES (2, %s, '{71, 72}', '{102, 102}', '{appointment_gone, appointment_gone}', 50)",
            (now - DAY,),
        )
        for number, (kind, code, ruling) in enumerate(
            [("cancel", 204, "done"), ("notification", 204, "recorded"), ("notification", 204, "recorded"),
             ("cancel", 404, "not_shared"), (None, 400, "malformed"), ("confirm", None, None)],
            start=1,
        ):  # fmt: skip
            decided = now - timedelta(minutes=9) if code else None
            connection.execute(
                "INSERT INTO ledger.partner_action (action_id, lpu_id, appointment_id, partner_id, type, read_at,"
                " read_in, clinic_id, status_code, reason, is_effect, decided_at, answer, answered_at)"
                " VALUES (%s, 101, 41, 7, %s, %s, 'a test', %s, %s, %s, %s, %s, %s, %s)",
                (
                    UUID(int=number), kind, now - timedelta(minutes=10), 1 if code else None, code, ruling,
                    ruling == "done", decided, "taken" if code else None, decided,
                ),
            )  # fmt: skip
    return run
