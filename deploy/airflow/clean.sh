#!/bin/bash
# What Airflow knows of its runs, and their logs, goes after AIRFLOW_KEEP_DAYS: 2,000 runs a day would fill the disk that
# the ledger is on, too. The ledger has a retention of its own (medflex_housekeeping).
set -euo pipefail

before=$(date --utc --date="-$AIRFLOW_KEEP_DAYS days" +%Y-%m-%dT%H:%M:%S+00:00)
# A table that cannot be cleaned, for a full disk, say, is otherwise passed over without a word to whoever called.
airflow db clean --clean-before-timestamp "$before" --skip-archive --yes --error-on-cleanup-failure
find "$AIRFLOW_HOME/logs" -type f -mtime "+$AIRFLOW_KEEP_DAYS" -delete
find "$AIRFLOW_HOME/logs" -mindepth 1 -type d -empty -mtime "+$AIRFLOW_KEEP_DAYS" -delete
touch "${TMPDIR:-/tmp}/cleaned"
