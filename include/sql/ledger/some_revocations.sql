-- Purpose:    some of what is to be withdrawn and not acknowledged, of each clinic so much at most. Not always the
--             same: what Medflex fails on must not keep others from their turn.
-- Grain:      one row per record.
-- Parameters: clinic_ids, lpu_ids, most bigint[], in parallel; seed bigint: another one, others; besides timestamptz or
--             NULL: without those that were found exactly then
-- Personal:   none.
SELECT
    found.clinic_id,
    found.appointment_id,
    found.lpu_id,
    found.reason,
    found.by_absence,
    found.revoked_at,
    found.found_at
FROM
    unnest(%(clinic_ids)s::bigint[], %(lpu_ids)s::bigint[], %(most)s::bigint[])
        AS wanted (clinic_id, lpu_id, most)
CROSS JOIN
    LATERAL (
        SELECT revocation.*
        FROM ledger.revocation AS revocation
        WHERE
            revocation.found_at IS DISTINCT FROM %(besides)s
            AND revocation.clinic_id = wanted.clinic_id
            AND revocation.lpu_id = wanted.lpu_id
        ORDER BY hashint8extended(revocation.appointment_id, %(seed)s::bigint)
        LIMIT wanted.most
    ) AS found
