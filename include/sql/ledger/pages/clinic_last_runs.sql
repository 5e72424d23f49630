-- Purpose:    what the newest transfers did with each clinic: its row in the newest run of today that was about it.
-- Grain:      one row per clinic.
-- Parameters: dag_id  text; clinic_id  bigint or NULL for all
-- Personal:   none.
WITH of_its_day AS (
    SELECT
        run.run_key,
        run.run_id,
        run.mode,
        run.started_at,
        run.outcome,
        run.clinic_ids IS NULL AND run.settled_at IS NOT NULL AS is_whole
    FROM ledger.run AS run
    WHERE
        run.dag_id = %(dag_id)s
        AND ledger.is_of_its_day(run)
),

recent AS (
    -- The newest settled run over all clinics, and whatever came behind it.
    SELECT of_its_day.*
    FROM of_its_day
    WHERE
        of_its_day.started_at >= coalesce(
            (
                SELECT max(whole.started_at)
                FROM of_its_day AS whole
                WHERE whole.is_whole
            ),
            '-infinity'
        )
)

SELECT DISTINCT ON (run_clinic.clinic_id)
    run_clinic.clinic_id,
    recent.run_id,
    recent.mode,
    recent.started_at,
    recent.outcome,
    run_clinic.extracted,
    run_clinic.withheld,
    run_clinic.quarantined,
    run_clinic.accepted
FROM recent
INNER JOIN ledger.run_clinic AS run_clinic ON recent.run_key = run_clinic.run_key
WHERE %(clinic_id)s::bigint IS NULL OR run_clinic.clinic_id = %(clinic_id)s::bigint
ORDER BY run_clinic.clinic_id ASC, recent.started_at DESC
