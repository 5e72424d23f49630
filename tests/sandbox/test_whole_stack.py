"""The one-machine stack with its whole Airflow, and a small DAG in the daily DAG's place."""

import contextlib
import datetime as dt
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from sandbox.medflex.control import Control
from sandbox.medlock import LOGINS
from sandbox.postgres import HOST
from sandbox.services import _session
from sandbox.stack import PROJECT, SERVICES, Stack, stack_environment
from tests.sandbox.medflex.helpers import Client, record, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DAG = """
import datetime
from airflow.sdk import BaseHook, CronTriggerTimetable, dag, task

@dag(dag_id="medflex_transfer", schedule=CronTriggerTimetable("0 3 * * *", timezone="Europe/Moscow"), catchup=False,
     start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), max_active_runs=1,
     params={"mode": "transfer", "clinic_ids": None})
def small():
    @task
    def numbers():
        return [1, 2, 3]

    @task
    def connect(number):
        for conn_id in ("medlock_db", "medlock_actions", "medlock_switch", "medflex_ledger", "medflex_api"):
            assert BaseHook.get_connection(conn_id).host == "127.0.0.1"

    connect.expand(number=numbers())

small()
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("a clone's folder")
    dags = folder / "dags"
    dags.mkdir()
    (dags / "medflex_transfer.py").write_text(DAG)
    made = Stack(folder / "stack", dags=dags)
    made.start(appointments=500)
    yield made
    made.stop()


def _family(stack: Stack) -> set[psutil.Process]:
    sessions = {process.pid for name in SERVICES if (process := stack.services.process(name))}
    assert stack.cluster.pid is not None
    server = psutil.Process(stack.cluster.pid)
    mine = {process for process in psutil.process_iter() if _session(process.pid) in sessions}
    return mine | {server, *server.children(recursive=True)}


def test_all_is_up_and_listens_on_loopback_only(stack: Stack) -> None:
    assert stack.is_running()
    assert set(stack.airflow().health().values()) <= {"healthy", "None"}
    listening: set[str] = set()
    for process in _family(stack):
        with contextlib.suppress(psutil.NoSuchProcess):  # tasks and sessions come and go
            sockets = process.net_connections("inet")
            listening |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {HOST}


def test_medlock_is_seeded_and_medflex_knows_its_clinics(stack: Stack) -> None:
    with psycopg.connect(stack.medlock_owner()) as connection:
        assert connection.execute("SELECT count(*) > 500 FROM medlock.appointment").fetchone() == (True,)
        clinics = connection.execute("SELECT count(lpu_id) FROM medlock.clinic").fetchone()
    with Control(stack.control_url) as control:
        assert (control.put_clinics([]),) == clinics


def test_runs_of_a_day_and_again(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    first = stack.run_day(None, again=False)
    assert stack.follow(first) == "success"
    assert re.search(r"connect +3 success", capsys.readouterr().out)
    assert stack.run_day(None, again=False) == first
    second = stack.run_day(None)
    assert second != first
    assert stack.follow(second) == "success"
    with psycopg.connect(stack.cluster.uri("airflow", "airflow")) as connection:
        # The DAG, unpaused, has not added a scheduled run of its own for the same day.
        assert connection.execute("SELECT count(*) FROM dag_run").fetchone() == (2,)


def _ctl(stack: Stack, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MEDFLEX_STACK_DIR": str(stack.folder)} | more
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip


def test_a_second_demo_says_so_and_changes_nothing(stack: Stack) -> None:
    before = {name: stack.services.process(name) for name in SERVICES}
    done = _ctl(stack, "demo")
    assert done.returncode == 0
    assert "running already" in done.stdout
    assert stack.url in done.stdout
    assert {name: stack.services.process(name) for name in SERVICES} == before


def test_psql_faults_and_days_to_come(stack: Stack) -> None:
    assert _ctl(stack, "psql", "medlock", "-Atc", "SELECT 40 + 2").stdout == "42\n"
    assert _ctl(stack, "medflex", "faults", "on", "status", "status=503", "--times", "2").stdout == "Fault 1 is on.\n"
    assert "status times=2 status=503" in _ctl(stack, "medflex", "faults", "list").stdout
    wrong = _ctl(stack, "medflex", "faults", "on", "status", "latency_ms=1")
    assert wrong.stderr.count("\n") == 1
    assert "does not read latency_ms" in wrong.stderr
    _ctl(stack, "medflex", "faults", "off")
    assert _ctl(stack, "medflex", "faults", "list").stdout == ""
    assert "visible to partners: 0" in _ctl(stack, "medflex", "records").stdout
    tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=2)).date().isoformat()
    early = _ctl(stack, "run", "--day", tomorrow)
    assert (early.returncode, early.stderr.count("\n")) == (1, 1)
    assert "not before" in early.stderr


def test_partners_can_be_played_and_stopped(stack: Stack) -> None:
    nothing = _ctl(stack, "partners", "--seconds", "1")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1)
    assert nothing.stderr.startswith("Medflex shows no appointment yet")
    medflex = Client(stack.medflex_url, stack.token)
    assert set(medflex.put(record(1), record(2), lpu_id=40_001).values()) == {204}
    medflex.session.close()
    played = _ctl(stack, "partners", "--rate", "50", "--seconds", "1", "--hostile", "0.5", "--repeat", "0", "--no-wait")
    assert played.returncode == 0, played.stderr
    assert re.search(r"^all +50 +50 +50$", played.stdout, re.MULTILINE), played.stdout
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox", "partners", "--rate", "100", "--seconds", "600"], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"MEDFLEX_STACK_DIR": str(stack.folder)},
    ) as playing:  # fmt: skip
        assert playing.stdout is not None
        assert "Partners ask" in playing.stdout.readline()
        with Control(stack.control_url) as control:
            until(lambda: len(_listed_actions(stack)) > 50)
            control.forget_actions()
        # Ctrl-C also ends what would follow: nobody answers here.
        playing.send_signal(signal.SIGINT)
        said, complaint = playing.communicate(timeout=30)
    assert (playing.returncode, complaint) == (0, "")
    assert re.search(r"^all +\d+ +\d+ +\d+$", said, re.MULTILINE), said


def _listed_actions(stack: Stack) -> list[object]:
    client = Client(stack.medflex_url, stack.token)
    with client.session:
        reply = client.session.get(client.url + "/actions/", params={"size": 500}, timeout=5)
        return list(reply.json()["data"])


def test_no_secret_in_any_log_or_command_line(stack: Stack) -> None:
    roles = (*LOGINS, "airflow")
    secrets = [stack.token, *map(stack.cluster.password, roles), stack_environment(stack)["MEDFLEX_DIGEST_KEY"],
               *stack.passwords().values()]  # fmt: skip
    texts = {str(file): file.read_text(errors="replace") for file in stack.folder.rglob("*.log")}
    for process in _family(stack):
        with contextlib.suppress(psutil.NoSuchProcess):
            texts[f"process {process.pid}"] = " ".join(process.cmdline())
    assert len(texts) > 5
    assert [(place, secret) for place, text in texts.items() for secret in secrets if secret in text] == []


def test_stop_leaves_no_process_and_a_restart_keeps_everything(stack: Stack) -> None:
    # As a stack was before partners could act: without the log-in, its tables and the doctors' hours.
    with stack.cluster.connect("medlock") as connection:
        for statement in (
            "DROP TABLE medlock.doctor_schedule, medlock.partner_action, medlock.smart_care_message",
            "DROP OWNED BY medlock_actions",
            "DROP ROLE medlock_actions",
        ):
            connection.execute(statement.encode())
    family, environment = _family(stack), stack_environment(stack)
    assert stack.stop()
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not stack.stop()
    started = time.monotonic()
    stack.start(appointments=999)
    assert time.monotonic() - started < 120
    assert stack_environment(stack) == environment
    with psycopg.connect(stack.medlock_owner()) as connection:
        assert connection.execute("SELECT count(*) < 600 FROM medlock.appointment").fetchone() == (True,)
    with psycopg.connect(environment["AIRFLOW_CONN_MEDLOCK_ACTIONS"]) as connection:
        assert connection.execute("SELECT count(*) > 1000 FROM medlock.doctor_schedule").fetchone() == (True,)
        assert connection.execute("DELETE FROM medlock.partner_action").rowcount == 0


def test_a_dead_part_is_started_again_alone(stack: Stack) -> None:
    triggerer, server = stack.services.process("triggerer"), stack.services.process("api-server")
    assert triggerer is not None
    assert server is not None
    triggerer.kill()
    triggerer.wait()
    assert not stack.is_running()
    stack.start()
    assert stack.is_running()
    assert stack.services.process("api-server") == server


def test_ctrl_c_stops_what_was_started(stack: Stack) -> None:
    stack.stop()
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox", "demo"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"MEDFLEX_STACK_DIR": str(stack.folder)},
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        said = ""
        while "Postgres  " not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        demo.send_signal(signal.SIGINT)
        said += demo.stdout.read()
        assert demo.wait(90) == 130, said
    assert not stack.is_partly_running()


def test_a_part_that_cannot_start_is_named_with_its_log(stack: Stack) -> None:
    stack.stop()
    for file in (stack.folder / "medflex").glob("*.sqlite*"):
        file.unlink()
    (stack.folder / "medflex" / "medflex.sqlite").write_text("not a database " * 1_000)
    done = _ctl(stack, "start")
    assert done.returncode == 1
    assert done.stderr == f"The medflex ended by itself: see the end of {stack.services.log('medflex')}.\n"
    assert not stack.is_partly_running()


def test_trouble_with_the_disk_is_one_sentence(stack: Stack) -> None:
    token = stack.folder / "medflex" / "token"
    token.unlink()
    token.mkdir()
    done = _ctl(stack, "start")
    token.rmdir()
    assert done.returncode == 1
    assert done.stderr.startswith("The stack cannot use ")
    assert done.stderr.count("\n") == 1
    assert not stack.is_partly_running()
