"""A ledger as it is after months: 20,000 clinics and 90 days of runs, made in SQL within minutes; and their Medlock.

For timing tests and manual looks: ``python -m bench.crowd <uri>`` fills a migrated, empty ledger. Numbers add up as
real ones do (conservation); ids are made up. The rows of a day stand at 00:00 UTC of that day plus some hours. A run
has 400 shards, where the product makes 120 at most (``medflex.domain.packing``): more to read than there will be.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.types.json import Jsonb

from medflex.ledger.sums import keep_sums
from medflex.quality.results import ExpectationResult, SuiteResult
from medflex.quality.suites import SUITES

OPEN_SHARDS, WAITING_SHARDS, CLOSED_SHARDS = 380, 10, 10
SHARDS = OPEN_SHARDS + WAITING_SHARDS + CLOSED_SHARDS
QUICK_RUNS_A_DAY = 96
_TABLES = ("run_shard", "run_clinic", "run_decision", "run_validation", "batch", "partner_action", "record")

_RUNS = """
INSERT INTO ledger.run (
    dag_id, run_id, run_type, mode, anchor, started_at, settled_at, outcome, problems, report
)
SELECT
    'medflex_transfer',
    to_char(moment AT TIME ZONE 'UTC', '"scheduled__"YYYY-MM-DD"T"HH24:MI:SS+00:00'),
    'scheduled', 'transfer', moment, moment + interval '5 seconds', moment + interval '71 minutes',
    CASE WHEN number % 13 = 5 THEN 'failed' ELSE 'succeeded' END,
    CASE WHEN number % 13 = 5 THEN ARRAY['Shard open-007: Medflex does not answer: it is tried again.'] ELSE '{}' END,
    'file:///data-docs/index.html'
FROM generate_series(0, :days: - 1) AS number
CROSS JOIN LATERAL (
    SELECT date_trunc('day', now()) - (:days: - 1 - number) * interval '1 day' - interval '3 hours' AS moment
) AS at
ORDER BY number
"""
_QUICK_RUNS = """
INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at, settled_at, outcome)
SELECT
    'medflex_withdraw', 'scheduled__quick_' || number, 'scheduled', 'withdraw', moment, moment,
    moment + interval '9 seconds', 'succeeded'
FROM generate_series(0, :days: * :quick: - 1) AS number
CROSS JOIN LATERAL (
    SELECT now() - (:days: * :quick: - number) * (interval '1 day' / :quick:) AS moment
) AS at
ORDER BY number
"""
_SHARDS = """
INSERT INTO ledger.run_shard (
    run_key, shard, label, kind, clinic_ids, stage, skipped_because, problem, extracted_at, withdraw_stage
)
SELECT
    run.run_key, shard.shard, shard.kind || '-' || lpad(shard.shard::text, 3, '0'), shard.kind, shard.clinic_ids,
    CASE
        WHEN shard.kind <> 'open' THEN 'skipped'
        WHEN run.outcome = 'failed' AND shard.shard = 7 THEN 'compared'
        ELSE 'loaded'
    END,
    CASE WHEN shard.kind <> 'open' THEN 'The clinics of this shard are not open.' END,
    CASE WHEN run.outcome = 'failed' AND shard.shard = 7 THEN 'Medflex does not answer: it is tried again.' END,
    run.started_at, 'withdrawn'
FROM ledger.run AS run
CROSS JOIN (
    SELECT clinic.shard, clinic.kind, array_agg(clinic.clinic_id ORDER BY clinic.clinic_id) AS clinic_ids
    FROM pg_temp.clinic AS clinic
    GROUP BY clinic.shard, clinic.kind
) AS shard
WHERE run.dag_id = 'medflex_transfer'
"""
_CLINIC = """
CREATE TEMP TABLE clinic AS
SELECT
    clinic_id, kind,
    CASE kind
        WHEN 'open' THEN clinic_id % :open:
        WHEN 'waiting' THEN :open: + clinic_id % :waiting:
        ELSE :open: + :waiting: + clinic_id % :closed:
    END AS shard,
    40 + (clinic_id * 7919) % 520 AS size
FROM generate_series(1, :clinics:) AS clinic_id
CROSS JOIN LATERAL (
    SELECT CASE WHEN clinic_id % 50 = 3 THEN 'waiting' WHEN clinic_id % 12 = 5 THEN 'closed' ELSE 'open' END AS kind
) AS state
"""
_RUN_CLINICS = """
INSERT INTO ledger.run_clinic (
    run_key, clinic_id, lpu_id, shard, access_state, closed_reason, opens_at, window_from, window_before, extracted,
    eligible, withheld, quarantined, unknown_statuses, new, changed, again, unchanged, planned, accepted, rejected,
    to_retry, unknown, dropped, revoked, withdrawn, withdraw_to_retry, withdraw_unknown, permitted_again, held
)
SELECT
    run.run_key, clinic.clinic_id, 40000 + clinic.clinic_id, clinic.shard, clinic.kind,
    CASE WHEN clinic.kind = 'closed' THEN 'switched_off' END,
    CASE WHEN clinic.kind = 'waiting' THEN run.anchor + interval '9 hours' END,
    run.anchor - interval '45 days', run.anchor + interval '31 days',
    extracted, extracted - withheld - quarantined, withheld, quarantined, 0, planned - planned / 2, planned / 2, 0,
    extracted - withheld - quarantined - planned, planned, planned - rejected, rejected, 0, 0, 0,
    revoked, revoked, 0, 0, 0, 0
FROM ledger.run AS run
CROSS JOIN pg_temp.clinic AS clinic
LEFT JOIN LATERAL (
    SELECT
        clinic.size + run.run_key % 17 AS extracted, 4 + (clinic.size / 9) AS withheld, 1 + clinic.size / 100
        AS quarantined, (clinic.size / 16)::bigint AS planned, (clinic.clinic_id + run.run_key) % 40 / 39 AS rejected,
        (clinic.clinic_id + run.run_key) % 9 / 8 AS revoked
) AS number ON clinic.kind = 'open'
WHERE run.dag_id = 'medflex_transfer'
"""
_QUICK_CLINICS = """
INSERT INTO ledger.run_clinic (
    run_key, clinic_id, lpu_id, shard, access_state, revoked, withdrawn, withdraw_to_retry, withdraw_unknown,
    permitted_again, held
)
SELECT run.run_key, clinic_id, 40000 + clinic_id, 0, 'open', 2, 2, 0, 0, 0, 0
FROM ledger.run AS run
CROSS JOIN generate_series(0, 19) AS number
CROSS JOIN LATERAL (SELECT 1 + (run.run_key * 7 + number * 997) % :clinics: AS clinic_id) AS clinic
WHERE run.dag_id = 'medflex_withdraw'
ON CONFLICT DO NOTHING
"""
_DECISIONS = """
INSERT INTO ledger.run_decision (run_key, clinic_id, stage, decision, reasons, appointment_ids)
SELECT
    run.run_key, clinic.clinic_id, 'withhold', item.decision, item.reasons,
    id.ids[1:item.records]
FROM ledger.run AS run
INNER JOIN ledger.run_clinic AS clinic ON run.run_key = clinic.run_key
CROSS JOIN (SELECT array_agg(one) AS ids FROM generate_series(10000001::bigint, 10000200::bigint) AS one) AS id
CROSS JOIN LATERAL (
    VALUES
    ('withheld', ARRAY['refused_marketing'], clinic.withheld - clinic.withheld / 3),
    ('withheld', ARRAY['refused_notifications', 'refused_marketing'], clinic.withheld / 3),
    ('quarantined', CASE WHEN clinic.clinic_id % 3 = 0 THEN ARRAY['phone_unreadable'] ELSE ARRAY['phone_missing'] END,
     clinic.quarantined)
) AS item (decision, reasons, records)
WHERE run.dag_id = 'medflex_transfer' AND clinic.access_state = 'open' AND item.records > 0
"""
_VALIDATIONS = """
INSERT INTO ledger.run_validation (run_key, shard, suite, result)
SELECT run.run_key, shard.shard, variant.suite, variant.result
FROM ledger.run AS run
CROSS JOIN generate_series(0, :open: - 1) AS shard (shard)
INNER JOIN pg_temp.variant AS variant ON variant.number = (shard.shard + run.run_key) % 20
WHERE run.dag_id = 'medflex_transfer'
"""
_SENDS = """
INSERT INTO ledger.batch (
    run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions, digests, patient_ids, partner_ids,
    extracted_at, looked_at, created_at, resolved_at, outcome, http_status, rejected_ids
)
SELECT
    run.run_key, clinic.clinic_id, 40000 + clinic.clinic_id, 'send', 1, id.ids, id.ones, id.ids, id.ids, ARRAY[1, 2],
    run.started_at, moment, moment, moment + interval '400 ms', 'acknowledged', 200,
    CASE WHEN clinic.rejected > 0 THEN id.ids[1:1] ELSE '{}' END
FROM ledger.run AS run
INNER JOIN ledger.run_clinic AS clinic ON run.run_key = clinic.run_key
CROSS JOIN (
    SELECT array_agg(one) AS ids, array_agg(1::bigint) AS ones
    FROM generate_series(10000001::bigint, 10000008::bigint) AS one
) AS id
CROSS JOIN LATERAL (SELECT run.started_at + clinic.shard * interval '10 seconds' AS moment) AS at
WHERE run.dag_id = 'medflex_transfer' AND clinic.planned > 0
ORDER BY run.run_key, clinic.shard, clinic.clinic_id
"""
_WITHDRAWALS = """
INSERT INTO ledger.batch (
    run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions, reasons, revoked_at, looked_at, created_at,
    resolved_at, outcome, http_status
)
SELECT
    run.run_key, clinic.clinic_id, clinic.lpu_id, 'withdraw', 1, ARRAY[first, first + 1], ARRAY[2, 2],
    CASE clinic.clinic_id % 4
        WHEN 0 THEN ARRAY['refused_marketing', 'refused_marketing']
        WHEN 1 THEN ARRAY['refused_personal_data', 'refused_notifications']
        WHEN 2 THEN ARRAY['appointment_gone', 'appointment_gone']
        ELSE ARRAY['doctor_banned', 'doctor_banned']
    END,
    ARRAY[run.started_at - seconds * interval '1 second', run.started_at - seconds * interval '0.9 seconds'],
    run.started_at, run.started_at, run.started_at + interval '300 ms', 'acknowledged', 200
FROM ledger.run AS run
INNER JOIN ledger.run_clinic AS clinic ON run.run_key = clinic.run_key
CROSS JOIN LATERAL (
    SELECT 10000001 + clinic.clinic_id AS first, exp(1.5 + 3.2 * ((clinic.clinic_id * 31 + run.run_key) % 100) / 100.0)
        AS seconds
) AS at
WHERE run.dag_id = 'medflex_withdraw'
ORDER BY run.run_key
"""
_REVOCATIONS = """
INSERT INTO ledger.revocation (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at, found_at)
SELECT
    1 + (number * 37) % :clinics:, 10000001 + number, 40001 + (number * 37) % :clinics:,
    CASE WHEN number % 3 = 0 THEN 'refused_marketing' ELSE 'doctor_banned' END, FALSE,
    now() - number * interval '5 seconds', now() - number * interval '4 seconds'
FROM generate_series(1, 300) AS number
"""
_HOLDS = """
INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)
SELECT
    number * 11, now() - number * interval '3 hours', ARRAY[10000001, 10000002], ARRAY[40000 + number * 11],
    ARRAY['appointment_gone', 'appointment_gone'], 55
FROM generate_series(1, 5) AS number
"""
_ACTIONS = """
INSERT INTO ledger.partner_action (
    action_id, lpu_id, appointment_id, partner_id, type, base_version, scenario, created_at, read_at, read_in,
    clinic_id, status_code, reason, is_effect, decided_at, decided_in, answer, answered_at, answered_in, shared_at
)
SELECT
    gen_random_uuid(), 40000 + clinic_id, 10000001 + clinic_id, 1 + number % 3,
    CASE number % 10 WHEN 0 THEN 'cancel' WHEN 1 THEN 'reschedule' WHEN 2 THEN 'confirm' ELSE 'notification' END,
    1, CASE WHEN number % 10 > 2 THEN 'visit_reminder' END, moment - interval '40 seconds', moment, 'crowd',
    CASE WHEN is_decided THEN clinic_id END, CASE WHEN is_decided THEN ruling.status_code END,
    CASE WHEN is_decided THEN ruling.reason END, CASE WHEN is_decided THEN ruling.reason = 'done' END,
    CASE WHEN is_decided THEN moment + interval '2 seconds' END, CASE WHEN is_decided THEN 'crowd' END,
    CASE WHEN is_decided THEN 'taken' END, CASE WHEN is_decided THEN moment + interval '3 seconds' END,
    CASE WHEN is_decided THEN 'crowd' END,
    CASE WHEN is_decided AND ruling.reason = 'done' THEN moment + interval '5 seconds' END
FROM generate_series(1, :actions:) AS number
CROSS JOIN LATERAL (
    SELECT
        1 + (number * 613) % :clinics: AS clinic_id, number <= :actions: - 40 AS is_decided,
        now() - (:actions: - number) * (:days: * interval '1 day' / :actions:) AS moment
) AS at
CROSS JOIN LATERAL (
    SELECT
        CASE
            WHEN number % 31 = 0 THEN 'changed' WHEN number % 37 = 0 THEN 'revoked' WHEN number % 10 > 2
            THEN 'recorded' WHEN number % 10 = 1 AND number % 3 = 0 THEN 'slot_taken' ELSE 'done'
        END AS reason,
        CASE
            WHEN number % 31 = 0 THEN 409 WHEN number % 37 = 0 THEN 404 WHEN number % 10 > 2 THEN 204
            WHEN number % 10 = 1 AND number % 3 = 0 THEN 423 ELSE 204
        END AS status_code
) AS ruling
ORDER BY number
"""
_RECORDS = """
INSERT INTO ledger.record (
    clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest, changed_at, patient_id, partner_ids
)
SELECT
    clinic.clinic_id, clinic.clinic_id * 1000 + number, 40000 + clinic.clinic_id, 1,
    CASE number % 29 WHEN 0 THEN 'rejected' WHEN 1 THEN 'aged_out' WHEN 2 THEN 'withdrawn' ELSE 'sent' END,
    1, 1, now() - number * interval '1 day', number, ARRAY[1, 2]
FROM pg_temp.clinic AS clinic
CROSS JOIN generate_series(1, 30) AS number
WHERE clinic.kind = 'open'
"""


_MEDLOCK = """
INSERT INTO medlock.clinic (id, lpu_id, name, timezone)
SELECT number, 40000 + number, 'Clinic ' || number, 'Europe/Moscow' FROM generate_series(1, :clinics:) AS number
ON CONFLICT DO NOTHING;
INSERT INTO medlock.staff (id, clinic_id, full_name, login, role)
SELECT 10000000 + number, number, '-', 'crowd-head-' || number, 'head' FROM generate_series(1, :clinics:) AS number
ON CONFLICT DO NOTHING;
INSERT INTO medlock.medflex_access (clinic_id, enabled, changed_at, changed_by)
SELECT number, number % 10 <> 0, now() - (number % 900) * interval '7 hours', 10000000 + number
FROM generate_series(1, :clinics:) AS number
ON CONFLICT DO NOTHING;
INSERT INTO medlock.partner (id, name, kind)
SELECT 100 + number, 'Partner ' || number, 'mailing' FROM generate_series(1, 30) AS number
ON CONFLICT DO NOTHING;
INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled, scenarios)
SELECT number, 101 + (number * 7 + place) % 30, place < 3, ARRAY['visit_reminder', 'greeting']
FROM generate_series(1, :clinics:) AS number CROSS JOIN generate_series(1, 3) AS place
ON CONFLICT DO NOTHING;
INSERT INTO medlock.smart_care_scenario (clinic_id, scenario, enabled)
SELECT number, scenario, number % 3 = 0
FROM generate_series(1, :clinics:) AS number
CROSS JOIN unnest(ARRAY['visit_reminder', 'after_visit_survey']) AS scenario
ON CONFLICT DO NOTHING;
"""


def fill(conninfo: str, clinics: int = 20_000, days: int = 90) -> None:
    """Fill an empty, migrated ledger with a transfer a day over all clinics, quick withdrawals, actions, records."""
    sizes = {
        "clinics": clinics, "days": days, "quick": QUICK_RUNS_A_DAY, "open": OPEN_SHARDS, "waiting": WAITING_SHARDS,
        "closed": CLOSED_SHARDS, "actions": max(100, clinics // 2 * days),
    }  # fmt: skip
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for setting in ("synchronous_commit = off", "maintenance_work_mem = '512MB'", "work_mem = '256MB'"):
            connection.execute(f"SET {setting}".encode())
        connection.execute("SET timezone = 'UTC'")
        _variants(connection)
        for statement in (_CLINIC, _RUNS, _QUICK_RUNS):
            connection.execute(_bound(statement, sizes))
        with _without_indexes(connection):
            for statement in (_SHARDS, _RUN_CLINICS, _QUICK_CLINICS):
                connection.execute(_bound(statement, sizes))
            connection.execute("ANALYZE ledger.run, ledger.run_clinic")
            for statement in (_DECISIONS, _VALIDATIONS, _SENDS, _WITHDRAWALS, _ACTIONS, _RECORDS):
                connection.execute(_bound(statement, sizes))
        for statement in (_REVOCATIONS, _HOLDS):
            connection.execute(_bound(statement, sizes))
        connection.execute("VACUUM ANALYZE")
        keys = connection.execute("SELECT run_key FROM ledger.run WHERE dag_id = 'medflex_transfer'").fetchall()
        for (run_key,) in keys:
            keep_sums(connection.cursor(), int(str(run_key)))
        connection.execute("ANALYZE")


def fill_medlock(conninfo: str, clinics: int = 20_000) -> None:
    """Fill an empty Medlock with clinics, their heads, switches, partners and scenarios; without any patient."""
    with psycopg.connect(conninfo) as connection:
        connection.execute(_bound(_MEDLOCK, {"clinics": clinics}))
        connection.execute("ANALYZE")


def _bound(statement: str, sizes: dict[str, int]) -> bytes:
    """Put the sizes in: they are integers of this file."""
    for name, size in sizes.items():
        statement = statement.replace(f":{name}:", str(size))
    return statement.encode()


def _variants(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Twenty results of each suite, some of them with failures."""
    chance = random.Random(5)
    connection.execute("CREATE TEMP TABLE variant (number int, suite text, result jsonb)")
    for number in range(20):
        for suite in ("source", "outgoing"):
            results = []
            for rule in SUITES[suite]():
                failed = chance.random() < (0.15 if rule.severity == "warning" else 0.002)
                unexpected = chance.randrange(1, 400) if failed else 0
                results.append(
                    ExpectationResult(
                        rule.name, rule.expectation_type, rule.columns, rule.severity, not failed, 17_000, unexpected,
                        unexpected / 170, 0, None, rule.bounds,
                    )
                )  # fmt: skip
            document = dataclasses.asdict(SuiteResult(suite, f"open-{number:03}", 17_000, tuple(results)))
            connection.execute("INSERT INTO variant VALUES (%s, %s, %s)", (number, suite, Jsonb(document)))


@contextmanager
def _without_indexes(connection: psycopg.Connection[tuple[object, ...]]) -> Iterator[None]:
    """Take the indexes and keys of the big tables away while they are filled, and make them again."""
    tables = [f"ledger.{table}" for table in _TABLES]
    constraints = connection.execute(
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = ANY(%s::regclass[]) AND contype IN ('p', 'u', 'f', 'c')"
        " ORDER BY array_position(ARRAY['p', 'u', 'c', 'f'], contype::text)",
        (tables,),
    ).fetchall()
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%s::regclass[])"
        " AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE conrelid = indrelid)",
        (tables,),
    ).fetchall()
    for table, name, _ in reversed(constraints):
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}".encode())
    yield
    for table, name, definition in constraints:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}".encode())
    for _, definition in indexes:
        connection.execute(str(definition).encode())


if __name__ == "__main__":
    fill(sys.argv[1], *map(int, sys.argv[2:]))
