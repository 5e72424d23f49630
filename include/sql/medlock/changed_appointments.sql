-- Purpose:    the appointments for which something may have been revoked since an instant: their own row changed, or
--             their patient's or doctor's did and says no now. Rows that are gone leave no stamp: deleted_rows.sql.
-- Grain:      one row per appointment, the newest change first.
-- Parameters: since timestamptz, of what says no now; edited_since timestamptz, of other changes of the own row; most
--             bigint, no more rows than that
-- Personal:   none.
SELECT
    found.clinic_id,
    found.appointment_id
FROM (
    (
        SELECT
            appointment.clinic_id,
            appointment.id AS appointment_id,
            appointment.updated_at AS changed_at
        FROM medlock.appointment AS appointment
        WHERE appointment.updated_at >= %(edited_since)s
        -- Any of them: where there are more, none is gone over here.
        LIMIT %(most)s -- noqa: AM09
    )
    UNION ALL
    SELECT
        appointment.clinic_id,
        appointment.id AS appointment_id,
        appointment.updated_at AS changed_at
    FROM medlock.appointment AS appointment
    WHERE appointment.updated_at >= %(since)s AND appointment.is_anonymous IS NOT FALSE
    UNION ALL
    SELECT
        appointment.clinic_id,
        appointment.id AS appointment_id,
        patient.updated_at AS changed_at
    FROM (
        -- Before their appointments are looked up: somebody may have touched all patients.
        SELECT
            patient.id,
            patient.updated_at
        FROM medlock.patient AS patient
        WHERE
            patient.updated_at >= %(since)s
            -- Only a flag that is exactly false permits (R16).
            AND (
                patient.refused_personal_data IS NOT FALSE
                OR patient.refused_notifications IS NOT FALSE
                OR patient.refused_marketing IS NOT FALSE
            )
        ORDER BY patient.updated_at DESC
        LIMIT %(most)s
    ) AS patient
    INNER JOIN medlock.appointment AS appointment ON patient.id = appointment.patient_id
    UNION ALL
    SELECT
        appointment.clinic_id,
        appointment.id AS appointment_id,
        doctor.updated_at AS changed_at
    FROM medlock.doctor AS doctor
    INNER JOIN medlock.appointment AS appointment ON doctor.id = appointment.doctor_id
    WHERE doctor.updated_at >= %(since)s AND doctor.medflex_banned IS NOT FALSE
) AS found
GROUP BY found.clinic_id, found.appointment_id
ORDER BY max(found.changed_at) DESC
LIMIT %(most)s
