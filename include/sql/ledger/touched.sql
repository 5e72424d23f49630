-- Purpose:    the records that may show these appointments or these patients, under whichever clinic: an appointment
--             may have moved to another one since, or be gone.
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
