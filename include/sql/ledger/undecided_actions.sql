-- Purpose:    partner actions that nobody has decided about, in the order in which they were delivered first.
-- Grain:      one row per action.
-- Parameters: after_seq bigint, size int
-- Personal:   none.
SELECT
    action.seq,
    action.action_id,
    action.lpu_id,
    action.appointment_id,
    action.partner_id,
    action.type,
    action.base_version,
    action.dt_start,
    action.dt_end,
    action.scenario,
    action.created_at,
    action.malformed
FROM ledger.partner_action AS action
WHERE action.decided_at IS NULL AND action.seq > %(after_seq)s
ORDER BY action.seq
LIMIT %(size)s
