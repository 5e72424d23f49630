"""The server as a process: start, stop, crash, and what survives."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from sandbox.medflex.process import PROJECT, MedflexProcess, MedflexStartError
from sandbox.medflex.server import main, read_token
from tests.sandbox.medflex.helpers import CLINICS, LPU, Client, record, withdrawal


def test_everything_survives_a_crash(store_dir: Path) -> None:
    with MedflexProcess(store_dir, token="chosen") as medflex:
        medflex.control.put_clinics(CLINICS)
        client = Client(medflex.url, medflex.token)
        first = client.write("putAppointments", [record(1), record(2)], key="same")
        client.withdraw(withdrawal(2, 2))
        (action,) = medflex.control.add_actions(
            [{"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm", "base_version": 1}]
        )
        client.answer(action, 204)
        url, records = medflex.url, medflex.control.records()
        medflex.control.add_fault("status", status=500)

        medflex.kill()
        assert medflex.pid is None
        medflex.token = ""
        medflex.start()

        assert (medflex.url, medflex.token) == (url, "chosen")
        assert medflex.control.records() == records
        assert medflex.control.tombstones()[LPU, 2]["version"] == 2
        assert medflex.control.results() == {action: {"status_code": 204, "detail": ""}}
        # A restarted server is a healthy one, and it still knows its keys.
        assert client.write("putAppointments", [record(1), record(2)], key="same").content == first.content
        assert client.put(record(2, 1)) == {2: 409}
        assert client.answer(action, 404).status_code == 409
        client.session.close()


def test_sigterm_ends_it_cleanly_and_at_once_even_with_held_connections(store_dir: Path) -> None:
    medflex = MedflexProcess(store_dir).start()
    medflex.control.put_clinics(CLINICS)
    medflex.control.add_fault("timeout_before_effect", seconds=3600)
    held = http.client.HTTPConnection("127.0.0.1", medflex.port, timeout=20)
    held.request("GET", "/appointments/lpu", headers={"Authorization": f"Token {medflex.token}"})
    while not medflex.control.request_log():
        pass
    process = psutil.Process(medflex.pid)
    assert medflex.stop() == 0
    assert not process.is_running()
    with pytest.raises(ConnectionError):
        held.getresponse()
    held.close()
    assert medflex.stop() is None
    assert "Traceback" not in medflex.log_file.read_text()


def test_it_ends_with_its_parent(store_dir: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from sandbox.medflex.process import MedflexProcess;"
        "print(MedflexProcess(Path(sys.argv[1])).start().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, str(store_dir)], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert parent.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(parent.stdout)).wait(timeout=20)
    assert not psutil.pid_exists(int(parent.stdout))


def test_a_detached_server_outlives_its_parent(store_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sandbox.medflex.process import MedflexProcess;"
        "MedflexProcess(Path(sys.argv[1]), detach=True).start()"
    )
    subprocess.run([sys.executable, "-c", code, str(store_dir)], cwd=PROJECT, check=True)
    ready = json.loads((store_dir / "ready.json").read_text())
    try:
        headers = {"Authorization": f"Token {(store_dir / 'token').read_text()}"}
        assert requests.get(ready["url"] + "/appointments/lpu", headers=headers, timeout=5).status_code == 200
    finally:
        os.kill(ready["pid"], signal.SIGTERM)
        psutil.wait_procs([psutil.Process(ready["pid"])] if psutil.pid_exists(ready["pid"]) else [], timeout=20)


def test_it_listens_on_loopback_only_and_keeps_its_secrets(medflex: MedflexProcess) -> None:
    listening = [c for c in psutil.Process(medflex.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr for c in listening} == {("127.0.0.1", medflex.port), ("127.0.0.1", medflex.control_port)}
    assert medflex.token_file.stat().st_mode & 0o077 == 0
    command = psutil.Process(medflex.pid).cmdline()
    assert not any(medflex.token in part for part in command)


def test_start_is_idempotent_and_restart_keeps_the_addresses(medflex: MedflexProcess) -> None:
    pid, url, control_url = medflex.pid, medflex.url, medflex.control_url
    assert medflex.start().pid == pid
    medflex.restart()
    assert medflex.pid != pid
    assert (medflex.url, medflex.control_url) == (url, control_url)
    assert Client(medflex.url, medflex.token).get("listClinics", "/appointments/lpu").json()["count"] == len(CLINICS)


def test_a_taken_port_is_one_clear_error(store_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MedflexStartError, match=r"cannot start: .*in use"):
            MedflexProcess(store_dir, port=taken.getsockname()[1]).start()


def test_an_empty_token_file_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("")
    assert main(["--store", str(tmp_path), "--token-file", str(tmp_path / "token")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("The sandbox Medflex cannot start: the token file")
    assert len(told.splitlines()) == 1


def test_a_missing_token_file_is_made_for_us_alone(tmp_path: Path) -> None:
    token = read_token(tmp_path / "token")
    assert len(token) >= 32
    assert read_token(tmp_path / "token") == token
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
