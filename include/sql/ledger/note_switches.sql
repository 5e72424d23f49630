-- Purpose:    note how access switches stand; a turn that is known already is not noted again.
-- Parameters: switches  jsonb list of {clinic_id, enabled, changed_at, role}; via  text; now  timestamptz or NULL for
--             the server's clock
-- Personal:   none.
INSERT INTO ledger.switch_event (clinic_id, enabled, changed_at, role, via, seen_at)
SELECT
    switch.clinic_id,
    switch.enabled,
    switch.changed_at,
    switch.role,
    %(via)s,
    coalesce(%(now)s::timestamptz, clock_timestamp())
FROM
    jsonb_to_recordset(%(switches)s::jsonb)
        AS switch (clinic_id bigint, enabled boolean, changed_at timestamptz, role text)
ON CONFLICT DO NOTHING
