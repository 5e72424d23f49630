"""Whole results by ADBC: their connection serves for the next one, and what goes wrong with it harms nobody."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from medflex.arrow import Streams, is_driver_error

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


def test_a_query_that_writes_leaves_nothing(streams: Streams, ledger_db: str) -> None:
    written = streams.read(
        "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at)"
        " VALUES ('a', 'b', 'manual', 'plan', now(), now()) RETURNING run_key",
        settings={},
    )
    assert written.num_rows == 1
    with psycopg.connect(ledger_db) as connection:
        assert connection.execute("SELECT count(*) FROM ledger.run").fetchone() == (0,)


@pytest.mark.parametrize(
    "sql", ["SELECT 1 / 0", "SELECT no_such_column", "SELECT 1 / (2 - n) FROM generate_series(1, 2) AS n"]
)
def test_what_the_server_refuses_is_an_error_and_ends_its_session(streams: Streams, ledger_db: str, sql: str) -> None:
    session(streams)
    with pytest.raises(Exception, match=r"division by zero|no_such_column") as raised:
        streams.read(sql, settings={})
    assert is_driver_error(raised.value)
    assert session(streams) in sessions(ledger_db)
    assert len(sessions(ledger_db)) == 1
