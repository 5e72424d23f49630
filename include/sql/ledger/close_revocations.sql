-- Purpose:    forget revocations that hold no more: the record may be shared again, or is withdrawn already.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[], in parallel
-- Personal:   none.
DELETE FROM ledger.revocation AS revocation
USING
    unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(lpu_ids)s::bigint[])
        AS item (clinic_id, appointment_id, lpu_id)
WHERE
    revocation.clinic_id = item.clinic_id
    AND revocation.appointment_id = item.appointment_id
    AND revocation.lpu_id = item.lpu_id
