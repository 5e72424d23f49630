-- Purpose:    the requests of a run for some clinics, oldest first.
-- Grain:      one row per batch.
-- Parameters: run_key bigint, clinic_ids bigint[] or NULL for all, size int, skip int
-- Personal:   none.
WITH mine AS MATERIALIZED (
    -- Sorted behind the choice: in the order of ids, the index of all batches there are would be walked.
    SELECT batch.*
    FROM ledger.batch AS batch
    WHERE
        batch.run_key = %(run_key)s
        AND (%(clinic_ids)s::bigint[] IS NULL OR batch.clinic_id = any(%(clinic_ids)s::bigint[]))
)

SELECT
    mine.batch_id,
    mine.clinic_id,
    mine.lpu_id,
    mine.operation,
    cardinality(mine.appointment_ids) AS records,
    cardinality(mine.rejected_ids) AS rejected,
    cardinality(mine.outdated_ids) AS outdated,
    cardinality(mine.unknown_ids) AS unknown,
    mine.outcome,
    mine.http_status,
    mine.created_at,
    mine.looked_at,
    mine.resolved_at
FROM mine
ORDER BY mine.batch_id
LIMIT %(size)s OFFSET %(skip)s
