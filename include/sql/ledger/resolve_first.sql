-- Purpose:    write down that Medflex has taken all of a batch whose records are all sent for the first time: what
--             resolve_batch.sql would write, in four fifths of the time, as nothing is looked for that it could meet.
-- Grain:      one row with the number of batches resolved: 0 when somebody else has resolved it before, and for a
--             withdrawal. Where there is a record already, it fails with 23505.
-- Parameters: batch_id, http_status, looked_at timestamptz or NULL, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH batch AS (
    UPDATE ledger.batch
    SET
        outcome = 'acknowledged',
        http_status = %(http_status)s::int,
        looked_at = coalesce(%(looked_at)s::timestamptz, looked_at),
        resolved_at = coalesce(%(now)s::timestamptz, clock_timestamp())
    WHERE
        batch_id = %(batch_id)s
        -- Said so that the index of open batches is left alone, see resolve_batch.sql.
        AND coalesce(outcome, '') = ''
        AND operation = 'send'
    RETURNING
        batch_id,
        clinic_id,
        lpu_id,
        appointment_ids,
        versions,
        digests,
        patient_ids,
        partner_ids,
        extracted_at,
        resolved_at
),

begun AS (
    INSERT INTO ledger.record (
        clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest, batch_id, extracted_at,
        changed_at, patient_id, partner_ids
    )
    SELECT
        batch.clinic_id,
        item.appointment_id,
        batch.lpu_id,
        item.version,
        'sent' AS state,
        item.version AS acked_version,
        item.digest AS acked_digest,
        batch.batch_id,
        batch.extracted_at,
        batch.resolved_at AS changed_at,
        item.patient_id,
        batch.partner_ids
    FROM batch
    CROSS JOIN
        LATERAL unnest(batch.appointment_ids, batch.versions, batch.digests, batch.patient_ids)
            AS item (appointment_id, version, digest, patient_id)
)

SELECT count(*) AS batches FROM batch
