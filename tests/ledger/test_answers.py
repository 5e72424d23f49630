"""What the ledger's Postgres says no to is told as what it is, and not as a server that is away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from medflex import arrow
from medflex.errors import LedgerOutdatedError, LedgerRefusedError, LedgerUnavailableError
from medflex.ledger import connection as ledger_connection
from medflex.ledger.connection import translated_ledger_errors
from medflex.ledger.migrate import HEAD, migrate
from medflex.ledger.store import Ledger
from sandbox.postgres import Cluster

QUOTED = "+79990001122"
"""What a driver's text may quote."""
SENTENCES = {
    "25006": "takes no writes (SQLSTATE 25006), since it is a standby or set to read only: point the connection",
    "40001": "answered with SQLSTATE 40001 (SerializationFailure): look into the log of the server",
    "53100": "has no room left on its disk: make room on the server",
    "53200": "has run out of memory, its own or that for its locks: give the server",
    "53300": "takes no more connections: let fewer tasks run at once",
    "55P03": "does not answer in time, or somebody has cancelled what it was asked: look whether a table is locked",
    "57014": "does not answer in time, or somebody has cancelled what it was asked: look whether a table is locked",
    "57P01": "does not answer or broke off: check that the server of the connection medflex_ledger is up",
}


def raising(state: str) -> bytes:
    return f"DO $$BEGIN RAISE EXCEPTION SQLSTATE '{state}' USING MESSAGE = '{QUOTED} does not exist'; END$$".encode()


def name_of(uri: str) -> str:
    return uri.rsplit("/", 1)[1]


@pytest.mark.parametrize("state", SENTENCES)
def test_each_answer_has_its_sentence_and_is_tried_again(ledger: Ledger, state: str) -> None:
    with pytest.raises(LedgerUnavailableError) as raised, ledger._statement() as cursor:
        cursor.execute(raising(state))
    assert SENTENCES[state] in str(raised.value)
    assert QUOTED not in str(raised.value)
    assert type(raised.value) is LedgerUnavailableError
    assert raised.value.transient


def test_what_the_driver_refuses_by_itself_is_not_told_as_a_server_that_is_away() -> None:
    with pytest.raises(LedgerUnavailableError, match="SQLSTATE none") as raised, translated_ledger_errors():
        raise psycopg.InterfaceError(QUOTED)
    assert QUOTED not in str(raised.value)


def test_a_standby_is_told_from_a_server_that_is_away(postgres: Cluster, ledger_db: str) -> None:
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name_of(ledger_db)} SET default_transaction_read_only = on".encode())
    with Ledger(ledger_db) as ledger, pytest.raises(LedgerUnavailableError) as raised:
        ledger.acquire([1], "task")
    assert SENTENCES["25006"] in str(raised.value)


def test_a_statement_that_waits_for_too_long_is_told(ledger_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_connection, "STATEMENT_SECONDS", 1)
    with psycopg.connect(ledger_db) as other, Ledger(ledger_db) as ledger:
        other.execute("LOCK TABLE ledger.lease IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerUnavailableError) as raised:
            ledger.acquire([1], "task")
    assert SENTENCES["57014"] in str(raised.value)


def test_a_read_by_the_thousands_that_waits_for_too_long_is_told(
    ledger_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "_LIMITS", arrow._LIMITS.replace("'120s'", "'50ms'"))
    with psycopg.connect(ledger_db) as other, Ledger(ledger_db) as ledger:
        other.execute("LOCK TABLE ledger.record IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerUnavailableError) as raised:
            ledger.known([1])
    assert SENTENCES["55P03"] in str(raised.value)


# -- migrating


def refused(uri: str) -> str:
    with pytest.raises(LedgerRefusedError) as raised:
        migrate(uri)
    assert type(raised.value) is LedgerRefusedError
    return str(raised.value)


@pytest.mark.parametrize("state", ["53100", "53200", "57014", "40001"])
def test_a_migration_says_what_the_server_said_no_to(
    postgres: Cluster, new_database: Callable[[], str], state: str
) -> None:
    uri = new_database()
    with psycopg.connect(postgres.uri(name_of(uri), "postgres")) as connection:
        body = raising(state).removeprefix(b"DO ").decode()
        connection.execute(f"CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS {body}".encode())
        connection.execute("CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()")
    told = refused(uri)
    assert SENTENCES[state] in told
    assert QUOTED not in told


def test_a_migration_tells_a_standby_and_a_server_without_room(
    postgres: Cluster, new_database: Callable[[], str]
) -> None:
    uri = new_database()
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name_of(uri)} SET default_transaction_read_only = on".encode())
    assert SENTENCES["25006"] in refused(uri)
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name_of(uri)} CONNECTION LIMIT 0".encode())
    assert SENTENCES["53300"] in refused(uri)


def test_a_ledger_that_is_newer_than_the_release_is_left_as_it_is(ledger_db: str) -> None:
    with psycopg.connect(ledger_db) as connection:
        connection.execute("UPDATE ledger.schema_version SET version_num = '9999'")
    sentence = (
        f"The ledger is newer than this release (its schema is at version 9999, this one knows {HEAD}): deploy the"
        " release that it was migrated by, or a newer one."
    )
    with pytest.raises(LedgerOutdatedError) as raised:
        migrate(ledger_db)
    assert str(raised.value) == sentence
    done = subprocess.run(
        [sys.executable, "-m", "medflex.ledger.migrate", "--uri", ledger_db],
        cwd=Path(__file__).parents[2] / "plugins", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == sentence
    assert "Traceback" not in done.stderr
    with psycopg.connect(ledger_db) as connection:
        found: tuple[Any, ...] | None = connection.execute("SELECT version_num FROM ledger.schema_version").fetchone()
    assert found == ("9999",)


def test_a_version_that_nobody_knows_is_not_taken_for_a_newer_ledger(ledger_db: str) -> None:
    with pytest.raises(Exception, match="Can't locate revision identified by '9999'"):
        migrate(ledger_db, "9999")
