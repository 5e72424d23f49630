-- Purpose:    how many records of these clinics were withdrawn since an instant because their rows had vanished,
--             without anybody being asked. What a person has released is no measure, nor what Medflex has put off: that
--             is still there, and counted there.
-- Grain:      one row per clinic that has any.
-- Parameters: clinic_ids bigint[], since timestamptz, reasons text[] (those that tell of absence)
-- Personal:   none.
SELECT
    batch.clinic_id,
    count(DISTINCT item.appointment_id) AS records
FROM ledger.batch AS batch
CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.reasons) AS item (appointment_id, reason)
WHERE
    batch.operation = 'withdraw'
    AND batch.outcome IS DISTINCT FROM 'to_retry'
    AND batch.created_at >= %(since)s
    AND batch.clinic_id = any(%(clinic_ids)s::bigint[])
    AND item.reason = any(%(reasons)s::text[])
    AND NOT EXISTS (
        SELECT 1
        FROM ledger.hold AS hold
        WHERE
            hold.clinic_id = batch.clinic_id
            AND hold.state = 'released'
            AND item.appointment_id = any(hold.appointment_ids)
    )
GROUP BY batch.clinic_id
