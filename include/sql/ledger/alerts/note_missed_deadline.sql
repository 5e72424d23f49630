-- Purpose:    note that a daily run was not complete when its deadline had passed.
-- Grain:      one row at most.
-- Parameters: dag, run text, now timestamptz or NULL for the server's clock
-- Personal:   none.
INSERT INTO ledger.missed_deadline (dag_id, run_id, missed_at)
SELECT
    %(dag)s AS dag_id,
    %(run)s AS run_id,
    coalesce(%(now)s::timestamptz, clock_timestamp()) AS missed_at
WHERE
    NOT EXISTS (
        SELECT 1
        FROM ledger.daily_run AS run
        WHERE run.dag_id = %(dag)s AND run.run_id = %(run)s AND run.is_complete
    )
ON CONFLICT (dag_id, run_id) DO UPDATE SET missed_at = excluded.missed_at
