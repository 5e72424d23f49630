"""The ledger of the daily transfer: runs and their numbers, batches (intents), records, leases, the shared rate.

It holds ids, counts, times, keyed digests and reason codes; nothing in it tells who a patient is.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

UPGRADE = """
-- One row per Airflow run. A cleared run keeps its row and gets its numbers anew.
CREATE TABLE ledger.run (
    run_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    run_type text NOT NULL,
    mode text NOT NULL CHECK (mode IN ('transfer', 'plan', 'resync')),
    anchor timestamptz NOT NULL,
    clinic_ids bigint [],
    started_at timestamptz NOT NULL,
    report text,
    settled_at timestamptz,
    outcome text NOT NULL DEFAULT 'running' CHECK (outcome IN ('running', 'succeeded', 'failed')),
    problems text [] NOT NULL DEFAULT '{}',
    UNIQUE (dag_id, run_id)
);
CREATE INDEX ON ledger.run (started_at);

CREATE TABLE ledger.run_shard (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    shard int NOT NULL,
    label text NOT NULL,
    kind text NOT NULL,
    clinic_ids bigint [] NOT NULL,
    stage text NOT NULL DEFAULT 'planned'
        CHECK (stage IN ('planned', 'skipped', 'extracted', 'withheld', 'validated', 'compared', 'loaded')),
    skipped_because text,
    -- How old the staged copy is: nothing staged earlier may overwrite what was staged later.
    extracted_at timestamptz,
    problem text,
    PRIMARY KEY (run_key, shard)
);

-- The funnel: one row per clinic and run. Every number is set, never added to, so a task may run again.
CREATE TABLE ledger.run_clinic (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    clinic_id bigint NOT NULL,
    lpu_id bigint,
    shard int,
    access_state text NOT NULL,
    closed_reason text,
    opens_at timestamptz,
    window_from timestamptz,
    window_before timestamptz,
    extracted bigint,
    eligible bigint,
    withheld bigint,
    quarantined bigint,
    unknown_statuses bigint,
    new bigint,
    changed bigint,
    again bigint,
    unchanged bigint,
    planned bigint,
    accepted bigint,
    rejected bigint,
    to_retry bigint,
    unknown bigint,
    dropped bigint,
    PRIMARY KEY (run_key, clinic_id)
);
CREATE INDEX ON ledger.run_clinic (clinic_id, run_key);

-- Why which record was not sent, per run: the ids that share exactly these reasons.
CREATE TABLE ledger.run_decision (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    clinic_id bigint NOT NULL,
    stage text NOT NULL CHECK (stage IN ('withhold', 'last_look')),
    decision text NOT NULL CHECK (decision IN ('withheld', 'quarantined', 'dropped')),
    reasons text [] NOT NULL,
    appointment_ids bigint [] NOT NULL,
    PRIMARY KEY (run_key, clinic_id, stage, decision, reasons)
);

CREATE TABLE ledger.run_validation (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    shard int NOT NULL,
    suite text NOT NULL,
    result jsonb NOT NULL,
    PRIMARY KEY (run_key, shard, suite)
);

-- One writer per clinic. The epoch grows with each acquisition and fences whoever held it before.
CREATE TABLE ledger.lease (
    clinic_id bigint PRIMARY KEY,
    epoch bigint NOT NULL,
    holder text,
    expires_at timestamptz NOT NULL
);

-- The intent: durable before the first byte leaves. The arrays run in parallel, one element per record.
CREATE TABLE ledger.batch (
    batch_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_key bigint REFERENCES ledger.run ON DELETE SET NULL,
    clinic_id bigint NOT NULL,
    lpu_id bigint NOT NULL,
    operation text NOT NULL CHECK (operation IN ('send', 'withdraw')),
    epoch bigint NOT NULL,
    -- Drawn anew for each intent: also after a ledger was restored from a backup no old key can swallow a new batch.
    idempotency_key uuid NOT NULL DEFAULT gen_random_uuid(),
    appointment_ids bigint [] NOT NULL,
    versions bigint [] NOT NULL,
    digests bigint [],
    reasons text [],
    partner_ids bigint [],
    extracted_at timestamptz,
    looked_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    resolved_at timestamptz,
    outcome text CHECK (outcome IN ('acknowledged', 'to_retry', 'unknown')),
    http_status int,
    rejected_ids bigint [] NOT NULL DEFAULT '{}',
    outdated_ids bigint [] NOT NULL DEFAULT '{}',
    unknown_ids bigint [] NOT NULL DEFAULT '{}'
);
CREATE INDEX batch_open ON ledger.batch (clinic_id) WHERE outcome IS NULL;
CREATE INDEX batch_clinic ON ledger.batch (clinic_id, batch_id);
CREATE INDEX batch_run ON ledger.batch (run_key);

-- What Medflex is believed to show, by what it acknowledged. `version` is the highest ever given out.
CREATE TABLE ledger.record (
    clinic_id bigint NOT NULL,
    appointment_id bigint NOT NULL,
    -- Where it is shown. A clinic that gets another lpu_id has its records there anew, and these are at the old one.
    lpu_id bigint NOT NULL,
    version bigint NOT NULL,
    state text NOT NULL
        CHECK (state IN ('sending', 'sent', 'rejected', 'withdrawing', 'withdrawn', 'aged_out')),
    acked_version bigint,
    acked_digest bigint,
    rejected_fields text [],
    batch_id bigint,
    extracted_at timestamptz,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (clinic_id, appointment_id, lpu_id)
) WITH (fillfactor = 80);

-- Medflex's rate is one for all workers: the instant at which the next request may leave.
CREATE TABLE ledger.rate (
    name text PRIMARY KEY,
    next_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(UPGRADE)
