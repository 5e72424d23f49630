-- Purpose:    remove alerts that were over, and told, long ago. One that stands or was not told stays.
-- Parameters: days int, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.alert AS alert
WHERE
    alert.alert_id IN (
        SELECT old.alert_id
        FROM ledger.alert AS old
        WHERE
            old.cleared_at
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
            AND old.raise_told_at IS NOT NULL
            AND old.clear_told_at IS NOT NULL
        ORDER BY old.cleared_at
        LIMIT %(size)s
    )
