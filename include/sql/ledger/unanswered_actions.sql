-- Purpose:    decided partner actions of which Medflex has not said that it has our answer.
-- Grain:      one row per action, oldest delivery first.
-- Parameters: after_seq bigint, size int
-- Personal:   none.
SELECT
    action.seq,
    action.action_id,
    action.status_code,
    action.reason,
    action.read_at
FROM ledger.partner_action AS action
WHERE action.decided_at IS NOT NULL AND action.answered_at IS NULL AND action.seq > %(after_seq)s
ORDER BY action.seq
LIMIT %(size)s
