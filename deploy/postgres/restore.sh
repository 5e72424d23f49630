#!/bin/bash
# Put a backup in the place of a database: restore.sh ledger < ledger.dump, or the same with airflow. What is there now
# goes first, since tables of a newer version would stay, with their rows, beside the older ones.
# Nothing may be using the database: whoever is connected is cut off.
set -euo pipefail

database=${1:?say which database: ledger or airflow}
case $database in ledger | airflow) ;; *) echo "There is no database $database: say ledger or airflow." >&2; exit 2 ;; esac
export PGHOST=${PGHOST:-127.0.0.1} PGUSER=${POSTGRES_USER:-postgres} PGPASSWORD=${PGPASSWORD:-$POSTGRES_PASSWORD}
# Read before anything is removed: half a file must not cost what is there.
backup=$(mktemp)
trap 'rm -f "$backup"' EXIT
cat > "$backup"
pg_restore --list "$backup" > /dev/null
dropdb --force "$database"
createdb --owner="$database" "$database"
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname "$database" --command "REVOKE ALL ON DATABASE $database FROM PUBLIC"
pg_restore --exit-on-error --single-transaction --dbname "$database" "$backup"
