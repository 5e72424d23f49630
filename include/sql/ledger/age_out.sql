-- Purpose:    mark records whose appointments have left the window by the passing of time; they stay subject to R12.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[], in parallel
-- Personal:   none.
UPDATE ledger.record AS record
SET state = 'aged_out'
FROM
    unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(lpu_ids)s::bigint[])
        AS item (clinic_id, appointment_id, lpu_id)
WHERE
    record.clinic_id = item.clinic_id
    AND record.appointment_id = item.appointment_id
    AND record.lpu_id = item.lpu_id
    AND record.state = 'sent'
