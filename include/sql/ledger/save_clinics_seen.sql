-- Purpose:    remember the permissions of clinics as they were looked at; only what has changed is written. Where a
--             sender has noted something since the look began, nothing is: what it saw may be newer than this.
-- Parameters: clinics jsonb list of {clinic_id, lpu_id, is_open, partner_ids}, {notes} as they were read before the
--             clinics were looked at (none: 0) and, where it is not the one that all others have, {changed_at};
--             changed_at timestamptz
-- Personal:   none.
INSERT INTO ledger.clinic_seen AS seen (clinic_id, lpu_id, is_open, partner_ids, changed_at, notes)
SELECT
    clinic.clinic_id,
    clinic.lpu_id,
    clinic.is_open,
    clinic.partner_ids,
    coalesce(clinic.changed_at, %(changed_at)s),
    coalesce(clinic.notes, 0)
FROM
    jsonb_to_recordset(%(clinics)s::jsonb)
        AS clinic (
            clinic_id bigint,
            lpu_id bigint,
            is_open boolean,
            partner_ids bigint[],
            changed_at timestamptz,
            notes bigint
        )
-- Several looks write at once.
ORDER BY clinic.clinic_id
ON CONFLICT (clinic_id) DO UPDATE
    SET
        lpu_id = excluded.lpu_id,
        is_open = excluded.is_open,
        partner_ids = excluded.partner_ids,
        -- What has narrowed a moment ago has only just changed, also when it has been widened since.
        changed_at = greatest(seen.changed_at, excluded.changed_at)
    WHERE
    seen.notes = excluded.notes
    AND (seen.lpu_id, seen.is_open, seen.partner_ids)
    IS DISTINCT FROM (excluded.lpu_id, excluded.is_open, excluded.partner_ids)
