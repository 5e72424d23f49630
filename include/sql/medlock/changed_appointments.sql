-- Purpose:    the appointments for which something may have been revoked since an instant: their own row changed, or
--             their patient's or doctor's did and says no now. Rows that are gone leave no stamp: deleted_rows.sql.
-- Grain:      one row per appointment, the newest change first.
-- Parameters: appointments_since, patients_since, doctors_since timestamptz, of what says no now, by whose row has
--             changed; edited_since timestamptz, of other changes of the own row; most bigint, no more rows than that
-- Personal:   none.
-- Bounded at each step, the first one by changed_rows.sql: somebody may have touched all rows of a table.
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
    (
        SELECT
            appointment.clinic_id,
            appointment.id AS appointment_id,
            appointment.updated_at AS changed_at
        FROM medlock.appointment AS appointment
        WHERE appointment.updated_at >= %(appointments_since)s AND appointment.is_anonymous IS NOT FALSE
        ORDER BY appointment.updated_at DESC
        LIMIT %(most)s
    )
    UNION ALL
    (
        SELECT
            appointment.clinic_id,
            appointment.id AS appointment_id,
            patient.updated_at AS changed_at
        FROM (
            SELECT
                patient.id,
                patient.updated_at
            FROM medlock.patient AS patient
            WHERE
                patient.updated_at >= %(patients_since)s
                -- Only a flag that is exactly false permits (R16).
                AND (
                    patient.refused_personal_data IS NOT FALSE
                    OR patient.refused_notifications IS NOT FALSE
                    OR patient.refused_marketing IS NOT FALSE
                )
            ORDER BY patient.updated_at DESC
            LIMIT %(most)s
        ) AS patient
        CROSS JOIN
            LATERAL (
                SELECT
                    appointment.id,
                    appointment.clinic_id
                FROM medlock.appointment AS appointment
                WHERE appointment.patient_id = patient.id
                -- With a limit it is no join, which may read all appointments to give a few.
                ORDER BY appointment.starts_at DESC
                LIMIT %(most)s
            ) AS appointment
        ORDER BY patient.updated_at DESC
        LIMIT %(most)s
    )
    UNION ALL
    (
        SELECT
            appointment.clinic_id,
            appointment.id AS appointment_id,
            doctor.updated_at AS changed_at
        FROM (
            SELECT
                doctor.id,
                doctor.updated_at
            FROM medlock.doctor AS doctor
            WHERE doctor.updated_at >= %(doctors_since)s AND doctor.medflex_banned IS NOT FALSE
            ORDER BY doctor.updated_at DESC
            LIMIT %(most)s
        ) AS doctor
        CROSS JOIN
            LATERAL (
                SELECT
                    appointment.id,
                    appointment.clinic_id
                FROM medlock.appointment AS appointment
                WHERE appointment.doctor_id = doctor.id
                -- What Medflex may show comes before years of what it does not.
                ORDER BY appointment.starts_at DESC
                LIMIT %(most)s
            ) AS appointment
        ORDER BY doctor.updated_at DESC
        LIMIT %(most)s
    )
) AS found
GROUP BY found.clinic_id, found.appointment_id
ORDER BY max(found.changed_at) DESC
LIMIT %(most)s
