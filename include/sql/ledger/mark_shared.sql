-- Purpose:    note that changed appointments need not be looked at again: they were sent, or may not be, or a transfer
--             has them.
-- Parameters: clinic_ids, appointment_ids, seqs bigint[], in parallel: actions up to seq; now timestamptz or NULL for
--             the server's clock
-- Personal:   none.
UPDATE ledger.partner_action AS action
SET shared_at = coalesce(%(now)s::timestamptz, clock_timestamp())
FROM
    unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(seqs)s::bigint[])
        AS item (clinic_id, appointment_id, seq)
WHERE
    action.is_effect
    AND action.shared_at IS NULL
    AND action.clinic_id = item.clinic_id
    AND action.appointment_id = item.appointment_id
    AND action.seq <= item.seq
