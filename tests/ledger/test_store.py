"""The ledger on a real Postgres: states, versions, intents, leases, numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
from psycopg.rows import dict_row

from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.domain.revocations import empty_revocations
from medflex.errors import (
    LeaseLostError,
    LedgerOutdatedError,
    LedgerRefusedError,
    LedgerUnavailableError,
    RunIncompleteError,
)
from medflex.ledger import connection as ledger_connection
from medflex.ledger import migrate as migrations
from medflex.ledger.report import funnel_text
from medflex.ledger.store import BatchContent, BatchOutcome, Decision, Intent, Ledger, Resolution, Run
from medflex.ledger.withdrawals import COUNTED_CLINICS
from medflex.sql import bigints, query
from sandbox.postgres import free_port
from tests.ledger.times import NOW, Time
from tests.plans import blocks, indexes, plan_of, rows_read

CLINIC, LPU = 17, 40017


def intent(ledger: Ledger, ids: list[int], versions: list[int], digests: list[int] | None, **more: object) -> Intent:
    arguments: dict[str, object] = {"holder": "task", "operation": "send", "epoch": 1} | more
    return ledger.record_intent(
        run_key=None, clinic_id=CLINIC, lpu_id=LPU, appointment_ids=ids, versions=versions, digests=digests,
        **arguments,
    )  # type: ignore[arg-type]  # fmt: skip


def states(ledger: Ledger) -> dict[int, tuple[str, int, int | None]]:
    """Return id → state, version, acknowledged digest."""
    known = ledger.known([CLINIC])
    return {
        int(row.appointment_id): (
            str(row.state),
            int(row.version),
            None if pd.isna(row.acked_digest) else int(row.acked_digest),
        )
        for row in known.itertuples()
    }


# -- several batches at once


def test_batches_are_written_down_together_but_for_the_clinic_that_was_taken_over(ledger: Ledger) -> None:
    epochs = ledger.acquire([CLINIC, CLINIC + 1], "task")
    assert ledger.acquire([CLINIC], "withdrawal", purpose="withdraw") == {CLINIC: epochs[CLINIC] + 1}
    batches = [
        BatchContent(
            run_key=None, clinic_id=clinic_id, lpu_id=LPU, operation="send", holder="task", epoch=epochs[clinic_id],
            appointment_ids=ids, versions=[1] * len(ids), digests=ids,
        )
        for clinic_id, ids in ((CLINIC + 1, [1, 2]), (CLINIC, [3]), (CLINIC + 1, [4]))
    ]  # fmt: skip
    intents = ledger.record_intents(batches)
    assert [intent is None for intent in intents] == [False, True, False]
    assert set(ledger.known([CLINIC, CLINIC + 1])["appointment_id"]) == {1, 2, 4}
    assert len({intent.idempotency_key for intent in intents if intent}) == 2
    # In the order in which they were asked for, whatever the order in which they are locked.
    assert intents[0] is not None
    assert ledger.resolve(intents[0].batch_id, BatchOutcome("acknowledged", 200))
    known = ledger.known([CLINIC + 1]).set_index("appointment_id")["state"]
    assert known.to_dict() == {1: "sent", 2: "sent", 4: "sending"}


@pytest.mark.parametrize("is_first", [True, False])
def test_batches_are_resolved_together_but_for_those_that_somebody_else_has_resolved(
    ledger: Ledger, is_first: bool
) -> None:
    ledger.acquire([CLINIC], "task")
    first, second, third = (intent(ledger, [number], [1], [11]) for number in (1, 2, 3))
    assert ledger.resolve(second.batch_id, BatchOutcome("to_retry"))
    done = BatchOutcome("acknowledged", 200)
    resolutions = [Resolution(item.batch_id, done, NOW, is_first=is_first) for item in (third, second, first)]
    assert ledger.resolve_together(resolutions) == [True, False, True]
    assert states(ledger) == {1: ("sent", 1, 11), 3: ("sent", 1, 11)}


def test_what_is_known_of_some_records_is_the_same_as_of_all(ledger: Ledger) -> None:
    """Settled, tried again, begun only, at two lpu_ids; the same ids of another clinic; one that is asked for twice."""
    ledger.acquire([CLINIC], "task")
    done = BatchOutcome("acknowledged", 200)
    ledger.resolve(intent(ledger, [1, 2, 3], [1] * 3, [11, 12, 13]).batch_id, done)
    ledger.resolve(intent(ledger, [3], [2], None, operation="withdraw").batch_id, done)
    intent(ledger, [2, 4], [2, 1], [22, 14], extracted_at=NOW)
    other = ledger.acquire([CLINIC + 1], "task")[CLINIC + 1]
    for clinic_id, lpu_id, epoch in ((CLINIC, LPU + 1, 1), (CLINIC + 1, LPU + 1, other)):
        written = ledger.record_intent(
            run_key=None, clinic_id=clinic_id, lpu_id=lpu_id, operation="send", holder="task", epoch=epoch,
            appointment_ids=[1, 4], versions=[1, 1], digests=[31, 34],
        )  # fmt: skip
    ledger.resolve(written.batch_id, done)
    key = ["clinic_id", "appointment_id", "lpu_id"]
    everything = ledger.known([CLINIC, CLINIC + 1]).sort_values(key, ignore_index=True)
    assert len(everything) == 8
    of_clinic = everything["clinic_id"] == CLINIC
    for ids in ([1], [2, 3], [4, 1, 1, 99], []):
        found = ledger.known([CLINIC] * len(ids), ids).sort_values(key, ignore_index=True)
        asked = everything[of_clinic & everything["appointment_id"].isin(ids)].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, asked)


# -- migrations


def test_the_code_wants_the_newest_migration() -> None:
    versions = sorted(path.stem.split("_")[0] for path in (migrations.MIGRATIONS / "versions").glob("0*.py"))
    assert versions[-1] == migrations.HEAD


def test_migrating_again_changes_nothing(ledger_db: str, ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    migrations.migrate(ledger_db)
    ledger.check_schema()
    assert ledger.acquire([CLINIC], "another") == {}


def test_a_database_that_was_not_migrated_is_refused_with_the_command(new_database: object) -> None:
    with Ledger(new_database()) as empty:  # type: ignore[operator]
        with pytest.raises(LedgerOutdatedError, match=r"python -m medflex\.ledger\.migrate"):
            empty.check_schema()
        with pytest.raises(LedgerOutdatedError, match=r"python -m medflex\.ledger\.migrate"):
            empty.run("dag", "run")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (None, "no connection: set AIRFLOW_CONN_MEDFLEX_LEDGER"),
        ("mysql://x", "must be a URI like postgresql://"),
        ("postgresql://nobody:wrong@127.0.0.1:{port}/x", "cannot be reached or refuses"),
    ],
)
def test_the_command_line_says_in_one_sentence_what_is_wrong(uri: str | None, sentence: str) -> None:
    arguments = ["--uri", uri.format(port=free_port())] if uri else []
    done = subprocess.run(
        [sys.executable, "-m", "medflex.ledger.migrate", *arguments],
        cwd=Path(__file__).parents[2] / "plugins", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


# -- records


def test_an_intent_counts_before_its_outcome_is_known(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    batch = intent(ledger, [1, 2], [1, 1], [11, 22])
    assert states(ledger) == {1: ("sending", 1, None), 2: ("sending", 1, None)}
    assert ledger.resolve(batch.batch_id, BatchOutcome("acknowledged", 200))
    assert states(ledger) == {1: ("sent", 1, 11), 2: ("sent", 1, 22)}


def test_every_verdict_has_its_state(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    batch = intent(ledger, [1, 2, 3, 4], [1, 1, 1, 1], [11, 22, 33, 44])
    ledger.resolve(
        batch.batch_id,
        BatchOutcome("acknowledged", 200, rejected={2: ("mobile_phone",)}, outdated=[3], unknown=[4]),
    )
    assert states(ledger) == {
        1: ("sent", 1, 11), 2: ("rejected", 1, None), 3: ("sending", 1, None), 4: ("sending", 1, None),
    }  # fmt: skip


def test_what_was_not_processed_leaves_no_trace_in_the_records(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    ledger.resolve(intent(ledger, [1], [1], [11]).batch_id, BatchOutcome("to_retry", 429))
    assert states(ledger) == {}


def test_a_rejected_change_keeps_what_was_acknowledged_before(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    ledger.resolve(intent(ledger, [1], [1], [11]).batch_id, BatchOutcome("acknowledged", 200))
    ledger.resolve(intent(ledger, [1], [2], [12]).batch_id, BatchOutcome("acknowledged", 200, rejected={1: ()}))
    assert states(ledger) == {1: ("rejected", 2, 11)}


def test_an_older_outcome_never_overwrites_a_newer_one(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    old = intent(ledger, [1], [1], [11])
    new = intent(ledger, [1], [2], [12])
    ledger.resolve(new.batch_id, BatchOutcome("acknowledged", 200))
    ledger.resolve(old.batch_id, BatchOutcome("acknowledged", 200))
    assert states(ledger) == {1: ("sent", 2, 12)}


def test_versions_are_raised_only_by_whoever_has_the_clinic(ledger: Ledger) -> None:
    (epoch,) = ledger.acquire([CLINIC], "task").values()
    ledger.resolve(intent(ledger, [1, 2], [1, 1], [11, 12]).batch_id, BatchOutcome("acknowledged", 200))
    assert not ledger.raise_versions(CLINIC, LPU, {1: 7}, holder="task", epoch=epoch - 1)
    assert not ledger.raise_versions(CLINIC, LPU, {1: 7}, holder="another", epoch=epoch)
    assert states(ledger) == {1: ("sent", 1, 11), 2: ("sent", 1, 12)}
    assert ledger.raise_versions(CLINIC, LPU, {1: 7}, [2], holder="task", epoch=epoch)
    assert states(ledger) == {1: ("sent", 7, 11), 2: ("sent", 1001, 12)}


def test_a_withdrawal_of_an_older_version_than_is_known_leaves_the_revocation_open(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    accepted = BatchOutcome("acknowledged", 200)
    ledger.resolve(intent(ledger, [1, 2], [1, 1], [11, 12]).batch_id, accepted)
    keys = {"clinic_id": CLINIC, "appointment_id": [1, 2], "lpu_id": LPU}
    revocations = empty_revocations().reindex([0, 1]).assign(**keys, version=1, reason="x", by_absence=False)
    ledger.save_revocations(revocations, NOW)
    withdrawal = intent(ledger, [1, 2], [2, 2], None, operation="withdraw", reasons=["x", "x"])
    ledger.resolve(intent(ledger, [1], [3], [13]).batch_id, accepted)
    assert ledger.resolve(withdrawal.batch_id, accepted)
    assert states(ledger)[1] == ("sent", 3, 13)
    assert ledger.open_revocations([CLINIC])["appointment_id"].tolist() == [1]


@pytest.mark.parametrize(
    ("known", "version", "expected"),
    [
        # Which of two equal versions Medflex has taken first, nobody can tell.
        (None, 1, ("sending", 3)), (None, 2, ("sending", 3)), (None, 3, ("sent", 3)),
        ("sent", 2, ("sending", 3)), ("sent", 9, ("sent", 9)),
        ("withdrawing", 2, ("withdrawing", 3)),
    ],
)  # fmt: skip
def test_what_is_withdrawn_under_another_clinics_id_is_in_doubt_where_it_is_being_sent(
    ledger: Ledger, ledger_db: str, known: str | None, version: int, expected: tuple[str, int]
) -> None:
    """A clinic that is set up anew under another id, with its lpu_id."""
    (epoch,) = ledger.acquire([CLINIC + 1], "task").values()
    ledger.acquire([CLINIC], "task")
    accepted = BatchOutcome("acknowledged", 200)
    ledger.resolve(intent(ledger, [1], [1], [11]).batch_id, accepted)
    if known:
        with psycopg.connect(ledger_db) as owner:
            owner.execute(
                "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
                " VALUES (%s, 1, %s, 1, %s, now())",
                [CLINIC + 1, LPU, known],
            )
    sending = ledger.record_intent(
        run_key=None, clinic_id=CLINIC + 1, lpu_id=LPU, operation="send", holder="task", epoch=epoch,
        appointment_ids=[1, 2], versions=[version, 1], digests=[11, 12], patient_ids=[7, 8], partner_ids=[3],
    )  # fmt: skip
    ledger.resolve(intent(ledger, [1], [2], None, operation="withdraw", reasons=["clinic_gone"]).batch_id, accepted)
    ledger.resolve_together([Resolution(sending.batch_id, accepted, is_first=version == 1)])
    found = ledger.known([CLINIC + 1]).set_index("appointment_id")
    assert (found["state"][1], found["version"][1]) == expected
    assert (found["state"][2], found["version"][2]) == ("sent", 1)


def test_a_first_version_that_is_overtaken_keeps_none_beside_it_from_being_written_down(ledger: Ledger) -> None:
    """First versions are written without a look for what is in their way; here there is something, in one of three."""
    ledger.acquire([CLINIC], "task")
    first = [intent(ledger, [id_, id_ + 10], [1, 1], [id_, id_ + 10]) for id_ in (1, 2, 3)]
    accepted = BatchOutcome("acknowledged", 200)
    ledger.resolve(intent(ledger, [2], [2], [22]).batch_id, accepted)
    resolutions = [Resolution(item.batch_id, accepted, is_first=True) for item in first]
    assert ledger.resolve_together(resolutions) == [True, True, True]
    assert states(ledger) == {
        1: ("sent", 1, 1), 2: ("sent", 2, 22), 3: ("sent", 1, 3),
        11: ("sent", 1, 11), 12: ("sent", 1, 12), 13: ("sent", 1, 13),
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the queries that are run for several batches, as they are."""
    names: list[str] = []
    monkeypatch.setattr(ledger_connection, "query", lambda name: names.append(name) or query(name))
    return names


def test_first_versions_are_written_down_the_same_whether_or_not_it_is_known_that_they_are(
    ledger: Ledger, ledger_db: str, asked: list[str]
) -> None:
    """One statement is for them alone, and the other for whatever a batch may be."""
    ledger.acquire([CLINIC], "task")
    content = {"extracted_at": NOW, "patient_ids": [7, 8], "partner_ids": [3, 5]}
    with psycopg.connect(ledger_db, row_factory=dict_row) as owner:

        def written(is_first: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
            owner.execute("TRUNCATE ledger.record")
            owner.commit()
            batch = intent(ledger, [1, 2], [1, 1], [11, 12], **content)
            resolution = Resolution(batch.batch_id, BatchOutcome("acknowledged", 201), NOW, is_first=is_first)
            assert ledger.resolve_together([resolution]) == [True]
            assert ledger.resolve_together([resolution]) == [False]
            assert asked[-2:] == ["ledger/resolve_first" if is_first else "ledger/resolve_batch"] * 2
            apart = ("batch_id", "idempotency_key", "created_at", "resolved_at", "changed_at")
            tables = [
                owner.execute("SELECT * FROM ledger.record ORDER BY appointment_id").fetchall(),
                owner.execute("SELECT * FROM ledger.batch ORDER BY batch_id DESC LIMIT 1").fetchall(),
            ]
            assert {row["batch_id"] for table in tables for row in table} == {batch.batch_id}
            assert tables[0][0]["changed_at"] == tables[1][0]["resolved_at"]
            owner.commit()
            records, batches = (
                [{name: row[name] for name in row if name not in apart} for row in table] for table in tables
            )
            return records, batches

        told = written(is_first=True)
        assert len(told[0]) == 2
        assert told == written(is_first=False)


def test_each_of_several_batches_is_written_down_by_its_own_statement_in_the_order_in_which_all_are_locked(
    ledger: Ledger, asked: list[str]
) -> None:
    ledger.acquire([CLINIC], "task")
    batches = [intent(ledger, [id_, id_ + 10], [1, 1], [id_, id_ + 10]) for id_ in (1, 2, 3, 4)]
    outcomes = [
        BatchOutcome("acknowledged", 200, rejected={13: ["mobile_phone"]} if number == 2 else {}) for number in range(4)
    ]
    asked.clear()
    resolutions = [
        Resolution(batch.batch_id, outcome, is_first=True) for batch, outcome in zip(batches, outcomes, strict=True)
    ]
    assert ledger.resolve_together(resolutions[::-1]) == [True] * 4
    assert asked == ["ledger/resolve_first", "ledger/resolve_batch", "ledger/resolve_first"]
    found = states(ledger)
    assert found.pop(13) == ("rejected", 1, None)
    assert found == {id_: ("sent", 1, id_) for id_ in (1, 2, 3, 4, 11, 12, 14)}


def test_a_withdrawal_is_never_written_down_as_sent(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    batch = intent(ledger, [1], [1], None, operation="withdraw")
    resolution = Resolution(batch.batch_id, BatchOutcome("acknowledged", 200), is_first=True)
    assert ledger.resolve_together([resolution]) == [False]
    assert ledger.live([CLINIC])["state"].tolist() == ["withdrawing"]


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_sent_looks_through_no_table_as_long_as_it_was_small_when_it_was_counted(
    is_first: bool, ledger: Ledger, ledger_db: str
) -> None:
    """The plan of a statement is kept. Made when there were no records, it must not read all there are ever after."""
    ledger.acquire([CLINIC], "task")
    with psycopg.connect(ledger_db, autocommit=True) as owner:
        owner.execute("VACUUM (ANALYZE) ledger.record, ledger.revocation")
        for number in range(1, 21):
            batch = intent(ledger, [number, number + 100], [1, 1], [1, 1])
            resolution = Resolution(batch.batch_id, BatchOutcome("acknowledged", 200), is_first=is_first)
            assert ledger.resolve_together([resolution]) == [True]
        # A backend tells what it has counted at once if asked to, and else within a minute.
        with ledger._statement() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
        counted = owner.execute(
            "SELECT n_tup_ins, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'ledger' AND relname = 'record'"
        ).fetchone()
    assert counted == (40, 0)


def test_what_a_person_released_is_told_from_what_vanished_by_itself_record_by_record_but_not_hold_by_hold(
    ledger: Ledger, ledger_db: str
) -> None:
    """A clinic that has purged its old years has tens of thousands of both, and everybody's refusals wait for this."""
    ledger.acquire([CLINIC], "task")
    released, by_itself = list(range(1, 2001)), list(range(2001, 2008))
    for ids in (released, by_itself):
        more = {"operation": "withdraw", "reasons": ["appointment_gone"] * len(ids), "revoked_at": [NOW] * len(ids)}
        batch = intent(ledger, ids, [1] * len(ids), None, **more)
        ledger.resolve(batch.batch_id, BatchOutcome("acknowledged", 200))
    with psycopg.connect(ledger_db, autocommit=True) as owner:
        owner.execute(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live, state, decided_at)"
            " VALUES (%s, %s, %s, '{}', '{}', 0, 'released', %s), (%s, %s, %s, '{}', '{}', 0, 'kept', %s)",
            [CLINIC, NOW, released, NOW, CLINIC, NOW, by_itself, NOW],
        )
        asked = {
            "clinic_ids": [CLINIC],
            "since": NOW - timedelta(hours=24),
            "reasons": ["appointment_gone"],
            "answered_since": NOW - timedelta(days=7),
            "besides_clinic_ids": [],
            "besides_appointment_ids": [],
        }
        lines = owner.execute("EXPLAIN " + query("ledger/withdrawn_by_absence"), asked).fetchall()  # type: ignore[operator]
    since = {"since": NOW - timedelta(hours=24), "answered_since": NOW - timedelta(days=7)}
    assert ledger.withdrawn_by_absence([CLINIC], **since) == {CLINIC: len(by_itself)}
    besides = pd.DataFrame({"clinic_id": CLINIC, "appointment_id": by_itself[:3]})
    assert ledger.withdrawn_by_absence([CLINIC], **since, besides=besides) == {CLINIC: len(by_itself) - 3}
    # An answer that holds no more, one behind the withdrawal, and one from before the record was sent again.
    everything = {CLINIC: len(released) + len(by_itself)}
    assert ledger.withdrawn_by_absence([CLINIC], **{**since, "answered_since": NOW + timedelta(1)}) == everything
    with psycopg.connect(ledger_db, autocommit=True) as owner:
        owner.execute("UPDATE ledger.hold SET decided_at = %s", [NOW + timedelta(minutes=1)])
        assert ledger.withdrawn_by_absence([CLINIC], **since) == everything
        owner.execute("UPDATE ledger.hold SET decided_at = %s", [NOW - timedelta(days=2)])
        assert ledger.withdrawn_by_absence([CLINIC], **since) == {CLINIC: len(by_itself)}
        owner.execute("UPDATE ledger.record SET extracted_at = %s", [NOW - timedelta(days=1)])
        assert ledger.withdrawn_by_absence([CLINIC], **since) == everything
    plan = "\n".join(line for (line,) in lines)
    assert "Anti Join" in plan, plan
    assert "SubPlan" not in plan, plan


def test_an_open_intent_hides_what_was_acknowledged_before(ledger: Ledger) -> None:
    """The change may have arrived: were the old digest trusted, changing it back would look like nothing to do."""
    ledger.acquire([CLINIC], "task")
    ledger.resolve(intent(ledger, [1], [1], [11]).batch_id, BatchOutcome("acknowledged", 200))
    intent(ledger, [1], [2], [12])
    assert states(ledger) == {1: ("sending", 2, 11)}


def test_folding_makes_open_intents_lasting_and_their_late_outcome_is_refused(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    first = intent(ledger, [1, 2], [1, 1], [11, 22])
    second = intent(ledger, [2, 3], [2, 1], [23, 33])
    assert ledger.fold_open_batches([CLINIC]) == 2
    assert states(ledger) == {1: ("sending", 1, None), 2: ("sending", 2, None), 3: ("sending", 1, None)}
    assert not ledger.resolve(first.batch_id, BatchOutcome("acknowledged", 200))
    assert not ledger.resolve(second.batch_id, BatchOutcome("acknowledged", 200))
    assert states(ledger)[1] == ("sending", 1, None)
    assert ledger.fold_open_batches([CLINIC]) == 0


def test_a_withdrawal_and_a_new_grant_are_new_versions(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    keys = set()
    for version, operation in ((1, "send"), (2, "withdraw"), (3, "send")):
        batch = intent(ledger, [1], [version], [11] if operation == "send" else None, operation=operation)
        keys.add(batch.idempotency_key)
        ledger.resolve(batch.batch_id, BatchOutcome("acknowledged", 200))
        expected = {"send": ("sent", version, 11), "withdraw": ("withdrawn", version, None)}[operation]
        assert states(ledger) == {1: expected}
    assert len(keys) == 3
    assert ledger.clinics_with_records() == [CLINIC]


def test_clinics_with_records_are_those_of_which_anything_may_be_shown(ledger: Ledger, ledger_db: str) -> None:
    assert ledger.clinics_with_records() == []
    states = {
        3: ["withdrawn", "withdrawn"],
        4: ["withdrawn", "sent"],
        5: ["aged_out"],
        9: ["withdrawn"],
        11: ["sending"],
    }
    with psycopg.connect(ledger_db) as connection:
        for clinic_id, items in states.items():
            for number, state in enumerate(items):
                connection.execute(
                    "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
                    " VALUES (%s, %s, 1, 1, %s, now())",
                    [clinic_id, number, state],
                )
        # Asked about by a person, and sent without an outcome.
        connection.execute(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)"
            " VALUES (9, now(), '{1}', '{1}', '{appointment_gone}', 10)"
        )
    assert sorted(ledger.clinics_with_records()) == [4, 5, 9, 11]
    ledger.acquire([CLINIC], "task")
    intent(ledger, [1], [1], [11])
    assert sorted(ledger.clinics_with_records()) == sorted({4, 5, 9, 11, CLINIC})


def test_records_are_counted_a_bounded_number_of_clinics_at_a_time(
    ledger: Ledger, ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all clinics, in one statement, take longer than a statement may."""
    with psycopg.connect(ledger_db) as owner:
        owner.execute(
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
            " SELECT clinic_id, clinic_id, 1, 1, 'sent', now() FROM generate_series(1::bigint, 450) AS clinic_id"
        )
    asked: list[int] = []
    count = ledger._counts

    def watched(name: str, parameters: dict[str, Any]) -> dict[int, int]:
        asked.append(len(parameters["clinic_ids"]))
        return count(name, parameters)

    monkeypatch.setattr(ledger, "_counts", watched)
    assert ledger.live_counts(range(1, 451)) == dict.fromkeys(range(1, 451), 1)
    assert asked == [COUNTED_CLINICS, COUNTED_CLINICS, 450 - 2 * COUNTED_CLINICS]


def test_records_are_looked_up_by_a_bounded_number_of_ids_at_a_time(
    ledger: Ledger, ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By very many ids in one statement Postgres would rather read all records."""
    with psycopg.connect(ledger_db) as owner:
        owner.execute(
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, patient_id, changed_at)"
            " SELECT 1, id, 1, 1, 'sent', 100 + id, now() FROM generate_series(1::bigint, 12) AS id"
        )
    monkeypatch.setattr("medflex.ledger.withdrawals.TOUCHED_IDS", 2)
    assert sorted(ledger.touched([1, 2, 3], [])["appointment_id"]) == [1, 2, 3]
    # More of the one than of the other; the fifth and the sixth are found twice.
    found = ledger.touched([1, 2, 3, 4, 5], [105, 106, 999])
    assert sorted(found["appointment_id"]) == [1, 2, 3, 4, 5, 6]
    assert sorted(ledger.touched([], [101, 103, 111])["appointment_id"]) == [1, 3, 11]
    assert len(ledger.touched([], [])) == 0


def test_clinics_with_records_are_found_by_their_index_whatever_the_statistics_say(ledger_db: str) -> None:
    """Statistics from when there were few clinics made each one a look through all records: 15 s for 1.4 million."""
    with psycopg.connect(ledger_db) as owner:
        fill = (
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
            " SELECT clinic_id, clinic_id * 1000 + number, 1, 1, 'sent', now()"
            " FROM generate_series(%s::bigint, %s) AS clinic_id CROSS JOIN generate_series(1, 1000) AS number"
        )
        owner.execute(fill, [1, 2])
        # In one transaction, so that the server's own ANALYZE sees nothing of what comes after.
        owner.execute("ANALYZE ledger.record")
        owner.execute(fill, [3, 40])
        plan = plan_of(owner, "ledger/clinics_with_records", {})
        owner.rollback()
    # Of each clinic one to find it, and one to see that it is not withdrawn.
    assert rows_read(plan)["record"] <= 2 * 40, plan


def test_of_clinics_that_were_switched_off_not_all_that_was_withdrawn_is_read(ledger: Ledger, ledger_db: str) -> None:
    """A thousand of them, with fifteen thousand records each, took as long as a statement may."""
    with psycopg.connect(ledger_db) as owner:
        owner.execute(
            "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, changed_at)"
            " SELECT clinic_id, clinic_id * 1000 + number, 1, 1,"
            # The last one of each clinic by whatever order, and of some clinics none.
            " CASE WHEN number = 1000 AND clinic_id % 2 = 0 THEN state ELSE 'withdrawn' END, now()"
            " FROM generate_series(1::bigint, 10) AS clinic_id CROSS JOIN generate_series(1, 1000) AS number"
            " CROSS JOIN LATERAL"
            " (SELECT ('{aged_out,rejected,sending,sent,withdrawing}'::text[])[clinic_id / 2] AS state) AS one"
        )
        owner.execute("ANALYZE ledger.record")
        read = rows_read(plan_of(owner, "ledger/clinics_with_records", {}))
    assert read["record"] <= 2 * 10, read
    assert ledger.clinics_with_records() == [2, 4, 6, 8, 10]


def test_a_batch_is_resolved_by_its_number_however_many_are_open_or_were_lately(ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as owner:
        owner.execute(
            "INSERT INTO ledger.batch (clinic_id, lpu_id, operation, epoch, appointment_ids, versions, looked_at,"
            " created_at, outcome) SELECT 1, 1, 'send', 1, '{}', '{}', now(), now(), 'acknowledged'"
            " FROM generate_series(1, 20000)"
        )
        # From when there were none without outcome: their index seems to be the shortest way.
        owner.execute("ANALYZE ledger.batch")
        parameters = {
            "batch_id": 1, "outcome": "acknowledged", "http_status": 200, "rejected_ids": [], "rejected_fields": None,
            "outdated_ids": [], "unknown_ids": [], "looked_at": None, "now": None,
        }  # fmt: skip
        used = []
        for name in ("resolve_batch", "resolve_first"):
            owner.execute("UPDATE ledger.batch SET outcome = NULL WHERE batch_id = 1")
            used.append(indexes(_executed(plan_of(owner, f"ledger/{name}", parameters))))
    assert all("batch_pkey" in names and "batch_open" not in names for names in used), used


def _executed(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a plan that was run what was."""
    return {**node, "Plans": [_executed(child) for child in node.get("Plans", []) if child["Actual Loops"]]}


def test_of_a_runs_requests_only_those_are_unpacked_that_a_page_shows(ledger_db: str) -> None:
    """A first run may have made hundreds of thousands."""
    with psycopg.connect(ledger_db) as owner:
        (run_key,) = owner.execute(
            "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at)"
            " VALUES ('medflex_transfer', 'one', 'manual', 'transfer', now(), now()) RETURNING run_key"
        ).fetchone() or (None,)
        owner.execute(
            "INSERT INTO ledger.batch (run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions,"
            " looked_at, created_at) SELECT %s, 1, 1, 'send', 1, array_fill(1::bigint, ARRAY[500]), '{}', now(), now()"
            " FROM generate_series(1, 1000)",
            [run_key],
        )
        parameters = {"run_key": run_key, "clinic_ids": None, "size": 10, "skip": 0}
        plan = plan_of(owner, "ledger/pages/batches", parameters)
    assert plan["Actual Rows"] == 10
    assert blocks(plan) < 500, plan


# -- leases


def test_one_writer_per_clinic_until_it_lets_go(ledger: Ledger) -> None:
    assert ledger.acquire([1, 2], "a") == {1: 1, 2: 1}
    assert ledger.acquire([1, 2, 3], "b") == {3: 1}
    ledger.release({1: 1}, "a")
    assert ledger.acquire([1, 2], "b") == {1: 2}


def test_a_lease_runs_out_unless_it_is_renewed(ledger: Ledger, time: Time) -> None:
    ledger.acquire([1], "a", seconds=60)
    time.now += timedelta(seconds=50)
    ledger.renew({1: 1}, "a", seconds=60)
    time.now += timedelta(seconds=50)
    assert ledger.acquire([1], "b") == {}
    time.now += timedelta(seconds=11)
    assert ledger.acquire([1], "b") == {1: 2}


def test_the_same_holder_takes_over_and_fences_itself(ledger: Ledger) -> None:
    ledger.acquire([CLINIC], "task")
    assert ledger.acquire([CLINIC], "task") == {CLINIC: 2}
    with pytest.raises(LeaseLostError):
        intent(ledger, [1], [1], [11], epoch=1)
    intent(ledger, [1], [1], [11], epoch=2)


def test_letting_go_late_does_not_take_the_lease_from_a_successor(ledger: Ledger) -> None:
    ledger.acquire([1], "task")
    ledger.acquire([1], "task")
    ledger.release({1: 1}, "task")
    assert ledger.acquire([1], "other") == {}


# -- the shared rate


def test_places_in_the_rate_follow_each_other(ledger: Ledger, time: Time) -> None:
    assert [round(ledger.reserve_slot("m", 0.5), 3) for _ in range(4)] == [0, 0.5, 1.0, 1.5]
    time.now += timedelta(seconds=10)
    assert ledger.reserve_slot("m", 0.5) == 0
    ledger.pause_rate("m", 30)
    assert ledger.reserve_slot("m", 0.5) == 30
    assert ledger.reserve_slot("another", 0.5) == 0


# -- runs and numbers


def start(ledger: Ledger, run_id: str = "r1", clinics: tuple[int, ...] = (CLINIC, 18), is_of_today: bool = True) -> Run:
    return ledger.start_run(
        dag_id="medflex_transfer", run_id=run_id, run_type="manual", mode="transfer", anchor=NOW, clinic_ids=None,
        started_at=NOW, is_of_today=is_of_today, shards=[Shard("open-01", clinics, AccessState.OPEN)],
        clinics=[
            {"clinic_id": key, "lpu_id": key, "access_state": "open", "closed_reason": None, "opens_at": NOW}
            for key in clinics
        ],
    )  # fmt: skip


def test_numbers_are_set_not_added_and_others_stay(ledger: Ledger) -> None:
    run = start(ledger)
    for _ in range(2):
        ledger.save_numbers(run.run_key, pd.DataFrame({"clinic_id": [CLINIC], "extracted": [10], "eligible": [7]}))
    ledger.save_numbers(run.run_key, pd.DataFrame({"clinic_id": [CLINIC], "planned": [7]}))
    row = ledger.run_clinics(run.run_key).set_index("clinic_id").loc[CLINIC]
    assert (row["extracted"], row["eligible"], row["planned"]) == (10, 7, 7)
    assert pd.isna(row["accepted"])


def test_the_funnel_of_one_shard_is_that_of_its_clinics(ledger: Ledger) -> None:
    run = ledger.start_run(
        dag_id="medflex_transfer", run_id="r1", run_type="manual", mode="transfer", anchor=NOW, clinic_ids=None,
        started_at=NOW, shards=[Shard("a", (CLINIC, 18), AccessState.OPEN), Shard("b", (19,), AccessState.WAITING)],
        clinics=[
            {"clinic_id": key, "lpu_id": key, "access_state": "open", "closed_reason": None, "opens_at": NOW}
            for key in (20, 19, 18, CLINIC)
        ],
    )  # fmt: skip
    found = {shard: ledger.run_clinics(run.run_key, shard)["clinic_id"].tolist() for shard in (0, 1, 2, None)}
    assert found == {0: sorted([CLINIC, 18]), 1: [19], 2: [], None: sorted([CLINIC, 18, 19, 20])}


def test_a_cleared_run_starts_anew_under_its_key(ledger: Ledger) -> None:
    first = start(ledger)
    ledger.save_numbers(first.run_key, pd.DataFrame({"clinic_id": [CLINIC], "extracted": [10]}))
    ledger.save_decisions(first.run_key, "withhold", [CLINIC], [Decision(CLINIC, "withheld", ("doctor_banned",), [1])])
    ledger.settle_run(first.run_key, ["something"])
    # It is cleared on a later day.
    again = start(ledger, is_of_today=False)
    assert again.run_key == first.run_key
    with ledger._transaction() as cursor:
        assert not cursor.execute("SELECT * FROM ledger.daily_run").fetchall()
    assert ledger.run_clinics(again.run_key)["extracted"].isna().all()
    assert ledger.reasons(again.run_key).empty


def test_a_run_that_was_killed_is_closed_by_the_next_one_of_its_dag(ledger: Ledger) -> None:
    ended, killed = start(ledger, "ended"), start(ledger, "killed")
    ledger.settle_run(ended.run_key, [])
    assert ledger.settle_interrupted("another_dag") == 0
    assert ledger.settle_interrupted("medflex_transfer") == 1
    assert ledger.settle_interrupted("medflex_transfer") == 0
    with ledger._transaction() as cursor:
        cursor.execute("SELECT run_key, outcome, cardinality(problems) AS problems FROM ledger.run ORDER BY run_key")
        assert [tuple(row.values()) for row in cursor.fetchall()] == [
            (ended.run_key, "succeeded", 0),
            (killed.run_key, "failed", 1),
        ]


def test_decisions_of_a_second_attempt_replace_the_first(ledger: Ledger) -> None:
    run = start(ledger)
    for ids in ([1, 2], [2, 3, 4]):
        ledger.save_decisions(
            run.run_key, "withhold", [CLINIC], [Decision(CLINIC, "withheld", ("doctor_banned", "no_partner"), ids)]
        )
    assert ledger.reasons(run.run_key)["records"].tolist() == [3]


@pytest.mark.parametrize(
    "of_another_day", ["is_of_today = false", "is_of_today = NULL, anchor = now() - interval '9 days'"]
)
def test_the_history_holds_the_last_runs_of_the_same_day_only(ledger: Ledger, of_another_day: str) -> None:
    """Which those are, runs of an older version do not say."""
    for number in range(3):
        run = start(ledger, f"r{number}")
        ledger.save_numbers(run.run_key, pd.DataFrame({"clinic_id": [CLINIC], "extracted": [100 + number]}))
        ledger.set_stage(run.run_key, 0, "loaded")
    with ledger._transaction() as cursor:
        # The clock of the database decides what is recent.
        cursor.execute("UPDATE ledger.run SET started_at = now(), anchor = now() - interval '1 hour'")
        cursor.execute(f"UPDATE ledger.run SET {of_another_day} WHERE run_id = 'r1'".encode())
    assert ledger.row_history([CLINIC])["extracted"].tolist() == [102, 100]
    assert ledger.row_history([CLINIC], runs=1)["extracted"].tolist() == [102]
    # What a failed validation saw is no measure.
    ledger.set_stage(run.run_key, 0, "withheld")
    assert ledger.row_history([CLINIC])["extracted"].tolist() == [100]


def test_the_history_of_many_clinics_takes_a_few_looks_for_each(ledger: Ledger) -> None:
    """Joined, it took two minutes for 20,000 clinics with a month of runs, and the daily run failed at its limit."""
    clinics, shards, runs = 1_000, 10, 20
    with ledger._transaction() as cursor:
        cursor.execute(
            "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at)"
            " SELECT 'medflex_transfer', 'r' || number, 'scheduled', 'transfer', now(), now()"
            " FROM generate_series(1, %s) AS number",
            [runs],
        )
        cursor.execute(
            "INSERT INTO ledger.run_shard (run_key, shard, label, kind, clinic_ids, stage)"
            " SELECT run_key, shard, 'open-' || shard, 'open', '{}', 'loaded'"
            " FROM ledger.run CROSS JOIN generate_series(0, %s - 1) AS shard",
            [shards],
        )
        cursor.execute(
            "INSERT INTO ledger.run_clinic (run_key, clinic_id, shard, access_state, extracted)"
            " SELECT run_key, clinic_id, clinic_id %% %s, 'open', run_key"
            " FROM ledger.run CROSS JOIN generate_series(1, %s) AS clinic_id",
            [shards, clinics],
        )
        cursor.execute("ANALYZE ledger.run, ledger.run_shard, ledger.run_clinic")
        asked = {"clinic_ids": bigints(list(range(1, clinics + 1))), "before_run_key": None, "runs": 2}
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query("ledger/row_history"), asked)
        (plan,) = cursor.fetchone()["QUERY PLAN"]  # type: ignore[index]
        last = cursor.execute("SELECT max(run_key) AS last FROM ledger.run").fetchone()["last"]  # type: ignore[index]
    assert plan["Plan"]["Actual Rows"] == 2 * clinics
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 30 * clinics
    newest = ledger.row_history([7, 8], runs=2)
    assert newest["clinic_id"].tolist() == [7, 7, 8, 8]
    # What a run has extracted is its number here.
    assert newest["extracted"].tolist() == [last, last - 1] * 2


def test_a_clinic_that_is_closed_since_has_neither_window_nor_number(ledger: Ledger) -> None:
    run = start(ledger)
    asked = {"clinic_id": [CLINIC], "access_state": ["open"], "extracted": [10], "window_from": [NOW]}
    ledger.save_numbers(run.run_key, pd.DataFrame(asked))
    ledger.save_numbers(run.run_key, pd.DataFrame({"clinic_id": [CLINIC], "access_state": ["closed"]}))
    row = ledger.run_clinics(run.run_key).set_index("clinic_id").loc[CLINIC]
    assert pd.isna(row["extracted"])
    assert pd.isna(row["window_from"])


def test_a_run_that_was_never_planned_is_told(ledger: Ledger, ledger_db: str) -> None:
    with pytest.raises(RunIncompleteError, match="plan_shards has to succeed first"):
        ledger.run("medflex_transfer", "never")
    with pytest.raises(RunIncompleteError, match="knows no run yet"):
        funnel_text(ledger_db)


def test_the_funnel_as_text(ledger: Ledger, ledger_db: str) -> None:
    run = start(ledger)
    numbers = {
        "clinic_id": [CLINIC],
        "extracted": [10],
        "eligible": [6],
        "withheld": [3],
        "quarantined": [1],
        "new": [6],
    }
    more = {"changed": [0], "again": [0], "unchanged": [0], "planned": [6], "accepted": [5], "dropped": [1]}
    ledger.save_numbers(run.run_key, pd.DataFrame(numbers | more))
    withheld = Decision(CLINIC, "withheld", ("refused_marketing", "doctor_banned"), [1, 2, 3])
    quarantined = Decision(CLINIC, "quarantined", ("phone_missing",), [4])
    ledger.save_decisions(run.run_key, "withhold", [CLINIC], [withheld, quarantined])
    ledger.save_decisions(run.run_key, "last_look", [CLINIC], [Decision(CLINIC, "dropped", ("appointment_gone",), [5])])
    text = funnel_text(ledger_db)
    for line in ("refused_marketing: 3", "doctor_banned: 3", "phone_missing: 1", "appointment_gone: 1"):
        assert line in text
    lines = {line.split()[-3 if "█" in line else -2]: line for line in text.splitlines() if "%" in line}
    assert lines["10"].startswith("extracted")
    assert lines["5"].startswith("accepted")
    assert text.index("refused_marketing") < text.index("doctor_banned")


# -- what clinics permit


def test_what_is_sent_under_adds_to_what_was_looked_at(ledger: Ledger, ledger_db: str) -> None:
    def widened(lpu_id: int, *partner_ids: int) -> tuple[bool, int | None, list[int], int]:
        """Return what is seen of the clinic then: open, lpu_id, partners, how often it was written."""
        permits = {"lpu_id": lpu_id, "is_open": True, "partner_ids": list(partner_ids)}
        ledger.widen_clinics_seen({CLINIC: permits})
        seen = ledger.clinics_seen()[CLINIC]
        # It need not be looked at whole now.
        assert seen["changed_at"].year == 1970
        return seen["is_open"], seen["lpu_id"], seen["partner_ids"], seen["writes"]

    assert widened(7, 2, 1) == (True, 7, [2, 1], 1)
    # No news, and counted none the less.
    assert widened(7, 1, 2) == (True, 7, [2, 1], 2)
    assert widened(7, 1) == (True, 7, [2, 1], 3)
    assert widened(7, 3, 1) == (True, 7, [2, 1, 3, 1], 4)
    with psycopg.connect(ledger_db) as connection:
        connection.execute("UPDATE ledger.clinic_seen SET is_open = false, partner_ids = '{5}'")
    assert widened(7, 5) == (True, 7, [5], 5)
    # Which of both the next look finds, it differs.
    assert widened(8, 5) == (True, None, [5], 6)
    assert widened(7, 5) == (True, None, [5], 7)


def test_a_look_writes_nothing_over_what_was_written_since_it_began(ledger: Ledger) -> None:
    def saved(clinic_id: int, minutes: int, writes: int, *partner_ids: int) -> tuple[list[int], int, int]:
        """Return what is seen of the clinic when a look has saved these: partners, writes, minutes of the change."""
        at = NOW + timedelta(minutes=minutes)
        permits = {
            "lpu_id": 7, "is_open": True, "partner_ids": list(partner_ids), "changed_at": at.isoformat(),
            "writes": writes,
        }  # fmt: skip
        ledger.save_revocations(empty_revocations(), at, clinics={clinic_id: permits})
        seen = ledger.clinics_seen()[clinic_id]
        return seen["partner_ids"], seen["writes"], int((seen["changed_at"] - NOW) / timedelta(minutes=1))

    assert saved(1, 0, 0, 1, 2) == ([1, 2], 1, 0)
    ledger.widen_clinics_seen({key: {"lpu_id": 7, "is_open": True, "partner_ids": [1]} for key in (1, 2)})
    assert saved(1, 1, 1, 1) == ([1, 2], 2, 0)
    assert saved(1, 2, 2, 1) == ([1], 3, 2)
    # Nor over what another look has; what is no news is not written.
    assert saved(1, 3, 2) == ([1], 3, 2)
    assert saved(1, 4, 3, 1) == ([1], 3, 2)
    # One that the look had not found there at all.
    assert saved(2, 5, 0)[:2] == ([1], 1)
    assert saved(2, 6, 1) == ([], 2, 6)


# -- errors


def test_a_server_that_is_away_and_a_wrong_password_are_told_apart(ledger_db: str) -> None:
    with pytest.raises(LedgerUnavailableError), Ledger(f"postgresql://x:y@127.0.0.1:{free_port()}/x") as away:
        away.check_schema()
    user_and_password, _, rest = ledger_db.removeprefix("postgresql://").partition("@")
    wrong = f"postgresql://{user_and_password.split(':')[0]}:wrong@{rest}"
    with pytest.raises(LedgerRefusedError), Ledger(wrong) as refused:
        refused.check_schema()


def test_the_ledger_has_no_column_for_names_or_phones(ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as connection:
        rows = connection.execute("SELECT column_name FROM information_schema.columns WHERE table_schema = 'ledger'")
        columns = {row[0] for row in rows}
    assert not columns & {"first_name", "second_name", "patronymic", "last_name", "phone", "mobile_phone", "birth_date"}
