-- Purpose:    the clinics of which Medflex may show anything, or about which a person is asked.
-- Grain:      one row per clinic.
-- Personal:   none.
SELECT record.clinic_id
FROM ledger.record AS record
WHERE record.state <> 'withdrawn'
UNION
SELECT batch.clinic_id
FROM ledger.batch AS batch
WHERE batch.outcome IS NULL
UNION
SELECT hold.clinic_id
FROM ledger.hold AS hold
WHERE hold.state = 'open'
