-- Purpose:    how many rows were ever deleted from the tables whose rows stand behind a record, by Postgres' own
--             counters: when it has changed, everything has to be looked at. A restart after a crash sets it to zero,
--             which is a change, too.
-- Grain:      one row.
-- Personal:   none.
SELECT coalesce(sum(pg_stat_get_tuples_deleted(pg_class.oid)), 0)::bigint AS deleted
FROM pg_class
WHERE
    pg_class.oid IN (
        to_regclass('medlock.appointment'), to_regclass('medlock.patient'), to_regclass('medlock.doctor'),
        to_regclass('medlock.clinic')
    )
