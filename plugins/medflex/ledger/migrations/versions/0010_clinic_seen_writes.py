"""A search for revocations writes nothing over what others have noted of a clinic since it began."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

UPGRADE = """
-- How often it was written. A search that has read another number writes nothing over it.
ALTER TABLE ledger.clinic_seen ADD COLUMN writes bigint NOT NULL DEFAULT 0;
"""


def upgrade() -> None:
    """Count what is written of clinics."""
    op.execute(UPGRADE)
