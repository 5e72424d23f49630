-- Purpose:    the records of a clinic that Medflex rejects, by the fields that it names.
-- Grain:      one row per set of fields, with how many there are and the first 20 ids.
-- Parameters: clinic_id  bigint
-- Personal:   none.
SELECT
    coalesce(record.rejected_fields, '{}') AS fields,
    count(*) AS records,
    (array_agg(record.appointment_id ORDER BY record.appointment_id))[1:20] AS appointment_ids,
    min(record.changed_at) AS since
FROM ledger.record AS record
WHERE record.clinic_id = %(clinic_id)s AND record.state = 'rejected'
GROUP BY coalesce(record.rejected_fields, '{}')
ORDER BY records DESC, fields ASC
