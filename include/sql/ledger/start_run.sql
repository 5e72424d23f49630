-- Purpose:    write down a run, or start it anew after it was cleared.
-- Grain:      one row: its key.
-- Parameters: dag_id, run_id, run_type, mode text; anchor, started_at timestamptz; clinic_ids bigint[] or NULL;
--             is_of_today boolean or NULL
-- Personal:   none.
INSERT INTO ledger.run AS run (dag_id, run_id, run_type, mode, anchor, clinic_ids, started_at, is_of_today)
VALUES (
    %(dag_id)s, %(run_id)s, %(run_type)s, %(mode)s, %(anchor)s, %(clinic_ids)s::bigint[], %(started_at)s,
    %(is_of_today)s
)
ON CONFLICT (dag_id, run_id) DO UPDATE
    SET
        run_type = excluded.run_type,
        mode = excluded.mode,
        anchor = excluded.anchor,
        clinic_ids = excluded.clinic_ids,
        started_at = excluded.started_at,
        is_of_today = excluded.is_of_today,
        report = NULL,
        settled_at = NULL,
        outcome = 'running',
        problems = '{}'
RETURNING run.run_key
