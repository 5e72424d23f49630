-- Purpose:    how many appointments each clinic had in its last runs, newest first: to pack shards and to notice that
--             an extract came back suddenly small or empty. What a failed validation saw is no measure for later ones.
-- Grain:      one row per clinic and run, at most that many runs per clinic.
-- Parameters: clinic_ids bigint[], before_run_key bigint, runs int
-- Personal:   none.
-- From clinic to clinic, back from its newest run: joined, the planner expects so few runs of this kind that it looks
-- for all clinics in each shard of each run, which takes minutes with thousands of clinics and a month of runs.
SELECT
    asked.clinic_id,
    earlier.extracted
FROM unnest(%(clinic_ids)s::bigint[]) AS asked (clinic_id)
CROSS JOIN
    LATERAL (
        SELECT
            run_clinic.run_key,
            run_clinic.extracted
        FROM ledger.run_clinic AS run_clinic
        WHERE
            run_clinic.clinic_id = asked.clinic_id
            AND run_clinic.extracted IS NOT NULL
            -- As an array, which is made once.
            AND run_clinic.run_key = any(
                array(
                    SELECT run.run_key
                    FROM ledger.run AS run
                    WHERE
                        run.mode IN ('transfer', 'plan', 'resync')
                        AND ledger.is_of_its_day(run)
                        AND run.run_key < coalesce(%(before_run_key)s::bigint, 9223372036854775807)
                        AND run.started_at > clock_timestamp() - interval '30 days'
                )
            )
            AND (
                SELECT run_shard.stage
                FROM ledger.run_shard AS run_shard
                WHERE run_shard.run_key = run_clinic.run_key AND run_shard.shard = run_clinic.shard
            ) IN ('validated', 'compared', 'loaded')
        ORDER BY run_clinic.run_key DESC
        LIMIT %(runs)s
    ) AS earlier
ORDER BY asked.clinic_id ASC, earlier.run_key DESC
