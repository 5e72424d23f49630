-- Purpose:    write down a batch before its first byte leaves, if the clinic is still ours (fencing).
-- Grain:      one row, or none when another task has taken the clinic over.
-- Parameters: run_key, clinic_id, lpu_id, operation, holder, epoch, appointment_ids, versions, digests, reasons,
--             patient_ids, partner_ids, revoked_at, extracted_at, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH fence AS (
    SELECT lease.clinic_id
    FROM ledger.lease AS lease
    WHERE lease.clinic_id = %(clinic_id)s AND lease.holder = %(holder)s::text AND lease.epoch = %(epoch)s
    -- Whoever takes the clinic over waits for this insert and then finds it.
    FOR SHARE
)

INSERT INTO ledger.batch (
    run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions, digests, reasons, patient_ids,
    partner_ids, revoked_at, extracted_at, created_at
)
SELECT
    %(run_key)s::bigint,
    fence.clinic_id,
    %(lpu_id)s::bigint,
    %(operation)s::text,
    %(epoch)s::bigint,
    %(appointment_ids)s::bigint[],
    %(versions)s::bigint[],
    %(digests)s::bigint[],
    %(reasons)s::text[],
    %(patient_ids)s::bigint[],
    %(partner_ids)s::bigint[],
    %(revoked_at)s::timestamptz[],
    %(extracted_at)s::timestamptz,
    coalesce(%(now)s::timestamptz, clock_timestamp())
FROM fence
RETURNING batch_id, idempotency_key
