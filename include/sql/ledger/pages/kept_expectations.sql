-- Purpose:    each expectation's outcome as it was kept when a run was settled.
-- Grain:      one row per suite and expectation.
-- Parameters: run_key bigint
-- Personal:   none.
SELECT
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
FROM ledger.run_expectation AS run_expectation
WHERE run_expectation.run_key = %(run_key)s
