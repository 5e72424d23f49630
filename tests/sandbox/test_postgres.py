"""The embedded Postgres: who it runs as, what it lets in, and how it comes back."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from sandbox.postgres import HOST, Cluster, _as_server_user

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(tmp_path: Path):
    # An awkward place: closed to everybody else, spaces, and longer than a Unix socket's path may be.
    closed = tmp_path / "home of somebody" / ("long-" * 20) / "with 'quotes' и кириллица"
    closed.mkdir(parents=True)
    (tmp_path / "home of somebody").chmod(0o700)
    made = Cluster(closed / "postgres", durable=False)
    made.start()
    yield made
    made.remove()


def _listening(pid: int) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        # A session that was just closed may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("tcp")
            found |= {(each.laddr.ip, each.laddr.port) for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


def test_serves_roles_with_passwords_on_loopback_only(cluster: Cluster) -> None:
    cluster.create_role("clerk")
    assert cluster.create_database("office", "clerk")
    assert not cluster.create_database("office", "clerk")
    with psycopg.connect(cluster.uri("office", "clerk")) as connection:
        assert connection.execute("SELECT current_user, lower('ЁЛКА')").fetchone() == ("clerk", "ёлка")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.uri("office", "clerk", password="guess"))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.uri("office", password="guess"))
    assert cluster.pid is not None
    assert _listening(cluster.pid) == {(HOST, cluster.port)}


def test_passwords_are_for_the_owner_only(cluster: Cluster) -> None:
    assert stat.S_IMODE((cluster.data_dir / "passwords.json").stat().st_mode) == 0o600
    assert not list(cluster.data_dir.glob("initdb*"))


def test_never_runs_as_root_and_opens_no_folder(cluster: Cluster) -> None:
    assert cluster.pid is not None
    assert psutil.Process(cluster.pid).uids().effective != 0
    home = cluster.data_dir.parents[2]
    assert home.name == "home of somebody"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_starting_twice_is_starting_once(cluster: Cluster) -> None:
    pid = cluster.pid
    cluster.start()
    Cluster(cluster.data_dir).start()
    assert cluster.pid == pid


def test_stopping_twice_is_stopping_once(cluster: Cluster) -> None:
    cluster.stop()
    assert not cluster.is_running()
    cluster.stop()


def test_keeps_data_port_and_passwords_over_a_restart(cluster: Cluster) -> None:
    cluster.create_role("clerk")
    cluster.create_database("office", "clerk")
    address = cluster.uri("office", "clerk")
    cluster.stop()
    cluster.start()
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_takes_another_port_when_its_own_is_taken(cluster: Cluster) -> None:
    cluster.stop()
    before = cluster.port
    with socket.socket() as squatter:
        squatter.bind((HOST, before))
        squatter.listen()
        cluster.start()
        assert cluster.port != before
        with cluster.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_port_that_was_told_before_the_start_is_not_taken_by_others_meanwhile(tmp_path: Path) -> None:
    """Its address may stand in somebody's settings long before it runs."""
    cluster = Cluster(tmp_path / "later", durable=False)
    address = cluster.uri("postgres")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, cluster.port))
    try:
        cluster.start()
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        cluster.remove()


def test_comes_back_after_a_crash(cluster: Cluster) -> None:
    with cluster.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        connection.execute("CHECKPOINT")
    assert cluster.pid is not None
    server = psutil.Process(cluster.pid)
    family = [server, *server.children(recursive=True)]
    server.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    assert (cluster.pgdata / "postmaster.pid").exists()
    assert not cluster.is_running()
    cluster.start()
    with cluster.connect() as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_a_pid_that_came_round_again_does_not_hinder(cluster: Cluster) -> None:
    """After a reboot the recorded pid can be another process's, of the server's own user at that."""
    stale = (cluster.pgdata / "postmaster.pid").read_text().split("\n")
    cluster.stop()
    with subprocess.Popen([*_as_server_user(), "sleep", "600"]) as stranger:
        (cluster.pgdata / "postmaster.pid").write_text("\n".join([str(stranger.pid), *stale[1:]]))
        assert not cluster.is_running()
        cluster.stop()
        cluster.start()
        assert cluster.is_running()
        assert stranger.poll() is None
        stranger.kill()


def test_several_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other", durable=False)
    try:
        other.start()
        assert other.port != cluster.port
        other.stop()
        assert cluster.is_running()
    finally:
        other.remove()


def test_works_as_a_normal_user(tmp_path: Path) -> None:
    """As root this drops to another user first; for anybody else it is the plain case once more."""
    place = tmp_path / "theirs"
    program = (
        "import sys, os; from pathlib import Path; from sandbox.postgres import Cluster\n"
        "assert os.geteuid() != 0\n"
        "cluster = Cluster(Path(sys.argv[1]), durable=False)\n"
        "cluster.start()\n"
        "print(cluster.connect().execute('SELECT 40 + 2').fetchone()[0])\n"
        "cluster.remove()\n"
    )
    done = subprocess.run(
        [*_as_server_user(), sys.executable, "-c", program, str(place)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "42\n", done.stderr
