-- Purpose:    the run that another one is compared with: the last one before it of the same DAG that sent, for all
--             clinics, for the day on which it ran.
-- Grain:      one row with its run_id, or none.
-- Parameters: dag_id text, started_at timestamptz
-- Personal:   none.
SELECT run.run_id
FROM ledger.run AS run
WHERE
    run.dag_id = %(dag_id)s
    AND run.started_at < %(started_at)s
    AND run.settled_at IS NOT NULL
    AND run.mode = 'transfer'
    AND run.clinic_ids IS NULL
    AND ledger.is_of_its_day(run)
ORDER BY run.started_at DESC
LIMIT 1
