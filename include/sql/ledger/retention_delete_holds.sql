-- Purpose:    remove questions that were answered, or became idle, long ago. An open one waits as long as it takes.
-- Parameters: days int, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.hold AS hold
WHERE
    hold.hold_id IN (
        SELECT old.hold_id
        FROM ledger.hold AS old
        WHERE
            old.state <> 'open'
            AND coalesce(old.decided_at, old.found_at)
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
        ORDER BY old.hold_id
        LIMIT %(size)s
    )
    AND hold.state <> 'open'
