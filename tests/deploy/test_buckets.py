"""deploy/storage/make_buckets.py: what expires in a bucket, and what of it is others'.

With a stand-in for boto3, which the product's own lock does not have, and in ``make test-long`` with the images'
packages and the real object store.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.request import urlopen

import pytest

from sandbox.postgres import free_port
from tests.deploy.cluster import Deployment
from tests.deploy.compose import ROOT

SCRIPT = ROOT / "deploy/storage/make_buckets.py"
STAGING, DATA_DOCS = "medflex-staging", "medflex-data-docs"
SIZE = "TransitionDefaultMinimumObjectSize"
Rule = dict[str, Any]
THEIRS: Rule = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}}
FORMER: Rule = {"ID": "forgotten", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 3}}


def rule_of(prefix: str, days: int = 3) -> Rule:
    """The rule that staging is to have."""
    return {
        "ID": f"medflex-staging:{prefix}", "Status": "Enabled", "Filter": {"Prefix": prefix},
        "Expiration": {"Days": days}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }  # fmt: skip


class BotoCoreError(Exception):
    pass


class AwayError(BotoCoreError):
    pass


class SilentError(BotoCoreError):
    pass


class ClientError(Exception):
    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__("the access key AKIA0000")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class Store:
    """An object store, as far as the script asks it."""

    def __init__(self) -> None:
        self.buckets: dict[str, list[str]] = {}
        self.lifecycles: dict[str, dict[str, Any]] = {}
        self.unknown: tuple[str, ...] = ()
        """Elements of a rule that it refuses."""
        self.fails: list[Exception] = []
        """What the next requests for its buckets end with."""
        self.writes = 0

    def list_buckets(self) -> dict[str, Any]:
        if self.fails:
            raise self.fails.pop(0)
        return {"Buckets": [{"Name": name} for name in self.buckets]}

    def create_bucket(self, Bucket: str) -> None:  # noqa: N803 boto3's name
        self.buckets[Bucket] = []

    def list_object_versions(self, Bucket: str, MaxKeys: int) -> dict[str, Any]:  # noqa: N803
        found = [{"Key": key} for key in self.buckets[Bucket][:MaxKeys]]
        return {"Versions": found} if found else {}

    def get_bucket_lifecycle_configuration(self, Bucket: str) -> dict[str, Any]:  # noqa: N803
        if Bucket not in self.lifecycles:
            raise ClientError("NoSuchLifecycleConfiguration", 404)
        return self.lifecycles[Bucket] | {"ResponseMetadata": {}}

    def put_bucket_lifecycle_configuration(
        self, Bucket: str, LifecycleConfiguration: dict[str, Any], **more: Any  # noqa: N803
    ) -> None:  # fmt: skip
        rules = LifecycleConfiguration["Rules"]
        if any(element in rule for rule in rules for element in self.unknown):
            raise ClientError("MalformedXML")
        self.writes += 1
        self.lifecycles[Bucket] = {"Rules": rules, SIZE: "all_storage_classes_128K"} | more

    def rules(self, bucket: str = STAGING) -> list[Rule]:
        return list(self.lifecycles.get(bucket, {"Rules": []})["Rules"])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """What the script takes for its store."""
    made = Store()

    def module(name: str, **what: Any) -> None:
        found = ModuleType(name)
        vars(found).update(what)
        monkeypatch.setitem(sys.modules, name, found)

    module("boto3", client=lambda *_, **__: made)
    module("botocore")
    module("botocore.config", Config=lambda **_: None)
    module(
        "botocore.exceptions",
        BotoCoreError=BotoCoreError, ClientError=ClientError, ConnectionError=AwayError, HTTPClientError=SilentError,
    )  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_STORAGE", "{}")
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"s3://medflex_storage@{STAGING}/runs")
    monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", f"s3://medflex_storage@{DATA_DOCS}/reports")
    monkeypatch.delenv("MEDFLEX_KEEP_STAGING_DAYS", raising=False)
    return made


def run(**constants: float) -> None:
    """Run the script, with other constants than its own."""
    script = runpy.run_path(str(SCRIPT))
    script["main"].__globals__.update({"PAUSE_SECONDS": 0, **constants})
    assert script["main"]() == 0


def test_a_fresh_store_gets_both_buckets_and_staging_alone_expires(store: Store) -> None:
    run()
    assert store.buckets.keys() == {STAGING, DATA_DOCS}
    assert store.rules() == [rule_of("runs/")]
    assert DATA_DOCS not in store.lifecycles


@pytest.mark.parametrize(
    ("path", "prefix"),
    [("/runs", "runs/"), ("/runs/", "runs/"), ("/medflex/staging", "medflex/staging/"), ("/", ""), ("", "")],
)
def test_what_expires_is_the_folder_of_the_address(
    store: Store, monkeypatch: pytest.MonkeyPatch, path: str, prefix: str
) -> None:
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"s3://conn@{STAGING}{path}")
    run()
    assert store.rules() == [rule_of(prefix)]


def test_what_others_have_made_for_a_shared_bucket_stays(store: Store) -> None:
    store.buckets[STAGING] = ["invoices/2026.pdf"]
    sibling = rule_of("another/runs/")
    # An ID alone does not make a rule ours: the former one was for all of the bucket.
    tagged = {"And": {"Prefix": "", "Tags": [{"Key": "of", "Value": "theirs"}]}}
    named_alike = [FORMER | {"Filter": {"Prefix": "theirs/"}}, FORMER | {"Filter": tagged}]
    others = [THEIRS, sibling, *named_alike]
    store.lifecycles[STAGING] = {"Rules": others, SIZE: "varies_by_storage_class"}
    run()
    assert store.rules() == [*others, rule_of("runs/")]
    assert store.lifecycles[STAGING][SIZE] == "varies_by_storage_class"


@pytest.mark.parametrize("before", [FORMER, rule_of(""), rule_of("runs/", days=9)], ids=["former", "all", "days"])
def test_the_rule_takes_the_place_of_its_former_self(store: Store, before: Rule) -> None:
    """One for all of the bucket that stayed would go on removing what is others'."""
    store.buckets[STAGING] = ["invoices/2026.pdf"]
    store.lifecycles[STAGING] = {"Rules": [before, THEIRS]}
    run()
    assert store.rules() == [THEIRS, rule_of("runs/")]


def test_once_more_writes_nothing_until_the_days_are_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    run()
    assert store.writes == 1
    monkeypatch.setenv("MEDFLEX_KEEP_STAGING_DAYS", "7")
    run()
    assert store.rules() == [rule_of("runs/", days=8)]


@pytest.mark.parametrize(("keys", "rules"), [(["invoices/2026.pdf"], []), ([], [THEIRS])], ids=["object", "rule"])
def test_all_of_a_bucket_that_holds_something_else_does_not_expire(
    store: Store, monkeypatch: pytest.MonkeyPatch, keys: list[str], rules: list[Rule]
) -> None:
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"s3://conn@{STAGING}")
    store.buckets[STAGING] = keys
    if rules:
        store.lifecycles[STAGING] = {"Rules": rules}
    with pytest.raises(SystemExit, match=r"all of the bucket medflex-staging.*name a folder in it"):
        run()
    assert store.rules() == rules


@pytest.mark.parametrize("rule", [FORMER, rule_of("")], ids=["former", "own"])
def test_all_of_a_bucket_expires_that_is_stagings_own_already(
    store: Store, monkeypatch: pytest.MonkeyPatch, rule: Rule
) -> None:
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"s3://conn@{STAGING}")
    store.buckets[STAGING] = ["medflex_transfer/0/part"]
    store.lifecycles[STAGING] = {"Rules": [rule]}
    run()
    assert store.rules() == [rule_of("")]


def test_all_of_an_empty_bucket_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLEX_STAGING_URL", f"s3://conn@{STAGING}")
    store.buckets[STAGING] = []
    run()
    assert store.rules() == [rule_of("")]


def test_a_store_that_does_not_know_one_element_gets_the_rest(store: Store) -> None:
    store.unknown = ("AbortIncompleteMultipartUpload",)
    run()
    assert store.rules() == [{k: v for k, v in rule_of("runs/").items() if k != "AbortIncompleteMultipartUpload"}]


def test_a_store_that_does_not_know_what_keeps_names_from_staying_is_refused(store: Store) -> None:
    store.unknown = ("NoncurrentVersionExpiration",)
    with pytest.raises(SystemExit, match=r"\(MalformedXML\)"):
        run()


def test_it_waits_for_a_store_that_starts(store: Store) -> None:
    store.fails = [AwayError(), SilentError(), ClientError("InternalError", 500), ClientError("SlowDown", 503)]
    run()
    assert store.rules() == [rule_of("runs/")]


@pytest.mark.parametrize("failure", [AwayError(), SilentError(), ClientError("SlowDown", 503)], ids=repr)
def test_it_gives_up_so_that_airflow_can_start(store: Store, failure: Exception) -> None:
    store.fails = [failure] * 1_000_000
    with pytest.raises(SystemExit, match="refuses or is away"):
        run(WAIT_SECONDS=0.1)


def test_what_is_refused_is_told_at_once_and_without_the_key(store: Store) -> None:
    store.fails = [ClientError("InvalidAccessKeyId", 403)]
    with pytest.raises(SystemExit, match=r"\(InvalidAccessKeyId\)") as raised:
        run()
    assert "AKIA" not in str(raised.value)


def test_one_bucket_for_both_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", f"s3://conn@{STAGING}/reports")
    with pytest.raises(SystemExit, match="name one bucket"):
        run()
    assert store.buckets == {}


# The real store


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The object store of docker-compose.yml and nothing else. The script is started beside it, as Compose does."""
    found = Deployment(tmp_path_factory.mktemp("store"))
    try:
        found.start_storage()
        made = make(found)
        assert made.returncode == 0, made.stderr
        yield found
    finally:
        found.processes.stop()
        found.medflex.stop()


def make(store: Deployment, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = store.environment("storage-buckets") | variables
    command = [str(store.bin / "python"), str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def rules_of(store: Deployment, bucket: str) -> list[Rule]:
    told = store.s3(f"print(json.dumps(s3.get_bucket_lifecycle_configuration(Bucket='{bucket}')['Rules']))")
    return list(json.loads(told))


def seconds_of(store: Deployment, bucket: str, key: str) -> int:
    """After how many seconds an object goes that is written now."""
    store.s3(f"s3.put_object(Bucket='{bucket}', Key='{key}', Body=b'x')")
    address = f"http://127.0.0.1:{store.ports['filer']}/buckets/{bucket}/{key}?metadata=true"
    with urlopen(address, timeout=10) as answer:
        return int(json.load(answer)["TtlSec"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_real_store_lets_the_folder_expire_and_nothing_beside_it(real: Deployment) -> None:
    assert rules_of(real, STAGING) == [rule_of("runs/")]
    done = real.let_staging_expire()
    assert done.returncode == 0, done.stderr
    assert seconds_of(real, STAGING, "runs/medflex_transfer/part") == 3 * 86_400
    assert seconds_of(real, STAGING, "invoices") == 0
    # As an earlier release has left it, and somebody else uses it.
    lifecycle = json.dumps({"Rules": [FORMER, THEIRS]})
    real.s3(f"s3.put_bucket_lifecycle_configuration(Bucket='{STAGING}', LifecycleConfiguration={lifecycle})")
    assert make(real).returncode == 0
    assert rules_of(real, STAGING) == [THEIRS, rule_of("runs/")]
    assert seconds_of(real, STAGING, "invoices-2") == 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fill",
    [
        "s3.put_object(Bucket=b, Key='invoice', Body=b'x')",
        "s3.put_bucket_versioning(Bucket=b, VersioningConfiguration={'Status': 'Enabled'})\n"
        "s3.put_object(Bucket=b, Key='invoice', Body=b'x')\ns3.delete_object(Bucket=b, Key='invoice')",
    ],
    ids=["object", "older version"],
)
def test_the_real_store_keeps_what_lies_in_a_bucket_without_folder(
    real: Deployment, fill: str, request: pytest.FixtureRequest
) -> None:
    bucket = "bucket-of-others-" + str(len(request.node.name))
    real.s3(f"b = '{bucket}'\ns3.create_bucket(Bucket=b)\n{fill}")
    refused = make(real, MEDFLEX_STAGING_URL=f"s3://medflex_storage@{bucket}")
    assert refused.returncode == 1
    assert f"all of the bucket {bucket}" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = make(real, MEDFLEX_STAGING_URL=f"s3://medflex_storage@{bucket}/medflex")
    assert done.returncode == 0, done.stderr
    assert rules_of(real, bucket) == [rule_of("medflex/")]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_store_that_is_away_is_told_in_one_sentence(real: Deployment) -> None:
    connection = json.loads(real.environment("storage-buckets")["AIRFLOW_CONN_MEDFLEX_STORAGE"])
    connection["extra"]["endpoint_url"] = f"http://127.0.0.1:{free_port()}"
    program = (
        f"import runpy; main = runpy.run_path({str(SCRIPT)!r})['main']; main.__globals__['WAIT_SECONDS'] = 1; main()"
    )
    environment = real.environment("storage-buckets") | {"AIRFLOW_CONN_MEDFLEX_STORAGE": json.dumps(connection)}
    command = [str(real.bin / "python"), "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "refuses or is away (EndpointConnectionError)" in done.stderr
    assert "Traceback" not in done.stderr
