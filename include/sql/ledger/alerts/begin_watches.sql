-- Purpose:    note from when on it is to be expected that somebody notes that he has come to his end: from the first
--             time that it is judged and there is something to be done. So neither a new ledger nor one of an earlier
--             release is in trouble at once.
-- Grain:      one row per watch that is not there.
-- Parameters: now timestamptz or NULL for the server's clock
-- Personal:   none.
INSERT INTO ledger.watch (name, looked_at)
SELECT
    expected.name,
    coalesce(%(now)s::timestamptz, clock_timestamp()) AS looked_at
FROM
    (
        -- What partners ask for was read, if only by an earlier release; where they are not to act, nobody reads.
        SELECT 'actions_read' AS name
        FROM ledger.watch AS place
        WHERE place.name = 'partner_actions'
        UNION ALL
        -- A run of the transfer has put rows into staging, or may have.
        SELECT 'staging_removed' AS name
        WHERE
            EXISTS (
                SELECT 1
                FROM ledger.run AS run
                WHERE run.dag_id = 'medflex_transfer'
            )
    ) AS expected
ON CONFLICT (name) DO NOTHING
