-- Purpose:    what may no longer be shared and is not yet acknowledged as withdrawn, those that wait longest first.
-- Grain:      one row per clinic and reason, with the totals over all of them on each.
-- Parameters: deadline_seconds float8, size int, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH waiting AS (
    SELECT
        revocation.clinic_id,
        revocation.reason,
        count(*) AS records,
        min(revocation.revoked_at) AS revoked_at,
        min(revocation.found_at) AS found_at,
        count(*) FILTER (
            WHERE
            revocation.revoked_at
            < coalesce(%(now)s::timestamptz, clock_timestamp()) - make_interval(secs => %(deadline_seconds)s)
        ) AS late
    FROM ledger.revocation AS revocation
    GROUP BY revocation.clinic_id, revocation.reason
)

SELECT
    waiting.clinic_id,
    waiting.reason,
    waiting.records,
    waiting.revoked_at,
    waiting.found_at,
    waiting.late,
    extract(EPOCH FROM coalesce(%(now)s::timestamptz, clock_timestamp()) - waiting.revoked_at)::float8 AS seconds,
    (sum(waiting.records) OVER ())::bigint AS all_records,
    (sum(waiting.late) OVER ())::bigint AS all_late,
    count(*) OVER () AS all_rows
FROM waiting
ORDER BY waiting.revoked_at, waiting.clinic_id, waiting.reason
LIMIT %(size)s
