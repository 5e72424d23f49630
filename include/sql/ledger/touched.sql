-- Purpose:    the records that may show these appointments or these patients, under whichever clinic: an appointment
--             may have moved to another one since, or be gone. What is in an intent without outcome may be there, too.
-- Grain:      one row per clinic and appointment.
-- Parameters: appointment_ids, patient_ids bigint[]
-- Personal:   none.
SELECT
    record.clinic_id,
    record.appointment_id
FROM ledger.record AS record
WHERE record.appointment_id = any(%(appointment_ids)s::bigint[]) AND record.state <> 'withdrawn'
UNION
SELECT
    record.clinic_id,
    record.appointment_id
FROM ledger.record AS record
WHERE record.patient_id = any(%(patient_ids)s::bigint[]) AND record.state <> 'withdrawn'
UNION
SELECT
    batch.clinic_id,
    item.appointment_id
FROM ledger.batch AS batch
CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.patient_ids) AS item (appointment_id, patient_id)
WHERE
    batch.outcome IS NULL
    AND (
        item.appointment_id = any(%(appointment_ids)s::bigint[])
        OR item.patient_id = any(%(patient_ids)s::bigint[])
    )
