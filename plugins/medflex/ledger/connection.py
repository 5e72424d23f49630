"""Connections to the ledger's database, and its errors in this product's words. Imports nothing heavy: a task that only
asks a few numbers need not load pandas.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import psycopg
from psycopg.rows import dict_row

from medflex.errors import (
    LedgerConflictError,
    LedgerDeadlockError,
    LedgerOutdatedError,
    LedgerRefusedError,
    LedgerUnavailableError,
    MedflexPipelineError,
)
from medflex.ledger.migrate import HEAD
from medflex.postgres import ThreadConnections, has_no_room, refused_login
from medflex.sql import query

if TYPE_CHECKING:
    from medflex.arrow import Streams

P = ParamSpec("P")
T = TypeVar("T")

STATEMENT_SECONDS = 120
"""So long may one statement of a task take."""
IDLE_SECONDS = 60
"""How long a transaction may stand still. A machine that is lost closes no connection: without it, what its tasks had
locked, such as the shared rate, would hold up all others until TCP gives up, which takes two hours.
"""

DEADLOCK_SECONDS = 0.5
"""So long after a deadlock the transaction that was ended is run once more."""


def again_after_deadlock(method: Callable[P, T]) -> Callable[P, T]:
    """Run a transaction once more where Postgres has ended it because it and another one waited for each other.

    For methods that lock many rows. The other one has gone on by then: as an outage it would end a whole look.
    """

    @wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except LedgerDeadlockError:
            # At once it could be back at the first row before the other one, which waits there, has woken up.
            time.sleep(DEADLOCK_SECONDS)
            return method(*args, **kwargs)

    return wrapper


class LedgerConnection:
    """Access to the ledger's database. Connections are per thread; every method is one transaction.

    Args:
        conninfo: libpq connection string or URI.
        now: fixed source of the present for tests; ``None`` uses the database server's clock, which all workers share.
        statement_seconds: so long may one statement take; ``None``: :data:`STATEMENT_SECONDS`.

    Raises (all methods):
        LedgerUnavailableError: the database does not answer.
        LedgerRefusedError: it refuses the log-in; LedgerOutdatedError: its schema is missing or of another version.
    """

    def __init__(self, conninfo: str, now: Any = None, statement_seconds: float | None = None) -> None:
        self._conninfo = conninfo
        self._now = now
        self._statement_seconds = statement_seconds
        self._connections = ThreadConnections(self._connect)
        self._lock = threading.Lock()
        self._opened: Streams | None = None

    def close(self) -> None:
        """Close the connections of all threads."""
        self._connections.close()
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor[Any]]:
        """A cursor whose statements hold together, or not at all."""
        with translated_ledger_errors():
            connection = self._connections.get()
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor

    @contextmanager
    def _statement(self) -> Iterator[psycopg.Cursor[Any]]:
        """A cursor for one statement, a transaction by itself: to begin and to commit one takes two round trips."""
        with translated_ledger_errors(), self._connections.get().cursor() as cursor:
            yield cursor

    @again_after_deadlock
    def _for_each(self, asked: Sequence[tuple[str, Mapping[str, Any]]], *, by: str) -> list[dict[str, Any] | None]:
        """Run these queries with their parameters, all in one transaction, and in one round trip where it is the same
        query; return the first row of each.

        Args:
            asked: names as for :func:`medflex.sql.query`.
            by: the parameter in whose ascending order they run, and lock.
        """
        if len(asked) == 1:
            ((name, parameters),) = asked
            with self._statement() as cursor:
                return [cursor.execute(query(name), parameters).fetchone()]
        order = sorted(range(len(asked)), key=lambda place: asked[place][1][by])
        rows: list[dict[str, Any] | None] = [None] * len(asked)
        with self._transaction() as cursor:
            for name, places in groupby(order, key=lambda place: asked[place][0]):
                alike = list(places)
                cursor.executemany(query(name), [asked[place][1] for place in alike], returning=True)
                for place, result in zip(alike, cursor.results(), strict=True):
                    rows[place] = result.fetchone()
        return rows

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=10, row_factory=dict_row)
        connection.execute(f"SET statement_timeout = '{self._statement_seconds or STATEMENT_SECONDS}s'".encode())
        connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'".encode())
        # Compiling these queries takes longer than running them.
        connection.execute("SET jit = off")
        return connection

    @property
    def _streams(self) -> Streams:
        """Whatever is read by the thousands comes by this way."""
        with self._lock:
            if self._opened is None:
                from medflex.arrow import Streams

                self._opened = Streams(self._conninfo)
            return self._opened

    def _present(self) -> datetime | None:
        return self._now() if self._now else None

    def check_schema(self) -> None:
        """Raise :class:`LedgerOutdatedError` unless the database has the schema version this code needs."""
        with self._transaction() as cursor:
            cursor.execute("SELECT to_regclass('ledger.schema_version') AS found")
            version = None
            if cursor.fetchone()["found"]:  # type: ignore[index]
                cursor.execute("SELECT version_num FROM ledger.schema_version")
                row = cursor.fetchone()
                version = row["version_num"] if row else None
        if version != HEAD:
            raise LedgerOutdatedError(
                f"The ledger's schema is at version {version or 'none'}, this release needs {HEAD}:"
                " run python -m medflex.ledger.migrate."
            )


@contextmanager
def translated_ledger_errors() -> Iterator[None]:
    """Turn driver errors into this product's errors, without the driver's text, which may quote data."""
    try:
        yield
    except MedflexPipelineError:
        raise
    except (psycopg.errors.InvalidPassword, psycopg.errors.InvalidAuthorizationSpecification):
        raise LedgerRefusedError(
            "The ledger's database refuses the log-in: check user and password of the connection medflex_ledger."
        ) from None
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
        raise LedgerOutdatedError(
            "The ledger's tables are missing or old: run python -m medflex.ledger.migrate."
        ) from None
    except psycopg.OperationalError as error:
        raise _operational(error) from None
    except psycopg.errors.UniqueViolation:
        raise LedgerConflictError(
            "The ledger has a row already that was to be new: another task has written for the same clinic. The next"
            " attempt begins with what is there now."
        ) from None
    except psycopg.Error as error:
        raise LedgerUnavailableError(answered(error) or _unknown(error)) from None
    except Exception as error:
        from medflex.arrow import is_driver_error

        if not is_driver_error(error):
            raise
        # It comes from the driver only where the server refused at once: in the middle of a result there is none.
        raise LedgerUnavailableError(answered(error) or _AWAY) from None


def _operational(error: psycopg.OperationalError) -> MedflexPipelineError:
    if isinstance(error, psycopg.errors.DeadlockDetected):
        return LedgerDeadlockError(
            "A transaction of the ledger and another one waited for each other, so that Postgres has ended it: the next"
            " attempt begins with what is there now."
        )
    answer = answered(error)
    # While connecting there is none, and later the text can quote anything.
    if not error.sqlstate and refused_login(error):
        return LedgerRefusedError(
            "The ledger's database refuses the log-in: check user, password and database of the connection"
            " medflex_ledger."
        )
    return LedgerUnavailableError(answer or _AWAY)


def answered(error: BaseException | None) -> str | None:
    """Return the sentence for what a server that is up says no to; ``None`` where it is away or refuses the log-in.

    Of an error of psycopg's, by its SQLSTATE: most of these are OperationalErrors as a lost connection is, and who is
    told to look for a server that is away does not find the full disk.
    """
    state = getattr(error, "sqlstate", None) or ""
    if state in _ANSWERS:
        return _ANSWERS[state]
    if isinstance(error, Exception) and has_no_room(error):
        return _ANSWERS["53300"]
    if error is None or not state or state.startswith(_AWAY_OR_LOG_IN):
        return None
    return _unknown(error)


def _unknown(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None) or "none"
    return (
        f"The ledger's database answered with SQLSTATE {state} ({type(error).__name__}): look into the log of the"
        " server of the connection medflex_ledger."
    )


_AWAY = (
    "The ledger's database does not answer or broke off: check that the server of the connection medflex_ledger is up"
    " and reachable from the workers."
)
_AWAY_OR_LOG_IN = ("08", "28", "3D", "57P")
"""Classes of SQLSTATE: the connection, the log-in, the database's name, a server that stops or begins."""
_HELD_UP = (
    "The ledger's database does not answer in time, or somebody has cancelled what it was asked: look whether a table"
    " is locked there, or the server of the connection medflex_ledger is overloaded."
)
_ANSWERS = {
    "25006": "The ledger's database takes no writes (SQLSTATE 25006), since it is a standby or set to read only: point"
    " the connection medflex_ledger at the primary.",
    "53100": "The ledger's database has no room left on its disk: make room on the server of the connection"
    " medflex_ledger.",
    "53200": "The ledger's database has run out of memory, its own or that for its locks: give the server of the"
    " connection medflex_ledger more (max_locks_per_transaction), or let fewer tasks run at once.",
    "53300": "The ledger's database takes no more connections: let fewer tasks run at once, or raise max_connections of"
    " the server of the connection medflex_ledger (docs/capacity.md).",
    "55P03": _HELD_UP,
    "57014": _HELD_UP,
}
"""SQLSTATE -> what has happened and what to do."""
