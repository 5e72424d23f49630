-- Purpose:    the staff id with which a log-in's owner is the head of a clinic (R2).
-- Grain:      one row, or none for anybody else.
-- Parameters: clinic_id  bigint; login  text, compared exactly
-- Personal:   none is returned.
SELECT staff.id AS staff_id
FROM medlock.staff AS staff
INNER JOIN medlock.clinic AS clinic ON staff.clinic_id = clinic.id
WHERE staff.login = %(login)s AND staff.role = 'head' AND staff.clinic_id = %(clinic_id)s
