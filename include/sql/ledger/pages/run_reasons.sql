-- Purpose:    how many records each reason held back in a run: under each that holds, and once under the first.
-- Grain:      one row per decision and reason; the columns of ledger.run_reason.
-- Parameters: run_key bigint, clinic_ids bigint[] or NULL for all
-- Personal:   none.
SELECT
    %(run_key)s::bigint AS run_key,
    run_decision.decision,
    item.reason,
    sum(cardinality(run_decision.appointment_ids))::bigint AS records,
    coalesce(sum(cardinality(run_decision.appointment_ids)) FILTER (WHERE item.place = 1), 0)::bigint AS records_first
FROM ledger.run_decision AS run_decision
CROSS JOIN LATERAL unnest(run_decision.reasons) WITH ORDINALITY AS item (reason, place)
WHERE
    run_decision.run_key = %(run_key)s
    AND (%(clinic_ids)s::bigint[] IS NULL OR run_decision.clinic_id = any(%(clinic_ids)s::bigint[]))
GROUP BY run_decision.decision, item.reason
