-- Purpose:    what the ledger knows of these clinics' records. A record in an intent without outcome may be at Medflex
--             in that version, so it counts as sending, whatever was acknowledged before.
-- Grain:      one row per record and lpu_id.
-- Parameters: the setting medflex.clinic_ids, a bigint[] literal, made with set_config() just before, so that ADBC
--             can stream the result by COPY.
-- Personal:   none.
WITH asked AS MATERIALIZED (
    -- Read once: in a condition it would be read anew for each record that is looked at.
    SELECT current_setting('medflex.clinic_ids')::bigint[] AS clinic_ids
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
    WHERE batch.outcome IS NULL AND batch.clinic_id = any((SELECT asked.clinic_ids FROM asked)::bigint[])
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
    SELECT * FROM ledger.record
    WHERE clinic_id = any((SELECT asked.clinic_ids FROM asked)::bigint[])
) AS record
FULL JOIN open_intent
    ON
        record.clinic_id = open_intent.clinic_id
        AND record.appointment_id = open_intent.appointment_id
        AND record.lpu_id = open_intent.lpu_id
