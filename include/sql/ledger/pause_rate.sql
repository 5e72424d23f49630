-- Purpose:    Medflex asked for a pause (Retry-After): nobody sends before it is over.
-- Parameters: name text, seconds float8, now timestamptz or NULL for the server's clock
-- Personal:   none.
INSERT INTO ledger.rate AS rate (name, next_at)
VALUES (%(name)s, coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE SET next_at = greatest(rate.next_at, excluded.next_at)
