"""Whether a run is of its day is written down when it is planned, and not told by the kind of run."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"

UPGRADE = """
-- Whether the window of a transfer was that of the day on which it was planned. A run of an older day, however it came
-- about, brings over less; a run of today that was begun anew as a backfill brings over all. NULL: of an older version.
ALTER TABLE ledger.run ADD COLUMN is_of_today boolean;

CREATE OR REPLACE VIEW ledger.daily_run AS
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
WHERE
    run.mode IN ('transfer', 'resync')
    AND coalesce(run.is_of_today, run.run_type <> 'backfill')
    AND run.clinic_ids IS NULL;
"""


def upgrade() -> None:
    """Note which runs are of their day."""
    op.execute(UPGRADE)
