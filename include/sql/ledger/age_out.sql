-- Purpose:    mark records whose appointments have left the window by the passing of time; they stay subject to R12.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[], in parallel
-- Personal:   none.
WITH item AS (
    SELECT
        record.clinic_id,
        record.appointment_id,
        record.lpu_id
    FROM ledger.record AS record
    INNER JOIN
        unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(lpu_ids)s::bigint[])
            AS asked (clinic_id, appointment_id, lpu_id)
        ON
            record.clinic_id = asked.clinic_id
            AND record.appointment_id = asked.appointment_id
            AND record.lpu_id = asked.lpu_id
    WHERE record.state = 'sent'
    -- In this order every lane locks records, so that no two wait for each other.
    ORDER BY record.clinic_id, record.appointment_id, record.lpu_id
    FOR NO KEY UPDATE OF record
)

UPDATE ledger.record AS record
SET state = 'aged_out'
FROM item
WHERE
    record.clinic_id = item.clinic_id
    AND record.appointment_id = item.appointment_id
    AND record.lpu_id = item.lpu_id
