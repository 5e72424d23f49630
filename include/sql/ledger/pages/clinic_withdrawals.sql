-- Purpose:    the newest withdrawals of a clinic, with the time from the change in Medlock to Medflex's word.
-- Grain:      one row per batch and reason, newest first.
-- Parameters: clinic_id  bigint; shown  int
-- Personal:   none.
WITH newest AS (
    SELECT
        batch.batch_id,
        batch.created_at,
        batch.resolved_at,
        batch.outcome,
        batch.reasons,
        batch.revoked_at
    FROM ledger.batch AS batch
    WHERE batch.clinic_id = %(clinic_id)s AND batch.operation = 'withdraw'
    ORDER BY batch.batch_id DESC
    LIMIT %(shown)s
)

SELECT
    newest.batch_id,
    newest.created_at,
    newest.resolved_at,
    newest.outcome,
    item.reason,
    count(*) AS records,
    max(extract(EPOCH FROM newest.resolved_at - item.revoked_at))::double precision AS slowest_seconds
FROM newest
CROSS JOIN LATERAL unnest(newest.reasons, newest.revoked_at) AS item (reason, revoked_at)
GROUP BY newest.batch_id, newest.created_at, newest.resolved_at, newest.outcome, item.reason
ORDER BY newest.batch_id DESC, records DESC
