#!/bin/sh
# Let what is staged expire also where the store's own collector does not run: each object gets the time of the bucket's
# rule for its folder (make_buckets.py) as it is written. For the store of docker-compose.yml only; safe to run again.
#   MEDFLEX_STAGING_URL   names the bucket, for example s3://medflex_storage@medflex-staging/runs
#   STORAGE_URL           another store than this one looks after its buckets by itself
#   MASTER                address of SeaweedFS's master
set -eu

if [ "$STORAGE_URL" != http://storage:8333 ]; then
    printf '%s\n' "STORAGE_URL is another store: see to it that the staging bucket expires there."
    exit 0
fi
bucket=${MEDFLEX_STAGING_URL#s3://}
bucket=${bucket#*@}
bucket=${bucket%%/*}
# The shell waits for its master without end; whether it fails with a command depends on its version: what it says counts.
said=$(printf 's3.bucket.lifecycle.fastpath -name %s -enable\n' "$bucket" | timeout 30 weed shell "-master=$MASTER" 2>&1) || :
printf '%s\n' "$said"
case $said in
    *"fast path enabled"*) ;;
    *)
        printf '%s\n' "What is staged in the bucket $bucket does not expire by itself: see above why." >&2
        exit 1
        ;;
esac
