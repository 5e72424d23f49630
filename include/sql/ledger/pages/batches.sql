-- Purpose:    the requests of a run for some clinics, oldest first.
-- Grain:      one row per batch.
-- Parameters: run_key bigint, clinic_ids bigint[] or NULL for all, size int, skip int
-- Personal:   none.
WITH mine AS MATERIALIZED (
    -- Sorted behind the choice: in the order of ids, the index of all batches there are would be walked.
    SELECT batch.batch_id
    FROM ledger.batch AS batch
    WHERE
        batch.run_key = %(run_key)s
        AND (%(clinic_ids)s::bigint[] IS NULL OR batch.clinic_id = any(%(clinic_ids)s::bigint[]))
),

shown AS MATERIALIZED (
    -- Their arrays are unpacked of these only: a first run may have made hundreds of thousands of batches.
    SELECT mine.batch_id
    FROM mine
    ORDER BY mine.batch_id
    LIMIT %(size)s OFFSET %(skip)s
)

SELECT
    batch.batch_id,
    batch.clinic_id,
    batch.lpu_id,
    batch.operation,
    cardinality(batch.appointment_ids) AS records,
    cardinality(batch.rejected_ids) AS rejected,
    cardinality(batch.outdated_ids) AS outdated,
    cardinality(batch.unknown_ids) AS unknown,
    batch.outcome,
    batch.http_status,
    batch.created_at,
    batch.looked_at,
    batch.resolved_at
FROM shown
INNER JOIN ledger.batch AS batch ON shown.batch_id = batch.batch_id
ORDER BY batch.batch_id
