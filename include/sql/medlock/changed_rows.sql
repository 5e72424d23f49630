-- Purpose:    since when at most so many rows of each table have changed: a look goes over these, the newest, and not
--             over all where somebody has touched a whole table.
-- Grain:      one row; of each table the first instant behind the stamp of the newest row that is not among those, and
--             NULL where all are.
-- Parameters: since timestamptz, rows stamped earlier are not looked at; most bigint, so many rows of each table
-- Personal:   none.
-- The microsecond is added to the one stamp that counts: behind the largest that Postgres has, there is none.
SELECT
    (
        SELECT least(appointment.updated_at, '9000-01-01 00:00+00') + interval '1 microsecond'
        FROM (
            SELECT appointment.updated_at
            FROM medlock.appointment AS appointment
            WHERE appointment.updated_at >= %(since)s::timestamptz
            ORDER BY appointment.updated_at DESC
            LIMIT 1 OFFSET %(most)s
        ) AS appointment
    ) AS appointments,
    (
        SELECT least(patient.updated_at, '9000-01-01 00:00+00') + interval '1 microsecond'
        FROM (
            SELECT patient.updated_at
            FROM medlock.patient AS patient
            WHERE patient.updated_at >= %(since)s::timestamptz
            ORDER BY patient.updated_at DESC
            LIMIT 1 OFFSET %(most)s
        ) AS patient
    ) AS patients,
    (
        SELECT least(doctor.updated_at, '9000-01-01 00:00+00') + interval '1 microsecond'
        FROM (
            SELECT doctor.updated_at
            FROM medlock.doctor AS doctor
            WHERE doctor.updated_at >= %(since)s::timestamptz
            ORDER BY doctor.updated_at DESC
            LIMIT 1 OFFSET %(most)s
        ) AS doctor
    ) AS doctors
