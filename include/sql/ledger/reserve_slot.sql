-- Purpose:    take the next free place in Medflex's rate, which all workers share, unless it is too far away.
-- Grain:      one row: for how many seconds to wait before the request may leave; with more than most_seconds no
--             place was taken.
-- Parameters: name text, interval_seconds float8, most_seconds float8, now timestamptz or NULL for the server's clock
-- Personal:   none.
INSERT INTO ledger.rate AS rate (name, next_at)
VALUES (
    %(name)s,
    coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(interval_seconds)s)
)
ON CONFLICT (name) DO UPDATE
    SET
        next_at
        = CASE
            WHEN
                rate.next_at
                > coalesce(%(now)s::timestamptz, clock_timestamp())
                + make_interval(secs => %(most_seconds)s + %(interval_seconds)s)
                THEN rate.next_at
            ELSE
                greatest(rate.next_at, coalesce(%(now)s::timestamptz, clock_timestamp()))
                + make_interval(secs => %(interval_seconds)s)
        END
RETURNING
    extract(
        EPOCH FROM rate.next_at - make_interval(secs => %(interval_seconds)s)
        - coalesce(%(now)s::timestamptz, clock_timestamp())
    )::float8 AS seconds
