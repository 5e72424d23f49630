-- Purpose:    appointments that partners have changed and whose change is not on its way to Medflex yet.
-- Grain:      one row per appointment, with the last of its actions, oldest first.
-- Parameters: since timestamptz, size int
-- Personal:   none.
SELECT
    action.clinic_id,
    action.appointment_id,
    max(action.seq) AS seq
FROM ledger.partner_action AS action
WHERE action.is_effect AND action.shared_at IS NULL AND action.decided_at >= %(since)s::timestamptz
GROUP BY action.clinic_id, action.appointment_id
ORDER BY max(action.seq)
LIMIT %(size)s
