-- Purpose:    the messages that patients get twice, as a run found them, for its report in text (R15).
-- Grain:      one row per kind and scenario.
-- Parameters: run_key bigint, shown int (how many clinics are named, those with the most appointments)
-- Personal:   none.
WITH placed AS (
    SELECT
        message_warning.kind,
        message_warning.scenario,
        message_warning.clinic_id,
        message_warning.appointments,
        row_number() OVER (
            PARTITION BY message_warning.kind, message_warning.scenario
            ORDER BY message_warning.appointments DESC, message_warning.clinic_id ASC
        ) AS place
    FROM ledger.message_warning AS message_warning
    WHERE message_warning.run_key = %(run_key)s
)

SELECT
    placed.kind,
    placed.scenario,
    count(*) AS clinics,
    sum(placed.appointments)::bigint AS appointments,
    array_agg(placed.clinic_id ORDER BY placed.place) FILTER (WHERE placed.place <= %(shown)s) AS clinic_ids
FROM placed
GROUP BY placed.kind, placed.scenario
ORDER BY placed.kind ASC, sum(placed.appointments) DESC, count(*) DESC, placed.scenario ASC
