-- Purpose:    keep an appointment as it is until the end of the transaction: whoever is changing it is waited for, and
--             whoever wants to change it waits. What is read behind this is what an action is judged by.
-- Grain:      one row if the clinic has this appointment.
-- Parameters: clinic_id bigint, appointment_id bigint
-- Personal:   none.
SELECT appointment.id
FROM medlock.appointment AS appointment
WHERE appointment.id = %(appointment_id)s AND appointment.clinic_id = %(clinic_id)s
FOR NO KEY UPDATE
