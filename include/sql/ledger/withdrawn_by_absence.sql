-- Purpose:    how many records of these clinics were withdrawn since an instant because their rows had vanished,
--             without anybody being asked. What a person has released is no measure, while such an answer holds and
--             unless the record was sent again since; nor is what Medflex has put off: that is still there, and counted
--             there.
-- Grain:      one row per clinic that has any.
-- Parameters: clinic_ids bigint[], since timestamptz, reasons text[] (those that tell of absence); answered_since
--             timestamptz; besides_clinic_ids, besides_appointment_ids bigint[] (in parallel): records that are not
--             counted
-- Personal:   none.
WITH not_counted AS MATERIALIZED (
    SELECT
        hold.clinic_id,
        released.appointment_id,
        hold.decided_at AS since
    FROM ledger.hold AS hold
    CROSS JOIN LATERAL unnest(hold.appointment_ids) AS released (appointment_id)
    WHERE
        hold.state = 'released'
        AND hold.clinic_id = any(%(clinic_ids)s::bigint[])
        AND hold.decided_at >= %(answered_since)s
    UNION ALL
    SELECT
        besides.clinic_id,
        besides.appointment_id,
        NULL AS since
    FROM
        unnest(%(besides_clinic_ids)s::bigint[], %(besides_appointment_ids)s::bigint[])
            AS besides (clinic_id, appointment_id)
)

SELECT
    batch.clinic_id,
    count(DISTINCT item.appointment_id) AS records
FROM ledger.batch AS batch
CROSS JOIN LATERAL unnest(batch.appointment_ids, batch.reasons) AS item (appointment_id, reason)
LEFT JOIN ledger.record AS record
    ON
        batch.clinic_id = record.clinic_id
        AND item.appointment_id = record.appointment_id
        AND batch.lpu_id = record.lpu_id
WHERE
    batch.operation = 'withdraw'
    AND batch.outcome IS DISTINCT FROM 'to_retry'
    AND batch.created_at >= %(since)s
    AND batch.clinic_id = any(%(clinic_ids)s::bigint[])
    AND item.reason = any(%(reasons)s::text[])
    -- A join. As "is it in the array" Postgres would read a hold's whole array for each record, and as NOT IN all of
    -- them where they do not fit into memory; a clinic's purge has tens of thousands, a lost table millions.
    AND NOT EXISTS (
        SELECT 1
        FROM not_counted
        WHERE
            not_counted.clinic_id = batch.clinic_id
            AND not_counted.appointment_id = item.appointment_id
            -- When the copy was read that was sent last, a withdrawal leaves as it was.
            AND (
                not_counted.since IS NULL
                OR (
                    not_counted.since <= batch.created_at
                    AND coalesce(record.extracted_at <= not_counted.since, TRUE)
                )
            )
    )
GROUP BY batch.clinic_id
