-- Purpose:    keep what has to be withdrawn until Medflex has acknowledged it, with the earliest instant that was told.
-- Grain:      one row: how many are new.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[]; reasons text[]; by_absence boolean[]; revoked_at
--             timestamptz[] (NULL: since it was found); arrays in parallel; found_at timestamptz; takes_from
--             timestamptz: what was found at that moment counts as found now, by whoever brings it over
-- Personal:   none.
WITH kept AS (
    INSERT INTO ledger.revocation AS revocation (
        clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at, found_at
    )
    SELECT
        item.clinic_id,
        item.appointment_id,
        item.lpu_id,
        item.reason,
        item.by_absence,
        least(coalesce(item.revoked_at, %(found_at)s), %(found_at)s),
        %(found_at)s
    FROM
        unnest(
            %(clinic_ids)s::bigint[],
            %(appointment_ids)s::bigint[],
            %(lpu_ids)s::bigint[],
            %(reasons)s::text[],
            %(by_absence)s::boolean[],
            %(revoked_at)s::timestamptz[]
        ) AS item (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at)
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO UPDATE
        SET
            -- Somebody's no that has not reached Medflex stays one, also when the row has vanished since: an absence
            -- may be held back, and would be from the look after that one on.
            reason = CASE
                WHEN excluded.by_absence AND NOT revocation.by_absence THEN revocation.reason
                ELSE excluded.reason
            END,
            by_absence = revocation.by_absence AND excluded.by_absence,
            revoked_at = least(revocation.revoked_at, excluded.revoked_at),
            found_at = CASE
                WHEN revocation.found_at = %(takes_from)s::timestamptz THEN excluded.found_at
                ELSE revocation.found_at
            END
    RETURNING (xmax = 0) AS is_new
)

SELECT count(*) FILTER (WHERE kept.is_new) AS new
FROM kept
