-- Purpose:    the appointments of a shard's clinics inside their windows (R6), with what the rules judge by
--             (R7-R11, R16, R17) and what would be sent (R5). Nothing else about the patient is read.
-- Grain:      one row per appointment, in no particular order.
-- Parameters: the setting medflex.windows, a JSON list of {clinic_id, starts_from, starts_before}, made with
--             set_config() just before: a bound parameter would keep ADBC from streaming the result by COPY.
-- Personal:   first_name, patronymic, phone.
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id,
    appointment.patient_id,
    appointment.doctor_id,
    appointment.starts_at,
    appointment.ends_at,
    appointment.status,
    appointment.entry,
    appointment.is_anonymous,
    patient.first_name,
    patient.patronymic,
    patient.phone,
    patient.refused_personal_data,
    patient.refused_notifications,
    patient.refused_marketing,
    doctor.medflex_banned AS doctor_banned,
    patient.id IS NOT NULL AS patient_found,
    doctor.id IS NOT NULL AS doctor_found,
    appointment.created_at,
    appointment.updated_at
FROM
    jsonb_to_recordset(current_setting('medflex.windows')::jsonb)
        AS clinic_window (clinic_id bigint, starts_from timestamptz, starts_before timestamptz)
INNER JOIN medlock.appointment AS appointment
    ON
        clinic_window.clinic_id = appointment.clinic_id
        AND appointment.starts_at >= clinic_window.starts_from
        AND appointment.starts_at < clinic_window.starts_before
-- A patient or doctor of another clinic counts as not found (R17, reference_broken).
LEFT JOIN medlock.patient AS patient
    ON appointment.patient_id = patient.id AND appointment.clinic_id = patient.clinic_id
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id AND appointment.clinic_id = doctor.clinic_id
