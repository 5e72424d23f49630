-- Purpose:    copy decisions from Medlock's journal. The first one stays; they are the same anyway.
-- Parameters: decisions jsonb, a list of objects with the columns below; decided_in text
-- Personal:   none.
UPDATE ledger.partner_action AS action
SET
    clinic_id = item.clinic_id,
    status_code = item.status_code,
    reason = item.reason,
    is_effect = item.is_effect,
    digest_after = item.digest_after,
    decided_at = item.decided_at,
    decided_in = %(decided_in)s::text
FROM
    jsonb_to_recordset(%(decisions)s::jsonb) AS item (
        action_id uuid,
        clinic_id bigint,
        status_code int,
        reason text,
        is_effect boolean,
        digest_after bigint,
        decided_at timestamptz
    )
WHERE action.action_id = item.action_id AND action.decided_at IS NULL
