-- Purpose:    the records of a clinic that a run did not send because of their data, by reasons.
-- Grain:      one row per set of reasons, with how many there are and the first 20 ids.
-- Parameters: run_key, clinic_id  bigint
-- Personal:   none.
SELECT
    run_decision.reasons,
    cardinality(run_decision.appointment_ids) AS records,
    run_decision.appointment_ids[1:20] AS appointment_ids
FROM ledger.run_decision AS run_decision
WHERE
    run_decision.run_key = %(run_key)s
    AND run_decision.clinic_id = %(clinic_id)s
    AND run_decision.decision = 'quarantined'
ORDER BY records DESC, run_decision.reasons ASC
