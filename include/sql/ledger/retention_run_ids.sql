-- Purpose:    the runs of a DAG that the ledger knows, to tell whose staging a folder is.
-- Grain:      one row per run.
-- Parameters: dag_id text
-- Personal:   none.
SELECT run.run_id
FROM ledger.run AS run
WHERE run.dag_id = %(dag_id)s
ORDER BY run.run_key
