-- Purpose:    what was decided about actions. The journal lies in Medlock because a decision and its effect have to be
--             written in one transaction: whatever stands here is the decision, whoever made it.
-- Grain:      one row per action that was decided.
-- Parameters: action_ids  uuid[]
-- Personal:   none.
SELECT
    journal.action_id,
    journal.clinic_id,
    journal.status_code,
    journal.reason,
    journal.digest_after,
    journal.decided_at
FROM medlock.partner_action AS journal
WHERE journal.action_id = any(%(action_ids)s::uuid[])
