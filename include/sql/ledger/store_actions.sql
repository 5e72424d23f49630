-- Purpose:    keep a page of partner actions. One that is known already is only counted, and answered once more: it may
--             be delivered again because our answer was lost. Not so on a page that will be read again.
-- Grain:      one row: how many were new.
-- Parameters: actions jsonb, a list of objects with the columns below, each action_id once; moves boolean, whether the
--             cursor moves on behind the page; read_in text, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH kept AS (
    INSERT INTO ledger.partner_action AS known (
        action_id, lpu_id, appointment_id, partner_id, type, base_version, dt_start, dt_end, scenario, created_at,
        malformed, deliveries, read_at, read_in
    )
    SELECT
        item.action_id,
        item.lpu_id,
        item.appointment_id,
        item.partner_id,
        item.type,
        item.base_version,
        item.dt_start,
        item.dt_end,
        item.scenario,
        item.created_at,
        item.malformed,
        item.deliveries,
        coalesce(%(now)s::timestamptz, clock_timestamp()),
        %(read_in)s::text
    FROM
        jsonb_to_recordset(%(actions)s::jsonb) AS item (
            place int,
            action_id uuid,
            lpu_id bigint,
            appointment_id bigint,
            partner_id bigint,
            type text,
            base_version bigint,
            dt_start text,
            dt_end text,
            scenario text,
            created_at timestamptz,
            malformed text[],
            deliveries int
        )
    ORDER BY item.place
    ON CONFLICT (action_id) DO UPDATE
        SET
            deliveries = known.deliveries + CASE WHEN %(moves)s THEN excluded.deliveries ELSE 0 END,
            answer = CASE WHEN NOT %(moves)s THEN known.answer END,
            answered_at = CASE WHEN NOT %(moves)s THEN known.answered_at END,
            answered_in = CASE WHEN NOT %(moves)s THEN known.answered_in END
    RETURNING (known.xmax = 0) AS is_new
)

SELECT count(*) FILTER (WHERE kept.is_new) AS new
FROM kept
