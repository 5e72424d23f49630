-- Purpose:    turn a clinic's access switch, unless somebody has turned it since it was looked at.
-- Grain:      one row with the instant that now stands there, by Medlock's clock; none if it was turned meanwhile.
-- Parameters: clinic_id  bigint; enabled  boolean; staff_id  bigint; seen_enabled  boolean or NULL;
--             seen_changed_at  timestamptz or NULL: how it stood when it was looked at
-- Personal:   none.
INSERT INTO medlock.medflex_access AS access_switch (clinic_id, enabled, changed_at, changed_by)
VALUES (%(clinic_id)s, %(enabled)s, clock_timestamp(), %(staff_id)s)
ON CONFLICT (clinic_id) DO UPDATE
    SET enabled = excluded.enabled, changed_at = excluded.changed_at, changed_by = excluded.changed_by
    WHERE
    access_switch.enabled IS NOT DISTINCT FROM %(seen_enabled)s::boolean
    -- As clinics.sql shows it.
    AND CASE
        WHEN access_switch.changed_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
            THEN access_switch.changed_at
    END IS NOT DISTINCT FROM %(seen_changed_at)s::timestamptz
RETURNING changed_at
