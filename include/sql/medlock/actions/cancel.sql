-- Purpose:    a partner cancels an appointment (R13).
-- Grain:      one row: what the appointment is now, which a trigger can have made another thing than was asked for.
-- Parameters: clinic_id bigint, appointment_id bigint
-- Personal:   none.
UPDATE medlock.appointment AS appointment
SET status = 'cancelled', updated_at = clock_timestamp()
WHERE appointment.id = %(appointment_id)s AND appointment.clinic_id = %(clinic_id)s
RETURNING appointment.status, appointment.starts_at, appointment.ends_at
