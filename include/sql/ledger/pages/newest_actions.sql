-- Purpose:    the partner actions that were read last.
-- Grain:      one row per action, newest first.
-- Parameters: clinic_id bigint or NULL for all, size int, skip int
-- Personal:   none: what partners wrote themselves is left out, but for the type, which is one of the contract's.
SELECT
    action.seq,
    action.action_id,
    action.clinic_id,
    action.lpu_id,
    action.appointment_id,
    action.partner_id,
    action.type,
    action.read_at,
    action.deliveries,
    action.status_code,
    action.reason,
    action.is_effect,
    action.decided_at,
    action.answer,
    action.answered_at,
    action.shared_at
FROM ledger.partner_action AS action
WHERE %(clinic_id)s::bigint IS NULL OR action.clinic_id = %(clinic_id)s::bigint
ORDER BY action.seq DESC
LIMIT %(size)s OFFSET %(skip)s
