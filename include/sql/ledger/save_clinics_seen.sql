-- Purpose:    remember the permissions of clinics as they were looked at; only what has changed is written. Where a
--             sender, or another look, has written since the look began, nothing is: that may be newer than this.
-- Parameters: clinics jsonb list of {clinic_id, lpu_id, is_open, partner_ids, changed_at} and {writes} as they were
--             read before the clinics were looked at (none: 0)
-- Personal:   none.
INSERT INTO ledger.clinic_seen AS seen (clinic_id, lpu_id, is_open, partner_ids, changed_at, writes)
SELECT
    clinic.clinic_id,
    clinic.lpu_id,
    clinic.is_open,
    clinic.partner_ids,
    clinic.changed_at,
    clinic.writes + 1
FROM
    jsonb_to_recordset(%(clinics)s::jsonb)
        AS clinic (
            clinic_id bigint,
            lpu_id bigint,
            is_open boolean,
            partner_ids bigint[],
            changed_at timestamptz,
            writes bigint
        )
-- Several looks write at once.
ORDER BY clinic.clinic_id
ON CONFLICT (clinic_id) DO UPDATE
    SET
        lpu_id = excluded.lpu_id,
        is_open = excluded.is_open,
        partner_ids = excluded.partner_ids,
        -- What has narrowed a moment ago has only just changed, also when it has been widened since.
        changed_at = greatest(seen.changed_at, excluded.changed_at),
        writes = excluded.writes
    WHERE
    seen.writes = excluded.writes - 1
    AND (seen.lpu_id, seen.is_open, seen.partner_ids)
    IS DISTINCT FROM (excluded.lpu_id, excluded.is_open, excluded.partner_ids)
