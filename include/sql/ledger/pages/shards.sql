-- Purpose:    the shards of a run with the sums over their clinics, those with a problem first.
-- Grain:      one row per shard.
-- Parameters: run_key bigint, shard int or NULL for all, size int, skip int
-- Personal:   none.
WITH summed AS MATERIALIZED (
    SELECT
        run_clinic.shard,
        coalesce(sum(run_clinic.extracted), 0)::bigint AS extracted,
        coalesce(sum(run_clinic.eligible), 0)::bigint AS eligible,
        coalesce(sum(run_clinic.withheld), 0)::bigint AS withheld,
        coalesce(sum(run_clinic.quarantined), 0)::bigint AS quarantined,
        coalesce(sum(run_clinic.unknown_statuses), 0)::bigint AS unknown_statuses,
        coalesce(sum(run_clinic.new), 0)::bigint AS new,
        coalesce(sum(run_clinic.changed), 0)::bigint AS changed,
        coalesce(sum(run_clinic.again), 0)::bigint AS again,
        coalesce(sum(run_clinic.unchanged), 0)::bigint AS unchanged,
        coalesce(sum(run_clinic.planned), 0)::bigint AS planned,
        coalesce(sum(run_clinic.accepted), 0)::bigint AS accepted,
        coalesce(sum(run_clinic.rejected), 0)::bigint AS rejected,
        coalesce(sum(run_clinic.to_retry), 0)::bigint AS to_retry,
        coalesce(sum(run_clinic.unknown), 0)::bigint AS unknown,
        coalesce(sum(run_clinic.dropped), 0)::bigint AS dropped,
        coalesce(sum(run_clinic.revoked), 0)::bigint AS revoked,
        coalesce(sum(run_clinic.withdrawn), 0)::bigint AS withdrawn,
        coalesce(sum(run_clinic.withdraw_to_retry), 0)::bigint AS withdraw_to_retry,
        coalesce(sum(run_clinic.withdraw_unknown), 0)::bigint AS withdraw_unknown,
        coalesce(sum(run_clinic.permitted_again), 0)::bigint AS permitted_again,
        coalesce(sum(run_clinic.held), 0)::bigint AS held
    FROM ledger.run_clinic AS run_clinic
    WHERE
        run_clinic.run_key = %(run_key)s
        AND (%(shard)s::int IS NULL OR run_clinic.shard = %(shard)s::int)
    GROUP BY run_clinic.shard
)

SELECT
    run_shard.shard,
    run_shard.label,
    run_shard.kind,
    cardinality(run_shard.clinic_ids) AS clinics,
    run_shard.stage,
    run_shard.skipped_because,
    run_shard.problem,
    run_shard.withdraw_stage,
    run_shard.withdraw_problem,
    run_shard.extracted_at,
    summed.extracted,
    summed.eligible,
    summed.withheld,
    summed.quarantined,
    summed.unknown_statuses,
    summed.new,
    summed.changed,
    summed.again,
    summed.unchanged,
    summed.planned,
    summed.accepted,
    summed.rejected,
    summed.to_retry,
    summed.unknown,
    summed.dropped,
    summed.revoked,
    summed.withdrawn,
    summed.withdraw_to_retry,
    summed.withdraw_unknown,
    summed.permitted_again,
    summed.held
FROM ledger.run_shard AS run_shard
LEFT JOIN summed ON run_shard.shard = summed.shard
WHERE
    run_shard.run_key = %(run_key)s
    AND (%(shard)s::int IS NULL OR run_shard.shard = %(shard)s::int)
ORDER BY
    (run_shard.problem IS NULL AND run_shard.withdraw_problem IS NULL) ASC,
    coalesce(summed.rejected + summed.to_retry + summed.unknown, 0) DESC,
    run_shard.shard ASC
LIMIT %(size)s OFFSET %(skip)s
