-- Purpose:    each clinic with its access switch and the partners it shares data with (R1-R4).
-- Grain:      one row per clinic, in the order of clinic_id.
-- Parameters: clinic_ids  bigint[] or NULL for all clinics
-- Personal:   none; of the person who turned the switch only the role in that clinic is read.
SELECT
    clinic.id AS clinic_id,
    -- Medflex has no number below one: it is as good as none.
    CASE WHEN clinic.lpu_id > 0 THEN clinic.lpu_id END AS lpu_id,
    clinic.timezone,
    access_switch.enabled AS access_enabled,
    -- One far-off stamp ('infinity', say) that no program can hold must not keep all other clinics from being read: it
    -- is no stamp, and the switch counts as off. The same bounds stand in switch/turn.sql.
    CASE
        WHEN access_switch.changed_at BETWEEN '1900-01-01 00:00+00' AND '9000-01-01 00:00+00'
            THEN access_switch.changed_at
    END AS access_changed_at,
    person.role AS access_changed_by_role,
    -- By a look at the index per clinic: grouped for all, the links of 20,000 clinics would be read for one of them.
    array(
        SELECT clinic_partner.partner_id
        FROM medlock.clinic_partner AS clinic_partner
        INNER JOIN medlock.partner AS partner ON clinic_partner.partner_id = partner.id
        WHERE clinic_partner.clinic_id = clinic.id AND clinic_partner.enabled IS TRUE AND partner.id > 0
        ORDER BY clinic_partner.partner_id
    ) AS partner_ids
FROM medlock.clinic AS clinic
LEFT JOIN medlock.medflex_access AS access_switch ON clinic.id = access_switch.clinic_id
-- A person of another clinic is an unknown person here (R2).
LEFT JOIN medlock.staff AS person
    ON access_switch.changed_by = person.id AND clinic.id = person.clinic_id
WHERE %(clinic_ids)s::bigint[] IS NULL OR clinic.id = any(%(clinic_ids)s::bigint[])
ORDER BY clinic.id
