-- Purpose:    how many partner actions wait, for a decision or for Medflex to take the answer, and since when.
-- Grain:      one row.
-- Parameters: none
-- Personal:   none.
SELECT
    count(*) FILTER (WHERE action.decided_at IS NULL) AS undecided,
    count(*) FILTER (WHERE action.decided_at IS NOT NULL) AS unanswered,
    min(action.read_at) AS oldest
FROM ledger.partner_action AS action
WHERE action.decided_at IS NULL OR action.answered_at IS NULL
