-- Purpose:    remember, before records of clinics leave, under what they do: the next look for revocations then finds
--             what was permitted for a moment only, between two looks. Nothing that was looked at is taken away.
-- Parameters: clinics jsonb list of {clinic_id, lpu_id, partner_ids}, all of them open; now timestamptz
-- Personal:   none.
INSERT INTO ledger.clinic_seen AS seen (clinic_id, lpu_id, is_open, partner_ids, changed_at)
SELECT
    clinic.clinic_id,
    clinic.lpu_id,
    TRUE AS is_open,
    clinic.partner_ids,
    -- One that was never looked at need not be looked at whole for some time, see Withdrawer.quick.
    to_timestamp(0) AS changed_at
FROM
    jsonb_to_recordset(%(clinics)s::jsonb) AS clinic (clinic_id bigint, lpu_id bigint, partner_ids bigint[])
WHERE
    NOT EXISTS (
        SELECT 1
        FROM ledger.clinic_seen AS known
        WHERE
            known.clinic_id = clinic.clinic_id
            AND known.lpu_id = clinic.lpu_id
            AND known.is_open
            AND known.partner_ids @> clinic.partner_ids
    )
-- Looks write at the same time.
ORDER BY clinic.clinic_id
ON CONFLICT (clinic_id) DO UPDATE
    SET
        is_open = TRUE,
        -- Of two numbers none is kept: that differs from whatever the next look finds.
        lpu_id = CASE WHEN seen.lpu_id = excluded.lpu_id THEN seen.lpu_id END,
        -- Some may be in it twice, until the next look.
        partner_ids = seen.partner_ids || excluded.partner_ids,
        -- A look that is under way may not have seen it, and writes down less: the next ones look at all of the clinic.
        changed_at = greatest(seen.changed_at, %(now)s::timestamptz)
