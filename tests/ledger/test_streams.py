"""Whole results by ADBC: their connection serves for the next one, and what goes wrong with it harms nobody."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from medflex import arrow
from medflex.arrow import Streams, is_driver_error
from tests.sandbox.medflex.helpers import until

LAST = "SELECT current_setting('medflex.asked', true) AS asked, pg_backend_pid() AS session"


@pytest.fixture
def streams(ledger_db: str) -> Iterator[Streams]:
    made = Streams(ledger_db)
    yield made
    made.close()


def sessions(ledger_db: str) -> dict[int, str]:
    with psycopg.connect(ledger_db) as connection:
        return dict(
            connection.execute(
                "SELECT pid, state FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchall()
        )


def session(streams: Streams) -> int:
    return int(streams.read(LAST, settings={"medflex.asked": "1"})["session"].to_pylist()[0])


def test_results_come_over_one_connection_that_stands_in_no_transaction(streams: Streams, ledger_db: str) -> None:
    first = session(streams)
    assert sessions(ledger_db) == {first: "idle"}
    assert session(streams) == first
    # What was set for one query is not there in the next one.
    assert streams.read(LAST, settings={})["asked"].to_pylist() in ([None], [""])


def test_an_empty_setting_is_empty(streams: Streams) -> None:
    assert streams.read(LAST, settings={"medflex.asked": "1"})["asked"].to_pylist() == ["1"]
    assert streams.read(LAST, settings={"medflex.asked": ""})["asked"].to_pylist() == [""]


def test_one_that_is_closed_by_the_server_is_opened_anew(streams: Streams, ledger_db: str) -> None:
    first = session(streams)
    with psycopg.connect(ledger_db, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
    assert session(streams) != first


def test_behind_the_end_no_connection_is_kept(streams: Streams, ledger_db: str) -> None:
    session(streams)
    streams.close()
    session(streams)
    assert sessions(ledger_db) == {}


WRITES = (
    "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at)"
    " VALUES ('a', 'b', 'manual', 'plan', now(), now()) RETURNING run_key"
)


def test_nothing_can_be_written(streams: Streams) -> None:
    with pytest.raises(Exception, match="read-only transaction") as raised:
        streams.read(WRITES, settings={})
    assert is_driver_error(raised.value)
    with pytest.raises(Exception, match="read-only transaction"), streams.stream(WRITES, settings={}) as reader:
        reader.read_all()


def test_a_locked_table_is_not_waited_for_for_ever(
    streams: Streams, ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'120s'" in arrow._LIMITS
    monkeypatch.setattr(arrow, "_LIMITS", arrow._LIMITS.replace("'120s'", "'50ms'"))
    with psycopg.connect(ledger_db) as other:
        other.execute("LOCK TABLE ledger.run IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Exception, match="lock timeout") as raised:
            streams.read("SELECT run_key FROM ledger.run", settings={})
    assert is_driver_error(raised.value)
    assert streams.read("SELECT run_key FROM ledger.run", settings={}).num_rows == 0


def test_no_query_takes_for_ever(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'1800s'" in arrow._LIMITS
    monkeypatch.setattr(arrow, "_LIMITS", arrow._LIMITS.replace("'1800s'", "'50ms'"))
    with pytest.raises(Exception, match="statement timeout"):
        streams.read("SELECT pg_sleep(60)::text AS slept", settings={})


@pytest.mark.parametrize(
    "sql", ["SELECT 1 / 0", "SELECT no_such_column", "SELECT 1 / (2 - n) FROM generate_series(1, 2) AS n"]
)
def test_what_the_server_refuses_is_an_error_and_ends_its_session(streams: Streams, ledger_db: str, sql: str) -> None:
    session(streams)
    with pytest.raises(Exception, match=r"division by zero|no_such_column") as raised:
        streams.read(sql, settings={})
    assert is_driver_error(raised.value)
    alone = {session(streams)}
    # A session is still listed for a moment after it has ended, also those in which this looks.
    until(lambda: set(sessions(ledger_db)) == alone)


class Line:
    """A way to Postgres that can be cut without a word to either side, as a network does it."""

    def __init__(self, conninfo: str, *, after_bytes: int | None = None) -> None:
        there = psycopg.conninfo.conninfo_to_dict(conninfo)
        self._there = (str(there["host"]), int(there["port"]))
        self._after_bytes = after_bytes
        self._ends: list[tuple[socket.socket, socket.socket]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.conninfo = psycopg.conninfo.make_conninfo(conninfo, port=self._server.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def _start(self, target: Callable[..., None], *ends: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=ends, daemon=True))
        self._threads[-1].start()

    def close(self) -> None:
        for thread in self._threads:
            self.cut()
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            thread.join()
        self._server.close()
        for end in itertools.chain(*self._ends):
            end.close()

    def cut(self) -> None:
        for ends in self._ends:
            _cut(*ends)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(self._there)
                self._ends.append((here, there))
                self._start(self._pump, here, there)
                self._start(self._pump, there, here)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                number += len(data)
                if self._after_bytes is not None and number >= self._after_bytes:
                    break
        _cut(source, target)


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_lost_between_two_queries_is_opened_anew(ledger_db: str) -> None:
    with contextlib.closing(Line(ledger_db)) as line, contextlib.closing(Streams(line.conninfo)) as streams:
        first = session(streams)
        line.cut()
        assert session(streams) != first


def test_a_connection_that_is_lost_amid_rows_is_an_error(ledger_db: str) -> None:
    with (
        contextlib.closing(Line(ledger_db, after_bytes=1_000_000)) as line,
        contextlib.closing(Streams(line.conninfo)) as streams,
    ):
        with pytest.raises(OSError, match="closed the connection") as raised:
            streams.read("SELECT n FROM generate_series(1, 1000000) AS n", settings={})
        assert is_driver_error(raised.value)


def test_a_connection_that_is_lost_before_the_first_row_ends_the_process_with_a_sentence(ledger_db: str) -> None:
    """The driver's fault (docs/adr/0027-driver-version.md); a process ends, so it is one of its own."""
    script = (
        "import logging, sys; logging.basicConfig(); from medflex.arrow import Streams;"
        " Streams(sys.argv[1]).read('SELECT pg_sleep(60)::text AS slept', settings={})"
    )
    with contextlib.closing(Line(ledger_db)) as line:
        process = subprocess.Popen(
            [sys.executable, "-c", script, line.conninfo],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(arrow.__file__).parent.parent)},
        )
        with process, psycopg.connect(ledger_db, autocommit=True) as connection:
            asleep = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%pg_sleep(60)%'"
            while connection.execute(asleep).fetchone() != (1,):
                assert process.poll() is None
            line.cut()
            _, said = process.communicate(timeout=30)
    assert "a connection is lost in the middle of a query" in said
    assert process.returncode == -signal.SIGABRT
