-- Purpose:    for which fields Medflex has rejected records of a run, the most frequent first. They are known as long
--             as nothing newer of a record has been answered.
-- Grain:      one row per field, as many as asked for.
-- Parameters: run_key bigint, size int
-- Personal:   none: of a rejection only the names of fields are kept.
SELECT field.name
FROM ledger.batch AS batch
CROSS JOIN LATERAL unnest(batch.rejected_ids) AS id (appointment_id)
INNER JOIN ledger.record AS record
    ON
        batch.clinic_id = record.clinic_id
        AND id.appointment_id = record.appointment_id
        AND batch.lpu_id = record.lpu_id
        AND batch.batch_id = record.batch_id
CROSS JOIN LATERAL unnest(record.rejected_fields) AS field (name)
WHERE
    batch.run_key = %(run_key)s
    AND batch.operation = 'send'
    AND batch.rejected_ids <> '{}'
GROUP BY field.name
ORDER BY count(*) DESC, field.name ASC
LIMIT %(size)s
