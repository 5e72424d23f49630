#!/bin/bash
# Put a backup in the place of a database: restore.sh ledger < ledger.dump, or the same with airflow. It is brought up
# beside the one that is there, which goes only when all of the backup has been read: half a file costs nothing, and no
# table of a newer version stays with its rows beside the older ones. Whoever is connected then is cut off. Where it fails,
# run it again: nothing of an earlier attempt is in the way.
set -euo pipefail

database=${1:?say which database: ledger or airflow}
case $database in ledger | airflow) ;; *) echo "There is no database $database: say ledger or airflow." >&2; exit 2 ;; esac
export PGHOST=${PGHOST:-127.0.0.1} PGUSER=${POSTGRES_USER:-postgres} PGPASSWORD=${PGPASSWORD:-$POSTGRES_PASSWORD}
restored=${database}_restored
statement() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres --command "$1"; }

dropdb --if-exists --force "$restored"
createdb --owner="$database" "$restored"
trap 'dropdb --if-exists --force "$restored"' EXIT
statement "REVOKE ALL ON DATABASE $restored FROM PUBLIC"
pg_restore --exit-on-error --single-transaction --dbname "$restored"
# A backup has no statistics: until the server makes some by itself, it would read whole tables where an index serves.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname "$restored" --command ANALYZE
# Whoever sits in the copy, a person who looks at it or the next backup, would keep it from getting its name.
statement "ALTER DATABASE $restored ALLOW_CONNECTIONS false"
statement "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '$restored'" > /dev/null
# From here on the copy may be all that there is: it stays, whatever fails.
trap - EXIT
dropdb --if-exists --force "$database"
statement "ALTER DATABASE $restored RENAME TO $database; ALTER DATABASE $database ALLOW_CONNECTIONS true"
