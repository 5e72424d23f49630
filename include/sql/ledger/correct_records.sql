-- Purpose:    make the ledger say what Medflex was seen to show, if the clinic is still ours (fencing). What is known
--             of a newer version stays, unless it is that version that was looked at. What has to be withdrawn is an
--             open revocation from then on, whoever withdraws it.
-- Grain:      one row: how many records were corrected, and whether the clinic was ours.
-- Parameters: clinic_id, lpu_id, epoch bigint; holder text; appointment_ids, versions, acked_versions, acked_digests,
--             patient_ids bigint[]; states text[]; arrays in parallel, NULL where there is none; partner_ids bigint[]
--             of the clinic; reason text, why what is withdrawing is; extracted_at timestamptz or NULL; now timestamptz
--             or NULL for the server's clock
-- Personal:   none.
WITH fence AS (
    SELECT lease.clinic_id
    FROM ledger.lease AS lease
    WHERE lease.clinic_id = %(clinic_id)s AND lease.holder = %(holder)s::text AND lease.epoch = %(epoch)s
    FOR SHARE
),

corrected AS (
    INSERT INTO ledger.record AS record (
        clinic_id, appointment_id, lpu_id, version, state, acked_version, acked_digest, patient_id, partner_ids,
        extracted_at, changed_at
    )
    SELECT
        fence.clinic_id,
        item.appointment_id,
        %(lpu_id)s::bigint,
        item.version,
        item.state,
        item.acked_version,
        item.acked_digest,
        item.patient_id,
        CASE WHEN item.state = 'sent' THEN %(partner_ids)s::bigint[] END,
        %(extracted_at)s::timestamptz,
        coalesce(%(now)s::timestamptz, clock_timestamp())
    FROM fence
    CROSS JOIN
        unnest(
            %(appointment_ids)s::bigint[],
            %(versions)s::bigint[],
            %(states)s::text[],
            %(acked_versions)s::bigint[],
            %(acked_digests)s::bigint[],
            %(patient_ids)s::bigint[]
        ) AS item (appointment_id, version, state, acked_version, acked_digest, patient_id)
    -- In this order every lane locks records.
    ORDER BY item.appointment_id
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO UPDATE
        SET
            version = greatest(record.version, excluded.version),
            state = excluded.state,
            acked_version = excluded.acked_version,
            acked_digest = excluded.acked_digest,
            patient_id = CASE WHEN excluded.state = 'sent' THEN excluded.patient_id ELSE record.patient_id END,
            partner_ids = CASE WHEN excluded.state = 'sent' THEN excluded.partner_ids ELSE record.partner_ids END,
            rejected_fields = NULL,
            extracted_at = coalesce(excluded.extracted_at, record.extracted_at),
            changed_at = excluded.changed_at
    RETURNING record.clinic_id, record.appointment_id, record.lpu_id, record.state, record.changed_at
),

begun AS (
    INSERT INTO ledger.revocation (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at, found_at)
    SELECT
        corrected.clinic_id,
        corrected.appointment_id,
        corrected.lpu_id,
        %(reason)s::text,
        FALSE,
        corrected.changed_at AS revoked_at,
        corrected.changed_at AS found_at
    FROM corrected
    WHERE corrected.state = 'withdrawing'
    -- In this order every lane locks revocations.
    ORDER BY corrected.appointment_id
    ON CONFLICT (clinic_id, appointment_id, lpu_id) DO NOTHING
)

SELECT
    (SELECT count(*) FROM corrected) AS records,
    (SELECT count(*) FROM fence) AS fences
