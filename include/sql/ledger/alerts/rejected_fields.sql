-- Purpose:    for which fields Medflex has rejected records of a run, the most frequent first, by a sample: some
--             batches from all over the run, and some records of each. So it takes no longer where a whole run was
--             rejected. They are known as long as nothing newer of a record has been answered.
-- Grain:      one row per field, as many as asked for.
-- Parameters: run_key bigint, size int, batches int, ids int (of each batch)
-- Personal:   none: of a rejection only the names of fields are kept.
WITH sample AS MATERIALIZED (
    SELECT
        batch.clinic_id,
        batch.lpu_id,
        batch.batch_id,
        batch.rejected_ids
    FROM ledger.batch AS batch
    WHERE
        batch.run_key = %(run_key)s
        AND batch.operation = 'send'
        AND batch.rejected_ids <> '{}'
    -- Not the first ones: these are of few clinics.
    ORDER BY md5(batch.batch_id::text)
    LIMIT %(batches)s
)

SELECT field.name
FROM sample
CROSS JOIN LATERAL unnest(sample.rejected_ids) WITH ORDINALITY AS id (appointment_id, place)
INNER JOIN ledger.record AS record
    ON
        sample.clinic_id = record.clinic_id
        AND id.appointment_id = record.appointment_id
        AND sample.lpu_id = record.lpu_id
        AND sample.batch_id = record.batch_id
CROSS JOIN LATERAL unnest(record.rejected_fields) AS field (name)
WHERE id.place <= %(ids)s
GROUP BY field.name
ORDER BY count(*) DESC, field.name ASC
LIMIT %(size)s
