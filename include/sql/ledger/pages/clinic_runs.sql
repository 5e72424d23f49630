-- Purpose:    the funnel of one clinic, run by run. A run that is not of its day sees another window than today's.
-- Grain:      one row per transfer in which the clinic was, newest first.
-- Parameters: dag_id  text; clinic_id  bigint; since  timestamptz
-- Personal:   none.
SELECT
    run.run_key,
    run.run_id,
    run.mode,
    run.anchor,
    run.started_at,
    run.outcome,
    ledger.is_of_its_day(run) AS is_of_its_day,
    run_clinic.access_state,
    run_clinic.closed_reason,
    run_clinic.shard,
    run_clinic.extracted,
    run_clinic.withheld,
    run_clinic.quarantined,
    run_clinic.eligible,
    run_clinic.unchanged,
    run_clinic.planned,
    run_clinic.accepted,
    run_clinic.rejected,
    run_clinic.withdrawn
FROM ledger.run AS run
INNER JOIN ledger.run_clinic AS run_clinic ON run.run_key = run_clinic.run_key
WHERE run.dag_id = %(dag_id)s AND run.started_at >= %(since)s AND run_clinic.clinic_id = %(clinic_id)s
ORDER BY run.started_at DESC
