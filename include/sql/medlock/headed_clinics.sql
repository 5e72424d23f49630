-- Purpose:    the clinics that a log-in's owner is the head of, who alone may turn the access switch there (R2).
-- Grain:      one row per clinic.
-- Parameters: login  text, compared exactly
-- Personal:   none is returned.
SELECT staff.clinic_id
FROM medlock.staff AS staff
WHERE staff.login = %(login)s AND staff.role = 'head' AND staff.clinic_id IS NOT NULL
