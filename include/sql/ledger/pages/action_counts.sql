-- Purpose:    what partners asked for and what was decided, and how long that took.
-- Grain:      one row per type and ruling.
-- Parameters: since timestamptz
-- Personal:   none.
SELECT
    action.type,
    action.status_code,
    action.reason,
    count(*) AS actions,
    count(*) FILTER (WHERE action.answer = 'contradicted') AS contradicted
FROM ledger.partner_action AS action
WHERE action.decided_at >= %(since)s::timestamptz
GROUP BY action.type, action.status_code, action.reason
