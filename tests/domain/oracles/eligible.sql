-- Purpose:    the rules R1-R4, R6-R10, R16 and R17 once more, as one plain query; an oracle for tests.
-- Grain:      one row per appointment that may be sent.
-- Parameters: now             timestamptz, the moment of sending
--             anchor          timestamptz, its local day is the run's day
--             clinic_ids      bigint[]
--             readable_phones text[], phones as typed which are known to be readable
-- Personal:   none in the result.
WITH known_zone AS MATERIALIZED (
    SELECT name
    FROM pg_timezone_names
    WHERE name NOT IN ('localtime', 'posixrules', 'Factory') AND name NOT LIKE 'posix/%%'
)

SELECT
    appointment.clinic_id,
    appointment.id AS appointment_id
FROM medlock.appointment
INNER JOIN medlock.clinic ON appointment.clinic_id = clinic.id
INNER JOIN known_zone ON clinic.timezone = known_zone.name
INNER JOIN medlock.medflex_access ON clinic.id = medflex_access.clinic_id
INNER JOIN medlock.staff ON medflex_access.changed_by = staff.id AND clinic.id = staff.clinic_id
INNER JOIN medlock.patient ON appointment.patient_id = patient.id AND clinic.id = patient.clinic_id
INNER JOIN medlock.doctor ON appointment.doctor_id = doctor.id AND clinic.id = doctor.clinic_id
WHERE
    clinic.id = any(%(clinic_ids)s::bigint[])
    AND clinic.lpu_id IS NOT NULL
    AND medflex_access.enabled IS TRUE
    AND staff.role = 'head'
    AND %(now)s::timestamptz - medflex_access.changed_at >= interval '24 hours'
    AND EXISTS (
        SELECT 1
        FROM medlock.clinic_partner
        INNER JOIN medlock.partner ON clinic_partner.partner_id = partner.id
        WHERE clinic_partner.clinic_id = clinic.id AND clinic_partner.enabled IS TRUE
    )
    AND patient.refused_personal_data IS FALSE
    AND patient.refused_notifications IS FALSE
    AND patient.refused_marketing IS FALSE
    AND doctor.medflex_banned IS FALSE
    AND appointment.is_anonymous IS FALSE
    AND appointment.entry IN ('direct', 'online')
    AND appointment.ends_at > appointment.starts_at
    AND translate(patient.first_name, U&' \0009\00A0\200B', '') <> ''
    AND patient.phone = any(%(readable_phones)s::text[])
    AND (appointment.starts_at AT TIME ZONE known_zone.name)::date
    - (%(anchor)s::timestamptz AT TIME ZONE known_zone.name)::date BETWEEN -45 AND 30
    -- A backfill sends no more than the window of its own day and today's have in common.
    AND (appointment.starts_at AT TIME ZONE known_zone.name)::date
    - (%(now)s::timestamptz AT TIME ZONE known_zone.name)::date BETWEEN -45 AND 30
