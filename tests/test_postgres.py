"""A connection for each thread: whose it is, when another has it, and what becomes of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from medflex.errors import LedgerUnavailableError
from medflex.ledger.store import Ledger
from medflex.postgres import ThreadConnections
from sandbox.postgres import Cluster


@pytest.fixture
def connections(ledger_db: str) -> Iterator[ThreadConnections]:
    made = ThreadConnections(lambda: psycopg.connect(ledger_db, autocommit=True))
    yield made
    made.close()


def in_thread(work: Callable[[], int]) -> int:
    """Return what a thread of its own says, which has ended then."""
    said: list[int] = []
    thread = threading.Thread(target=lambda: said.append(work()))
    thread.start()
    thread.join()
    return said[0]


def session(connections: ThreadConnections) -> int:
    return connections.get().info.backend_pid


def test_a_thread_keeps_its_own(connections: ThreadConnections) -> None:
    first = session(connections)
    assert session(connections) == first
    assert in_thread(lambda: session(connections)) != first
    assert session(connections) == first


def test_that_of_a_thread_that_has_ended_serves_the_next(connections: ThreadConnections) -> None:
    mine = session(connections)
    first = in_thread(lambda: session(connections))
    assert [in_thread(lambda: session(connections)) for _ in range(3)] == [first] * 3
    assert session(connections) == mine


@pytest.mark.parametrize("left", ["BEGIN", "SELECT pg_terminate_backend(pg_backend_pid())", None])
def test_one_that_is_not_whole_serves_nobody(connections: ThreadConnections, ledger_db: str, left: str | None) -> None:
    """Amid a transaction, lost, or closed."""

    def leave() -> int:
        connection = connections.get()
        found = connection.info.backend_pid
        with contextlib.suppress(psycopg.OperationalError):
            connection.execute(left.encode()) if left else connection.close()
        return found

    assert in_thread(leave) != in_thread(lambda: session(connections))
    with psycopg.connect(ledger_db) as connection:
        (others,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchone() or (None,)
    assert others == 1


def test_one_that_was_lost_is_opened_anew(connections: ThreadConnections) -> None:
    first = connections.get()
    first.close()
    assert connections.mine is None
    assert connections.get() is not first


def test_behind_the_end_there_is_none(connections: ThreadConnections) -> None:
    first = connections.get()
    connections.close()
    assert first.closed
    assert connections.mine is None


@pytest.mark.parametrize("read", [lambda ledger: ledger.clinics_seen(), lambda ledger: ledger.known([1])])
def test_a_ledger_that_has_no_room_is_told_from_one_that_is_away(
    postgres: Cluster, ledger_db: str, read: Callable[[Ledger], object]
) -> None:
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {ledger_db.rsplit('/', 1)[1]} CONNECTION LIMIT 0".encode())
    with (
        Ledger(ledger_db) as ledger,
        pytest.raises(LedgerUnavailableError, match="takes no more connections: let"),
    ):
        read(ledger)
