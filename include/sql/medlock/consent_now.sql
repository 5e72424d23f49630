-- Purpose:    the last look: what decides whether these appointments may be sent, as it is committed now (R6-R10, R16,
--             R17).
-- Grain:      one row per kind of answer, with the appointments that still exist in one of these clinics in parallel
--             arrays: there are few kinds, and a row for each appointment takes several times as long to hand over.
-- Parameters: clinic_ids       bigint[]
--             appointment_ids  bigint[]
-- Personal:   none; of phone and first name only whether there is one.
WITH found AS MATERIALIZED (
    SELECT
        appointment.clinic_id,
        appointment.id,
        appointment.patient_id,
        appointment.doctor_id,
        -- In floats, which are cheap, and exact until 2106. One that is not to begin in any calendar ('infinity', say)
        -- is in no window, and keeps no other one from being looked at.
        CASE
            WHEN appointment.starts_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
                THEN (date_part('epoch', appointment.starts_at) * 1000000)::bigint
        END AS starts,
        appointment.is_anonymous
    FROM medlock.appointment AS appointment
    WHERE
        appointment.id = any(%(appointment_ids)s::bigint[])
        -- Said so that the index of clinics is left alone: it would be read for all of a clinic's appointments.
        AND coalesce(appointment.clinic_id = any(%(clinic_ids)s::bigint[]), FALSE)
),

-- All at once, in the order of their index: one after the other, each costs a look by itself.
person AS MATERIALIZED (
    SELECT
        patient.id,
        patient.clinic_id,
        patient.refused_personal_data,
        patient.refused_notifications,
        patient.refused_marketing,
        -- Erased is also what has no digit, of any alphabet, or nothing to be seen: a dash, say, or a space that does
        -- not break. Escapes, since such characters are not in every database's encoding.
        coalesce(patient.phone ~ '[0-9\u0660-\u0669\u06f0-\u06f9\uff10-\uff19]', FALSE) AS has_phone,
        coalesce(
            patient.first_name
            ~ '[^\s\x01-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0]', -- noqa: LT05
            FALSE
        ) AS has_name
    FROM medlock.patient AS patient
    WHERE patient.id = any(array(SELECT found.patient_id FROM found))
)

SELECT
    array_agg(appointment.clinic_id) AS clinic_ids,
    array_agg(appointment.id) AS appointment_ids,
    array_agg(appointment.patient_id) AS patient_ids,
    array_agg(appointment.doctor_id) AS doctor_ids,
    array_agg(appointment.starts) AS starts,
    appointment.is_anonymous,
    patient.refused_personal_data,
    patient.refused_notifications,
    patient.refused_marketing,
    patient.has_phone,
    patient.has_name,
    doctor.medflex_banned AS doctor_banned,
    patient.id IS NOT NULL AS patient_found,
    doctor.id IS NOT NULL AS doctor_found
FROM found AS appointment
LEFT JOIN person AS patient
    ON appointment.patient_id = patient.id AND appointment.clinic_id = patient.clinic_id
LEFT JOIN medlock.doctor AS doctor
    ON appointment.doctor_id = doctor.id AND appointment.clinic_id = doctor.clinic_id
GROUP BY
    appointment.is_anonymous,
    patient.refused_personal_data,
    patient.refused_notifications,
    patient.refused_marketing,
    patient.has_phone,
    patient.has_name,
    doctor.medflex_banned,
    patient.id IS NOT NULL,
    doctor.id IS NOT NULL
