"""How many rows a run's plan expects of each clinic: by it, shards and their slices are made about equally large."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

UPGRADE = """
-- Missing in runs from before, and in those of other DAGs.
ALTER TABLE ledger.run_clinic ADD COLUMN expected_rows bigint;
"""


def upgrade() -> None:
    """Add the column."""
    op.execute(UPGRADE)
