-- Purpose:    how each expectation came out in the last transfers of all clinics for the day on which they ran, so
--             that a trend is seen.
-- Grain:      one row per run and expectation; a run without results has one row with NULLs.
-- Parameters: dag_id text, runs int
-- Personal:   none.
WITH wanted AS MATERIALIZED (
    SELECT
        run.run_key,
        run.dag_id,
        run.run_id,
        run.anchor,
        run.started_at,
        run.report
    FROM ledger.run AS run
    WHERE
        run.dag_id = %(dag_id)s
        AND run.mode IN ('transfer', 'resync')
        AND run.clinic_ids IS NULL
        AND run.settled_at IS NOT NULL
        AND ledger.is_of_its_day(run)
    ORDER BY run.started_at DESC, run.run_key DESC
    LIMIT %(runs)s
)

SELECT
    wanted.run_key,
    wanted.dag_id,
    wanted.run_id,
    wanted.anchor,
    wanted.started_at,
    wanted.report,
    run_expectation.suite,
    run_expectation.name,
    run_expectation.place,
    run_expectation.columns,
    run_expectation.severity,
    run_expectation.shards,
    run_expectation.shards_failed,
    run_expectation.evaluated,
    run_expectation.unexpected,
    run_expectation.missing,
    run_expectation.exception_class
FROM wanted
LEFT JOIN ledger.run_expectation AS run_expectation ON wanted.run_key = run_expectation.run_key
ORDER BY wanted.started_at, wanted.run_key
