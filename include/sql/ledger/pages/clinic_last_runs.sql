-- Purpose:    what the newest transfers did with each clinic: its row in the newest run that was about it.
-- Grain:      one row per clinic.
-- Parameters: dag_id  text; clinic_id  bigint or NULL for all
-- Personal:   none.
WITH recent AS (
    -- The newest settled run over all clinics, and whatever came behind it.
    SELECT
        run.run_key,
        run.run_id,
        run.mode,
        run.started_at,
        run.outcome
    FROM ledger.run AS run
    WHERE
        run.dag_id = %(dag_id)s
        AND run.started_at >= coalesce(
            (
                SELECT max(whole.started_at) FROM ledger.run AS whole
                WHERE whole.dag_id = %(dag_id)s AND whole.clinic_ids IS NULL AND whole.settled_at IS NOT NULL
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
