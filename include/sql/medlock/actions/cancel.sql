-- Purpose:    a partner cancels an appointment (R13).
-- Grain:      one row: the appointment that was changed.
-- Parameters: clinic_id bigint, appointment_id bigint
-- Personal:   none.
UPDATE medlock.appointment AS appointment
SET status = 'cancelled', updated_at = clock_timestamp()
WHERE appointment.id = %(appointment_id)s AND appointment.clinic_id = %(clinic_id)s
RETURNING appointment.id
