#!/bin/bash
# Run once by the Postgres image of the demo, when its data folder is empty: the demo Medlock's database, its owner, and
# the three log-ins that the product has in it. `sandbox.containers` makes the tables and their rights.
set -euo pipefail

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE medlock_owner LOGIN PASSWORD :'password';
CREATE ROLE medlock_app LOGIN PASSWORD :'password';
CREATE ROLE medlock_actions LOGIN PASSWORD :'password';
CREATE ROLE medlock_switch LOGIN PASSWORD :'password';
CREATE DATABASE medlock OWNER medlock_owner;
REVOKE ALL ON DATABASE medlock FROM PUBLIC;
GRANT CONNECT ON DATABASE medlock TO medlock_app, medlock_actions, medlock_switch;
SQL
