-- Purpose:    the clinics with requests of which nobody could tell in time whether they had their effect: what they
--             carried may still arrive, and must not undo what came after it.
-- Grain:      one row per clinic.
-- Parameters: since timestamptz
-- Personal:   none.
SELECT DISTINCT batch.clinic_id
FROM ledger.batch AS batch
WHERE batch.resolved_at >= %(since)s AND batch.unknown_ids <> '{}'
ORDER BY batch.clinic_id
