-- Purpose:    whether somebody says no to appointments that are another clinic's by now: a no holds wherever the row is
--             (R9, R10, R12, R16).
-- Grain:      one row per appointment that exists, in whichever clinic.
-- Parameters: appointment_ids bigint[]
-- Personal:   none.
SELECT
    appointment.id AS appointment_id,
    appointment.is_anonymous IS NOT FALSE AS is_anonymous,
    doctor.id IS NOT NULL AND doctor.medflex_banned IS NOT FALSE AS doctor_banned,
    -- A stamp that no program can hold is none, as in patients_now.sql.
    CASE
        WHEN appointment.updated_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
            THEN appointment.updated_at
    END AS updated_at,
    CASE
        WHEN doctor.updated_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
            THEN doctor.updated_at
    END AS doctor_updated_at
FROM medlock.appointment AS appointment
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id
WHERE appointment.id = any(%(appointment_ids)s::bigint[])
