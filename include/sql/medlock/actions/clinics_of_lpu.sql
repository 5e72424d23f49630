-- Purpose:    which clinics partners mean: they know a clinic by its lpu_id.
-- Grain:      one row per lpu_id that Medlock knows.
-- Parameters: lpu_ids  bigint[]
-- Personal:   none.
SELECT
    clinic.lpu_id,
    clinic.id AS clinic_id
FROM medlock.clinic AS clinic
WHERE clinic.lpu_id = any(%(lpu_ids)s::bigint[])
