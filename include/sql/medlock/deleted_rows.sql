-- Purpose:    a stamp that changes when rows are deleted from the tables whose rows stand behind a record, by Postgres'
--             own counters: then everything has to be looked at. A truncated table is not counted but gets another
--             file; a restart after a crash sets the counters to zero, which is a change, too.
-- Grain:      one row.
-- Personal:   none.
SELECT
    string_agg(
        concat_ws('/', pg_stat_get_tuples_deleted(watched.relation), pg_relation_filenode(watched.relation)),
        ' ' ORDER BY watched.name
    ) AS stamp
FROM (
    SELECT
        tables.name,
        to_regclass(tables.name) AS relation
    FROM
        unnest(ARRAY['medlock.appointment', 'medlock.clinic', 'medlock.doctor', 'medlock.patient']) AS tables (name)
) AS watched
