-- Purpose:    become the only writer of these clinics; the epoch fences whoever was it before.
-- Grain:      one row per clinic that could be had.
-- Parameters: clinic_ids bigint[], holder text, purpose text, now timestamptz or NULL for the server's clock,
--             seconds int
-- Personal:   none.
INSERT INTO ledger.lease AS lease (clinic_id, epoch, holder, expires_at, purpose)
SELECT
    wanted.clinic_id,
    1,
    %(holder)s::text,
    coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s),
    %(purpose)s::text
FROM unnest(%(clinic_ids)s::bigint[]) AS wanted (clinic_id)
ORDER BY wanted.clinic_id
ON CONFLICT (clinic_id) DO UPDATE
    SET epoch = lease.epoch + 1, holder = excluded.holder, expires_at = excluded.expires_at, purpose = excluded.purpose
    WHERE
    lease.holder IS NULL
    OR lease.holder = excluded.holder
    -- Nothing stands in the way of a withdrawal; the work that it interrupts goes on behind it.
    OR (excluded.purpose = 'withdraw' AND lease.purpose <> 'withdraw')
    OR lease.expires_at <= coalesce(%(now)s::timestamptz, clock_timestamp())
RETURNING lease.clinic_id, lease.epoch
