-- Purpose:    in which states a clinic's records are, that is what Medflex may show of it.
-- Grain:      one row per state.
-- Parameters: clinic_id  bigint
-- Personal:   none.
SELECT
    record.state,
    count(*) AS records
FROM ledger.record AS record
WHERE record.clinic_id = %(clinic_id)s
GROUP BY record.state
ORDER BY record.state
