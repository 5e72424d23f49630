-- Purpose:    Medflex holds newer versions than the ledger knows of (a ledger restored from a backup): number on from
--             there, so that the next attempt is not outdated again, if the clinic is still ours (fencing). What is not
--             shown, since it is withdrawn there, leaps ahead.
-- Grain:      one row: whether the clinic was ours.
-- Parameters: clinic_id, lpu_id, epoch bigint; holder text; appointment_ids bigint[], versions bigint[] (NULL: not
--             shown)
-- Personal:   none.
WITH fence AS (
    SELECT lease.clinic_id
    FROM ledger.lease AS lease
    WHERE lease.clinic_id = %(clinic_id)s AND lease.holder = %(holder)s::text AND lease.epoch = %(epoch)s
    FOR SHARE
),

raised AS (
    UPDATE ledger.record AS record
    SET version = greatest(record.version, coalesce(shown.version, record.version + 1000))
    FROM
        fence,
        unnest(%(appointment_ids)s::bigint[], %(versions)s::bigint[]) AS shown (appointment_id, version)
    WHERE
        record.clinic_id = fence.clinic_id
        AND record.lpu_id = %(lpu_id)s
        AND record.appointment_id = shown.appointment_id
)

SELECT count(*) AS fences FROM fence
