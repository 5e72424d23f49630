"""Whether Medflex shows anything of a clinic, and how much, is told by an index: all that was ever withdrawn of it was
read for that.

A ledger of many millions of records takes minutes to bring here: an index is built, and nobody can write meanwhile.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

UPGRADE = """
-- Of each clinic and state said once, and so as small as the one of clinics alone, which it stands in for.
CREATE INDEX record_clinic_state ON ledger.record (clinic_id, state);
DROP INDEX ledger.record_clinic;
"""


def upgrade() -> None:
    """Change the index of clinics."""
    op.execute(UPGRADE)
