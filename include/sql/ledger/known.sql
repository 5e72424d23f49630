-- Purpose:    what the ledger knows of these clinics' records. A record in an intent without outcome may be at Medflex
--             in that version, so it counts as sending, whatever was acknowledged before.
-- Grain:      one row per record.
-- Parameters: the setting medflex.clinic_ids, a bigint[] literal, made with set_config() just before, so that ADBC
--             can stream the result by COPY.
-- Personal:   none.
WITH open_intent AS (
    SELECT
        batch.clinic_id,
        item.appointment_id,
        max(item.version) AS version
    FROM ledger.batch AS batch
    CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.versions) AS item (appointment_id, version)
    WHERE batch.outcome IS NULL AND batch.clinic_id = any(current_setting('medflex.clinic_ids')::bigint[])
    GROUP BY batch.clinic_id, item.appointment_id
)

SELECT
    coalesce(record.clinic_id, open_intent.clinic_id) AS clinic_id,
    coalesce(record.appointment_id, open_intent.appointment_id) AS appointment_id,
    greatest(record.version, open_intent.version) AS version,
    CASE WHEN open_intent.version IS NULL THEN record.state ELSE 'sending' END AS state,
    record.acked_digest
FROM (
    SELECT * FROM ledger.record
    WHERE clinic_id = any(current_setting('medflex.clinic_ids')::bigint[])
) AS record
FULL JOIN open_intent
    ON record.clinic_id = open_intent.clinic_id AND record.appointment_id = open_intent.appointment_id
