-- Purpose:    how many appointments each clinic had in its last runs, newest first: to pack shards and to notice that
--             an extract came back suddenly small or empty. What a failed validation saw is no measure for later ones.
-- Grain:      one row per clinic and run, at most that many runs per clinic.
-- Parameters: clinic_ids bigint[] or NULL for all, before_run_key bigint, runs int
-- Personal:   none.
SELECT
    ranked.clinic_id,
    ranked.extracted
FROM (
    SELECT
        run_clinic.clinic_id,
        run_clinic.extracted,
        run_clinic.run_key,
        row_number() OVER (PARTITION BY run_clinic.clinic_id ORDER BY run_clinic.run_key DESC) AS age
    FROM ledger.run_clinic AS run_clinic
    INNER JOIN ledger.run AS run ON run_clinic.run_key = run.run_key
    INNER JOIN ledger.run_shard AS run_shard
        ON run_clinic.run_key = run_shard.run_key AND run_clinic.shard = run_shard.shard
    WHERE
        run_clinic.extracted IS NOT NULL
        AND run.mode IN ('transfer', 'plan', 'resync')
        AND run_shard.stage IN ('validated', 'compared', 'loaded')
        -- A run of another day sees another window.
        AND run.anchor BETWEEN run.started_at - interval '36 hours' AND run.started_at + interval '1 hour'
        AND run.run_key < coalesce(%(before_run_key)s::bigint, 9223372036854775807)
        AND run.started_at > clock_timestamp() - interval '30 days'
        AND (%(clinic_ids)s::bigint[] IS NULL OR run_clinic.clinic_id = any(%(clinic_ids)s::bigint[]))
) AS ranked
WHERE ranked.age <= %(runs)s
ORDER BY ranked.clinic_id, ranked.age
