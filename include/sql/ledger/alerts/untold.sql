-- Purpose:    messages that not every channel has had yet, in the order in which they arose.
-- Grain:      one row per alert and state (raised, cleared).
-- Parameters: none
-- Personal:   none.
SELECT
    alert.alert_id,
    alert.kind,
    message.state,
    message.at,
    message.sentence,
    alert.since,
    message.told_to
FROM ledger.alert AS alert
CROSS JOIN
    LATERAL (
        VALUES
        ('raised', alert.raised_at, alert.sentence, alert.raise_told_to, alert.raise_told_at),
        ('cleared', alert.cleared_at, alert.over_sentence, alert.clear_told_to, alert.clear_told_at)
    ) AS message (state, at, sentence, told_to, told_at)
WHERE
    (alert.raise_told_at IS NULL OR (alert.cleared_at IS NOT NULL AND alert.clear_told_at IS NULL))
    AND message.at IS NOT NULL
    AND message.told_at IS NULL
ORDER BY message.at ASC, alert.alert_id ASC, message.state DESC
LIMIT 100
