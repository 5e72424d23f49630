-- Purpose:    about how many appointments the windows of very many clinics hold, to pack shards of about equal size:
--             of a large table some pages are read, a million rows, for to count all of them takes minutes.
-- Grain:      one row per clinic that has any among these.
-- Parameters: windows  jsonb list of {clinic_id, starts_from, starts_before}
-- Personal:   none.
WITH size AS MATERIALIZED (
    -- Unknown until the table is analysed for the first time: then it is read whole.
    SELECT CASE WHEN class.reltuples > 1000000 THEN 1000000 / class.reltuples ELSE 1 END AS share
    FROM pg_catalog.pg_class AS class
    WHERE class.oid = 'medlock.appointment'::regclass
),

sampled AS (
    SELECT
        clinic_id,
        starts_at
    -- sqlfluff's grammar of Postgres lacks this.
    FROM medlock.appointment TABLESAMPLE system ((SELECT 100 * size.share FROM size)) REPEATABLE (1) -- noqa: PRS
)

SELECT
    sampled.clinic_id,
    round(count(*) / (SELECT size.share FROM size))::bigint AS appointments
FROM sampled
INNER JOIN
    jsonb_to_recordset(%(windows)s::jsonb)
        AS clinic_window (clinic_id bigint, starts_from timestamptz, starts_before timestamptz)
    ON
        sampled.clinic_id = clinic_window.clinic_id
        AND sampled.starts_at >= clinic_window.starts_from
        AND sampled.starts_at < clinic_window.starts_before
GROUP BY sampled.clinic_id
