-- Purpose:    set numbers of the funnel, clinic by clinic; those that are not given stay.
-- Parameters: run_key bigint, numbers jsonb list of {clinic_id, <number>: value}
-- Personal:   none.
UPDATE ledger.run_clinic AS run_clinic
SET
    access_state = coalesce(given.access_state, run_clinic.access_state),
    closed_reason
    = CASE WHEN given.access_state IS NULL THEN run_clinic.closed_reason ELSE given.closed_reason END,
    opens_at = coalesce(given.opens_at, run_clinic.opens_at),
    -- Whoever tells the state of a clinic tells its window, too, or that it has none: it was not asked for anything.
    window_from
    = CASE
        WHEN given.access_state IS NULL THEN coalesce(given.window_from, run_clinic.window_from) ELSE given.window_from
    END,
    window_before
    = CASE
        WHEN given.access_state IS NULL THEN coalesce(given.window_before, run_clinic.window_before) ELSE
            given.window_before
    END,
    extracted
    = CASE
        WHEN given.access_state IS NULL THEN coalesce(given.extracted, run_clinic.extracted) ELSE given.extracted
    END,
    eligible = coalesce(given.eligible, run_clinic.eligible),
    withheld = coalesce(given.withheld, run_clinic.withheld),
    quarantined = coalesce(given.quarantined, run_clinic.quarantined),
    unknown_statuses = coalesce(given.unknown_statuses, run_clinic.unknown_statuses),
    new = coalesce(given.new, run_clinic.new),
    changed = coalesce(given.changed, run_clinic.changed),
    again = coalesce(given.again, run_clinic.again),
    unchanged = coalesce(given.unchanged, run_clinic.unchanged),
    planned = coalesce(given.planned, run_clinic.planned),
    accepted = coalesce(given.accepted, run_clinic.accepted),
    rejected = coalesce(given.rejected, run_clinic.rejected),
    to_retry = coalesce(given.to_retry, run_clinic.to_retry),
    unknown = coalesce(given.unknown, run_clinic.unknown),
    dropped = coalesce(given.dropped, run_clinic.dropped),
    revoked = coalesce(given.revoked, run_clinic.revoked),
    withdrawn = coalesce(given.withdrawn, run_clinic.withdrawn),
    withdraw_to_retry = coalesce(given.withdraw_to_retry, run_clinic.withdraw_to_retry),
    withdraw_unknown = coalesce(given.withdraw_unknown, run_clinic.withdraw_unknown),
    permitted_again = coalesce(given.permitted_again, run_clinic.permitted_again),
    held = coalesce(given.held, run_clinic.held)
FROM
    jsonb_to_recordset(%(numbers)s::jsonb) AS given (
        clinic_id bigint, access_state text, closed_reason text, opens_at timestamptz, window_from timestamptz,
        window_before timestamptz, extracted bigint, eligible bigint, withheld bigint, quarantined bigint,
        unknown_statuses bigint, new bigint, changed bigint, again bigint, unchanged bigint, planned bigint,
        accepted bigint, rejected bigint, to_retry bigint, unknown bigint, dropped bigint, revoked bigint,
        withdrawn bigint, withdraw_to_retry bigint, withdraw_unknown bigint, permitted_again bigint, held bigint
    )
WHERE run_clinic.run_key = %(run_key)s AND run_clinic.clinic_id = given.clinic_id
