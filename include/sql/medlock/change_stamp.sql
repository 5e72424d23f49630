-- Purpose:    a cheap look, every few seconds, whether anything changed that can revoke: as long as no column differs
--             from the last look, nothing did among the rows that are looked at; looks by the clock find the rest.
-- Grain:      one row; its columns are fingerprints, to be compared and nothing else.
-- Parameters: appointments_since, patients_since, doctors_since timestamptz, rows stamped earlier are not looked at;
--             the same for all looks that are compared, but where too many have changed (changed_rows.sql): then what
--             differs may be a look too many
-- Personal:   none leaves the database; of the patients only ids, stamps and flags are read.
-- Sums of hashes: they need no order, so that an hour of changes costs one pass over an index and no sort.
WITH revoking AS (
    SELECT
        1 AS kind,
        patient.id,
        patient.updated_at
    FROM medlock.patient AS patient
    WHERE
        patient.updated_at >= %(patients_since)s::timestamptz
        AND (
            patient.refused_personal_data IS NOT FALSE
            OR patient.refused_notifications IS NOT FALSE
            OR patient.refused_marketing IS NOT FALSE
        )
    UNION ALL
    SELECT
        2 AS kind,
        doctor.id,
        doctor.updated_at
    FROM medlock.doctor AS doctor
    WHERE
        doctor.updated_at >= %(doctors_since)s::timestamptz
        AND doctor.medflex_banned IS NOT FALSE
    UNION ALL
    -- An appointment can become anonymous, or be given to a patient or doctor who does not want it or is not there.
    SELECT
        3 AS kind,
        appointment.id,
        appointment.updated_at
    FROM medlock.appointment AS appointment
    WHERE
        appointment.updated_at >= %(appointments_since)s::timestamptz
        AND (
            appointment.is_anonymous IS NOT FALSE
            -- Not joined: as few as an hour's appointments made the planner read all patients of 20,000 clinics.
            OR (
                SELECT
                    patient.refused_personal_data IS NOT FALSE
                    OR patient.refused_notifications IS NOT FALSE
                    OR patient.refused_marketing IS NOT FALSE
                FROM medlock.patient AS patient
                WHERE patient.id = appointment.patient_id AND patient.clinic_id = appointment.clinic_id
            ) IS NOT FALSE
            OR (
                SELECT doctor.medflex_banned IS NOT FALSE
                FROM medlock.doctor AS doctor
                WHERE doctor.id = appointment.doctor_id AND doctor.clinic_id = appointment.clinic_id
            ) IS NOT FALSE
        )
),

-- What clinics.sql reads. These tables have no stamps to look at, but they are small.
switches AS (
    SELECT
        count(*) AS found,
        sum(
            hash_record_extended(
                row(
                    clinic.id, clinic.lpu_id, clinic.timezone,
                    access_switch.enabled, access_switch.changed_at, person.role
                ), 0
            )
        ) AS fingerprint
    FROM medlock.clinic AS clinic
    LEFT JOIN medlock.medflex_access AS access_switch ON clinic.id = access_switch.clinic_id
    LEFT JOIN medlock.staff AS person
        ON access_switch.changed_by = person.id AND clinic.id = person.clinic_id
),

links AS (
    SELECT
        count(*) AS found,
        sum(hashint8extended(clinic_partner.clinic_id, clinic_partner.partner_id)) AS fingerprint
    FROM medlock.clinic_partner AS clinic_partner
    WHERE clinic_partner.enabled IS TRUE
),

partners AS (
    SELECT
        count(*) AS found,
        sum(hashint8extended(partner.id, 0)) AS fingerprint
    FROM medlock.partner AS partner
),

-- A row that is gone has no stamp. The server counts deletions (seen 1 to 10 s after their commit, rolled back
-- ones too); a truncated table is not counted, but gets another file.
watched AS (
    SELECT unnest(ARRAY['medlock.appointment', 'medlock.patient', 'medlock.doctor'])::regclass AS relation
),

counters AS (
    SELECT
        watched.relation,
        concat_ws(
            '/', pg_stat_get_tuples_deleted(watched.relation), pg_relation_filenode(watched.relation)
        ) AS stamp
    FROM watched
),

revoking_rows AS (
    SELECT
        count(*) AS found,
        sum(hash_record_extended(row(revoking.kind, revoking.id, revoking.updated_at), 0)) AS fingerprint
    FROM revoking
),

deleted_rows AS (
    SELECT string_agg(counters.stamp, ' ' ORDER BY counters.relation) AS stamp
    FROM counters
)

SELECT
    deleted_rows.stamp AS deletions,
    concat_ws('/', revoking_rows.found, revoking_rows.fingerprint) AS revoking,
    concat_ws(
        '/', switches.found, switches.fingerprint, links.found, links.fingerprint, partners.found, partners.fingerprint
    ) AS permissions
FROM revoking_rows
CROSS JOIN switches
CROSS JOIN links
CROSS JOIN partners
CROSS JOIN deleted_rows
