-- Purpose:    forget revocations that hold no more: the record may be shared again, or is withdrawn already.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[], in parallel
-- Personal:   none.
WITH item AS (
    SELECT
        revocation.clinic_id,
        revocation.appointment_id,
        revocation.lpu_id
    FROM ledger.revocation AS revocation
    INNER JOIN
        unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(lpu_ids)s::bigint[])
            AS asked (clinic_id, appointment_id, lpu_id)
        ON
            revocation.clinic_id = asked.clinic_id
            AND revocation.appointment_id = asked.appointment_id
            AND revocation.lpu_id = asked.lpu_id
    -- In this order every lane locks revocations, so that no two wait for each other.
    ORDER BY revocation.clinic_id, revocation.appointment_id, revocation.lpu_id
    FOR UPDATE OF revocation
)

DELETE FROM ledger.revocation AS revocation
USING item
WHERE
    revocation.clinic_id = item.clinic_id
    AND revocation.appointment_id = item.appointment_id
    AND revocation.lpu_id = item.lpu_id
