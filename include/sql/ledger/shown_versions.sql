-- Purpose:    which versions of these records Medflex shows, or may show, and with which content: what a partner can
--             have acted on. What is withdrawn, or being withdrawn, is not among them.
-- Grain:      one row per record and version that may be there.
-- Parameters: clinic_ids, appointment_ids, lpu_ids bigint[], in parallel
-- Personal:   none.
WITH asked AS MATERIALIZED (
    SELECT DISTINCT
        item.clinic_id,
        item.appointment_id,
        item.lpu_id
    FROM
        unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[], %(lpu_ids)s::bigint[])
            AS item (clinic_id, appointment_id, lpu_id)
),

known AS MATERIALIZED (
    SELECT record.*
    FROM asked
    INNER JOIN ledger.record AS record
        ON
            asked.clinic_id = record.clinic_id
            AND asked.appointment_id = record.appointment_id
            AND asked.lpu_id = record.lpu_id
),

-- Intents without outcome, and the last one of records of which it is not settled what Medflex has.
doubtful AS MATERIALIZED (
    SELECT batch.*
    FROM ledger.batch AS batch
    WHERE batch.outcome IS NULL AND batch.clinic_id IN (SELECT asked.clinic_id FROM asked)
    UNION
    SELECT batch.*
    FROM ledger.batch AS batch
    WHERE batch.batch_id IN (
        SELECT known.batch_id FROM known
        WHERE known.state = 'sending'
    )
),

in_doubt AS (
    SELECT
        asked.clinic_id,
        asked.appointment_id,
        asked.lpu_id,
        doubtful.operation,
        item.version,
        item.digest,
        doubtful.extracted_at,
        doubtful.partner_ids
    FROM doubtful
    CROSS JOIN
        LATERAL
        unnest(doubtful.appointment_ids, doubtful.versions, doubtful.digests) AS item (appointment_id, version, digest)
    INNER JOIN asked
        ON
            doubtful.clinic_id = asked.clinic_id
            AND doubtful.lpu_id = asked.lpu_id
            AND item.appointment_id = asked.appointment_id
),

shown AS (
    SELECT
        known.clinic_id,
        known.appointment_id,
        known.lpu_id,
        known.acked_version AS version,
        known.acked_digest AS digest,
        -- Behind a newer intent it tells of that one.
        CASE WHEN known.acked_version = known.version THEN known.extracted_at END AS extracted_at,
        known.partner_ids
    FROM known
    WHERE known.acked_digest IS NOT NULL AND known.state NOT IN ('withdrawing', 'withdrawn')
    UNION ALL
    SELECT
        in_doubt.clinic_id,
        in_doubt.appointment_id,
        in_doubt.lpu_id,
        in_doubt.version,
        in_doubt.digest,
        in_doubt.extracted_at,
        in_doubt.partner_ids
    FROM in_doubt
    WHERE in_doubt.operation = 'send'
)

SELECT
    shown.clinic_id,
    shown.appointment_id,
    shown.lpu_id,
    shown.version,
    shown.digest,
    shown.extracted_at,
    shown.partner_ids
FROM shown
WHERE
    NOT EXISTS (
        SELECT FROM in_doubt AS withdrawal
        WHERE
            withdrawal.operation = 'withdraw'
            AND withdrawal.clinic_id = shown.clinic_id
            AND withdrawal.appointment_id = shown.appointment_id
            AND withdrawal.lpu_id = shown.lpu_id
    )
