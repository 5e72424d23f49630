#!/bin/bash
# What Airflow knows of its runs, and their logs, goes after AIRFLOW_KEEP_DAYS: 2,000 runs a day would fill the disk that
# the ledger is on, too. The ledger has a retention of its own (medflex_housekeeping).
set -euo pipefail

before=$(date --utc --date="-$AIRFLOW_KEEP_DAYS days" +%Y-%m-%dT%H:%M:%S+00:00)
airflow db clean --clean-before-timestamp "$before" --skip-archive --yes
find "$AIRFLOW_HOME/logs" -type f -mtime "+$AIRFLOW_KEEP_DAYS" -delete
find "$AIRFLOW_HOME/logs" -mindepth 1 -type d -empty -mtime "+$AIRFLOW_KEEP_DAYS" -delete
touch "${TMPDIR:-/tmp}/cleaned"
