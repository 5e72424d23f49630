-- Purpose:    after a crash: an intent without outcome may have reached Medflex. Its records are marked so, with the
--             version they may have there; whatever is sent next gets a higher one.
-- Grain:      one row with the number of batches.
-- Parameters: clinic_ids bigint[], now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH unresolved AS (
    SELECT batch_id
    FROM ledger.batch
    WHERE clinic_id = any(%(clinic_ids)s::bigint[]) AND outcome IS NULL
    -- Whoever resolves several batches locks them in this order, too.
    ORDER BY batch_id
    FOR UPDATE
),

batch AS (
    UPDATE ledger.batch
    SET
        outcome = 'unknown',
        unknown_ids = appointment_ids,
        resolved_at = coalesce(%(now)s::timestamptz, clock_timestamp())
    WHERE batch_id IN (SELECT unresolved.batch_id FROM unresolved) AND outcome IS NULL
    RETURNING *
),

item AS (
    SELECT DISTINCT ON (batch.clinic_id, item.appointment_id, batch.lpu_id)
        batch.clinic_id,
        item.appointment_id,
        batch.lpu_id,
        item.version,
        batch.batch_id,
        batch.extracted_at,
        batch.resolved_at,
        item.patient_id,
        batch.partner_ids,
        CASE batch.operation WHEN 'send' THEN 'sending' ELSE 'withdrawing' END AS state
    FROM batch
    CROSS JOIN
        LATERAL
        unnest(batch.appointment_ids, batch.versions, batch.patient_ids)
            AS item (appointment_id, version, patient_id)
    ORDER BY batch.clinic_id ASC, item.appointment_id ASC, batch.lpu_id ASC, item.version DESC
),

kept AS (
    INSERT INTO ledger.record AS record (
        clinic_id, appointment_id, lpu_id, version, state, batch_id, extracted_at, changed_at, patient_id,
        partner_ids
    )
    SELECT
        item.clinic_id,
        item.appointment_id,
        item.lpu_id,
        item.version,
        item.state,
        item.batch_id,
        item.extracted_at,
        item.resolved_at,
        item.patient_id,
        item.partner_ids
    FROM item
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO UPDATE
        SET
            version = excluded.version,
            state = excluded.state,
            batch_id = excluded.batch_id,
            -- A withdrawal shows no copy: whoever read earlier than the last one that was shown is late all the same.
            extracted_at = greatest(record.extracted_at, excluded.extracted_at),
            changed_at = excluded.changed_at,
            -- What was there before may still be shown: whose it is, is in doubt unless both are the same.
            patient_id = CASE
                WHEN excluded.state = 'withdrawing' THEN record.patient_id
                WHEN record.state = 'withdrawn' THEN excluded.patient_id
                WHEN record.patient_id = excluded.patient_id THEN record.patient_id
            END,
            partner_ids = CASE
                WHEN record.state = 'withdrawn' THEN excluded.partner_ids
                WHEN record.partner_ids @> excluded.partner_ids THEN record.partner_ids
                ELSE record.partner_ids || excluded.partner_ids
            END
        WHERE record.version <= excluded.version
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM batch) AS batches,
    (SELECT count(*) FROM kept) AS records
