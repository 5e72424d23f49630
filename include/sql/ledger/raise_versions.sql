-- Purpose:    Medflex holds newer versions than the ledger knows of (a ledger restored from a backup): number on from
--             there, so that the next attempt is not outdated again. What Medflex does not show, since it is withdrawn
--             there, leaps ahead.
-- Parameters: clinic_id bigint, lpu_id bigint, appointment_ids bigint[], versions bigint[] (NULL: not shown)
-- Personal:   none.
UPDATE ledger.record AS record
SET version = greatest(record.version, coalesce(shown.version, record.version + 1000))
FROM unnest(%(appointment_ids)s::bigint[], %(versions)s::bigint[]) AS shown (appointment_id, version)
WHERE
    record.clinic_id = %(clinic_id)s
    AND record.lpu_id = %(lpu_id)s
    AND record.appointment_id = shown.appointment_id
