"""Make the buckets for staging and for the quality reports, and let staging expire: ``python make_buckets.py``.

Reads the connection ``medflex_storage`` (``AIRFLOW_CONN_MEDFLEX_STORAGE``, as JSON) and the buckets' names from
``MEDFLEX_STAGING_URL`` and ``MEDFLEX_DATA_DOCS_URL``. Safe to run again. Tasks remove their own staging and
``medflex_housekeeping`` what they forget; the expiry is for the day when neither runs.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import urlsplit

EXPIRES_DAYS = 3
"""One more than housekeeping leaves staging to its runs, unless ``MEDFLEX_KEEP_STAGING_DAYS`` says that is longer."""


def bucket_of(variable: str) -> str:
    """Return the bucket of an address like ``s3://connection@bucket/folder``; ``SystemExit`` for any other."""
    parts = urlsplit(os.environ.get(variable, ""))
    if parts.scheme != "s3" or not parts.hostname:
        raise SystemExit(f"{variable} has to name a bucket, for example s3://medflex_storage@medflex-staging/runs.")
    return parts.hostname


def expires_days() -> int:
    """Return after how many days whatever still lies in staging is removed."""
    kept = os.environ.get("MEDFLEX_KEEP_STAGING_DAYS", "").strip()
    return max(EXPIRES_DAYS, int(kept) + 1) if kept.isdigit() else EXPIRES_DAYS


def main() -> int:
    """Make what is missing; return the exit code."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    staging, data_docs = bucket_of("MEDFLEX_STAGING_URL"), bucket_of("MEDFLEX_DATA_DOCS_URL")
    if staging == data_docs:
        raise SystemExit(
            "MEDFLEX_STAGING_URL and MEDFLEX_DATA_DOCS_URL name one bucket: in staging everything expires."
        )
    connection = json.loads(os.environ.get("AIRFLOW_CONN_MEDFLEX_STORAGE", "{}"))
    extra = connection.get("extra", {})
    s3 = boto3.client(
        "s3",
        endpoint_url=extra.get("endpoint_url"),
        region_name=extra.get("region_name"),
        aws_access_key_id=connection.get("login"),
        aws_secret_access_key=connection.get("password"),
    )
    rule = {"ID": "forgotten", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": expires_days()}}
    try:
        there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        for bucket in (staging, data_docs):
            if bucket not in there:
                s3.create_bucket(Bucket=bucket)
        s3.put_bucket_lifecycle_configuration(Bucket=staging, LifecycleConfiguration={"Rules": [rule]})
    except (BotoCoreError, ClientError) as error:
        # Its type only: the text can hold the access key.
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        raise SystemExit(
            f"The object store refuses or is away ({code}): check medflex_storage and its rights."
        ) from None
    sys.stdout.write(f"Buckets {staging} (expires after {expires_days()} days) and {data_docs} are there.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
