-- Purpose:    the flags of patients as they are committed now, for records whose appointments are not there any more:
--             a no that somebody has said holds whether or not the row is there (R7, R8, R12, R16).
-- Grain:      one row per patient who exists, in whichever clinic.
-- Parameters: patient_ids bigint[]
-- Personal:   none.
SELECT
    patient.id AS patient_id,
    patient.refused_personal_data,
    patient.refused_notifications,
    patient.refused_marketing,
    -- A stamp that no program can hold is none, and one such row keeps nobody's refusal from being read. The bounds are
    -- those of clinics.sql.
    CASE
        WHEN patient.updated_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
            THEN patient.updated_at
    END AS updated_at
FROM medlock.patient AS patient
WHERE patient.id = any(%(patient_ids)s::bigint[])
