-- Purpose:    everything the ledger knows of one clinic's records, to compare it with what Medflex shows.
-- Grain:      one row per record and lpu_id. A record in an intent without outcome is told as open.
-- Parameters: clinic_id bigint
-- Personal:   none.
SELECT
    record.appointment_id,
    record.lpu_id,
    record.version,
    record.state,
    record.acked_version,
    exists(
        SELECT 1
        FROM ledger.batch AS batch
        WHERE
            batch.outcome IS NULL
            AND batch.clinic_id = record.clinic_id
            AND batch.lpu_id = record.lpu_id
            AND record.appointment_id = any(batch.appointment_ids)
    ) AS is_open
FROM ledger.record AS record
WHERE record.clinic_id = %(clinic_id)s
