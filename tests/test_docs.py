"""The documents say what the code says, their links lead somewhere, and their commands exist."""

from __future__ import annotations

import ast
import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk import Connection

from medflex import errors
from medflex.airflow.hooks.medflex import MedflexSettings, settings_of
from medflex.airflow.hooks.medlock import APPOINTMENT_COLUMNS
from medflex.airflow.schedule import DAILY_DEADLINE_HOURS
from medflex.airflow.tasks.housekeeping import DAYS
from medflex.airflow.tasks.withdraw import DEADLINE_SECONDS
from medflex.airflow.triggers.consent import LOOK_BACK
from medflex.airflow.withdrawing import OVERLAP
from medflex.domain.access import ClosedReason
from medflex.domain.drift import Drift
from medflex.domain.last_look import Turned
from medflex.domain.reasons import Reason
from medflex.domain.revocations import MOST_ABSENT, MOST_ABSENT_SHARE, Revoked
from medflex.domain.status import MEDFLEX_STATUS
from medflex.ledger.store import LEASE_SECONDS
from sandbox.__main__ import _parser
from sandbox.medflex.contract import validate
from scripts import generate_docs
from scripts.generate_docs import BEGIN, DOCS, ROOT
from tests.faults.mutations import MUTATIONS
from tests.faults.test_named import REGRESSIONS

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
README, ARCHITECTURE, CONTRACT, INVARIANTS = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/architecture.md", "docs/data-contract.md", "docs/invariants.md")
)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slugs(text: str) -> set[str]:
    """Return the anchors that a git host gives the headings."""
    heads = re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)
    keep = set(string.ascii_lowercase + string.digits + "-_ ")
    return {"".join(letter for letter in head.lower() if letter in keep).replace(" ", "-") for head in heads}


def commands(text: str) -> list[str]:
    """Return the lines of the console blocks."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


# Generated documents


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return generate_docs.documents()


@pytest.mark.parametrize("name", ["DAGS.md", "data-contract.md"])
def test_a_generated_document_is_what_the_code_says(generated: dict[Path, str], name: str) -> None:
    assert (DOCS / name).read_text() == generated[DOCS / name], "run `make docs`"


def test_check_tells_what_is_stale_in_one_sentence_and_writing_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    text = (DOCS / "data-contract.md").read_text()
    (docs / "data-contract.md").write_text(text.replace("| `phone_missing` |", "| `no_phone` |"))
    assert generate_docs.main(["--check"], docs) == 1
    assert capsys.readouterr().err == (
        "Not what the code says any more: docs/DAGS.md, docs/data-contract.md; run `make docs` and commit the result.\n"
    )
    assert not (docs / "DAGS.md").exists()
    assert generate_docs.main([], docs) == 0
    assert (docs / "data-contract.md").read_text() == text
    assert generate_docs.main(["--check"], docs) == 0


def test_a_document_without_its_marks_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(DOCS / "data-contract.md", tmp_path)
    contract = tmp_path / "data-contract.md"
    contract.write_text(contract.read_text().replace(BEGIN, ""))
    assert generate_docs.main([], tmp_path) == 1
    assert "lacks the two marks" in capsys.readouterr().err


# Links and commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), target
        assert aim.is_relative_to(ROOT), target
        assert not anchor or anchor in slugs(aim.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_path_of_somebodys_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root|opt|Users)/", page.read_text())


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^ *)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "stop"} <= named
    assert named <= targets


def test_every_ctl_command_of_the_readme_is_understood() -> None:
    import shlex

    lines = [line for line in commands(README) if line.startswith("sandbox/ctl ")]
    assert len(lines) > 10
    for line in lines:
        arguments = shlex.split(line)[1:]
        if arguments != ["--help"]:
            _parser().parse_args(arguments)


# What is said of the code


@pytest.mark.parametrize("code", [*Reason, *ClosedReason, *Turned, *Revoked, *Drift])
def test_every_reason_code_is_in_the_data_contract(code: str) -> None:
    assert f"| `{code}` |" in CONTRACT


def test_every_column_and_status_is_in_the_data_contract() -> None:
    rows = "\n".join(line for line in CONTRACT.splitlines() if line.startswith("|"))
    words = set(re.findall(r"`([^`]+)`", rows))
    clinics = {"lpu_id", "timezone", "access_enabled", "access_changed_at", "access_changed_by_role", "partner_ids"}
    assert {*APPOINTMENT_COLUMNS, *clinics, *MEDFLEX_STATUS, *MEDFLEX_STATUS.values()} <= words


def test_the_example_of_a_record_keeps_to_the_contract() -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", CONTRACT, flags=re.MULTILINE | re.DOTALL)
    validate("putAppointments", json.loads(example))


def test_the_table_of_errors_is_complete() -> None:
    rows = dict(re.findall(r"^\| `(\w+Error)` \|.*\| (yes|no) \|$", ARCHITECTURE, flags=re.MULTILINE))
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.MedflexPipelineError)
    ]
    known = {
        kind.__name__: "yes" if kind.transient else "no" for kind in kinds if kind is not errors.MedflexPipelineError
    }
    assert rows == known


def test_the_table_of_the_connections_extra_names_each_key_and_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (true|none|[\d.]+) \|", ARCHITECTURE, flags=re.MULTILINE))
    assert len(rows) == len(MedflexSettings.__dataclass_fields__) - len(("base_url", "token"))

    def settings(extra: dict[str, Any]) -> MedflexSettings:
        connection = Connection(conn_id="medflex_api", host="medflex.example", password="x", extra=json.dumps(extra))
        return settings_of(connection)

    defaults = {name: json.loads(value) for name, value in rows.items() if value != "none"}
    assert settings(defaults) == settings({})
    for name in rows:
        other = {"compress": False, "ca_bundle": str(ROOT / "README.md"), "batch_size": 1}.get(name, 999)
        assert settings({name: other}) != settings({}), name


def test_every_environment_variable_of_the_product_is_named() -> None:
    names = set()
    for folder in ("plugins", "dags", "sandbox"):
        for path in (ROOT / folder).rglob("*.py"):
            strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            names |= {text for text in strings if isinstance(text, str) and re.fullmatch(r"MEDFLEX_[A-Z_]+", text)}
    assert {"MEDFLEX_STAGING_URL", "MEDFLEX_DATA_DOCS_URL", "MEDFLEX_DIGEST_KEY"} <= names
    # The beginning of those that are put together.
    names -= {"MEDFLEX_KEEP_"}
    names |= {f"MEDFLEX_KEEP_{name.upper()}" for name in DAYS}
    assert names <= set(re.findall(r"`(MEDFLEX_[A-Z_]+)`", ARCHITECTURE))
    for name, days in DAYS.items():
        assert re.search(rf"^\| `MEDFLEX_KEEP_{name.upper()}` \|.* default {days} \|$", ARCHITECTURE, re.MULTILINE)
    assert f"alerted; default {DEADLINE_SECONDS:.0f}," in ARCHITECTURE
    assert f"alerted; default {DAILY_DEADLINE_HOURS:.0f}," in ARCHITECTURE


def test_the_numbers_that_are_told_are_those_of_the_code() -> None:
    for page in (
        ARCHITECTURE,
        INVARIANTS,
        (DOCS / "runbook.md").read_text(),
        (DOCS / "adr/0013-absence-and-doubt.md").read_text(),
    ):
        assert f"max({MOST_ABSENT}, {100 * MOST_ABSENT_SHARE:.0f} %" in page
    assert f"for {LEASE_SECONDS} seconds" in ARCHITECTURE
    assert (OVERLAP.total_seconds(), LOOK_BACK.total_seconds()) == (7200, 3600)
    assert "goes back two hours" in ARCHITECTURE
    assert "up to an hour before" in ARCHITECTURE
    assert "within two hours of their stamp" in CONTRACT


def test_every_dag_is_introduced() -> None:
    for path in (ROOT / "dags").glob("*.py"):
        for page in (README, ARCHITECTURE):
            assert f"| `{path.stem}` |" in page, path.stem


def test_every_table_of_the_ledger_is_introduced(ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'").fetchall()
    rows = set(re.findall(r"^\| `(\w+)` \|", ARCHITECTURE, flags=re.MULTILINE))
    assert {name for (name,) in tables} - {"schema_version"} <= rows


def test_every_query_to_medlock_is_in_the_data_contract() -> None:
    for path in (ROOT / "include/sql/medlock").glob("*.sql"):
        assert f"### `{path.name}`" in CONTRACT, path.name


def test_every_file_that_is_named_exists() -> None:
    files = re.compile(r"`((?:tests|bench|include|plugins|scripts|sandbox)/[\w./]+)`")
    named = {(page.name, name) for page in PAGES for name in files.findall(page.read_text())}
    assert len(named) > 50
    assert [(page, name) for page, name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_mutation_and_regression_is_among_the_invariants() -> None:
    rows = set(re.findall(r"^\|.*?`(\w+)` \|", INVARIANTS, flags=re.MULTILINE))
    named = {regression.scenario.__name__ for regression in REGRESSIONS}
    assert rows >= named | set(MUTATIONS)
    assert {name for name in rows if name.startswith(("a_", "success_", "one_"))} == named


def test_decision_records_are_numbered_without_gap_and_dated() -> None:
    records = sorted((DOCS / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: ")
        assert re.search(r"^20\d\d-\d\d-\d\d · accepted$", text, flags=re.MULTILINE), path.name
        for part in ("Context", "Evidence", "Decision", "Cost", "This is wrong if"):
            assert f"**{part}" in text, (path.name, part)
