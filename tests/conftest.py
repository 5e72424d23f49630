"""What all tests share: one embedded Postgres with fresh databases, Airflow's settings, and a closed network.

`make test` runs them in several processes. Each process reads this file for itself and so has a folder, a Postgres, an
Airflow and a Medflex of its own; nothing here may have a fixed place or port.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import ipaddress
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import strategies

from sandbox.medlock import LOGINS
from sandbox.postgres import Cluster


@hypothesis.settings(
    database=None, max_examples=1, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
@hypothesis.given(strategies.text(), strategies.from_regex(r"\w\d\s"))
def _read_unicode(_text: str, _match: str) -> None:
    """Let Hypothesis make its tables of Unicode.

    In a fresh clone that takes seconds, and the first test that draws a text would be told that it draws slowly.
    """


@pytest.fixture(scope="session", autouse=True)
def _unicode() -> None:
    _read_unicode()


ROOT = Path(__file__).parent.parent
# In memory where it has room: for each test databases are made and removed, which is hundreds of small files each time.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
_in_memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 * 1024**3
SESSION_DIR = Path(tempfile.mkdtemp(prefix="medflex-tests-", dir=_MEMORY if _in_memory else None))
CLUSTER = Cluster(SESSION_DIR / "postgres", durable=False)


def _remove_session_dir() -> None:
    CLUSTER.stop()
    shutil.rmtree(SESSION_DIR, ignore_errors=True)


atexit.register(_remove_session_dir)

# Airflow reads its settings when it is first imported, so they have to stand before any test module is. The metadata
# database is made by the fixture `airflow_db`, for those tests that need one.
os.environ.update(
    {
        "AIRFLOW_HOME": str(SESSION_DIR / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # The default looks the name up, also with servers elsewhere.
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": CLUSTER.uri("airflow", driver="psycopg2"),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "GX_ANALYTICS_ENABLED": "False",
        "_AIRFLOW_SKIP_DB_TESTS": "False",
    }
)
for name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_", "MEDFLEX_"))]:
    del os.environ[name]


def pytest_collection_finish() -> None:
    """What is imported and collected stays: looking through it for garbage again and again takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# Nothing but this machine


class OutsideNetworkError(RuntimeError):
    """A test tried to reach another machine."""


def _refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # Unix sockets have a path
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host in (None, "", "localhost", b"localhost"):
        return
    try:
        outside = not ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        outside = True
    # Binding to all addresses is looked up, too; the tests of the stack see to what listens where.
    if outside and host not in ("0.0.0.0", "::"):  # noqa: S104
        raise OutsideNetworkError(f"Tests talk to this machine only; this one tried {host!r}.")


# An audit hook sees each socket of this process, whichever library opens it.
sys.addaudithook(_refuse_outside)


# Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """The session's Postgres server with the product's roles."""
    CLUSTER.start()
    for role in ("medlock_owner", *LOGINS, "ledger_owner"):
        CLUSTER.create_role(role)
    yield CLUSTER
    CLUSTER.stop()


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def _medlock_template(postgres: Cluster) -> str:
    postgres.create_database("medlock_template", "medlock_owner")
    with psycopg.connect(postgres.uri("medlock_template", "medlock_owner")) as connection:
        connection.execute((ROOT / "sandbox/medlock/schema.sql").read_text().encode())
    return "medlock_template"


@pytest.fixture
def medlock_db(postgres: Cluster, _medlock_template: str) -> Iterator[str]:
    """An empty Medlock of the test's own; its owner's connection URI (may write)."""
    name = f"medlock_{next(_numbers)}"
    postgres.create_database(name, "medlock_owner", template=_medlock_template)
    _allow_product(postgres, name)
    yield postgres.uri(name, "medlock_owner")
    postgres.drop_database(name)


@pytest.fixture
def medlock_app(postgres: Cluster, medlock_db: str) -> str:
    """The URI by which the product sees the Medlock of ``medlock_db``: as the role ``medlock_app``."""
    return postgres.uri(medlock_db.rsplit("/", 1)[1], "medlock_app")


@pytest.fixture
def medlock_actions(postgres: Cluster, medlock_db: str) -> str:
    """The URI by which the product does what partners ask for in that Medlock: as the role ``medlock_actions``."""
    return postgres.uri(medlock_db.rsplit("/", 1)[1], "medlock_actions")


@pytest.fixture
def medlock_switch(postgres: Cluster, medlock_db: str) -> str:
    """The URI by which the product turns access switches in that Medlock: as the role ``medlock_switch``."""
    return postgres.uri(medlock_db.rsplit("/", 1)[1], "medlock_switch")


def _allow_product(postgres: Cluster, name: str) -> None:
    postgres.allow(name, *LOGINS)


@pytest.fixture(scope="session")
def _ledger_template(postgres: Cluster) -> str:
    postgres.create_database("ledger_template", "ledger_owner")
    if importlib.util.find_spec("medflex.ledger.migrate"):
        # As a process of its own, as the stack and production do; also so that no connection to the template is left.
        done = subprocess.run(
            [sys.executable, "-m", "medflex.ledger.migrate"],
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT / "plugins"),
                "AIRFLOW_CONN_MEDFLEX_LEDGER": postgres.uri("ledger_template", "ledger_owner"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"The ledger's migrations failed:\n{done.stderr}"
    return "ledger_template"


@pytest.fixture
def ledger_db(postgres: Cluster, _ledger_template: str) -> Iterator[str]:
    """A migrated, empty ledger of the test's own; its owner's connection URI."""
    name = f"ledger_{next(_numbers)}"
    postgres.create_database(name, "ledger_owner", template=_ledger_template)
    yield postgres.uri(name, "ledger_owner")
    postgres.drop_database(name)


@pytest.fixture
def new_database(postgres: Cluster) -> Iterator[Callable[[], str]]:
    """A function that makes one more empty database and returns its URI, for tests that need several."""
    made: list[str] = []

    def make() -> str:
        made.append(f"database_{next(_numbers)}")
        postgres.create_database(made[-1], "ledger_owner")
        return postgres.uri(made[-1], "ledger_owner")

    yield make
    for name in made:
        postgres.drop_database(name)


@pytest.fixture(scope="session")
def airflow_db(postgres: Cluster) -> Iterator[Cluster]:
    """Airflow's metadata database with its tables, for ``dag.test()`` and the like."""
    postgres.create_database("airflow", "postgres")
    from airflow.utils.db import initdb

    initdb()
    yield postgres
    # Before the server stops, or Airflow complains of lost connections while the process ends.
    from airflow.settings import dispose_orm

    dispose_orm()


# The whole world of a transfer


@pytest.fixture(scope="session")
def _medflex_process() -> Iterator[Any]:
    from sandbox.medflex.process import MedflexProcess

    with MedflexProcess(SESSION_DIR / "medflex") as process:
        yield process


@pytest.fixture
def world(
    medlock_db: str,
    medlock_app: str,
    medlock_actions: str,
    ledger_db: str,
    _medflex_process: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """An empty Medlock, an empty ledger and an empty Medflex with Airflow's connections to them."""
    uris = medlock_db, medlock_app, medlock_actions, ledger_db
    yield from _world(uris, _medflex_process, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def _filled_template(postgres: Cluster, _medlock_template: str) -> str:
    """600 appointments of three open clinics, generated once."""
    from tests.airflow.world import fill

    postgres.create_database("medlock_filled", "medlock_owner", template=_medlock_template)
    fill(postgres.uri("medlock_filled", "medlock_owner"), appointments=600, clinics=3)
    return "medlock_filled"


@pytest.fixture
def filled_world(
    postgres: Cluster,
    _filled_template: str,
    ledger_db: str,
    _medflex_process: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """A world whose Medlock has 600 appointments of three open clinics, which Medflex knows."""
    from tests.airflow.world import see_to_midnights

    name = f"medlock_{next(_numbers)}"
    postgres.create_database(name, "medlock_owner", template=_filled_template)
    _allow_product(postgres, name)
    owner, app, actions = (postgres.uri(name, role) for role in ("medlock_owner", "medlock_app", "medlock_actions"))
    # The template may be older than the hour before this midnight.
    see_to_midnights(owner)
    for made in _world((owner, app, actions, ledger_db), _medflex_process, tmp_path, monkeypatch):
        made.introduce_clinics()
        yield made
    postgres.drop_database(name)


def _world(
    uris: tuple[str, str, str, str], medflex: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    from tests.airflow.world import World

    medflex.control.reset()
    made = World(*uris, medflex, medflex.control, folder, monkeypatch)
    made.connect()
    yield made
    medflex.control.clear_faults()
