-- Purpose:    everything the ledger knows of one clinic's records, to compare it with what Medflex shows.
-- Grain:      one row per record and lpu_id. A record in an intent without outcome is told as open.
-- Parameters: clinic_id bigint
-- Personal:   none.
WITH open_intent AS (
    -- Joined, not looked up per record: eight open intents cost ten times what half a million records do.
    SELECT DISTINCT
        batch.lpu_id,
        item.appointment_id
    FROM ledger.batch AS batch
    CROSS JOIN LATERAL unnest(batch.appointment_ids) AS item (appointment_id)
    WHERE batch.outcome IS NULL AND batch.clinic_id = %(clinic_id)s
)

SELECT
    record.appointment_id,
    record.lpu_id,
    record.version,
    record.state,
    record.acked_version,
    open_intent.appointment_id IS NOT NULL AS is_open
FROM ledger.record AS record
LEFT JOIN open_intent
    ON record.lpu_id = open_intent.lpu_id AND record.appointment_id = open_intent.appointment_id
WHERE record.clinic_id = %(clinic_id)s
