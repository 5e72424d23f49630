-- Purpose:    the appointments for which something may have been revoked since an instant: their own row changed, or
--             their patient's or doctor's did and says no now. Rows that are gone leave no stamp: deleted_rows.sql.
-- Grain:      one row per appointment, the newest change first.
-- Parameters: since timestamptz, of what says no now; edited_since timestamptz, of other changes of the own row; most
--             bigint, no more rows than that; among bigint, of each table no more changed rows are looked at than that,
--             the newest
-- Personal:   none.
-- Bounded at each step: somebody may have touched all rows of a table, and each look goes back hours.
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
        FROM (
            SELECT
                appointment.id,
                appointment.clinic_id,
                appointment.updated_at,
                appointment.is_anonymous
            FROM medlock.appointment AS appointment
            WHERE appointment.updated_at >= %(since)s
            ORDER BY appointment.updated_at DESC
            LIMIT %(among)s
        ) AS appointment
        WHERE appointment.is_anonymous IS NOT FALSE
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
                patient.updated_at,
                patient.refused_personal_data,
                patient.refused_notifications,
                patient.refused_marketing
            FROM medlock.patient AS patient
            WHERE patient.updated_at >= %(since)s
            ORDER BY patient.updated_at DESC
            LIMIT %(among)s
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
        WHERE
            -- Only a flag that is exactly false permits (R16).
            patient.refused_personal_data IS NOT FALSE
            OR patient.refused_notifications IS NOT FALSE
            OR patient.refused_marketing IS NOT FALSE
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
                doctor.updated_at,
                doctor.medflex_banned
            FROM medlock.doctor AS doctor
            WHERE doctor.updated_at >= %(since)s
            ORDER BY doctor.updated_at DESC
            LIMIT %(among)s
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
        WHERE doctor.medflex_banned IS NOT FALSE
        ORDER BY doctor.updated_at DESC
        LIMIT %(most)s
    )
) AS found
GROUP BY found.clinic_id, found.appointment_id
ORDER BY max(found.changed_at) DESC
LIMIT %(most)s
