"""A search for revocations writes nothing over what a sender has noted since it began to look."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

UPGRADE = """
-- How often a sender has noted under what records leave. Who has read another number writes nothing over it.
ALTER TABLE ledger.clinic_seen ADD COLUMN notes bigint NOT NULL DEFAULT 0;
"""


def upgrade() -> None:
    """Count the notes of senders."""
    op.execute(UPGRADE)
