-- Purpose:    how long it took from a change in Medlock to Medflex's acknowledgement of the withdrawal.
-- Grain:      one row per withdrawn record.
-- Parameters: since timestamptz
-- Personal:   none.
SELECT
    batch.clinic_id,
    item.appointment_id,
    item.reason,
    item.revoked_at,
    batch.resolved_at AS acknowledged_at,
    extract(EPOCH FROM batch.resolved_at - item.revoked_at)::float8 AS seconds
FROM ledger.batch AS batch
CROSS JOIN
    LATERAL
    unnest(batch.appointment_ids, batch.reasons, batch.revoked_at) AS item (appointment_id, reason, revoked_at)
WHERE
    batch.operation = 'withdraw'
    AND batch.created_at >= %(since)s
    AND batch.outcome = 'acknowledged'
    AND item.appointment_id <> all(batch.rejected_ids || batch.outdated_ids || batch.unknown_ids)
