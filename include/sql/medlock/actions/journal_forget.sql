-- Purpose:    forget decisions of long ago. An action that is older than the journal goes back is refused, so that
--             nothing forgotten can take effect again.
-- Parameters: days int, size int
-- Personal:   none.
DELETE FROM medlock.partner_action AS journal
WHERE
    journal.action_id IN (
        SELECT old.action_id
        FROM medlock.partner_action AS old
        WHERE old.decided_at < clock_timestamp() - %(days)s::int * interval '24 hours'
        ORDER BY old.decided_at
        LIMIT %(size)s
    )
