-- Purpose:    what Medflex shows or may show of these clinics: the base of all revocations. A record in an intent
--             without outcome may be there, in that version; where what it shows is in doubt between two patients, the
--             patient is missing, between two sets of partners, both are told.
-- Grain:      one row per record and lpu_id that is not settled as withdrawn.
-- Parameters: the settings medflex.clinic_ids, a bigint[] literal, and medflex.appointment_ids, one that runs in
--             parallel with it, or '' for all records of the clinics; made with set_config() just before, so that ADBC
--             can stream the result by COPY.
-- Personal:   none.
WITH clinic AS MATERIALIZED (
    SELECT DISTINCT asked.clinic_id
    FROM unnest(current_setting('medflex.clinic_ids')::bigint[]) AS asked (clinic_id)
),

asked AS MATERIALIZED (
    SELECT DISTINCT
        pair.clinic_id,
        pair.appointment_id
    FROM
        unnest(
            current_setting('medflex.clinic_ids')::bigint[],
            nullif(current_setting('medflex.appointment_ids'), '')::bigint[]
        ) AS pair (clinic_id, appointment_id)
    WHERE current_setting('medflex.appointment_ids') <> ''
),

open_intent AS (
    SELECT
        batch.clinic_id,
        item.appointment_id,
        batch.lpu_id,
        max(item.version) AS version,
        bool_or(batch.operation = 'withdraw') AS withdraws,
        CASE WHEN count(DISTINCT item.patient_id) = 1 THEN min(item.patient_id) END AS patient_id,
        array_agg(DISTINCT partner.partner_id) FILTER (WHERE partner.partner_id IS NOT NULL) AS partner_ids,
        min(batch.created_at) AS created_at
    FROM ledger.batch AS batch
    CROSS JOIN
        LATERAL
        unnest(batch.appointment_ids, batch.versions, batch.patient_ids)
            AS item (appointment_id, version, patient_id)
    LEFT JOIN LATERAL unnest(batch.partner_ids) AS partner (partner_id) ON TRUE
    WHERE batch.outcome IS NULL AND batch.clinic_id IN (SELECT clinic.clinic_id FROM clinic)
    GROUP BY batch.clinic_id, item.appointment_id, batch.lpu_id
)

SELECT
    coalesce(record.clinic_id, open_intent.clinic_id) AS clinic_id,
    coalesce(record.appointment_id, open_intent.appointment_id) AS appointment_id,
    coalesce(record.lpu_id, open_intent.lpu_id) AS lpu_id,
    greatest(record.version, open_intent.version) AS version,
    CASE
        WHEN open_intent.version IS NULL THEN record.state
        WHEN open_intent.withdraws THEN 'withdrawing'
        ELSE 'sending'
    END AS state,
    CASE
        WHEN open_intent.version IS NULL THEN record.patient_id
        WHEN coalesce(record.state, 'withdrawn') = 'withdrawn' THEN open_intent.patient_id
        WHEN record.patient_id = open_intent.patient_id THEN record.patient_id
    END AS patient_id,
    array_to_string(
        CASE
            WHEN open_intent.version IS NULL THEN record.partner_ids
            WHEN coalesce(record.state, 'withdrawn') = 'withdrawn' THEN open_intent.partner_ids
            ELSE record.partner_ids || open_intent.partner_ids
        END,
        ','
    ) AS partner_ids,
    coalesce(record.changed_at, open_intent.created_at) AS changed_at,
    -- When what is shown was read; of an intent without outcome it is not known what is.
    CASE WHEN open_intent.version IS NULL THEN record.extracted_at END AS extracted_at
FROM (
    -- Two branches of which one is empty: in one, the few records of a quick look would cost a look at all there are.
    SELECT record.*
    FROM ledger.record AS record
    WHERE
        current_setting('medflex.appointment_ids') = ''
        AND record.clinic_id IN (SELECT clinic.clinic_id FROM clinic)
    UNION ALL
    SELECT record.*
    FROM asked
    INNER JOIN ledger.record AS record
        ON asked.clinic_id = record.clinic_id AND asked.appointment_id = record.appointment_id
) AS record
FULL JOIN (
    SELECT open_intent.*
    FROM open_intent
    WHERE
        current_setting('medflex.appointment_ids') = ''
        OR (open_intent.clinic_id, open_intent.appointment_id)
        IN (SELECT
            asked.clinic_id,
            asked.appointment_id
        FROM asked)
) AS open_intent
    ON
        record.clinic_id = open_intent.clinic_id
        AND record.appointment_id = open_intent.appointment_id
        AND record.lpu_id = open_intent.lpu_id
WHERE record.state IS DISTINCT FROM 'withdrawn' OR open_intent.version IS NOT NULL
