-- Purpose:    for how many of a clinic's records each reason held, run by run; a record counts under each of its own.
-- Grain:      one row per run, decision and reason.
-- Parameters: dag_id  text; clinic_id  bigint; since  timestamptz
-- Personal:   none.
SELECT
    run.run_key,
    run.started_at,
    run_decision.decision,
    reason.code,
    sum(cardinality(run_decision.appointment_ids))::bigint AS records
FROM ledger.run AS run
INNER JOIN ledger.run_decision AS run_decision ON run.run_key = run_decision.run_key
CROSS JOIN LATERAL unnest(run_decision.reasons) AS reason (code)
WHERE
    run.dag_id = %(dag_id)s
    AND run.started_at >= %(since)s
    AND run_decision.clinic_id = %(clinic_id)s
    AND run_decision.stage = 'withhold'
GROUP BY run.run_key, run.started_at, run_decision.decision, reason.code
ORDER BY run.started_at DESC, records DESC, reason.code ASC
