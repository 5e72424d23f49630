-- Purpose:    the runs that may go. Of each DAG the last runs of each kind stay, however old: later runs are judged
--             beside them. The kinds are those that reason_history.sql and row_history.sql tell apart, so that a
--             series of failed, partial or backfilled runs cannot push the others out.
-- Grain:      one row per run, oldest first.
-- Parameters: days int, keep int (runs of each kind), now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH ranked AS (
    SELECT
        run.run_key,
        run.settled_at,
        row_number() OVER (
            PARTITION BY
                run.dag_id,
                run.outcome,
                run.clinic_ids IS NULL,
                ledger.is_of_its_day(run)
            ORDER BY run.run_key DESC
        ) AS age
    FROM ledger.run AS run
    WHERE run.settled_at IS NOT NULL
)

SELECT ranked.run_key
FROM ranked
WHERE
    ranked.age > %(keep)s
    AND ranked.settled_at
    < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours'
UNION ALL
-- A run without an end may still be going: it can wait for its gate or be paused.
SELECT run.run_key
FROM ledger.run AS run
WHERE
    run.settled_at IS NULL
    AND run.started_at
    < coalesce(%(now)s::timestamptz, clock_timestamp()) - 2 * %(days)s::int * interval '24 hours'
ORDER BY run_key
