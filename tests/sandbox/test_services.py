"""Background processes: found again, told from strangers, and ended with all that they started."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sandbox.services import ServiceError, Services, _is_zombie, _session

# Starts a child that leaves the process group and ignores SIGTERM, as a stubborn task process would.
STUBBORN_FAMILY = """
import os, signal, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c",
     "import os, signal; os.setpgid(0, 0); signal.signal(signal.SIGTERM, signal.SIG_IGN);"
     "open(os.environ['CHILD'], 'w').write(str(os.getpid())); signal.pause()"])
print("up", flush=True)
signal.pause()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path)
    yield made
    made.stop(seconds=0.2)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _start(services: Services, name: str, program: str, **environment: str) -> int:
    services.start(name, [sys.executable, "-c", program], os.environ | environment)
    process = services.process(name)
    assert process is not None
    return process.pid


def test_is_found_again_and_started_once(services: Services) -> None:
    pid = _start(services, "sleeper", DEAF)
    again = Services(services.folder)
    assert again.is_running("sleeper")
    assert _start(again, "sleeper", DEAF) == pid


def test_stop_ends_the_whole_family(services: Services, tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    parent = _start(services, "family", STUBBORN_FAMILY, CHILD=str(child_file))
    wait_for(lambda: child_file.exists() and child_file.read_text())
    child = int(child_file.read_text())
    services.stop(seconds=5)
    assert not _is_alive(parent)
    assert not _is_alive(child)
    assert services.names() == []


def test_stop_ends_what_a_dead_service_left_behind(services: Services, tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    parent = _start(services, "family", STUBBORN_FAMILY, CHILD=str(child_file))
    wait_for(lambda: child_file.exists() and child_file.read_text())
    psutil.Process(parent).kill()
    os.waitpid(parent, 0)
    assert not services.is_running("family")
    services.stop(seconds=1)
    assert not _is_alive(int(child_file.read_text()))


@pytest.mark.parametrize("reaped", [True, False])
def test_stop_ends_what_dead_services_left_behind_that_were_started_again(
    services: Services, tmp_path: Path, reaped: bool
) -> None:
    parents, children = [], []
    for number in range(2):
        child_file = tmp_path / f"child{number}"
        # As the next command does it, which has not started the dead one and cannot reap it.
        parents.append(_start(Services(services.folder), "family", STUBBORN_FAMILY, CHILD=str(child_file)))
        wait_for(lambda file=child_file: file.exists() and file.read_text())  # type: ignore[misc]
        children.append(int(child_file.read_text()))
        psutil.Process(parents[-1]).kill()
        if reaped:
            os.waitpid(parents[-1], 0)
        wait_for(lambda: not _is_alive(parents[-1]))
    _start(services, "family", DEAF)
    # Tasks of a dead scheduler come to their end.
    assert all(map(_is_alive, children))
    Services(services.folder).stop(["family"], seconds=0.2)
    left = [process for process in psutil.process_iter() if _session(process.pid) in parents]
    assert [process for process in left if not _is_zombie(process)] == []
    assert not any(map(_is_alive, children))


def test_a_stranger_under_the_number_of_a_dead_one_that_was_started_again_is_left_alone(services: Services) -> None:
    stranger = Services(services.folder / "other")
    stranger.folder.mkdir()
    pid = _start(stranger, "stranger", DEAF)
    (services.folder / "services.json").write_text(json.dumps({"old": {"pid": pid, "started": 1.0}}))
    assert _start(services, "old", DEAF) != pid
    services.stop(seconds=0.1)
    assert _is_alive(pid)
    stranger.stop(seconds=0.1)


def test_stop_escalates(services: Services) -> None:
    pid = _start(services, "deaf", DEAF)
    wait_for(lambda: "up" in services.log("deaf").read_text())
    services.stop(seconds=0.2)
    assert not _is_alive(pid)


def test_a_stranger_under_the_same_number_is_left_alone(services: Services) -> None:
    stranger = Services(services.folder / "other")
    stranger.folder.mkdir()
    pid = _start(stranger, "stranger", DEAF)
    (services.folder / "services.json").write_text(json.dumps({"old": {"pid": pid, "started": 1.0}}))
    assert not services.is_running("old")
    services.stop(seconds=0.1)
    assert _is_alive(pid)
    stranger.stop(seconds=0.1)


def test_an_early_end_is_told_with_its_log(services: Services) -> None:
    _start(services, "brief", "print('no money')")
    wait_for(lambda: not services.is_running("brief"))
    with pytest.raises(ServiceError, match=r"brief ended by itself.*logs/brief\.log"):
        services.check("brief")
    assert services.log("brief").read_text() == "no money\n"


def test_output_and_names_hold_no_secret_of_the_environment(services: Services) -> None:
    _start(services, "quiet", DEAF, SECRET="hush-hush")
    assert "hush-hush" not in (services.folder / "services.json").read_text()
