-- Purpose:    what the alerts are judged by, in one look.
-- Grain:      one row. Times are NULL where there is nothing.
-- Parameters: deadline_seconds float8 (of a withdrawal), daily_seconds float8 (of a daily run), now timestamptz or NULL
--             for the server's clock
-- Personal:   none.
WITH present AS (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),

-- The last runs that were to bring over everything.
daily AS (
    SELECT
        run.run_key,
        run.run_id,
        run.started_at,
        run.settled_at,
        run.outcome,
        run.is_complete
    FROM ledger.daily_run AS run
    WHERE run.dag_id = 'medflex_transfer'
    ORDER BY run.started_at DESC
    LIMIT 8
),

total AS (
    SELECT
        max(daily.started_at) FILTER (WHERE daily.is_complete) AS complete_at,
        min(daily.started_at) AS first_run_at,
        max(daily.started_at) AS last_run_at
    FROM daily
),

newest AS (
    SELECT
        daily.run_key,
        daily.started_at,
        daily.settled_at,
        daily.outcome,
        daily.is_complete
    FROM daily
    ORDER BY daily.started_at DESC
    LIMIT 1
),

-- Failed in part or whole, also while the rest goes on.
hurt AS (
    SELECT max(coalesce(newest.settled_at, present.now)) AS until
    FROM newest
    CROSS JOIN present
    WHERE
        NOT newest.is_complete
        AND (
            newest.outcome = 'failed'
            OR EXISTS (
                SELECT 1
                FROM ledger.run_shard AS shard
                WHERE shard.run_key = newest.run_key AND shard.critical = 0 AND shard.problem IS NOT NULL
            )
        )
),

-- The newest run that should be done.
due AS (
    SELECT daily.run_key
    FROM daily
    CROSS JOIN present
    WHERE
        daily.settled_at IS NOT NULL
        OR daily.started_at < present.now - make_interval(secs => %(daily_seconds)s)
    ORDER BY daily.started_at DESC
    LIMIT 1
),

undone AS (
    SELECT
        count(*) AS shards,
        count(*) FILTER (WHERE shard.is_undone) AS undone
    FROM due
    INNER JOIN ledger.daily_shard AS shard ON due.run_key = shard.run_key
),

-- What Medflex has said in the newest run that should be done. One in which it was not asked although there was
-- something to be sent says nothing.
judged AS (
    SELECT
        daily.run_key,
        daily.started_at,
        daily.is_complete,
        numbers.judged,
        numbers.rejected
    FROM daily
    CROSS JOIN present
    CROSS JOIN
        LATERAL (
            SELECT
                coalesce(sum(coalesce(clinic.accepted, 0) + coalesce(clinic.rejected, 0)), 0)::bigint AS judged,
                coalesce(sum(clinic.rejected), 0)::bigint AS rejected
            FROM ledger.run_clinic AS clinic
            WHERE clinic.run_key = daily.run_key
        ) AS numbers
    WHERE
        (daily.settled_at IS NOT NULL OR daily.started_at < present.now - make_interval(secs => %(daily_seconds)s))
        AND (daily.is_complete OR numbers.judged > 0)
    ORDER BY daily.started_at DESC
    LIMIT 1
),

-- What it had rejected before of the clinics for which it has said something in that run: each by the last daily run in
-- which it has done so for that clinic, since an outage may have stopped some of them only.
rejected_before AS (
    SELECT coalesce(sum(earlier.rejected), 0)::bigint AS rejected
    FROM judged
    INNER JOIN ledger.run_clinic AS clinic ON judged.run_key = clinic.run_key
    CROSS JOIN
        LATERAL (
            SELECT before.rejected
            FROM daily
            INNER JOIN ledger.run_clinic AS before ON daily.run_key = before.run_key
            WHERE
                before.clinic_id = clinic.clinic_id
                AND daily.started_at < judged.started_at
                AND (before.accepted + before.rejected > 0 OR before.to_retry + before.unknown = 0)
            ORDER BY daily.started_at DESC
            LIMIT 1
        ) AS earlier
    WHERE clinic.accepted + clinic.rejected > 0
),

-- The daily run of which the end of the last cause has told that it was held up.
told AS (
    SELECT max(run.started_at) AS started_at
    FROM (
        SELECT
            alert.cleared_at,
            alert.held_up
        FROM ledger.alert AS alert
        WHERE alert.kind IN ('medflex_away', 'token_refused') AND alert.cleared_at IS NOT NULL
        ORDER BY alert.cleared_at DESC
        LIMIT 1
    ) AS cause
    INNER JOIN daily AS run ON cause.cleared_at >= run.started_at
    WHERE (cause.held_up ->> 'daily_runs')::int > 0
),

failed AS (
    SELECT max(newest.started_at) AS started_at
    FROM newest
    WHERE NOT newest.is_complete AND newest.outcome = 'failed'
),

missed AS (
    SELECT min(deadline.missed_at) AS missed_at
    FROM ledger.missed_deadline AS deadline
    WHERE
        NOT EXISTS (
            SELECT 1
            FROM daily
            WHERE daily.is_complete AND (daily.run_id = deadline.run_id OR daily.started_at > deadline.missed_at)
        )
),

-- When the validation has last stopped a clinic's shard: each clinic is looked up once, however often that was.
stopped AS (
    SELECT
        clinic.clinic_id,
        max(shard.run_key) AS run_key
    FROM ledger.run_shard AS shard
    INNER JOIN ledger.run AS run ON shard.run_key = run.run_key
    CROSS JOIN unnest(shard.clinic_ids) AS clinic (clinic_id)
    WHERE shard.critical > 0 AND run.mode IN ('transfer', 'resync')
    GROUP BY clinic.clinic_id
),

-- Those which have not come through it since. One that a later run of all clinics does not name is gone from Medlock,
-- and nothing of it was ever sent.
critical AS (
    SELECT
        count(*) AS clinics,
        min(run.started_at) AS since
    FROM stopped AS clinic
    INNER JOIN ledger.run AS run ON clinic.run_key = run.run_key
    WHERE
        NOT EXISTS (
            SELECT 1
            FROM ledger.run_clinic AS later
            INNER JOIN ledger.run AS later_run ON later.run_key = later_run.run_key
            LEFT JOIN ledger.run_shard AS later_shard
                ON later.run_key = later_shard.run_key AND later.shard = later_shard.shard
            WHERE
                later.clinic_id = clinic.clinic_id
                AND later.run_key > clinic.run_key
                AND later_run.mode IN ('transfer', 'resync')
                AND (
                    later.shard IS NULL
                    OR later_shard.stage IN ('skipped', 'validated', 'compared', 'loaded')
                )
        )
        AND NOT EXISTS (
            SELECT 1
            FROM daily
            WHERE
                daily.run_key > clinic.run_key
                AND NOT EXISTS (
                    SELECT 1
                    FROM ledger.run_clinic AS named
                    WHERE named.run_key = daily.run_key AND named.clinic_id = clinic.clinic_id
                )
        )
),

broken AS (
    SELECT
        count(*) AS runs,
        min(run.settled_at) AS since
    FROM ledger.run AS run
    WHERE
        run.broken > 0
        AND NOT EXISTS (
            SELECT 1
            FROM ledger.run AS later
            WHERE
                later.dag_id = run.dag_id
                AND later.clinic_ids IS NULL
                AND later.started_at > run.started_at
                AND later.settled_at > run.settled_at
                AND later.broken = 0
        )
),

revoked AS (
    SELECT
        count(*) AS records,
        min(revocation.revoked_at) AS oldest,
        count(*) FILTER (WHERE late.is_late) AS late_records,
        count(DISTINCT revocation.clinic_id) FILTER (WHERE late.is_late) AS late_clinics
    FROM ledger.revocation AS revocation
    CROSS JOIN present
    CROSS JOIN
        LATERAL (
            SELECT revocation.revoked_at < present.now - make_interval(secs => %(deadline_seconds)s) AS is_late
        ) AS late
),

held AS (
    SELECT
        count(*) AS questions,
        coalesce(sum(cardinality(hold.appointment_ids)), 0)::bigint AS records,
        min(hold.found_at) AS since
    FROM ledger.hold AS hold
    WHERE hold.state = 'open'
),

-- Two looks, each of which has an index of its own.
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
        min(action.decided_at) AS since
    FROM ledger.partner_action AS action
    WHERE action.decided_at IS NOT NULL AND action.answered_at IS NULL
),

watched AS (
    SELECT
        max(watch.looked_at) FILTER (WHERE watch.name = 'consent') AS looked_at,
        max(watch.looked_at) FILTER (WHERE watch.name = 'woken') AS woken_at,
        max(watch.looked_at) FILTER (WHERE watch.name = 'sweep') AS swept_at,
        max(watch.looked_at) FILTER (WHERE watch.name = 'actions_read') AS actions_read_at,
        max(watch.looked_at) FILTER (WHERE watch.name = 'staging_removed') AS staging_removed_at,
        max((watch.value ->> 'sweep_due_since')::timestamptz) FILTER (WHERE watch.name = 'consent') AS sweep_due_since,
        max((watch.value ->> 'cut_short_since')::timestamptz) FILTER (WHERE watch.name = 'consent') AS cut_short_since
    FROM ledger.watch AS watch
)

SELECT
    present.now AS as_of,
    contact.good_since,
    contact.failing_since,
    contact.failed_at,
    contact.failure,
    revoked.records AS revoked,
    revoked.oldest AS revoked_since,
    revoked.late_records,
    revoked.late_clinics,
    watched.looked_at,
    watched.woken_at,
    watched.cut_short_since,
    -- Only what was said after the last piece: that one may have been the end.
    CASE
        WHEN watched.sweep_due_since IS NOT NULL AND watched.looked_at >= coalesce(watched.swept_at, watched.looked_at)
            THEN greatest(watched.sweep_due_since, watched.swept_at)
    END AS sweep_stands_since,
    total.complete_at,
    total.first_run_at,
    failed.started_at AS failed_run_at,
    total.last_run_at,
    hurt.until AS hurt_run_until,
    undone.shards,
    undone.undone AS undone_shards,
    told.started_at AS told_run_at,
    missed.missed_at,
    critical.clinics AS critical_clinics,
    critical.since AS critical_since,
    broken.runs AS broken_runs,
    broken.since AS broken_since,
    held.questions,
    held.records AS held_records,
    held.since AS held_since,
    undecided.actions AS undecided,
    undecided.since AS undecided_since,
    unanswered.actions AS unanswered,
    unanswered.since AS unanswered_since,
    watched.actions_read_at,
    watched.staging_removed_at,
    judged.run_key AS rejecting_run,
    judged.started_at AS rejecting_at,
    coalesce(judged.is_complete, TRUE) AS is_rejecting_run_complete,
    coalesce(judged.judged, 0) AS judged,
    coalesce(judged.rejected, 0) AS rejected,
    rejected_before.rejected AS rejected_before
FROM present
CROSS JOIN total
CROSS JOIN failed
CROSS JOIN hurt
CROSS JOIN undone
CROSS JOIN told
CROSS JOIN missed
CROSS JOIN critical
CROSS JOIN broken
CROSS JOIN revoked
CROSS JOIN held
CROSS JOIN undecided
CROSS JOIN unanswered
CROSS JOIN watched
CROSS JOIN rejected_before
LEFT JOIN judged ON TRUE
LEFT JOIN ledger.contact AS contact ON contact.name = 'medflex'
