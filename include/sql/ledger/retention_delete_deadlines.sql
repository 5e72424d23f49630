-- Purpose:    remove deadlines that were missed long ago.
-- Parameters: days int, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.missed_deadline AS deadline
WHERE
    (deadline.dag_id, deadline.run_id) IN (
        SELECT
            old.dag_id,
            old.run_id
        FROM ledger.missed_deadline AS old
        WHERE
            old.missed_at
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
        ORDER BY old.missed_at
        LIMIT %(size)s
    )
