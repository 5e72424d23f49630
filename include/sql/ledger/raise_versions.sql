-- Purpose:    Medflex holds newer versions than the ledger knows of (a ledger restored from a backup): number on from
--             there, so that the next attempt is not outdated again.
-- Parameters: clinic_id bigint, lpu_id bigint, appointment_ids bigint[], versions bigint[]
-- Personal:   none.
UPDATE ledger.record AS record
SET version = greatest(record.version, shown.version)
FROM unnest(%(appointment_ids)s::bigint[], %(versions)s::bigint[]) AS shown (appointment_id, version)
WHERE
    record.clinic_id = %(clinic_id)s
    AND record.lpu_id = %(lpu_id)s
    AND record.appointment_id = shown.appointment_id
