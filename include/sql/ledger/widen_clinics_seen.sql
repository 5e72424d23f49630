-- Purpose:    remember, before records of clinics leave, under what they do: the next look for revocations then finds
--             what was permitted for a moment only, between two looks. Nothing that was looked at is taken away, and a
--             look that is under way writes nothing over it.
-- Parameters: clinics jsonb list of {clinic_id, lpu_id, partner_ids}, all of them open
-- Personal:   none.
INSERT INTO ledger.clinic_seen AS seen (clinic_id, lpu_id, is_open, partner_ids, changed_at, writes)
SELECT
    clinic.clinic_id,
    clinic.lpu_id,
    TRUE AS is_open,
    clinic.partner_ids,
    -- One that was never looked at need not be looked at whole for some time, see Withdrawer.quick.
    to_timestamp(0) AS changed_at,
    1 AS writes
FROM
    jsonb_to_recordset(%(clinics)s::jsonb) AS clinic (clinic_id bigint, lpu_id bigint, partner_ids bigint[])
-- Looks write at the same time.
ORDER BY clinic.clinic_id
ON CONFLICT (clinic_id) DO UPDATE
    SET
        is_open = TRUE,
        -- Of two numbers none is kept: that differs from whatever the next look finds.
        lpu_id = CASE WHEN seen.lpu_id = excluded.lpu_id THEN seen.lpu_id END,
        -- Some may be in it twice, until the next look.
        partner_ids
        = CASE
            WHEN seen.partner_ids @> excluded.partner_ids THEN seen.partner_ids
            ELSE seen.partner_ids || excluded.partner_ids
        END,
        writes = seen.writes + 1
