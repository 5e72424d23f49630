-- Purpose:    how many records Medflex shows or may show of these clinics: the measure of how many may vanish.
-- Grain:      one row per clinic that has any.
-- Parameters: clinic_ids bigint[]; in_window boolean: without what has left the window by the passing of time
-- Personal:   none.
SELECT
    record.clinic_id,
    count(*) AS records
FROM ledger.record AS record
WHERE
    record.clinic_id = any(%(clinic_ids)s::bigint[])
    AND record.state <> 'withdrawn'
    AND (record.state <> 'aged_out' OR NOT %(in_window)s)
GROUP BY record.clinic_id
