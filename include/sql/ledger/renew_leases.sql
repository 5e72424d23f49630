-- Purpose:    keep the clinics that are still ours.
-- Parameters: holder text, clinic_ids bigint[], epochs bigint[], now timestamptz or NULL, seconds int
-- Personal:   none.
UPDATE ledger.lease AS lease
SET expires_at = coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s)
FROM unnest(%(clinic_ids)s::bigint[], %(epochs)s::bigint[]) AS ours (clinic_id, epoch)
WHERE lease.clinic_id = ours.clinic_id AND lease.epoch = ours.epoch AND lease.holder = %(holder)s::text
