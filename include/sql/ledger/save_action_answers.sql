-- Purpose:    note what Medflex said to our answers.
-- Parameters: action_ids uuid[] and answers text[], in parallel; answered_in text, now timestamptz or NULL for the
--             server's clock
-- Personal:   none.
UPDATE ledger.partner_action AS action
SET
    answer = item.answer,
    answered_at = coalesce(%(now)s::timestamptz, clock_timestamp()),
    answered_in = %(answered_in)s::text
FROM unnest(%(action_ids)s::uuid[], %(answers)s::text[]) AS item (action_id, answer)
WHERE action.action_id = item.action_id AND action.answered_at IS NULL
