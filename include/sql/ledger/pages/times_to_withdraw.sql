-- Purpose:    how long it took from a change in Medlock to Medflex's acknowledgement of the withdrawal, by day and by
--             reason. Short times are told to a tenth of a second, others to a second: medians and the like come out
--             that exact, at a fraction of the sorting that they would take here.
-- Grain:      one row per day and time, and one per reason and time.
-- Parameters: days timestamptz[] (starts of days, ascending; the first is the earliest that counts)
-- Personal:   none.
WITH item AS (
    SELECT
        item.reason,
        width_bucket(batch.resolved_at, %(days)s::timestamptz[]) AS day,
        extract(EPOCH FROM batch.resolved_at - item.revoked_at)::float8 AS seconds
    FROM ledger.batch AS batch
    CROSS JOIN
        LATERAL
        unnest(batch.appointment_ids, batch.reasons, batch.revoked_at) AS item (appointment_id, reason, revoked_at)
    WHERE
        batch.operation = 'withdraw'
        -- The index is by creation. What was written down the day before may have been acknowledged since.
        AND batch.created_at >= (%(days)s::timestamptz[])[1] - interval '1 day'
        AND batch.resolved_at >= (%(days)s::timestamptz[])[1]
        AND batch.outcome = 'acknowledged'
        AND item.revoked_at IS NOT NULL
        AND item.appointment_id <> all(batch.rejected_ids || batch.outdated_ids || batch.unknown_ids)
),

rounded AS (
    SELECT
        item.reason,
        item.day,
        item.seconds,
        CASE WHEN item.seconds < 10 THEN round(item.seconds * 10) / 10 ELSE round(item.seconds) END AS about
    FROM item
)

SELECT
    rounded.day,
    rounded.reason,
    grouping(rounded.reason) = 0 AS is_reason,
    rounded.about,
    count(*) AS records,
    max(rounded.seconds) AS longest
FROM rounded
GROUP BY GROUPING SETS ((rounded.day, rounded.about), (rounded.reason, rounded.about))
