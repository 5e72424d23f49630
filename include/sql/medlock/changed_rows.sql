-- Purpose:    whether so many rows of a table changed since an instant that a look at the newest of them has not seen
--             all: changed_appointments.sql, changed_patients.sql.
-- Grain:      one row.
-- Parameters: since timestamptz; most bigint, counted no further than that
-- Personal:   none.
SELECT
    greatest(
        (
            SELECT count(*) FROM (
                SELECT 1 AS one
                FROM medlock.appointment AS appointment
                WHERE appointment.updated_at >= %(since)s
                -- Those that were looked at just before, which are in memory.
                ORDER BY appointment.updated_at DESC
                LIMIT %(most)s
            ) AS appointment
        ),
        (
            SELECT count(*) FROM (
                SELECT 1 AS one
                FROM medlock.patient AS patient
                WHERE patient.updated_at >= %(since)s
                ORDER BY patient.updated_at DESC
                LIMIT %(most)s
            ) AS patient
        ),
        (
            SELECT count(*) FROM (
                SELECT 1 AS one
                FROM medlock.doctor AS doctor
                WHERE doctor.updated_at >= %(since)s
                ORDER BY doctor.updated_at DESC
                LIMIT %(most)s
            ) AS doctor
        )
    ) AS most_changed
