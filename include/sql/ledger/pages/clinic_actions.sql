-- Purpose:    what became of the newest partner actions about a clinic.
-- Grain:      one row per action, newest decision first.
-- Parameters: clinic_id  bigint; shown  int
-- Personal:   none.
SELECT
    partner_action.action_id::text AS action_id,
    partner_action.appointment_id,
    partner_action.partner_id,
    partner_action.type,
    partner_action.status_code,
    partner_action.reason,
    partner_action.decided_at,
    partner_action.answered_at
FROM ledger.partner_action AS partner_action
WHERE partner_action.clinic_id = %(clinic_id)s AND partner_action.decided_at IS NOT NULL
ORDER BY partner_action.decided_at DESC
LIMIT %(shown)s
