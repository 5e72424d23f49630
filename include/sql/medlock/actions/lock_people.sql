-- Purpose:    let nobody else move an appointment of this doctor or this patient by a partner's wish until the end of
--             the transaction, so that two wishes cannot meet in one slot. An MIS whose own booking takes locks should
--             take those here, too.
-- Grain:      one row.
-- Parameters: clinic_id bigint, doctor_id bigint, patient_id bigint
-- Personal:   none.
SELECT
    pg_advisory_xact_lock(hashtextextended(concat_ws('/', 'medflex doctor', %(clinic_id)s, %(doctor_id)s), 0)),
    pg_advisory_xact_lock(hashtextextended(concat_ws('/', 'medflex patient', %(clinic_id)s, %(patient_id)s), 0))
