-- Purpose:    which messages partners sent about appointments of a run's clinics since an instant (R14, R15).
-- Grain:      one row per clinic, appointment and scenario, in that order.
-- Parameters: the settings medflex.run_key (bigint) and medflex.since (timestamptz), made with set_config() just
--             before, so that ADBC can stream the result by COPY.
-- Personal:   none.
SELECT
    partner_action.clinic_id,
    partner_action.appointment_id,
    lower(btrim(partner_action.scenario, E' \t\r\n')) AS scenario,
    count(*) AS messages,
    array_agg(DISTINCT partner_action.partner_id ORDER BY partner_action.partner_id) AS partner_ids
FROM ledger.partner_action AS partner_action
WHERE
    partner_action.type = 'notification'
    AND partner_action.status_code = 204
    AND partner_action.decided_at >= current_setting('medflex.since')::timestamptz
    AND partner_action.scenario IS NOT NULL
    AND partner_action.appointment_id IS NOT NULL
    AND partner_action.partner_id IS NOT NULL
    AND partner_action.clinic_id IN (
        SELECT run_clinic.clinic_id
        FROM ledger.run_clinic AS run_clinic
        WHERE run_clinic.run_key = current_setting('medflex.run_key')::bigint
    )
GROUP BY
    partner_action.clinic_id,
    partner_action.appointment_id,
    lower(btrim(partner_action.scenario, E' \t\r\n'))
ORDER BY partner_action.clinic_id, partner_action.appointment_id, scenario
