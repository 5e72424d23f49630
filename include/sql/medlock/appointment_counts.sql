-- Purpose:    how many appointments the windows of these clinics hold, to pack shards of about equal size.
-- Grain:      one row per clinic that has any.
-- Parameters: windows  jsonb list of {clinic_id, starts_from, starts_before}
-- Personal:   none.
SELECT
    appointment.clinic_id,
    count(*) AS appointments
FROM
    jsonb_to_recordset(%(windows)s::jsonb)
        AS clinic_window (clinic_id bigint, starts_from timestamptz, starts_before timestamptz)
INNER JOIN medlock.appointment AS appointment
    ON
        clinic_window.clinic_id = appointment.clinic_id
        AND appointment.starts_at >= clinic_window.starts_from
        AND appointment.starts_at < clinic_window.starts_before
GROUP BY appointment.clinic_id
