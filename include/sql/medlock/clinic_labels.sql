-- Purpose:    what the pages show of clinics beyond clinics.sql: the name, and who turned the switch last.
-- Grain:      one row per clinic, in the order of clinic_id.
-- Parameters: clinic_ids  bigint[] or NULL for all clinics
-- Personal:   none; of the person who turned the switch only the id is read.
SELECT
    clinic.id AS clinic_id,
    clinic.name,
    access_switch.changed_by
FROM medlock.clinic AS clinic
LEFT JOIN medlock.medflex_access AS access_switch ON clinic.id = access_switch.clinic_id
WHERE %(clinic_ids)s::bigint[] IS NULL OR clinic.id = any(%(clinic_ids)s::bigint[])
ORDER BY clinic.id
