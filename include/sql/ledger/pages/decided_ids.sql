-- Purpose:    some of the appointments that a run kept back for one decision, under each reason, to look them up in
--             Medlock.
-- Grain:      one row per reason, clinic and appointment, as many as asked for of each reason.
-- Parameters: run_key bigint, decision text, clinic_ids bigint[] or NULL for all, size int
-- Personal:   none.
WITH held AS MATERIALIZED (
    SELECT
        item.reason,
        run_decision.clinic_id,
        run_decision.appointment_ids,
        -- No clinic is looked into once those before it have enough.
        sum(cardinality(run_decision.appointment_ids)) OVER (
            PARTITION BY item.reason
            ORDER BY run_decision.clinic_id, run_decision.stage, run_decision.reasons
        ) - cardinality(run_decision.appointment_ids) AS before
    FROM ledger.run_decision AS run_decision
    CROSS JOIN LATERAL unnest(run_decision.reasons) AS item (reason)
    WHERE
        run_decision.run_key = %(run_key)s
        AND run_decision.decision = %(decision)s
        AND (%(clinic_ids)s::bigint[] IS NULL OR run_decision.clinic_id = any(%(clinic_ids)s::bigint[]))
)

SELECT
    held.reason,
    held.clinic_id,
    id.appointment_id
FROM held
CROSS JOIN LATERAL unnest(held.appointment_ids) WITH ORDINALITY AS id (appointment_id, place)
WHERE held.before < %(size)s AND held.before + id.place <= %(size)s
ORDER BY held.reason, held.clinic_id, id.appointment_id
