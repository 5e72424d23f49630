-- Purpose:    what the ledger knows of some records, as in known.sql, without reading all that their clinics have.
-- Grain:      one row per record and lpu_id.
-- Parameters: the settings medflex.clinic_ids and medflex.appointment_ids, bigint[] literals that run in parallel, made
--             with set_config() just before, so that ADBC can stream the result by COPY.
-- Personal:   none.
WITH asked AS MATERIALIZED (
    SELECT DISTINCT
        pair.clinic_id,
        pair.appointment_id
    FROM
        unnest(
            current_setting('medflex.clinic_ids')::bigint[], current_setting('medflex.appointment_ids')::bigint[]
        ) AS pair (clinic_id, appointment_id)
),

open_intent AS (
    SELECT
        batch.clinic_id,
        item.appointment_id,
        batch.lpu_id,
        max(item.version) AS version,
        max(batch.extracted_at) AS extracted_at
    FROM ledger.batch AS batch
    CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.versions) AS item (appointment_id, version)
    INNER JOIN asked ON batch.clinic_id = asked.clinic_id AND item.appointment_id = asked.appointment_id
    WHERE batch.outcome IS NULL
    GROUP BY batch.clinic_id, item.appointment_id, batch.lpu_id
)

SELECT
    coalesce(record.clinic_id, open_intent.clinic_id) AS clinic_id,
    coalesce(record.appointment_id, open_intent.appointment_id) AS appointment_id,
    coalesce(record.lpu_id, open_intent.lpu_id) AS lpu_id,
    greatest(record.version, open_intent.version) AS version,
    CASE WHEN open_intent.version IS NULL THEN record.state ELSE 'sending' END AS state,
    record.acked_digest,
    greatest(record.extracted_at, open_intent.extracted_at) AS extracted_at
FROM (
    SELECT record.*
    FROM asked
    INNER JOIN ledger.record AS record
        ON asked.clinic_id = record.clinic_id AND asked.appointment_id = record.appointment_id
) AS record
FULL JOIN open_intent
    ON
        record.clinic_id = open_intent.clinic_id
        AND record.appointment_id = open_intent.appointment_id
        AND record.lpu_id = open_intent.lpu_id
