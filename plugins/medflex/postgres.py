"""What all databases of the house have in common: a connection for each thread, and what libpq says of a refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus


class ThreadConnections:
    """A connection for each thread that asks; that of a thread which has ended serves the next new one.

    So there are never more than threads at a time: pools come and go while a task writes, and each would leave its
    threads' connections behind until the task ends.

    Args:
        connect: makes one, in autocommit.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._of: dict[threading.Thread, psycopg.Connection[Any]] = {}
        self._lock = threading.Lock()

    def get(self) -> psycopg.Connection[Any]:
        """Return this thread's connection.

        Raises:
            psycopg.Error: none can be made.
        """
        connection = self.mine
        if connection is None:
            connection = self._inherited() or self._connect()
            self.adopt(connection)
        return connection

    @property
    def mine(self) -> psycopg.Connection[Any] | None:
        """This thread's connection, if it has one that is open."""
        connection = self._of.get(threading.current_thread())
        return None if connection is None or connection.closed else connection

    def adopt(self, connection: psycopg.Connection[Any]) -> None:
        """Make it this thread's connection."""
        with self._lock:
            self._of[threading.current_thread()] = connection

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._of.values():
                connection.close()
            self._of.clear()

    def _inherited(self) -> psycopg.Connection[Any] | None:
        with self._lock:
            for thread in [thread for thread in self._of if not thread.is_alive()]:
                connection = self._of.pop(thread)
                if connection.info.transaction_status == TransactionStatus.IDLE:
                    return connection
                connection.close()
        return None


def refused_login(error: Exception) -> bool:
    """Tell whether a failed connection attempt reached a server that said no (wrong user, password or database).

    psycopg raises a plain OperationalError without SQLSTATE while connecting, so only libpq's text can tell.
    """
    return _says(
        error, "password authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied"
    )


def has_no_room(error: Exception) -> bool:
    """Tell whether a server is up and takes no more connections."""
    return _says(error, "too many clients", "remaining connection slots", "too many connections for")


def _says(error: Exception, *marks: str) -> bool:
    text = str(error)
    return any(mark in text for mark in marks)
