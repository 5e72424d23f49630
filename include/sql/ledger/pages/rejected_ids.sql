-- Purpose:    some of the records that Medflex rejected in a run, by the field it named, and how many there are. The
--             names of fields are known as long as nothing newer of the record has been answered.
-- Grain:      one row per field, clinic and appointment, as many as asked for of each field.
-- Parameters: run_key bigint, clinic_ids bigint[] or NULL for all, size int
-- Personal:   none: of a rejection only the names of fields are kept.
WITH said AS MATERIALIZED (
    SELECT
        batch.clinic_id,
        batch.lpu_id,
        batch.batch_id,
        id.appointment_id
    FROM ledger.batch AS batch
    CROSS JOIN LATERAL unnest(batch.rejected_ids) AS id (appointment_id)
    WHERE
        batch.run_key = %(run_key)s
        AND batch.operation = 'send'
        AND batch.rejected_ids <> '{}'
        AND (%(clinic_ids)s::bigint[] IS NULL OR batch.clinic_id = any(%(clinic_ids)s::bigint[]))
),

rejected AS (
    SELECT DISTINCT
        said.clinic_id,
        said.appointment_id,
        coalesce(field.name, '') AS field
    FROM said
    LEFT JOIN ledger.record AS record
        ON
            said.clinic_id = record.clinic_id
            AND said.appointment_id = record.appointment_id
            AND said.lpu_id = record.lpu_id
            AND said.batch_id = record.batch_id
    LEFT JOIN LATERAL unnest(record.rejected_fields) AS field (name) ON TRUE
),

placed AS (
    SELECT
        rejected.*,
        count(*) OVER (PARTITION BY rejected.field) AS records,
        row_number() OVER (PARTITION BY rejected.field ORDER BY rejected.clinic_id, rejected.appointment_id) AS place
    FROM rejected
)

SELECT
    placed.field,
    placed.records,
    placed.clinic_id,
    placed.appointment_id
FROM placed
WHERE placed.place <= %(size)s
ORDER BY placed.records DESC, placed.field ASC, placed.place ASC
