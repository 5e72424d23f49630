-- Purpose:    the results of all suites on one shard.
-- Grain:      one row per suite.
-- Parameters: run_key bigint, shard int
-- Personal:   none.
SELECT run_validation.result
FROM ledger.run_validation AS run_validation
WHERE run_validation.run_key = %(run_key)s AND run_validation.shard = %(shard)s
ORDER BY run_validation.suite
