-- Purpose:    the questions that this Airflow run asks a person: those nobody asks yet, those it has taken before, and
--             those that have stood in another run for a week, since that run may have been deleted.
-- Grain:      one row per hold.
-- Parameters: asked_in text, now timestamptz or NULL for the server's clock
-- Personal:   none.
UPDATE ledger.hold
SET asked_in = %(asked_in)s, asked_at = coalesce(%(now)s::timestamptz, clock_timestamp())
WHERE
    state = 'open'
    AND (
        asked_in IS NULL
        OR asked_in = %(asked_in)s
        OR asked_at < coalesce(%(now)s::timestamptz, clock_timestamp()) - interval '7 days'
    )
RETURNING *
