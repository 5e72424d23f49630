-- Purpose:    how many clinics of a run were open, waiting or closed, and why.
-- Grain:      one row per state and reason.
-- Parameters: run_key bigint, shard int or NULL for all
-- Personal:   none.
SELECT
    run_clinic.access_state,
    run_clinic.closed_reason,
    count(*) AS clinics
FROM ledger.run_clinic AS run_clinic
WHERE
    run_clinic.run_key = %(run_key)s
    AND (%(shard)s::int IS NULL OR run_clinic.shard = %(shard)s::int)
GROUP BY run_clinic.access_state, run_clinic.closed_reason
ORDER BY count(*) DESC, run_clinic.access_state ASC, run_clinic.closed_reason ASC
