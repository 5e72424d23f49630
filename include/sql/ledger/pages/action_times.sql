-- Purpose:    how long partners waited: from reading an action to its decision, and to Medflex taking the answer.
-- Grain:      one row per type; each time is the median and the 95th percentile in seconds.
-- Parameters: since timestamptz
-- Personal:   none.
SELECT
    action.type,
    count(*) AS actions,
    percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
        ORDER BY extract(EPOCH FROM action.decided_at - action.read_at)::float8
    ) AS decided,
    percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
        ORDER BY extract(EPOCH FROM action.answered_at - action.read_at)::float8
    ) AS answered
FROM ledger.partner_action AS action
WHERE action.decided_at >= %(since)s::timestamptz
GROUP BY action.type
