-- Purpose:    remove one run with its shards, funnel, decisions, validations and findings; batches and holds lose the
--             reference only. Its age is looked at once more: a run that was cleared meanwhile has started anew.
-- Parameters: run_key bigint, days int, now timestamptz or NULL for the server's clock
-- Personal:   none.
DELETE FROM ledger.run AS run
WHERE
    run.run_key = %(run_key)s
    AND CASE
        WHEN run.settled_at IS NULL
            THEN
                run.started_at
                < coalesce(%(now)s::timestamptz, clock_timestamp()) - 2 * %(days)s::int * interval '24 hours'
        ELSE
            run.settled_at
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
    END
