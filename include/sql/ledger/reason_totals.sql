-- Purpose:    how many records of a run were not sent, dropped, withdrawn or held, by reason.
-- Grain:      one row per stage and reason; a record with several reasons counts under each.
-- Parameters: run_key bigint
-- Personal:   none.
SELECT
    decision.stage,
    item.reason,
    sum(cardinality(decision.appointment_ids))::bigint AS records
FROM ledger.run_decision AS decision
CROSS JOIN LATERAL unnest(decision.reasons) AS item (reason)
WHERE decision.run_key = %(run_key)s
GROUP BY decision.stage, item.reason
