-- Purpose:    the appointments for which something may have been revoked since an instant: their own row changed, or
--             their patient's or doctor's did and says no now. Rows that are gone leave no stamp: deleted_rows.sql.
-- Grain:      one row per appointment, in no particular order.
-- Parameters: since timestamptz, of what says no now; edited_since timestamptz, of other changes of the own row; most
--             bigint, of these no more
-- Personal:   none.
(
    SELECT
        appointment.clinic_id,
        appointment.id AS appointment_id
    FROM medlock.appointment AS appointment
    WHERE appointment.updated_at >= %(edited_since)s
    -- Any of them: where there are more, none is gone over here.
    LIMIT %(most)s -- noqa: AM09
)
UNION
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id
FROM medlock.appointment AS appointment
WHERE appointment.updated_at >= %(since)s AND appointment.is_anonymous IS NOT FALSE
UNION
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id
FROM medlock.patient AS patient
INNER JOIN medlock.appointment AS appointment ON patient.id = appointment.patient_id
WHERE
    patient.updated_at >= %(since)s
    -- Only a flag that is exactly false permits (R16).
    AND (
        patient.refused_personal_data IS NOT FALSE
        OR patient.refused_notifications IS NOT FALSE
        OR patient.refused_marketing IS NOT FALSE
    )
UNION
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id
FROM medlock.doctor AS doctor
INNER JOIN medlock.appointment AS appointment ON doctor.id = appointment.doctor_id
WHERE doctor.updated_at >= %(since)s AND doctor.medflex_banned IS NOT FALSE
