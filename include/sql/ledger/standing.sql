-- Purpose:    what is open at this moment, and when what has to go well last did; for gauges.
-- Grain:      one row.
-- Parameters: deadline_seconds float8, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH clock AS (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),

revocations AS (
    SELECT
        count(*) AS records,
        count(*) FILTER (
            WHERE revocation.revoked_at < clock.now - make_interval(secs => %(deadline_seconds)s)
        ) AS late,
        coalesce(extract(EPOCH FROM max(clock.now - revocation.revoked_at)), 0)::float8 AS oldest_seconds
    FROM ledger.revocation AS revocation
    CROSS JOIN clock
),

holds AS (
    SELECT
        count(*) AS questions,
        coalesce(sum(cardinality(hold.appointment_ids)), 0)::bigint AS records
    FROM ledger.hold AS hold
    WHERE hold.state = 'open'
),

-- Two looks, each of which has an index of its own: together they would be a look at all actions there ever were.
undecided AS (
    SELECT
        count(*) AS actions,
        min(action.read_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.decided_at IS NULL
),

unanswered AS (
    SELECT
        count(*) AS actions,
        min(action.read_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.decided_at IS NOT NULL AND action.answered_at IS NULL
),

actions AS (
    SELECT
        undecided.actions AS undecided,
        unanswered.actions AS unanswered,
        coalesce(extract(EPOCH FROM clock.now - least(undecided.since, unanswered.since)), 0)::float8 AS oldest_seconds
    FROM clock
    CROSS JOIN undecided
    CROSS JOIN unanswered
),

transfers AS (
    -- A run of some clinics that were named tells nothing of the others, nor does one of an older day of today.
    SELECT extract(EPOCH FROM min(clock.now - run.settled_at))::float8 AS age_seconds
    FROM ledger.run AS run
    CROSS JOIN clock
    WHERE
        run.mode IN ('transfer', 'resync') AND run.outcome = 'succeeded' AND run.clinic_ids IS NULL
        AND coalesce(run.is_of_today, run.run_type <> 'backfill')
),

looks AS (
    SELECT extract(EPOCH FROM min(clock.now - watch.looked_at))::float8 AS age_seconds
    FROM ledger.watch AS watch
    CROSS JOIN clock
    WHERE watch.name = 'consent'
)

SELECT
    revocations.records AS revocations,
    revocations.late AS late_revocations,
    revocations.oldest_seconds AS oldest_revocation_seconds,
    holds.questions AS holds,
    holds.records AS held_records,
    actions.undecided AS undecided_actions,
    actions.unanswered AS unanswered_actions,
    actions.oldest_seconds AS oldest_action_seconds,
    transfers.age_seconds AS transfer_age_seconds,
    looks.age_seconds AS look_age_seconds
FROM revocations
CROSS JOIN holds
CROSS JOIN actions
CROSS JOIN transfers
CROSS JOIN looks
