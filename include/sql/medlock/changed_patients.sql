-- Purpose:    the patients whose row changed since an instant and says no now: what Medflex shows of them is looked at,
--             also where their appointments are not there any more.
-- Grain:      one row per patient, the newest change first.
-- Parameters: since timestamptz; most bigint, no more rows than that
-- Personal:   none.
SELECT patient.id AS patient_id
FROM medlock.patient AS patient
WHERE
    patient.updated_at >= %(since)s
    AND (
        patient.refused_personal_data IS NOT FALSE
        OR patient.refused_notifications IS NOT FALSE
        OR patient.refused_marketing IS NOT FALSE
    )
ORDER BY patient.updated_at DESC
LIMIT %(most)s
