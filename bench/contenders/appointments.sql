-- For the contenders that know no clinics' switches and windows: what the product's own query
-- (include/sql/medlock/appointments.sql) reads, with the windows from a table that the benchmark fills.
CREATE SCHEMA IF NOT EXISTS bench;
CREATE TABLE IF NOT EXISTS bench.clinic_window (
    clinic_id bigint PRIMARY KEY,
    lpu_id bigint NOT NULL,
    partners text NOT NULL, -- ids of the partners, with commas between them; empty if there is none
    starts_from timestamptz NOT NULL,
    starts_before timestamptz NOT NULL
);
TRUNCATE bench.clinic_window;

CREATE OR REPLACE VIEW bench.appointments AS
SELECT
    appointment.clinic_id,
    clinic_window.lpu_id,
    clinic_window.partners,
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
FROM bench.clinic_window AS clinic_window
INNER JOIN medlock.appointment AS appointment
    ON
        clinic_window.clinic_id = appointment.clinic_id
        AND appointment.starts_at >= clinic_window.starts_from
        AND appointment.starts_at < clinic_window.starts_before
LEFT JOIN medlock.patient AS patient
    ON appointment.patient_id = patient.id AND appointment.clinic_id = patient.clinic_id
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id AND appointment.clinic_id = doctor.clinic_id;

-- What may be shared, as far as a simple filter tells: for dlt, and to check what the others have sent.
CREATE OR REPLACE VIEW bench.permitted AS
SELECT
    clinic_id,
    lpu_id,
    partners,
    appointment_id,
    doctor_id,
    starts_at,
    ends_at,
    status,
    entry,
    first_name,
    patronymic,
    phone,
    updated_at
FROM bench.appointments
WHERE
    refused_personal_data IS FALSE
    AND refused_notifications IS FALSE
    AND refused_marketing IS FALSE
    AND is_anonymous IS FALSE
    AND doctor_banned IS FALSE
    AND patient_found
    AND doctor_found
    AND partners <> ''
    AND ends_at > starts_at
    AND entry IN ('direct', 'online')
    AND trim(phone) <> ''
    AND trim(first_name) <> '';

GRANT USAGE ON SCHEMA bench TO medlock_app;
GRANT SELECT ON ALL TABLES IN SCHEMA bench TO medlock_app;
