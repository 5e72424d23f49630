"""Whether a run is of its day is told by one function, which all queries about that ask."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

UPGRADE = """
-- Whether a run looked at the window of the day on which it ran; one of another day sees another window, and is no
-- measure for others. Runs of a version before 0011 do not say so themselves.
CREATE FUNCTION ledger.is_of_its_day(run ledger.run) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(
    run.is_of_today,
    run.anchor BETWEEN run.started_at - interval '36 hours' AND run.started_at + interval '1 hour'
);
"""


def upgrade() -> None:
    """Make the function."""
    op.execute(UPGRADE)
