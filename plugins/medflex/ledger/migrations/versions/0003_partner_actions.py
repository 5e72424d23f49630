"""Partner actions: what partners asked for and what was decided, and which messages patients get twice.

It holds ids, codes, times and names of scenarios; nothing in it tells who a patient is.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

UPGRADE = """
-- Each action that Medflex delivered, once, in the order of its first delivery, from reading to answering.
CREATE TABLE ledger.partner_action (
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    action_id uuid PRIMARY KEY,
    -- What the partner says. NULL where it cannot be read; malformed has the names of these fields then.
    lpu_id bigint,
    appointment_id bigint,
    partner_id bigint,
    type text,
    base_version bigint,
    dt_start text,
    dt_end text,
    scenario text,
    created_at timestamptz,
    malformed text [] NOT NULL DEFAULT '{}',
    read_at timestamptz NOT NULL,
    read_in text NOT NULL,
    deliveries int NOT NULL DEFAULT 1,
    -- The decision, as it stands in Medlock's journal: the same for ever.
    clinic_id bigint,
    status_code int CHECK (status_code IN (204, 400, 404, 409, 416, 423)),
    reason text,
    is_effect boolean,
    -- What would be sent of the appointment behind the effect: whoever made it may go on from there.
    digest_after bigint,
    decided_at timestamptz,
    decided_in text,
    -- Medflex's word on our answer: taken, or it has another one, or knows no such action.
    answer text CHECK (answer IN ('taken', 'contradicted', 'unknown_action')),
    answered_at timestamptz,
    answered_in text,
    -- When the changed appointment was on its way to Medflex again; NULL without an effect, and until then.
    shared_at timestamptz,
    CHECK ((decided_at IS NULL) = (status_code IS NULL) AND (decided_at IS NULL) = (reason IS NULL)),
    CHECK ((answered_at IS NULL) = (answer IS NULL))
);
CREATE INDEX partner_action_undecided ON ledger.partner_action (seq) WHERE decided_at IS NULL;
CREATE INDEX partner_action_unanswered ON ledger.partner_action (seq)
    WHERE decided_at IS NOT NULL AND answered_at IS NULL;
CREATE INDEX partner_action_unshared ON ledger.partner_action (seq) WHERE is_effect AND shared_at IS NULL;
CREATE INDEX partner_action_appointment ON ledger.partner_action (appointment_id, seq);
CREATE INDEX partner_action_clinic ON ledger.partner_action (clinic_id, decided_at);
CREATE INDEX partner_action_age ON ledger.partner_action (decided_at);

-- When a run looked for messages that patients get twice (R15), from when on it compared them, and why it could not.
CREATE TABLE ledger.message_look (
    run_key bigint PRIMARY KEY REFERENCES ledger.run ON DELETE CASCADE,
    looked_at timestamptz NOT NULL,
    since timestamptz NOT NULL,
    -- One sentence without values; NULL where it was judged.
    overlaps_problem text,
    doubled_problem text
);

-- What it found: scenarios that Smart Care and a partner both run ('overlap'), appointments that had two messages of
-- one scenario ('doubled'), partners of which it is not known what they run ('unknown', without a scenario).
CREATE TABLE ledger.message_warning (
    run_key bigint NOT NULL REFERENCES ledger.run ON DELETE CASCADE,
    clinic_id bigint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('overlap', 'doubled', 'unknown')),
    -- People type these names: whatever has not this form is 'other'.
    scenario text NOT NULL CHECK (
        CASE kind WHEN 'unknown' THEN scenario = '' ELSE scenario ~ '^[a-z][a-z0-9_]{0,63}$' END
    ),
    partner_ids bigint [] NOT NULL,
    -- How many there are; of these the first ones are named.
    appointments bigint NOT NULL DEFAULT 0,
    appointment_ids bigint [] NOT NULL DEFAULT '{}',
    PRIMARY KEY (run_key, clinic_id, kind, scenario)
);
"""


def upgrade() -> None:
    """Add what partner actions need."""
    op.execute(UPGRADE)
