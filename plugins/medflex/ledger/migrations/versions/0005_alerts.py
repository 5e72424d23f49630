"""Alerts: each time something began to matter, what it held up, when it was over, and who was told.

It holds counts, times and sentences without values; nothing in it tells who a patient is.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

UPGRADE = """
-- One row per time that something was wrong: it stays, so that earlier ones can be looked up.
ALTER TABLE ledger.alert DROP CONSTRAINT alert_pkey;
ALTER TABLE ledger.alert RENAME COLUMN name TO kind;
ALTER TABLE ledger.alert ADD COLUMN alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;
-- Since when it has been so; raised_at is when it began to matter.
ALTER TABLE ledger.alert ADD COLUMN since timestamptz;
UPDATE ledger.alert SET since = raised_at;
ALTER TABLE ledger.alert ALTER COLUMN since SET NOT NULL;
-- Numbers as of the last round; what it has held up, each number at its highest.
ALTER TABLE ledger.alert ADD COLUMN facts jsonb NOT NULL DEFAULT '{}';
ALTER TABLE ledger.alert ADD COLUMN held_up jsonb NOT NULL DEFAULT '{}';
-- Since when it has not been so any more; it is cleared when that has lasted.
ALTER TABLE ledger.alert ADD COLUMN calm_since timestamptz;
ALTER TABLE ledger.alert ADD COLUMN over_sentence text;
-- To which channels each of the two messages has gone; the time when no channel was left.
ALTER TABLE ledger.alert ADD COLUMN raise_told_to text [] NOT NULL DEFAULT '{}';
ALTER TABLE ledger.alert ADD COLUMN raise_told_at timestamptz;
ALTER TABLE ledger.alert ADD COLUMN clear_told_to text [] NOT NULL DEFAULT '{}';
ALTER TABLE ledger.alert ADD COLUMN clear_told_at timestamptz;
-- What was over before anybody could be told is history.
UPDATE ledger.alert
SET raise_told_at = raised_at, clear_told_at = cleared_at, over_sentence = 'It is over.'
WHERE cleared_at IS NOT NULL;
ALTER TABLE ledger.alert ADD CHECK ((cleared_at IS NULL) = (over_sentence IS NULL));
-- It is raised once, until it is cleared.
CREATE UNIQUE INDEX alert_open ON ledger.alert (kind) WHERE cleared_at IS NULL;
CREATE INDEX alert_untold ON ledger.alert (alert_id)
    WHERE raise_told_at IS NULL OR (cleared_at IS NOT NULL AND clear_told_at IS NULL);
CREATE INDEX alert_age ON ledger.alert (cleared_at);

-- How speaking to Medflex went of late: one row.
CREATE TABLE ledger.contact (
    name text PRIMARY KEY,
    good_at timestamptz,
    -- Since when each contact has been a good one, as far as is known.
    good_since timestamptz,
    -- Since when none has been good; NULL while they are.
    failing_since timestamptz,
    failed_at timestamptz,
    failure text CHECK (failure IN ('away', 'refused')),
    CHECK (failing_since IS NULL OR (failed_at IS NOT NULL AND failure IS NOT NULL AND good_since IS NULL))
);

-- Scheduled runs that were not done, but for clinics that wait, when Airflow's deadline had passed.
CREATE TABLE ledger.missed_deadline (
    dag_id text NOT NULL,
    run_id text NOT NULL,
    missed_at timestamptz NOT NULL,
    PRIMARY KEY (dag_id, run_id)
);

-- How many conservation equations did not hold when the run was settled.
ALTER TABLE ledger.run ADD COLUMN broken int NOT NULL DEFAULT 0;
CREATE INDEX run_broken ON ledger.run (settled_at) WHERE broken > 0;
-- How many critical expectations have stopped the shard.
ALTER TABLE ledger.run_shard ADD COLUMN critical int NOT NULL DEFAULT 0;
CREATE INDEX run_shard_critical ON ledger.run_shard (run_key) WHERE critical > 0;

-- Runs that were to bring over everything. One is complete when each shard was sent or had nothing to be sent; clinics
-- that wait for their 24 hours do not count, nor do shards that the validation has stopped: that is another alert.
CREATE VIEW ledger.daily_shard AS
SELECT
    shard.run_key,
    shard.shard,
    shard.critical = 0
    AND (
        shard.problem IS NOT NULL
        OR NOT (shard.stage IN ('loaded', 'skipped') OR (shard.stage = 'planned' AND shard.kind = 'waiting'))
    ) AS is_undone
FROM ledger.run_shard AS shard;
CREATE VIEW ledger.daily_run AS
SELECT
    run.run_key,
    run.dag_id,
    run.run_id,
    run.started_at,
    run.settled_at,
    run.outcome,
    NOT EXISTS (
        SELECT 1
        FROM ledger.daily_shard AS shard
        WHERE shard.run_key = run.run_key AND shard.is_undone
    ) AS is_complete
FROM ledger.run AS run
WHERE run.mode IN ('transfer', 'resync') AND run.run_type <> 'backfill' AND run.clinic_ids IS NULL;
"""


def upgrade() -> None:
    """Add what alerts need."""
    op.execute(UPGRADE)
