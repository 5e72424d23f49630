-- Purpose:    what is committed now behind records that Medflex shows: everything the rules judge by, as in
--             appointments.sql, and when it changed last. What is asked for and not there has no row.
-- Grain:      one row per appointment that still exists in that clinic.
-- Parameters: the settings medflex.clinic_ids and medflex.appointment_ids, bigint[] literals that run in parallel, made
--             with set_config() just before, so that ADBC can stream the result by COPY.
-- Personal:   first_name, patronymic, phone.
SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id,
    appointment.patient_id,
    appointment.doctor_id,
    -- One that is not to begin in any calendar ('infinity', say) is beyond each window; read as it is, it would come
    -- round to the far past.
    least(appointment.starts_at, '9000-01-01 00:00+00') AS starts_at,
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
    -- A ban holds also where the doctor is another clinic's by now; of a doctor who does not exist, nobody knows one.
    CASE
        WHEN appointment.clinic_id = doctor.clinic_id THEN doctor.medflex_banned
        WHEN doctor.id IS NOT NULL THEN doctor.medflex_banned IS NOT FALSE
    END AS doctor_banned,
    patient.id IS NOT NULL AS patient_found,
    coalesce(appointment.clinic_id = doctor.clinic_id, FALSE) AS doctor_found,
    appointment.created_at,
    appointment.updated_at,
    patient.updated_at AS patient_updated_at,
    doctor.updated_at AS doctor_updated_at
FROM
    unnest(
        current_setting('medflex.clinic_ids')::bigint[], current_setting('medflex.appointment_ids')::bigint[]
    ) AS asked (clinic_id, appointment_id)
INNER JOIN medlock.appointment AS appointment
    ON
        asked.appointment_id = appointment.id
        -- Said so that the planner does not take it for another condition that few rows meet: it would expect two
        -- hundred times fewer rows, and look for each one's patient by itself.
        AND coalesce(asked.clinic_id = appointment.clinic_id, FALSE)
LEFT JOIN medlock.patient AS patient
    ON appointment.patient_id = patient.id AND appointment.clinic_id = patient.clinic_id
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id
