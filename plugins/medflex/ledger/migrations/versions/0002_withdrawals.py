"""Withdrawals: whose data a record shows and to whom, open revocations, held absences, findings, alerts.

It holds ids, counts, times and reason codes; nothing in it tells who a patient is.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

UPGRADE = """
-- Whose data Medflex may show, and to whom. NULL while it is in doubt whose.
ALTER TABLE ledger.record ADD COLUMN patient_id bigint;
ALTER TABLE ledger.record ADD COLUMN partner_ids bigint [];
-- What changes in Medlock is told by appointment and patient; a record may be another clinic's than these are now.
CREATE INDEX record_appointment ON ledger.record (appointment_id);
CREATE INDEX record_patient ON ledger.record (patient_id) WHERE patient_id IS NOT NULL;
CREATE INDEX record_unsettled ON ledger.record (clinic_id) WHERE state IN ('sending', 'withdrawing');

ALTER TABLE ledger.batch ADD COLUMN patient_ids bigint [];
-- Of a withdrawal: since when each record may no longer be shared. With resolved_at it gives the time to withdraw.
ALTER TABLE ledger.batch ADD COLUMN revoked_at timestamptz [];
-- The look at the flags comes after the intent, just before the first byte leaves.
ALTER TABLE ledger.batch ALTER COLUMN looked_at DROP NOT NULL;
CREATE INDEX batch_in_doubt ON ledger.batch (resolved_at) WHERE unknown_ids <> '{}';
CREATE INDEX batch_withdrawn ON ledger.batch (created_at) WHERE operation = 'withdraw';

-- A withdrawal takes a clinic over from any other work.
ALTER TABLE ledger.lease ADD COLUMN purpose text NOT NULL DEFAULT 'send'
    CHECK (purpose IN ('send', 'withdraw', 'reconcile'));

-- The living attempt of each task that writes. One that was thought dead finds another token here.
CREATE TABLE ledger.writer (
    holder text PRIMARY KEY,
    token uuid NOT NULL DEFAULT gen_random_uuid(),
    started_at timestamptz NOT NULL
);

-- What may no longer be shared and is not yet acknowledged as withdrawn.
CREATE TABLE ledger.revocation (
    clinic_id bigint NOT NULL,
    appointment_id bigint NOT NULL,
    lpu_id bigint NOT NULL,
    reason text NOT NULL,
    by_absence boolean NOT NULL,
    revoked_at timestamptz NOT NULL,
    found_at timestamptz NOT NULL,
    PRIMARY KEY (clinic_id, appointment_id, lpu_id)
);

-- Rows that have vanished in such numbers that a person is asked before anything is withdrawn. The arrays run in
-- parallel, one element per record.
CREATE TABLE ledger.hold (
    hold_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    clinic_id bigint NOT NULL,
    found_at timestamptz NOT NULL,
    appointment_ids bigint [] NOT NULL,
    lpu_ids bigint [] NOT NULL,
    reasons text [] NOT NULL,
    live bigint NOT NULL,
    run_key bigint REFERENCES ledger.run ON DELETE SET NULL,
    asked_in text,
    asked_at timestamptz,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'released', 'kept', 'obsolete')),
    decided_by text,
    decided_at timestamptz
);
-- One question about a clinic at a time.
CREATE UNIQUE INDEX hold_open ON ledger.hold (clinic_id) WHERE state = 'open';
CREATE INDEX hold_clinic ON ledger.hold (clinic_id, decided_at);
CREATE INDEX hold_run ON ledger.hold (run_key);

-- How far the look at changes has come.
CREATE TABLE ledger.watch (
    name text PRIMARY KEY,
    looked_at timestamptz NOT NULL,
    value jsonb NOT NULL DEFAULT '{}'
);

-- The permissions of each clinic as the last look found them: whoever has fewer now has its records looked at.
CREATE TABLE ledger.clinic_seen (
    clinic_id bigint PRIMARY KEY,
    lpu_id bigint,
    is_open boolean NOT NULL,
    partner_ids bigint [] NOT NULL,
    changed_at timestamptz NOT NULL
);

-- What is wrong right now: raised once, cleared once.
CREATE TABLE ledger.alert (
    name text PRIMARY KEY,
    raised_at timestamptz NOT NULL,
    cleared_at timestamptz,
    sentence text NOT NULL
);

-- What reconciliation found: the ids for which Medflex and what it should show differ in the same way.
CREATE TABLE ledger.finding (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    clinic_id bigint NOT NULL,
    lpu_id bigint NOT NULL,
    kind text NOT NULL,
    appointment_ids bigint [] NOT NULL,
    PRIMARY KEY (run_key, clinic_id, lpu_id, kind)
);

ALTER TABLE ledger.run DROP CONSTRAINT run_mode_check;
ALTER TABLE ledger.run ADD CONSTRAINT run_mode_check
    CHECK (mode IN ('transfer', 'plan', 'resync', 'withdraw', 'reconcile', 'dry_run'));

ALTER TABLE ledger.run_shard ADD COLUMN withdraw_stage text NOT NULL DEFAULT 'planned'
    CHECK (withdraw_stage IN ('planned', 'found', 'withdrawn'));
ALTER TABLE ledger.run_shard ADD COLUMN withdraw_problem text;

ALTER TABLE ledger.run_clinic ADD COLUMN revoked bigint;
ALTER TABLE ledger.run_clinic ADD COLUMN withdrawn bigint;
ALTER TABLE ledger.run_clinic ADD COLUMN withdraw_to_retry bigint;
ALTER TABLE ledger.run_clinic ADD COLUMN withdraw_unknown bigint;
ALTER TABLE ledger.run_clinic ADD COLUMN permitted_again bigint;
ALTER TABLE ledger.run_clinic ADD COLUMN held bigint;

ALTER TABLE ledger.run_decision DROP CONSTRAINT run_decision_stage_check;
ALTER TABLE ledger.run_decision ADD CONSTRAINT run_decision_stage_check
    CHECK (stage IN ('withhold', 'last_look', 'revoke'));
ALTER TABLE ledger.run_decision DROP CONSTRAINT run_decision_decision_check;
ALTER TABLE ledger.run_decision ADD CONSTRAINT run_decision_decision_check
    CHECK (decision IN ('withheld', 'quarantined', 'dropped', 'revoked', 'held'));
"""


def upgrade() -> None:
    """Add what withdrawals need."""
    op.execute(UPGRADE)
