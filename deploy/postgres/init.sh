#!/bin/bash
# Run once by the Postgres image, when its data folder is empty: one log-in and one database for Airflow, one for the
# ledger, and neither may look into the other's. Passwords come from the environment, and are quoted by psql.
set -euo pipefail

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv airflow_password POSTGRES_AIRFLOW_PASSWORD
\getenv ledger_password POSTGRES_LEDGER_PASSWORD
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE ledger LOGIN PASSWORD :'ledger_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE ledger OWNER ledger;
-- Postgres lets everybody connect to every database by default.
REVOKE ALL ON DATABASE airflow FROM PUBLIC;
REVOKE ALL ON DATABASE ledger FROM PUBLIC;
SQL
