-- Purpose:    how many partner actions wait: for a decision, for Medflex to take the answer, for their change to be
--             shared; and since when.
-- Grain:      one row.
-- Parameters: none
-- Personal:   none.
SELECT
    undecided.actions AS undecided,
    undecided.since AS undecided_since,
    unanswered.actions AS unanswered,
    unanswered.since AS unanswered_since,
    unshared.actions AS unshared,
    unshared.since AS unshared_since
FROM (
    SELECT
        count(*) AS actions,
        min(action.read_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.decided_at IS NULL
) AS undecided
CROSS JOIN (
    SELECT
        count(*) AS actions,
        min(action.decided_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.decided_at IS NOT NULL AND action.answered_at IS NULL
) AS unanswered
CROSS JOIN (
    SELECT
        count(*) AS actions,
        min(action.decided_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.is_effect AND action.shared_at IS NULL
) AS unshared
