"""Dockerfile, .dockerignore and the images' locks: what can be said of them without building anything."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = ("requirements-deploy.txt", "requirements-deploy-demo.txt", "tests/deploy/requirements.txt")
# Where the images' lock departs from the one that the tests run with -> why.
DEPARTS = {"python-dateutil": "botocore takes none from 3 on"}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines())]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name of each stage -> its instructions."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            stage = rest.split()[2]
            found[stage] = []
        if found:
            found[stage].append((name, rest))
    return found


def copied() -> list[str]:
    """What is copied from the project."""
    sources = []
    for name, rest in instructions():
        if name == "COPY":
            *paths, _ = [part for part in rest.split() if not part.startswith("--")]
            sources += paths
    return sources


def pins(lock: str) -> dict[str, set[str]]:
    """Package -> its versions (several, where they depend on the Python)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ]+)", (ROOT / lock).read_text(), flags=re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_the_base_is_pinned_and_can_be_replaced() -> None:
    assert instructions()[0] == ("ARG", "BASE_IMAGE=apache/airflow:slim-3.3.2-python3.11")
    bases = [rest for name, rest in instructions() if name == "FROM"]
    assert bases == ["${BASE_IMAGE} AS production", "production AS demo"]
    (airflow,) = pins("requirements-deploy.txt")["apache-airflow"]
    assert f"-{airflow}-" in instructions()[0][1]


def test_nobody_is_root() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users == ["50000:0"]
    first = [name for name, _ in stages()["production"]]
    assert first.index("USER") < first.index("RUN")


def test_packages_come_from_a_lock_with_hashes_and_nothing_else_is_installed() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 2
    for run, lock in zip(installs, LOCKS, strict=False):
        assert run == (f"pip install --no-cache-dir --require-hashes --only-binary :all: --requirement {lock}")
    assert not re.search(r"apt-get|curl|wget|uv |git |sudo|chmod 777", " ".join(runs))
    assert not [rest for name, rest in instructions() if name == "ADD"]


def test_everything_that_is_copied_exists_and_belongs_to_airflows_user() -> None:
    assert {"dags/", "plugins/", "include/", "requirements-deploy.txt"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source
    for name, rest in instructions():
        if name == "COPY":
            assert rest.startswith("--chown=50000:0 ")
            assert rest.split()[-1].startswith("/opt/airflow/")


def test_the_demos_parts_are_in_the_demos_image_only() -> None:
    production = " ".join(rest for _, rest in stages()["production"])
    assert "sandbox" not in production
    assert "demo" not in production
    assert ("COPY", "--chown=50000:0 sandbox/ /opt/airflow/sandbox/") in stages()["demo"]


def test_queries_lie_where_the_product_looks_for_them() -> None:
    from medflex.sql import SQL_FOLDER

    # Beside plugins/, whatever the folder above is called.
    assert SQL_FOLDER.relative_to(ROOT) == Path("include/sql")
    targets = {rest.split()[-2]: rest.split()[-1] for name, rest in instructions() if name == "COPY"}
    assert targets["plugins/"] == "/opt/airflow/plugins/"
    assert targets["include/"] == "/opt/airflow/include/"


def test_no_secret_and_nothing_of_this_machine_is_in_the_file() -> None:
    for name, rest in instructions():
        if name in ("ENV", "ARG"):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY\b|CONN_", rest), rest
    assert not re.search(r"index-url|https?://|/(work|root|tmp)\b", DOCKERFILE)


def test_bytecode_is_made_and_used() -> None:
    environment = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert 'PYTHONDONTWRITEBYTECODE=""' in environment
    assert "python -m compileall -q dags plugins" in DOCKERFILE


def is_sent(path: str) -> bool:
    """Whether Docker gets to see a file: the last line of .dockerignore that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!").removeprefix("**/")
        parents = [str(Path(*Path(path).parts[: depth + 1])) for depth in range(len(Path(path).parts))]
        names = [Path(parent).name for parent in parents] if "**/" in line else []
        if any(fnmatch(candidate, pattern) for candidate in (names or parents)):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize(
    "path", [".env", ".git/config", ".stack/settings.json", ".venv/bin/python", "tests/conftest.py", "docs/runbook.md",
             "plugins/medflex/__pycache__/sql.cpython-311.pyc", ".env.example", "deploy/helm/values.yaml"],
)  # fmt: skip
def test_nothing_else_of_a_working_copy_is_sent_to_docker(path: str) -> None:
    assert not is_sent(path)


def test_all_that_is_copied_is_sent_to_docker() -> None:
    for source in copied():
        files = [ROOT / source] if (ROOT / source).is_file() else list((ROOT / source).rglob("*"))
        sent = [path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc"]
        assert sent
        for path in sent:
            assert is_sent(str(path.relative_to(ROOT))), path


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_hash_for_each_package_and_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    packages = re.findall(r"^[a-z0-9-]+(?:\[[a-z,0-9]+\])?==.*?(?=^[a-z]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert len(packages) > 5
    for package in packages:
        assert "--hash=sha256:" in package, package[:60]
    assert not re.search(r"^-|://", text, flags=re.MULTILINE)


def test_the_images_have_the_versions_that_the_tests_run_with() -> None:
    tested, deployed = pins("requirements.txt"), pins("requirements-deploy.txt")
    assert set(tested) <= set(deployed)
    differ = {name for name, versions in tested.items() if deployed[name] != versions}
    assert differ <= set(DEPARTS), "compile requirements-deploy.txt anew, as its .in file says"


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_what_is_added_departs_in_nothing(lock: str) -> None:
    deployed = pins("requirements-deploy.txt")
    for name, versions in pins(lock).items():
        assert deployed.get(name, versions) == versions, name


def test_the_demos_image_has_what_the_sandbox_imports() -> None:
    import ast
    import sys

    distribution = {
        "yaml": "pyyaml",
        "adbc_driver_postgresql": "adbc-driver-postgresql",
        "jsonschema_rs": "jsonschema-rs",
    }
    there = set(pins("requirements-deploy.txt")) | set(pins("requirements-deploy-demo.txt"))
    files = [*(ROOT / "sandbox/medflex").glob("*.py"), *(ROOT / "sandbox/medlock").glob("*.py")]
    for path in [*files, ROOT / "sandbox/containers.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"sandbox"}:
                assert distribution.get(name, name).replace("_", "-") in there, (path.name, name)
