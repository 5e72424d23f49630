-- Purpose:    let the clinics that are still ours go.
-- Parameters: holder text, clinic_ids bigint[], epochs bigint[]
-- Personal:   none.
WITH held AS (
    SELECT lease.clinic_id
    FROM ledger.lease AS lease
    INNER JOIN
        unnest(%(clinic_ids)s::bigint[], %(epochs)s::bigint[]) AS ours (clinic_id, epoch)
        ON lease.clinic_id = ours.clinic_id AND lease.epoch = ours.epoch
    WHERE lease.holder = %(holder)s::text
    -- Whoever writes down batches of several clinics locks their leases in this order, too.
    ORDER BY lease.clinic_id
    FOR NO KEY UPDATE OF lease
)

UPDATE ledger.lease AS lease
SET holder = NULL
FROM held
WHERE lease.clinic_id = held.clinic_id
