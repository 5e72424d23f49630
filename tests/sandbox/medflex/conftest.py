"""One real sandbox Medflex process for all tests of this folder, emptied before each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.medflex.control import Control
from sandbox.medflex.process import MedflexProcess
from tests.sandbox.medflex.helpers import CLINICS, Client


@pytest.fixture(scope="session")
def medflex_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MedflexProcess]:
    with MedflexProcess(tmp_path_factory.mktemp("medflex")) as process:
        yield process


@pytest.fixture
def medflex(medflex_process: MedflexProcess) -> MedflexProcess:
    """The server as new, with two clinics."""
    medflex_process.control.reset()
    medflex_process.control.put_clinics(CLINICS)
    return medflex_process


@pytest.fixture
def control(medflex: MedflexProcess) -> Control:
    return medflex.control


@pytest.fixture
def client(medflex: MedflexProcess) -> Iterator[Client]:
    made = Client(medflex.url, medflex.token)
    yield made
    made.session.close()


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    """The folder of a server that a test starts for itself."""
    return tmp_path / "store"
