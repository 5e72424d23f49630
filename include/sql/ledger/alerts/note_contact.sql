-- Purpose:    note how a request to Medflex went: since when they are answered, or are not.
-- Grain:      one row.
-- Parameters: failure text or NULL for a good contact, now timestamptz or NULL for the server's clock
-- Personal:   none.
INSERT INTO ledger.contact AS contact (name, good_at, good_since, failing_since, failed_at, failure)
SELECT
    'medflex' AS name,
    CASE WHEN given.failure IS NULL THEN given.now END AS good_at,
    CASE WHEN given.failure IS NULL THEN given.now END AS good_since,
    CASE WHEN given.failure IS NOT NULL THEN given.now END AS failing_since,
    CASE WHEN given.failure IS NOT NULL THEN given.now END AS failed_at,
    given.failure
FROM
    (
        SELECT
            %(failure)s::text AS failure,
            coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
    ) AS given
ON CONFLICT (name) DO UPDATE
    SET
        good_at = coalesce(excluded.good_at, contact.good_at),
        good_since = CASE WHEN excluded.failure IS NULL THEN coalesce(contact.good_since, excluded.good_since) END,
        failing_since
        = CASE
            -- What nobody has tried for long may have been there meanwhile.
            WHEN excluded.failure IS NOT NULL AND contact.failed_at < excluded.failed_at - interval '30 minutes'
                THEN excluded.failing_since
            WHEN excluded.failure IS NOT NULL THEN coalesce(contact.failing_since, excluded.failing_since)
        END,
        failed_at = coalesce(excluded.failed_at, contact.failed_at),
        failure = coalesce(excluded.failure, contact.failure)
