-- Purpose:    the questions that this Airflow run asks a person: those it has taken before, those nobody asks yet, and
--             those that have stood in another run for a week, since that run may have been deleted; the oldest first,
--             no more than one run can ask.
-- Grain:      one row per hold.
-- Parameters: asked_in text, most int, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH claimed AS (
    SELECT hold.hold_id
    FROM ledger.hold AS hold
    WHERE
        hold.state = 'open'
        AND (
            hold.asked_in IS NULL
            OR hold.asked_in = %(asked_in)s
            OR hold.asked_at < coalesce(%(now)s::timestamptz, clock_timestamp()) - interval '7 days'
        )
    -- What is its own comes first: a task that runs again asks the same.
    ORDER BY hold.asked_in IS DISTINCT FROM %(asked_in)s, hold.hold_id
    LIMIT %(most)s
    -- Of two runs at once the second one passes over what the first one takes, and claims what comes behind it.
    FOR NO KEY UPDATE
)

UPDATE ledger.hold AS hold
SET asked_in = %(asked_in)s, asked_at = coalesce(%(now)s::timestamptz, clock_timestamp())
FROM claimed
WHERE hold.hold_id = claimed.hold_id
RETURNING hold.*
