-- Purpose:    which scenarios a clinic's Smart Care and its partners both run (R15), and of which partners it is not
--             known what they run, where Smart Care runs anything. Names are compared without regard to capitals and
--             white space around them, since people type them.
-- Grain:      one row per clinic and scenario; one more with a scenario of NULL per clinic that has such partners.
-- Parameters: clinic_ids  bigint[] or NULL for all clinics
-- Personal:   none.
WITH smart_care AS (
    SELECT DISTINCT
        smart_care_scenario.clinic_id,
        lower(btrim(smart_care_scenario.scenario, E' \t\r\n')) AS scenario
    FROM medlock.smart_care_scenario AS smart_care_scenario
    WHERE
        smart_care_scenario.enabled IS TRUE
        AND smart_care_scenario.scenario IS NOT NULL
        AND (%(clinic_ids)s::bigint[] IS NULL OR smart_care_scenario.clinic_id = any(%(clinic_ids)s::bigint[]))
),

link AS (
    SELECT
        clinic_partner.clinic_id,
        clinic_partner.partner_id,
        clinic_partner.scenarios
    FROM medlock.clinic_partner AS clinic_partner
    INNER JOIN medlock.partner AS partner ON clinic_partner.partner_id = partner.id
    WHERE clinic_partner.enabled IS TRUE
)

SELECT
    smart_care.clinic_id,
    smart_care.scenario,
    array_agg(DISTINCT link.partner_id ORDER BY link.partner_id) AS partner_ids
FROM smart_care
INNER JOIN link ON smart_care.clinic_id = link.clinic_id
CROSS JOIN LATERAL unnest(link.scenarios) AS item (scenario)
WHERE lower(btrim(item.scenario, E' \t\r\n')) = smart_care.scenario
GROUP BY smart_care.clinic_id, smart_care.scenario
UNION ALL
SELECT
    link.clinic_id,
    NULL AS scenario,
    array_agg(link.partner_id ORDER BY link.partner_id) AS partner_ids
FROM link
WHERE
    link.scenarios IS NULL
    AND EXISTS (
        SELECT 1 FROM smart_care
        WHERE smart_care.clinic_id = link.clinic_id
    )
GROUP BY link.clinic_id
ORDER BY clinic_id, scenario
