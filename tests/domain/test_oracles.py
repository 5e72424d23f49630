"""Three ways to say who is eligible must agree: the pandas rules, one SQL, and a plain loop."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest

from medflex.domain.access import judge_access
from medflex.domain.eligibility import judge
from medflex.domain.payload import build_payload, to_records
from medflex.domain.reasons import REASONS
from medflex.domain.window import clinic_windows
from medflex.sql import query
from tests.domain.frames import clinics_frame, rows_frame
from tests.domain.oracles import loop
from tests.domain.oracles.history import CLOCKS, READABLE_PHONES, History, Moment, load, make_history, moment_of

ELIGIBLE_SQL = (Path(__file__).parent / "oracles" / "eligible.sql").read_text(encoding="utf-8")
Key = tuple[int, int]


def test_the_three_oracles_agree_on_2000_histories(medlock_db: str) -> None:
    seen = _check(medlock_db, range(2_000))
    # The worlds are no use if they never reach a rule: each reason, both channels and enough eligible records.
    assert seen["eligible"] > 1_000
    assert seen["direct"] > 300
    assert seen["online"] > 300
    assert {reason for reason in REASONS if seen[reason] < 20} == set()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_three_oracles_agree_on_100000_histories(medlock_db: str) -> None:
    for first in range(10_000, 110_000, 2_000):
        with psycopg.connect(medlock_db) as connection:
            connection.execute(
                "TRUNCATE medlock.clinic, medlock.staff, medlock.medflex_access, medlock.partner,"
                " medlock.clinic_partner, medlock.doctor, medlock.patient, medlock.appointment CASCADE"
            )
        _check(medlock_db, range(first, first + 2_000))


def test_expected_records_are_the_loops_records_by_lpu(medlock_db: str) -> None:
    histories = [make_history(seed) for seed in range(0, 50 * CLOCKS, CLOCKS)]
    moment = moment_of(0)
    with psycopg.connect(medlock_db) as connection:
        load(connection, histories)
        by_lpu = loop.expected_records(connection, moment.now, moment.anchor)
        judged = loop.judge_appointments(connection, moment.now, [moment.anchor])
    assert len(by_lpu) == sum(one.record is not None for one in judged.values()) > 20
    assert all(judged[lpu_id - 5_000_000, id_].record == record for (lpu_id, id_), record in by_lpu.items())


def test_a_history_is_the_same_each_time() -> None:
    assert make_history(7) == make_history(7)
    assert make_history(7).tables != make_history(8).tables


def _check(medlock_db: str, seeds: Iterable[int]) -> Counter[str]:
    histories = [make_history(seed) for seed in seeds]
    seen: Counter[str] = Counter()
    with psycopg.connect(medlock_db) as connection:
        load(connection, histories)
        connection.execute("ANALYZE")
        for clock in range(CLOCKS):
            seen += _compare(connection, moment_of(clock), [h for h in histories if h.seed % CLOCKS == clock])
    return seen


def _compare(connection: psycopg.Connection[Any], moment: Moment, histories: list[History]) -> Counter[str]:
    clinic_ids = [clinic_id for history in histories for clinic_id in history.clinic_ids]
    by_loop = loop.judge_appointments(connection, moment.now, [moment.anchor, moment.now], clinic_ids)
    by_sql = _eligible_by_sql(connection, moment, clinic_ids)
    reasons, records = _by_product(connection, moment, clinic_ids)

    # Clinic ids are ten times the seed and a little: they say which history to look at.
    assert _difference(reasons, {key: judged.reasons for key, judged in by_loop.items()}) == {}
    assert _difference(records, {key: judged.record for key, judged in by_loop.items() if judged.record}) == {}
    assert sorted(by_sql ^ set(records)) == []

    seen: Counter[str] = Counter(reason for held in reasons.values() for reason in held)
    seen.update(record["entry"] for record in records.values())
    seen["eligible"] = len(records)
    return seen


def _difference(product: dict[Key, Any], oracle: dict[Key, Any]) -> dict[Key, Any]:
    return {
        key: (product.get(key, "absent"), oracle.get(key, "absent"))
        for key in sorted(product.keys() | oracle.keys())
        if product.get(key, "absent") != oracle.get(key, "absent")
    }


def _eligible_by_sql(connection: psycopg.Connection[Any], moment: Moment, clinic_ids: list[int]) -> set[Key]:
    parameters = {
        "now": moment.now,
        "anchor": moment.anchor,
        "clinic_ids": clinic_ids,
        "readable_phones": list(READABLE_PHONES),
    }
    return set(connection.execute(ELIGIBLE_SQL, parameters).fetchall())


def _by_product(
    connection: psycopg.Connection[Any], moment: Moment, clinic_ids: list[int]
) -> tuple[dict[Key, frozenset[str]], dict[Key, dict[str, Any]]]:
    """Reasons and records by the product's own queries and rules."""
    cursor = connection.execute(query("medlock/clinics"), {"clinic_ids": clinic_ids})
    clinics = judge_access(clinics_frame(_frame(cursor)), moment.now)
    windows = clinic_windows(clinics, anchor=moment.anchor, now=moment.now, cut_to_today=True)
    told = [
        {"clinic_id": row.clinic_id, "starts_from": str(row.starts_from), "starts_before": str(row.starts_before)}
        for row in windows.itertuples()
    ]
    connection.execute("SELECT set_config('medflex.windows', %s, FALSE)", [json.dumps(told)])
    rows = rows_frame(_frame(connection.execute(query("medlock/appointments"))))
    verdict = judge(rows, clinics)
    keys = list(zip(rows["clinic_id"].tolist(), rows["appointment_id"].tolist(), strict=True))
    held = {key: frozenset() for key in keys}
    for reason in verdict.reasons.columns:
        for position in verdict.reasons[reason].to_numpy().nonzero()[0]:
            held[keys[position]] |= {reason}

    payload = build_payload(rows[verdict.eligible], clinics, b"a key for tests, 32 bytes long..")
    records = {}
    for clinic_id, record in zip(payload["clinic_id"].tolist(), to_records(payload, range(len(payload))), strict=True):
        del record["version"]
        records[clinic_id, record["id"]] = record
    return held, records


def _frame(cursor: psycopg.Cursor[Any]) -> pd.DataFrame:
    assert cursor.description is not None
    rows = cursor.fetchall()
    columns = [column.name for column in cursor.description]
    return pd.DataFrame({name: pd.Series([row[i] for row in rows], dtype=object) for i, name in enumerate(columns)})
