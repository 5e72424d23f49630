-- Purpose:    remove the marks of attempts that have long ended. One that lives all the same finds its mark gone and
--             stops sending, as if another had taken over.
-- Parameters: days int, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.writer AS writer
WHERE
    writer.holder IN (
        SELECT old.holder
        FROM ledger.writer AS old
        WHERE
            old.started_at
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
        ORDER BY old.started_at
        LIMIT %(size)s
    )
    -- The same task may have started anew since.
    AND writer.started_at
    < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
