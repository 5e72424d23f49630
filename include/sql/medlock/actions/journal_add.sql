-- Purpose:    note a decision, in the transaction of its effect; a second one about the same action fails here, and
--             with it its effect. Of a notification it is all that is kept: which scenario, never a text (R14).
-- Grain:      one row: when it was decided.
-- Parameters: action_id uuid, clinic_id, appointment_id, partner_id bigint or NULL, type, scenario text or NULL,
--             status_code int, reason text, digest_after bigint or NULL (a keyed fingerprint of the appointment behind
--             the action, which tells nothing without the key)
-- Personal:   none.
INSERT INTO medlock.partner_action AS journal (
    action_id, clinic_id, appointment_id, partner_id, type, scenario, status_code, reason, digest_after,
    decided_at
)
VALUES (
    %(action_id)s, %(clinic_id)s, %(appointment_id)s, %(partner_id)s, %(type)s, %(scenario)s, %(status_code)s,
    %(reason)s, %(digest_after)s, clock_timestamp()
)
RETURNING journal.decided_at
