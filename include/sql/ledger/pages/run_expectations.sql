-- Purpose:    each expectation's outcome over all shards of a run. A failure in one shard stays one in the sum; the
--             severity is the worst of those that failed, or the rule's own.
-- Grain:      one row per suite and expectation; the columns of ledger.run_expectation.
-- Parameters: run_key bigint
-- Personal:   none: results hold counts and fixed bounds only (medflex.quality.results).
SELECT
    %(run_key)s::bigint AS run_key,
    run_validation.suite,
    item.result ->> 'name' AS name,
    min(item.place)::int AS place,
    array(
        SELECT jsonb_array_elements_text(min((item.result -> 'columns')::text)::jsonb)
    ) AS columns,
    -- In the order of the alphabet the worst one comes first.
    min(item.result ->> 'severity') AS severity,
    count(*) AS shards,
    count(*) FILTER (WHERE NOT (item.result -> 'success')::boolean) AS shards_failed,
    sum((item.result -> 'evaluated')::bigint)::bigint AS evaluated,
    sum((item.result -> 'unexpected')::bigint)::bigint AS unexpected,
    sum((item.result -> 'missing')::bigint)::bigint AS missing,
    max(item.result ->> 'exception_class') AS exception_class
FROM ledger.run_validation AS run_validation
CROSS JOIN
    LATERAL jsonb_array_elements(run_validation.result -> 'results') WITH ORDINALITY AS item (result, place)
WHERE run_validation.run_key = %(run_key)s
GROUP BY run_validation.suite, item.result ->> 'name'
