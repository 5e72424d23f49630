-- Purpose:    write down what became of a batch, and of each of its records.
--             'to_retry' leaves the records alone: Medflex has not looked at them. What is withdrawn is no open
--             revocation any more.
-- Grain:      one row with the number of batches resolved: 0 when somebody else has resolved it before.
-- Parameters: batch_id, outcome, http_status, rejected_ids, rejected_fields (jsonb: id -> field names), outdated_ids,
--             unknown_ids, looked_at timestamptz or NULL, now timestamptz or NULL for the server's clock
-- Personal:   none; of a rejection only the names of the fields are kept, never Medflex's text.
WITH batch AS (
    UPDATE ledger.batch
    SET
        outcome = %(outcome)s::text,
        http_status = %(http_status)s::int,
        rejected_ids = %(rejected_ids)s::bigint[],
        outdated_ids = %(outdated_ids)s::bigint[],
        unknown_ids = %(unknown_ids)s::bigint[],
        looked_at = coalesce(%(looked_at)s::timestamptz, looked_at),
        resolved_at = coalesce(%(now)s::timestamptz, clock_timestamp())
    WHERE
        batch_id = %(batch_id)s
        -- Said so that the index of open batches is left alone: where Postgres believes that there are none, it would
        -- look through all of them, and through all that were open lately, for this one.
        AND coalesce(outcome, '') = ''
    RETURNING
        batch_id,
        clinic_id,
        lpu_id,
        operation,
        outcome,
        appointment_ids,
        versions,
        digests,
        patient_ids,
        partner_ids,
        extracted_at,
        resolved_at,
        rejected_ids,
        rejected_ids || outdated_ids || unknown_ids AS unsettled_ids
),

-- The columns in the order in which the insert below names them.
item AS (
    SELECT
        batch.clinic_id,
        item.appointment_id,
        batch.lpu_id,
        item.version,
        verdict.state,
        CASE WHEN verdict.state IN ('sent', 'withdrawn') THEN item.version END AS acked_version,
        CASE WHEN verdict.state = 'sent' THEN item.digest END AS acked_digest,
        CASE
            WHEN verdict.rejected_fields IS NOT NULL
                THEN array(SELECT jsonb_array_elements_text(verdict.rejected_fields))
        END AS rejected_fields,
        batch.batch_id,
        batch.extracted_at,
        batch.resolved_at AS changed_at,
        CASE WHEN verdict.state <> 'withdrawn' THEN item.patient_id END AS patient_id,
        CASE WHEN verdict.state <> 'withdrawn' THEN batch.partner_ids END AS partner_ids
    FROM batch
    CROSS JOIN
        LATERAL unnest(batch.appointment_ids, batch.versions, batch.digests, batch.patient_ids)
            AS item (appointment_id, version, digest, patient_id)
    CROSS JOIN
        LATERAL (
            SELECT
                CASE
                    WHEN item.appointment_id = any(batch.rejected_ids) AND batch.operation = 'send' THEN 'rejected'
                    WHEN item.appointment_id = any(batch.unsettled_ids)
                        THEN CASE batch.operation WHEN 'send' THEN 'sending' ELSE 'withdrawing' END
                    ELSE CASE batch.operation WHEN 'send' THEN 'sent' ELSE 'withdrawn' END
                END AS state,
                CASE
                    WHEN item.appointment_id = any(batch.rejected_ids)
                        THEN %(rejected_fields)s::jsonb -> item.appointment_id::text
                END AS rejected_fields
        ) AS verdict
    WHERE batch.outcome <> 'to_retry'
),

kept AS (
    INSERT INTO ledger.record AS record (
        clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest, rejected_fields, batch_id,
        extracted_at, changed_at, patient_id, partner_ids
    )
    SELECT item.*
    FROM item
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO UPDATE
        SET
            version = excluded.version,
            state = excluded.state,
            acked_version = coalesce(excluded.acked_version, record.acked_version),
            acked_digest = CASE
                WHEN excluded.state IN ('sent', 'withdrawn') THEN excluded.acked_digest ELSE record.acked_digest
            END,
            rejected_fields = excluded.rejected_fields,
            batch_id = excluded.batch_id,
            -- A withdrawal shows no copy: whoever read earlier than the last one that was shown is late all the same.
            extracted_at = greatest(record.extracted_at, excluded.extracted_at),
            changed_at = excluded.changed_at,
            -- Until Medflex has said yes, what was there before may still be shown: whose it is, is in doubt unless
            -- both are the same.
            patient_id = CASE
                WHEN excluded.state IN ('sent', 'withdrawn') THEN excluded.patient_id
                WHEN excluded.state = 'withdrawing' THEN record.patient_id
                WHEN record.state = 'withdrawn' THEN excluded.patient_id
                WHEN record.patient_id = excluded.patient_id THEN record.patient_id
            END,
            partner_ids = CASE
                WHEN excluded.state IN ('sent', 'withdrawn') OR record.state = 'withdrawn' THEN excluded.partner_ids
                WHEN record.partner_ids @> excluded.partner_ids THEN record.partner_ids
                ELSE record.partner_ids || excluded.partner_ids
            END
        -- Nothing older may overwrite what is known of a newer version.
        WHERE record.version <= excluded.version
    RETURNING record.clinic_id, record.appointment_id, record.lpu_id, record.state
),

-- A clinic that is set up anew under another id, with its lpu_id and its appointments, has them in the same place at
-- Medflex: what is withdrawn for the old one is gone for the new one, too, and has to be sent again. So has what is on
-- its way there, unless its version is higher: which of the two came first, nobody can tell.
under_way AS (
    SELECT DISTINCT ON (other.clinic_id, sending.appointment_id, other.lpu_id)
        other.clinic_id,
        sending.appointment_id,
        other.lpu_id,
        item.version + 1 AS version,
        other.batch_id,
        other.extracted_at,
        item.changed_at,
        sending.patient_id,
        other.partner_ids
    FROM ledger.batch AS other
    CROSS JOIN
        LATERAL unnest(other.appointment_ids, other.patient_ids) AS sending (appointment_id, patient_id)
    INNER JOIN item ON sending.appointment_id = item.appointment_id AND item.state = 'withdrawn'
    WHERE
        -- Said so that nothing is looked through when records are sent.
        (SELECT batch.operation FROM batch) = 'withdraw'
        AND other.outcome IS NULL
        AND other.operation = 'send'
        AND other.lpu_id = (SELECT batch.lpu_id FROM batch)
        AND other.clinic_id <> (SELECT batch.clinic_id FROM batch)
    ORDER BY other.clinic_id ASC, sending.appointment_id ASC, other.lpu_id ASC, other.batch_id DESC
),

doubted AS (
    INSERT INTO ledger.record AS record (
        clinic_id, appointment_id, lpu_id, version, state, batch_id, extracted_at, changed_at, patient_id, partner_ids
    )
    SELECT
        under_way.clinic_id,
        under_way.appointment_id,
        under_way.lpu_id,
        under_way.version,
        'sending' AS state,
        under_way.batch_id,
        under_way.extracted_at,
        under_way.changed_at,
        under_way.patient_id,
        under_way.partner_ids
    FROM under_way
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO UPDATE
        SET
            version = excluded.version,
            -- A withdrawal that is begun is finished.
            state = CASE WHEN record.state = 'withdrawing' THEN record.state ELSE excluded.state END
        WHERE record.version < excluded.version
),

displaced AS (
    UPDATE ledger.record AS other
    SET
        state = CASE other.state WHEN 'aged_out' THEN 'withdrawn' ELSE 'sending' END,
        version = greatest(other.version, item.version)
    FROM item
    WHERE
        -- Said of the batch as well, so that nothing is looked through when records are sent.
        (SELECT batch.operation FROM batch) = 'withdraw'
        AND item.state = 'withdrawn'
        AND other.appointment_id = item.appointment_id
        AND other.lpu_id = item.lpu_id
        AND other.clinic_id <> item.clinic_id
        AND other.state IN ('sent', 'aged_out')
        -- Those are written above, and no statement writes a row twice.
        AND NOT EXISTS (
            SELECT 1
            FROM under_way
            WHERE
                other.clinic_id = under_way.clinic_id
                AND other.appointment_id = under_way.appointment_id
                AND other.lpu_id = under_way.lpu_id
        )
    RETURNING 1
),

to_close AS (
    SELECT
        revocation.clinic_id,
        revocation.appointment_id,
        revocation.lpu_id
    -- Where a newer version is known, that has still to be withdrawn.
    FROM kept
    INNER JOIN ledger.revocation AS revocation
        ON
            kept.clinic_id = revocation.clinic_id
            AND kept.appointment_id = revocation.appointment_id
            AND kept.lpu_id = revocation.lpu_id
    WHERE (SELECT batch.operation FROM batch) = 'withdraw' AND kept.state = 'withdrawn'
    -- In this order every lane locks revocations, so that no two wait for each other.
    ORDER BY revocation.clinic_id, revocation.appointment_id, revocation.lpu_id
    FOR UPDATE OF revocation
),

closed AS (
    DELETE FROM ledger.revocation AS revocation
    USING to_close
    WHERE
        revocation.clinic_id = to_close.clinic_id
        AND revocation.appointment_id = to_close.appointment_id
        AND revocation.lpu_id = to_close.lpu_id
    RETURNING 1
)

SELECT count(*) AS batches FROM batch
