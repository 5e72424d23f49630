-- Purpose:    a partner moves an appointment to another time (R13); doctor and status stay.
-- Grain:      one row: what the appointment is now, which a trigger can have made another thing than was asked for.
-- Parameters: clinic_id bigint, appointment_id bigint, starts_at timestamptz, ends_at timestamptz
-- Personal:   none.
UPDATE medlock.appointment AS appointment
SET starts_at = %(starts_at)s, ends_at = %(ends_at)s, updated_at = clock_timestamp()
WHERE appointment.id = %(appointment_id)s AND appointment.clinic_id = %(clinic_id)s
RETURNING appointment.status, appointment.starts_at, appointment.ends_at
