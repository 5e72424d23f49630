-- Purpose:    keep the clinics that are still ours, or let them go.
-- Parameters: holder text, clinic_ids bigint[], epochs bigint[], now timestamptz or NULL; seconds int for how long to
--             keep them, or NULL to let them go
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
SET
    holder = CASE WHEN %(seconds)s::int IS NOT NULL THEN lease.holder END,
    expires_at = coalesce(
        coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s::int), lease.expires_at
    )
FROM held
WHERE lease.clinic_id = held.clinic_id
