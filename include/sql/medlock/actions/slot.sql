-- Purpose:    what stands at a time to which an appointment is to be moved. Half-open intervals: one may begin when
--             another ends. Cancelled appointments and those to which nobody came leave their time free; one whose end
--             is missing or not behind its start takes a minute.
-- Grain:      one row.
-- Parameters: clinic_id bigint, appointment_id bigint (which may overlap itself), doctor_id bigint, patient_id bigint,
--             starts_at timestamptz, ends_at timestamptz
-- Personal:   none.
SELECT
    exists(
        SELECT FROM medlock.doctor_schedule AS schedule
        WHERE
            schedule.doctor_id = %(doctor_id)s
            AND schedule.clinic_id = %(clinic_id)s
            AND schedule.starts_at <= %(starts_at)s
            AND schedule.ends_at >= %(ends_at)s
    ) AS in_schedule,
    exists(
        SELECT FROM medlock.appointment AS other
        WHERE
            other.doctor_id = %(doctor_id)s
            AND other.id <> %(appointment_id)s
            AND other.starts_at < %(ends_at)s
            AND greatest(other.ends_at, other.starts_at + interval '1 minute') > %(starts_at)s
            AND coalesce(other.status, '') NOT IN ('cancelled', 'no_show')
    ) AS doctor_busy,
    exists(
        SELECT FROM medlock.appointment AS other
        WHERE
            other.patient_id = %(patient_id)s
            AND other.clinic_id = %(clinic_id)s
            AND other.id <> %(appointment_id)s
            AND other.starts_at < %(ends_at)s
            AND greatest(other.ends_at, other.starts_at + interval '1 minute') > %(starts_at)s
            AND coalesce(other.status, '') NOT IN ('cancelled', 'no_show')
    ) AS patient_busy
