-- Purpose:    the clinics of which Medflex may show anything, or about which a person is asked.
-- Grain:      one row per clinic.
-- Personal:   none.
-- From clinic to clinic by their index, a few looks each: read whole, hundreds of millions of records take minutes.
WITH RECURSIVE known AS (
    SELECT min(record.clinic_id) AS clinic_id
    FROM ledger.record AS record
    UNION ALL
    SELECT
        (
            SELECT min(record.clinic_id)
            FROM ledger.record AS record
            WHERE record.clinic_id > known.clinic_id
        ) AS clinic_id
    FROM known
    WHERE known.clinic_id IS NOT NULL
)

SELECT known.clinic_id
FROM known
WHERE
    -- As an array: EXISTS would be made a join, which reads all records after all. What is not withdrawn lies before
    -- or behind what is, so that not all that was ever withdrawn of a clinic is read; and the order is one that only
    -- the index gives: without it, and with statistics from when there were few clinics, all records were read in the
    -- order in which they lie until one was of this clinic, 15 s for 1.4 million of 260 clinics.
    cardinality(
        array(
            SELECT 1
            FROM ledger.record AS record
            WHERE
                record.clinic_id >= known.clinic_id
                AND row(record.clinic_id, record.state) < row(known.clinic_id, 'withdrawn')
            ORDER BY record.clinic_id
            LIMIT 1
        )
    ) = 1
    OR cardinality(
        array(
            SELECT 1
            FROM ledger.record AS record
            WHERE
                row(record.clinic_id, record.state) > row(known.clinic_id, 'withdrawn')
                AND record.clinic_id <= known.clinic_id
            ORDER BY record.clinic_id
            LIMIT 1
        )
    ) = 1
UNION
SELECT batch.clinic_id
FROM ledger.batch AS batch
WHERE batch.outcome IS NULL
UNION
SELECT hold.clinic_id
FROM ledger.hold AS hold
WHERE hold.state = 'open'
