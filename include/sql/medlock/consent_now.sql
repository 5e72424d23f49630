-- Purpose:    the last look: what decides whether these appointments may be sent, as it is committed now (R7-R10, R16).
-- Grain:      one row per appointment that still exists in one of these clinics.
-- Parameters: clinic_ids       bigint[]
--             appointment_ids  bigint[]
-- Personal:   none.
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id,
    appointment.patient_id,
    appointment.doctor_id,
    appointment.is_anonymous,
    patient.refused_personal_data,
    patient.refused_notifications,
    patient.refused_marketing,
    doctor.medflex_banned AS doctor_banned,
    patient.id IS NOT NULL AS patient_found,
    doctor.id IS NOT NULL AS doctor_found
FROM medlock.appointment AS appointment
LEFT JOIN medlock.patient AS patient
    ON appointment.patient_id = patient.id AND appointment.clinic_id = patient.clinic_id
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id AND appointment.clinic_id = doctor.clinic_id
WHERE
    appointment.clinic_id = any(%(clinic_ids)s::bigint[])
    AND appointment.id = any(%(appointment_ids)s::bigint[])
