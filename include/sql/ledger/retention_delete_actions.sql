-- Purpose:    forget partner actions that were decided and answered long ago. Should one come again, it is refused as
--             too old; one that waits for its decision or its answer stays.
-- Parameters: days int, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.partner_action AS action
WHERE
    action.action_id IN (
        SELECT old.action_id
        FROM ledger.partner_action AS old
        WHERE
            old.decided_at < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
            AND old.answered_at IS NOT NULL
        ORDER BY old.decided_at
        LIMIT %(size)s
    )
