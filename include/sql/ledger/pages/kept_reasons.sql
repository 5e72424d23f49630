-- Purpose:    how many records each reason held back, as it was kept when a run was settled.
-- Grain:      one row per decision and reason.
-- Parameters: run_key bigint
-- Personal:   none.
SELECT
    run_reason.decision,
    run_reason.reason,
    run_reason.records,
    run_reason.records_first
FROM ledger.run_reason AS run_reason
WHERE run_reason.run_key = %(run_key)s
