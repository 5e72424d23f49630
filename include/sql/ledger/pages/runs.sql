-- Purpose:    runs with the sums that were kept of them, newest first.
-- Grain:      one row per run; without sums (all NULL) while it is not settled, or if it was before sums were kept.
-- Parameters: dag_id text or NULL for all, run_id text or NULL for all, size int, skip int
-- Personal:   none.
SELECT
    run.run_key,
    run.dag_id,
    run.run_id,
    run.run_type,
    run.mode,
    run.anchor,
    run.clinic_ids IS NULL AS is_full,
    run.started_at,
    run.settled_at,
    run.outcome,
    run.problems,
    run.report,
    run_total.clinics,
    run_total.clinics_open,
    run_total.clinics_waiting,
    run_total.clinics_closed,
    run_total.shards,
    run_total.shards_troubled,
    run_total.extracted,
    run_total.eligible,
    run_total.withheld,
    run_total.quarantined,
    run_total.unknown_statuses,
    run_total.new,
    run_total.changed,
    run_total.again,
    run_total.unchanged,
    run_total.planned,
    run_total.accepted,
    run_total.rejected,
    run_total.to_retry,
    run_total.unknown,
    run_total.dropped,
    run_total.revoked,
    run_total.withdrawn,
    run_total.withdraw_to_retry,
    run_total.withdraw_unknown,
    run_total.permitted_again,
    run_total.held
FROM ledger.run AS run
LEFT JOIN ledger.run_total AS run_total ON run.run_key = run_total.run_key
WHERE
    (%(dag_id)s::text IS NULL OR run.dag_id = %(dag_id)s::text)
    AND (%(run_id)s::text IS NULL OR run.run_id = %(run_id)s::text)
ORDER BY run.started_at DESC, run.run_key DESC
LIMIT %(size)s OFFSET %(skip)s
