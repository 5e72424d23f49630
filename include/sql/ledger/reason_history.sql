-- Purpose:    the share of each reason in the runs before, to notice that one suddenly holds back much more or less.
-- Grain:      one row per run and reason.
-- Parameters: run_key bigint, runs int
-- Personal:   none.
WITH earlier AS (
    SELECT run.run_key
    FROM ledger.run AS run
    WHERE
        run.run_key < %(run_key)s AND run.outcome = 'succeeded' AND run.clinic_ids IS NULL
        AND run.mode IN ('transfer', 'plan', 'resync')
        AND ledger.is_of_its_day(run)
    ORDER BY run.run_key DESC
    LIMIT %(runs)s
)

SELECT
    run_decision.run_key,
    item.reason,
    sum(cardinality(run_decision.appointment_ids))::bigint AS records,
    (
        SELECT sum(run_clinic.extracted)::bigint
        FROM ledger.run_clinic AS run_clinic
        WHERE run_clinic.run_key = run_decision.run_key
    ) AS extracted
FROM ledger.run_decision AS run_decision
CROSS JOIN LATERAL unnest(run_decision.reasons) AS item (reason)
WHERE run_decision.stage = 'withhold' AND run_decision.run_key IN (SELECT earlier.run_key FROM earlier)
GROUP BY run_decision.run_key, item.reason
