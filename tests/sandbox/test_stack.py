"""The one-machine stack without its Airflow: settings, environment, the lock, the command line."""

import contextlib
import datetime as dt
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from sandbox.__main__ import _parser, main
from sandbox.medflex.faults import Fault, FaultKind, Params
from sandbox.postgres import HOST
from sandbox.stack import PROJECT, Stack, StackError, stack_environment

CTL = PROJECT / "sandbox" / "ctl"
# For the params of faults that do not take 403.
A_VALUE = {
    "when": "after",
    "detail": "no",
    "retry_after_form": "http_date",
    "form": "empty",
    "fraction": 0.5,
    "ids": [1],
    "echo": True,
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "stack")
    yield made
    # A stack that a test started by mistake would run on.
    left = [process for process in psutil.Process().children(recursive=True) if _is_of(made, process)]
    assert not left, left


def _is_of(stack: Stack, process: psutil.Process) -> bool:
    try:
        return str(stack.folder) in " ".join(process.cmdline())
    except psutil.Error:  # It has just ended.
        return False


def test_environment_has_what_airflow_and_the_product_need(stack: Stack) -> None:
    environment = stack_environment(stack)
    assert environment["AIRFLOW__CORE__DAGS_FOLDER"] == str(PROJECT / "dags")
    assert environment["AIRFLOW__CORE__PLUGINS_FOLDER"] == environment["PYTHONPATH"] == str(PROJECT / "plugins")
    assert environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"
    assert re.fullmatch(r"postgresql://medlock_app:.+@127\.0\.0\.1:\d+/medlock", environment["AIRFLOW_CONN_MEDLOCK_DB"])
    for login in ("medlock_actions", "medlock_switch"):
        assert re.fullmatch(
            rf"postgresql://{login}:.+@127\.0\.0\.1:\d+/medlock", environment[f"AIRFLOW_CONN_{login.upper()}"]
        )
    assert re.fullmatch(
        r"postgresql://ledger_owner:.+@127\.0\.0\.1:\d+/ledger", environment["AIRFLOW_CONN_MEDFLEX_LEDGER"]
    )
    medflex = json.loads(environment["AIRFLOW_CONN_MEDFLEX_API"])
    assert (medflex["conn_type"], medflex["schema"], medflex["host"]) == ("http", "http", HOST)
    assert (medflex["port"], medflex["password"]) == (stack.port("medflex"), stack.token)
    assert medflex["extra"]["batch_size"] == 500
    Fernet(environment["AIRFLOW__CORE__FERNET_KEY"])
    assert len(environment["AIRFLOW__API_AUTH__JWT_SECRET"]) >= 64
    assert len(environment["MEDFLEX_DIGEST_KEY"]) >= 32


def test_every_address_is_loopback(stack: Stack) -> None:
    for name, value in stack_environment(stack).items():
        if name.startswith(("AIRFLOW__", "AIRFLOW_CONN")):
            assert not re.search(r"://(?!127\.0\.0\.1|[^/]*@127\.0\.0\.1)", value.replace("file://", "")), name


def test_nothing_of_the_callers_airflow_gets_in(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "postgresql://elsewhere/")
    monkeypatch.setenv("MEDFLEX_DIGEST_KEY", "the caller's")
    environment = stack_environment(stack)
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "AIRFLOW_CONN_OTHER" not in environment
    assert environment["MEDFLEX_DIGEST_KEY"] != "the caller's"


def test_secrets_are_made_once_kept_and_private(stack: Stack) -> None:
    first = stack_environment(stack)
    assert stack_environment(Stack(stack.folder)) == first
    assert (
        stack_environment(Stack(stack.folder.parent / "another"))["MEDFLEX_DIGEST_KEY"] != first["MEDFLEX_DIGEST_KEY"]
    )
    for file in ("settings.json", "postgres/passwords.json"):
        assert stat.S_IMODE((stack.folder / file).stat().st_mode) == 0o600
    assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700


def test_a_port_that_somebody_took_is_given_up(stack: Stack) -> None:
    before = stack.port("airflow")
    with socket.socket() as squatter:
        squatter.bind((HOST, before))
        squatter.listen()
        stack._free_ports()
        assert stack.port("airflow") != before
    kept = stack.port("medflex")
    stack._free_ports()
    assert stack.port("medflex") == kept


def test_stack_folder_follows_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDFLEX_STACK_DIR", str(tmp_path / "elsewhere"))
    assert Stack().folder == tmp_path / "elsewhere"
    monkeypatch.delenv("MEDFLEX_STACK_DIR")
    assert Stack().folder == PROJECT / ".stack"


HOLDER = (
    "import signal, sys; from pathlib import Path; from sandbox.stack import Stack\n"
    # Kept back until it is waited for: one that comes just before the process begins to wait would not end its waiting.
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
    "with Stack(Path(sys.argv[1])).lock():\n"
    "    print('held', flush=True)\n"
    "    signal.sigwait({signal.SIGINT})\n"
    "    raise KeyboardInterrupt\n"
)


@pytest.fixture
def holder(stack: Stack) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the stack's lock, as one that is starting it does."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(stack.folder)], cwd=PROJECT, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_starter_is_told_about_the_first(stack: Stack, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StackError, match=f"Process {holder.pid} is starting or stopping this stack"):
        stack.start()
    assert not stack.is_partly_running()


def test_a_dead_starters_lock_is_void(stack: Stack, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (stack.folder / "lock").read_text() == str(holder.pid)
    with stack.lock():
        assert (stack.folder / "lock").read_text() == str(os.getpid())


def test_stop_interrupts_a_starter(stack: Stack, holder: subprocess.Popen[str]) -> None:
    assert stack.stop()
    assert holder.wait(10) != 0


def test_stop_of_nothing_says_so_and_leaves_nothing(stack: Stack) -> None:
    assert not stack.stop()
    assert not stack.folder.exists()


def test_ctrl_c_while_the_starting_threads_are_made_starts_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    threads: list[threading.Thread] = []
    submit = ThreadPoolExecutor.submit

    def interrupted(pool: ThreadPoolExecutor, *work: Any) -> None:
        submit(pool, *work)
        # As it is when the signal comes before the pool has noted the new thread.
        threads.extend(pool._threads)
        pool._threads.clear()
        raise KeyboardInterrupt

    monkeypatch.setattr(Stack, "_start_airflow", lambda _: began.append("airflow"))
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.start()
    assert not stack.is_partly_running()
    for thread in threads:
        thread.join(10)
    assert ([thread.is_alive() for thread in threads], began) == ([False], [])


# The command line


def _ctl(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Through the module, not sandbox/ctl: the tests may run from another environment than .venv.
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False,
        env=os.environ | {"MEDFLEX_STACK_DIR": str(stack.folder)},
    )  # fmt: skip


@pytest.fixture
def in_process(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A function that gives the command line arguments with which it only speaks; exit status, output, complaint."""
    monkeypatch.setenv("MEDFLEX_STACK_DIR", str(stack.folder))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("run", "--day", "2026-13-01"), "'2026-13-01' is no day of the form YYYY-MM-DD"),
        (("run", "--clinic-ids", "1;2"), "'1;2' is no list of clinic ids such as 1,2,3"),
        (("run", "--mode", "dry"), "invalid choice: 'dry'"),
        (("seed", "--appointments", "0"), "must be 1 or more"),
        (("medflex", "faults", "on", "slow", "latency"), "'latency' is not of the form name=value"),
        (("medflex", "faults", "on", "sleepy"), "invalid choice: 'sleepy'"),
        (("partners", "--rate", "0"), "must be more than 0"),
        (("partners", "--hostile", "1.5"), "must be a share from 0 to 1, such as 0.1"),
        (("psql", "clients"), "invalid choice: 'clients'"),
    ],
)
def test_misuse_gets_one_clear_sentence(
    arguments: tuple[str, ...], sentence: str, stack: Stack, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, complaint = in_process(*arguments)
    assert code == 2
    assert sentence in complaint
    assert complaint.count("\n") == 1
    assert not stack.folder.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("seed",),
        ("funnel",),
        ("psql", "ledger"),
        ("partners",),
        ("medflex", "records"),
        ("medflex", "faults", "list"),
    ],
)
def test_commands_that_need_the_stack_say_how_to_start_it(stack: Stack, arguments: tuple[str, ...]) -> None:
    done = _ctl(stack, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Not running: postgres, medflex, api-server")
    assert done.stderr.endswith("Start the stack with `make demo`.\n")
    assert done.stderr.count("\n") == 1


def test_env_without_a_stack_makes_none(stack: Stack) -> None:
    done = _ctl(stack, "env")
    assert (done.returncode, done.stderr) == (1, f"There is no stack in {stack.folder} yet: `make demo` makes one.\n")
    assert not stack.folder.exists()


def test_status_and_stop_of_nothing(stack: Stack) -> None:
    shown = _ctl(stack, "status")
    assert shown.returncode == 1
    assert shown.stdout.count("stopped") == 6
    stopped = _ctl(stack, "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Nothing was running.\n")


def test_env_can_be_read_by_a_shell(stack: Stack) -> None:
    wanted = stack_environment(stack)
    exported = _ctl(stack, "env", "--export")
    assert exported.returncode == 0, exported.stderr
    program = f'{exported.stdout}\nprintf %s "$AIRFLOW_CONN_MEDFLEX_API"'
    shell = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert shell.stdout == wanted["AIRFLOW_CONN_MEDFLEX_API"]


@pytest.mark.parametrize(
    "command", ["demo", "start", "stop", "status", "env", "seed", "run", "funnel", "psql", "partners", "medflex"]
)
def test_each_command_explains_itself(command: str, in_process: Callable[..., tuple[int, str, str]]) -> None:
    code, shown, _ = in_process(command, "--help")
    assert code == 0
    assert f"usage: sandbox/ctl {command}" in shown


def test_the_help_of_faults_says_what_each_takes(in_process: Callable[..., tuple[int, str, str]]) -> None:
    _, shown, _ = in_process("medflex", "faults", "on", "--help")
    faults, names = (dict(re.findall(r"^  (\w+) +(.+)$", table, re.MULTILINE)) for table in shown.split("\n\n")[-3:-1])
    for kind in FaultKind:
        taken = set()
        for name in Params.model_fields:
            with contextlib.suppress(ValidationError):
                Fault(kind=kind, params=Params.model_validate({name: A_VALUE.get(name, 403)}))
                taken.add(name)
        assert set(faults[kind].split()) - {"-"} == taken
    assert names.keys() == set(Params.model_fields)


def test_the_example_of_a_fault_is_one(in_process: Callable[..., tuple[int, str, str]]) -> None:
    _, shown, _ = in_process("medflex", "faults", "on", "--help")
    (example,) = re.findall(r"such as: sandbox/ctl (.+)", shown)
    options = _parser().parse_args(example.split())
    Fault(kind=options.kind, times=options.times, params=Params(**dict(options.settings)))


# What `demo` says of a run, with an Airflow that only knows that


@pytest.mark.parametrize(
    ("state", "age", "old"),
    [("success", 3600, True), ("success", -1, False), ("running", 3600, False), ("queued", -1, False)],
)
def test_a_run_of_earlier_is_not_shown_as_made_now(
    state: str, age: int, old: bool, stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    did: list[str] = []

    def follow(*_: object) -> str:
        did.append("follow")
        return "success"

    made = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age)
    run = {"state": state, "queued_at": made.isoformat().replace("+00:00", "Z")}
    monkeypatch.setenv("MEDFLEX_STACK_DIR", str(stack.folder))
    monkeypatch.setattr(Stack, "start", lambda *_, **__: None)
    monkeypatch.setattr(Stack, "run_day", lambda *_, **__: "today's")
    monkeypatch.setattr(Stack, "airflow", lambda _: SimpleNamespace(run=lambda *_: run))
    monkeypatch.setattr(Stack, "follow", follow)
    monkeypatch.setattr("sandbox.__main__._print_funnel", lambda _, run_id: did.append(f"funnel of {run_id}"))
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert did == ["follow"] * (not old) + ["funnel of today's"]
    assert ("by Airflow's scheduler" in said, "Run today's: success" in said) == (not old, not old)
    when = re.findall(r"^This demo's run of today was made at (.*); its funnel:$", said, re.MULTILINE)
    assert [moment[-5:] for moment in when] == [f"{made.astimezone():%H:%M}"] * old


def test_ctl_without_an_environment_names_the_way_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    copy = tmp_path / "sandbox" / "ctl"
    copy.write_bytes(CTL.read_bytes())
    copy.chmod(0o755)
    done = subprocess.run([copy, "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"There is no environment in {tmp_path}/.venv yet: run `make demo` first.\n"
