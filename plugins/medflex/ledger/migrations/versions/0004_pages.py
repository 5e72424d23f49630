"""What the pages show: how each clinic's access switch was turned over time, and the sums of settled runs.

It holds ids, roles and times; nothing in it tells who a person is.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

UPGRADE = """
-- How the access switch stood whenever it was seen anew. Medlock itself keeps only how it stands now.
CREATE TABLE ledger.switch_event (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    clinic_id bigint NOT NULL,
    -- As Medlock has them: NULL where it does not say.
    enabled boolean,
    changed_at timestamptz,
    -- The role in that clinic of whoever turned it; NULL for somebody who is unknown there.
    role text,
    -- Where it was turned as far as is known: on the page, or somewhere in Medlock.
    via text NOT NULL CHECK (via IN ('page', 'medlock')),
    seen_at timestamptz NOT NULL
);
-- The same turn is noted once, whoever sees it first.
CREATE UNIQUE INDEX switch_event_turn ON ledger.switch_event
    (clinic_id, coalesce(changed_at, '-infinity'), coalesce(enabled::int, -1));

-- The sums of a settled run, for lists over many runs.
CREATE TABLE ledger.run_total (
    run_key bigint PRIMARY KEY REFERENCES ledger.run ON DELETE CASCADE,
    clinics bigint NOT NULL,
    clinics_open bigint NOT NULL,
    clinics_waiting bigint NOT NULL,
    clinics_closed bigint NOT NULL,
    shards bigint NOT NULL,
    shards_troubled bigint NOT NULL,
    extracted bigint NOT NULL,
    eligible bigint NOT NULL,
    withheld bigint NOT NULL,
    quarantined bigint NOT NULL,
    unknown_statuses bigint NOT NULL,
    new bigint NOT NULL,
    changed bigint NOT NULL,
    again bigint NOT NULL,
    unchanged bigint NOT NULL,
    planned bigint NOT NULL,
    accepted bigint NOT NULL,
    rejected bigint NOT NULL,
    to_retry bigint NOT NULL,
    unknown bigint NOT NULL,
    dropped bigint NOT NULL,
    revoked bigint NOT NULL,
    withdrawn bigint NOT NULL,
    withdraw_to_retry bigint NOT NULL,
    withdraw_unknown bigint NOT NULL,
    permitted_again bigint NOT NULL,
    held bigint NOT NULL
);

-- How many records each reason held back: under each that holds, and once under the first.
CREATE TABLE ledger.run_reason (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    decision text NOT NULL,
    reason text NOT NULL,
    records bigint NOT NULL,
    records_first bigint NOT NULL,
    PRIMARY KEY (run_key, decision, reason)
);

-- Each expectation's outcome over all shards of a run.
CREATE TABLE ledger.run_expectation (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    suite text NOT NULL,
    name text NOT NULL,
    place int NOT NULL,
    columns text [] NOT NULL,
    severity text NOT NULL CHECK (severity IN ('critical', 'warning', 'info')),
    shards bigint NOT NULL,
    shards_failed bigint NOT NULL,
    evaluated bigint NOT NULL,
    unexpected bigint NOT NULL,
    missing bigint NOT NULL,
    exception_class text,
    PRIMARY KEY (run_key, suite, name)
);
"""


def upgrade() -> None:
    """Add what the pages need."""
    op.execute(UPGRADE)
