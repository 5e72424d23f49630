-- Purpose:    remove old batches among the next ones by number. Numbers grow with time, so the old ones lie at the
--             beginning, and no index by age is needed. A batch without outcome is an open intent and stays: what it
--             carried may be at Medflex.
-- Grain:      one row: the highest number looked at (NULL at the end), how many of these were old, how many removed.
-- Parameters: after_id bigint, size int, days int, now timestamptz or NULL for the server's clock
-- Personal:   none.
WITH page AS (
    SELECT
        batch.batch_id,
        batch.created_at
        < coalesce(%(now)s::timestamptz, clock_timestamp()) - %(days)s::int * interval '24 hours' AS is_old
    FROM ledger.batch AS batch
    WHERE batch.batch_id > %(after_id)s
    ORDER BY batch.batch_id
    LIMIT %(size)s
),

removed AS (
    DELETE FROM ledger.batch AS batch
    USING page
    WHERE batch.batch_id = page.batch_id AND page.is_old AND batch.outcome IS NOT NULL
    RETURNING 1
)

SELECT
    (SELECT max(page.batch_id) FROM page) AS last_id,
    (
        SELECT count(*) FROM page
        WHERE page.is_old
    ) AS old,
    (SELECT count(*) FROM removed) AS removed
