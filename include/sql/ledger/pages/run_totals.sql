-- Purpose:    the sums of a run over its clinics: its funnel, and how far it came.
-- Grain:      one row, also for a run without clinics; the columns of ledger.run_total.
-- Parameters: run_key bigint
-- Personal:   none.
SELECT
    %(run_key)s::bigint AS run_key,
    count(*) AS clinics,
    count(*) FILTER (WHERE run_clinic.access_state = 'open') AS clinics_open,
    count(*) FILTER (WHERE run_clinic.access_state = 'waiting') AS clinics_waiting,
    count(*) FILTER (WHERE run_clinic.access_state = 'closed') AS clinics_closed,
    (
        SELECT count(*)
        FROM ledger.run_shard AS run_shard
        WHERE run_shard.run_key = %(run_key)s
    ) AS shards,
    (
        SELECT count(*)
        FROM ledger.run_shard AS run_shard
        WHERE
            run_shard.run_key = %(run_key)s
            AND (run_shard.problem IS NOT NULL OR run_shard.withdraw_problem IS NOT NULL)
    ) AS shards_troubled,
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
WHERE run_clinic.run_key = %(run_key)s
