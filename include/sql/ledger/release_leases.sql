-- Purpose:    let the clinics that are still ours go.
-- Parameters: holder text, clinic_ids bigint[], epochs bigint[]
-- Personal:   none.
UPDATE ledger.lease AS lease
SET holder = NULL
FROM unnest(%(clinic_ids)s::bigint[], %(epochs)s::bigint[]) AS ours (clinic_id, epoch)
WHERE lease.clinic_id = ours.clinic_id AND lease.epoch = ours.epoch AND lease.holder = %(holder)s::text
