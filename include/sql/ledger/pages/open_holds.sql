-- Purpose:    questions that wait for a person: rows that have vanished in numbers.
-- Grain:      one row per clinic with an open question, the oldest first, with the totals over all of them on each.
-- Parameters: size int
-- Personal:   none.
SELECT
    hold.hold_id,
    hold.clinic_id,
    hold.found_at,
    cardinality(hold.appointment_ids) AS records,
    hold.live,
    hold.asked_in,
    hold.asked_at,
    (sum(cardinality(hold.appointment_ids)) OVER ())::bigint AS all_records,
    count(*) OVER () AS all_rows,
    array(
        SELECT DISTINCT reason.code
        FROM unnest(hold.reasons) AS reason (code)
        ORDER BY reason.code
    ) AS reasons
FROM ledger.hold AS hold
WHERE hold.state = 'open'
ORDER BY hold.found_at, hold.hold_id
LIMIT %(size)s
