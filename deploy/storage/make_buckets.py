"""Make the buckets for staging and for the quality reports, and let staging expire: ``python make_buckets.py``.

Reads the connection ``medflex_storage`` (``AIRFLOW_CONN_MEDFLEX_STORAGE``, as JSON), and from ``MEDFLEX_STAGING_URL``
and ``MEDFLEX_DATA_DOCS_URL`` the buckets' names and the folder of staging. Waits for a store that is still starting.
Safe to run again. Tasks remove their own staging and ``medflex_housekeeping`` what they forget; the expiry is for the
day when neither runs. It is a rule for the folder, beside whatever rules others have made for the same bucket.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

EXPIRES_DAYS = 3
"""One more than housekeeping leaves staging to its runs, unless ``MEDFLEX_KEEP_STAGING_DAYS`` says that is longer."""
WAIT_SECONDS = 120
"""So long the store may take to answer. Airflow waits for the end of this, and must not wait for ever."""
PAUSE_SECONDS = 2
RULE = "medflex-staging:"
"""What the rule's ID begins with; the folder follows, so that two installations may share a bucket."""
FORMER_RULE = "forgotten"
"""The ID in releases that had every object of the bucket expire, whatever the folder."""
LATER_ELEMENT = "AbortIncompleteMultipartUpload"
REFUSED_ELEMENT = ("MalformedXML", "NotImplemented", "InvalidArgument", "InvalidRequest")
"""What stores answer that do not know an element of a rule."""


def place_of(variable: str) -> tuple[str, str]:
    """Return bucket and prefix of an address like ``s3://connection@bucket/folder``; its prefix is ``folder/``.

    Raises:
        SystemExit: it is no such address.
    """
    parts = urlsplit(os.environ.get(variable, ""))
    if parts.scheme != "s3" or not parts.hostname:
        raise SystemExit(f"{variable} has to name a bucket, for example s3://medflex_storage@medflex-staging/runs.")
    folder = parts.path.strip("/")
    return parts.hostname, f"{folder}/" if folder else ""


def expires_days() -> int:
    """Return after how many days whatever still lies in staging is removed."""
    kept = os.environ.get("MEDFLEX_KEEP_STAGING_DAYS", "").strip()
    return max(EXPIRES_DAYS, int(kept) + 1) if kept.isdigit() else EXPIRES_DAYS


def rule_for(prefix: str) -> dict[str, Any]:
    """Return the rule by which whatever begins with ``prefix`` expires."""
    return {
        "ID": RULE + prefix,
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Expiration": {"Days": expires_days()},
        # A bucket that keeps versions would keep what was removed, with its names, as an older version.
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        # What a worker was uploading when it was killed is no object yet, and no list shows it.
        LATER_ELEMENT: {"DaysAfterInitiation": 1},
    }


def is_own(rule: dict[str, Any], prefix: str) -> bool:
    """Tell whether a rule of the bucket is this installation's: the one for ``prefix``, or for all of the bucket."""
    # Some stores (Ceph) give the prefix back beside the filter instead of in it.
    folder = (rule.get("Filter") or {}).get("Prefix", rule.get("Prefix", ""))
    is_former = rule.get("ID") == FORMER_RULE and set(rule.get("Filter") or {}) <= {"Prefix"} and not folder
    return is_former or rule.get("ID") in (RULE + prefix, RULE)


def let_expire(s3: Any, bucket: str, prefix: str, *, is_new: bool) -> None:
    """Put the rule into the bucket, and leave those of others.

    Raises:
        SystemExit: it would be for all of a bucket that was not made for staging.
    """
    present = lifecycle_of(s3, bucket)
    rules = present.get("Rules", [])
    others = [rule for rule in rules if not is_own(rule, prefix)]
    is_known = is_new or len(others) < len(rules)
    if not prefix and not is_known and (others or holds_something(s3, bucket)):
        raise SystemExit(
            f"MEDFLEX_STAGING_URL names all of the bucket {bucket}, which holds what is not staging's and would be"
            f" removed after {expires_days()} days: name a folder in it, for example"
            f" s3://medflex_storage@{bucket}/runs, or a bucket of staging's own."
        )
    rule = rule_for(prefix)
    # Nothing is written without need: what this library does not know of others' rules would be lost.
    if rule not in rules or len(others) + 1 != len(rules):
        put_rules(s3, bucket, others, rule, present)


def put_rules(
    s3: Any, bucket: str, others: list[dict[str, Any]], rule: dict[str, Any], present: dict[str, Any]
) -> None:
    """Replace the bucket's rules, which can be done with all of them at once only."""
    from botocore.exceptions import ClientError

    # Left out, it would go back to its default, for the others as well.
    size = "TransitionDefaultMinimumObjectSize"
    kept = {size: present[size]} if size in present else {}

    def put(own: dict[str, Any]) -> None:
        rules = {"Rules": [*others, own]}
        s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules, **kept)

    try:
        put(rule)
    except ClientError as error:
        if code_of(error) not in REFUSED_ELEMENT:
            raise
        # MinIO, for one, has refused whatever holds this element, and clears such uploads by itself.
        put({name: value for name, value in rule.items() if name != LATER_ELEMENT})


def lifecycle_of(s3: Any, bucket: str) -> dict[str, Any]:
    """Return what expires in the bucket by which rules; nothing where nobody has made any."""
    from botocore.exceptions import ClientError

    try:
        return dict(s3.get_bucket_lifecycle_configuration(Bucket=bucket))
    except ClientError as error:
        if code_of(error) != "NoSuchLifecycleConfiguration":
            raise
        return {}


def holds_something(s3: Any, bucket: str) -> bool:
    """Tell whether there is any object in the bucket, or an older version of one."""
    found = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    return bool(found.get("Versions") or found.get("DeleteMarkers"))


def buckets_of(s3: Any) -> set[str]:
    """Return the names of the buckets that are there, as soon as the store answers."""
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NotConnectedError

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        except (NotConnectedError, HTTPClientError):
            if time.monotonic() > deadline:
                raise
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500 or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def code_of(error: Any) -> str:
    """Return what the store says by a word. Not its text, which can hold the access key."""
    return str(error.response["Error"]["Code"])


def main() -> int:
    """Make what is missing; return the exit code."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    (staging, prefix), (data_docs, _) = place_of("MEDFLEX_STAGING_URL"), place_of("MEDFLEX_DATA_DOCS_URL")
    if staging == data_docs:
        raise SystemExit(
            "MEDFLEX_STAGING_URL and MEDFLEX_DATA_DOCS_URL name one bucket: give each its own, since nobody but tasks"
            " may read what is staged."
        )
    connection = json.loads(os.environ.get("AIRFLOW_CONN_MEDFLEX_STORAGE", "{}"))
    extra = connection.get("extra", {})
    s3 = boto3.client(
        "s3",
        endpoint_url=extra.get("endpoint_url"),
        region_name=extra.get("region_name"),
        aws_access_key_id=connection.get("login"),
        aws_secret_access_key=connection.get("password"),
        # A store that takes a connection and says nothing would hold this up for minutes, and Airflow with it.
        config=Config(connect_timeout=5, read_timeout=15, retries={"total_max_attempts": 2}),
    )
    try:
        there = buckets_of(s3)
        for bucket in (staging, data_docs):
            if bucket not in there:
                s3.create_bucket(Bucket=bucket)
        let_expire(s3, staging, prefix, is_new=staging not in there)
    except (BotoCoreError, ClientError) as error:
        code = code_of(error) if isinstance(error, ClientError) else type(error).__name__
        raise SystemExit(
            f"The object store refuses or is away ({code}): check medflex_storage and its rights."
        ) from None
    sys.stdout.write(
        f"Buckets {staging} ({prefix or 'all of it'} expires after {expires_days()} days) and {data_docs} are there.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
