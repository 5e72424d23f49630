-- Purpose:    what should have been withdrawn long ago.
-- Grain:      one row.
-- Parameters: deadline_seconds float8, now timestamptz or NULL for the server's clock
-- Personal:   none.
SELECT
    count(*) AS records,
    count(DISTINCT revocation.clinic_id) AS clinics,
    min(revocation.revoked_at) AS oldest
FROM ledger.revocation AS revocation
WHERE
    revocation.revoked_at
    < coalesce(%(now)s::timestamptz, clock_timestamp()) - make_interval(secs => %(deadline_seconds)s)
