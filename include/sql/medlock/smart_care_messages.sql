-- Purpose:    what Smart Care has sent about appointments since an instant, to see which ones got the same message from
--             a partner as well (R15). Names of scenarios are without capitals and white space around them.
-- Grain:      one row per appointment and scenario that has any message.
-- Parameters: clinic_ids       bigint[]
--             appointment_ids  bigint[]; the two run in parallel, an appointment's clinic at the same place
--             since            timestamptz
-- Personal:   none; the text of a message is not read.
SELECT
    message.clinic_id,
    message.appointment_id,
    lower(btrim(message.scenario, E' \t\r\n')) AS scenario,
    count(*) AS messages
FROM (
    SELECT DISTINCT
        item.clinic_id,
        item.appointment_id
    FROM unnest(%(clinic_ids)s::bigint[], %(appointment_ids)s::bigint[]) AS item (clinic_id, appointment_id)
) AS asked
INNER JOIN medlock.smart_care_message AS message
    ON asked.appointment_id = message.appointment_id AND asked.clinic_id = message.clinic_id
WHERE
    message.scenario IS NOT NULL
    AND message.sent_at >= %(since)s
GROUP BY message.clinic_id, message.appointment_id, lower(btrim(message.scenario, E' \t\r\n'))
