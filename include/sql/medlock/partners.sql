-- Purpose:    the partners that clinics can share data with, as the pages name them.
-- Grain:      one row per partner, in the order of its id.
-- Personal:   none.
SELECT
    partner.id AS partner_id,
    partner.name,
    partner.kind
FROM medlock.partner AS partner
ORDER BY partner.id
