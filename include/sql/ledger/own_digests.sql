-- Purpose:    what partners' earlier actions made of appointments, and on which version they acted.
-- Grain:      one row per action that changed one of these appointments.
-- Parameters: appointment_ids bigint[], since timestamptz
-- Personal:   none.
SELECT
    action.clinic_id,
    action.appointment_id,
    action.partner_id,
    action.base_version,
    action.digest_after,
    action.decided_at
FROM ledger.partner_action AS action
WHERE
    action.appointment_id = any(%(appointment_ids)s::bigint[])
    AND action.is_effect
    AND action.digest_after IS NOT NULL
    AND action.decided_at >= %(since)s::timestamptz
ORDER BY action.seq
