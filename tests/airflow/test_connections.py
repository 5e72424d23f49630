"""Airflow's connections as libpq wants them, and one sentence for each that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from medflex.airflow import connections
from medflex.errors import ConfigurationError
from sandbox.postgres import Cluster

NAME = "AIRFLOW_CONN_MEDLOCK_DB"
PASSWORD = "s'ecret \\pass word@:/%"


def define(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv(NAME, json.dumps({"conn_type": "postgres", "host": "db", "schema": "medlock"} | fields))


def test_every_field_arrives_whatever_characters_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, login="us er", password=PASSWORD, port=6543)
    found = conninfo_to_dict(connections.postgres_conninfo(connections.MEDLOCK))
    wanted = {"host": "db", "dbname": "medlock", "user": "us er", "password": PASSWORD, "port": "6543"}
    assert wanted.items() <= found.items()
    assert found["application_name"] == "medflex"
    # A database that is gone without a word must not hold a task for ever.
    assert {"connect_timeout", "keepalives_idle", "tcp_user_timeout"} <= found.keys()


def test_of_the_extra_only_what_libpq_knows_goes_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extra = {"sslmode": "verify-full", "sslrootcert": str(tmp_path), "cursor": "dictcursor", "application_name": "mine"}
    define(monkeypatch, extra=extra)
    found = conninfo_to_dict(connections.postgres_conninfo(connections.MEDLOCK))
    assert (found["sslmode"], found["sslrootcert"], found["application_name"]) == ("verify-full", str(tmp_path), "mine")
    assert "cursor" not in found


def test_what_is_empty_is_left_to_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, host="", login=None)
    assert (
        not {"host", "user", "password", "port"}
        & conninfo_to_dict(connections.postgres_conninfo(connections.MEDLOCK)).keys()
    )


@pytest.mark.parametrize("form", ["uri", "json"])
def test_a_real_server_is_reached_by_it(
    postgres: Cluster, medlock_app: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    parts = conninfo_to_dict(medlock_app)
    fields = {
        "conn_type": "postgres",
        "host": parts["host"],
        "port": int(str(parts["port"])),
        "login": parts["user"],
        "password": parts.get("password"),
        "schema": parts["dbname"],
    }
    monkeypatch.setenv(NAME, medlock_app if form == "uri" else json.dumps(fields))
    with psycopg.connect(connections.postgres_conninfo(connections.MEDLOCK)) as connection:
        row = connection.execute("SELECT current_database(), current_setting('application_name')").fetchone()
    assert row == (parts["dbname"], "medflex")


def test_a_connection_without_a_database_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    define(monkeypatch, schema="", password=PASSWORD)
    with pytest.raises(ConfigurationError, match=r"^The Airflow connection medlock_db names no database") as error:
        connections.postgres_conninfo(connections.MEDLOCK)
    assert PASSWORD not in str(error.value)


@pytest.mark.usefixtures("airflow_db")
@pytest.mark.parametrize("conn_id", [connections.MEDLOCK, connections.LEDGER, connections.MEDFLEX])
def test_a_connection_that_nobody_defined_is_told(conn_id: str) -> None:
    sentence = f"^The Airflow connection {conn_id} does not exist: .*AIRFLOW_CONN_{conn_id.upper()}"
    with pytest.raises(ConfigurationError, match=sentence) as error:
        connections.connection(conn_id)
    assert error.value.__suppress_context__


def test_the_digest_key_is_a_long_secret_that_no_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLEX_DIGEST_KEY", "sixteen letters!")
    assert connections.digest_key() == b"sixteen letters!"
    for key in ("", "fifteen letters"):
        monkeypatch.setenv("MEDFLEX_DIGEST_KEY", key)
        with pytest.raises(ConfigurationError, match="MEDFLEX_DIGEST_KEY is missing or shorter than 16") as error:
            connections.digest_key()
        assert not key or key not in str(error.value)
    monkeypatch.delenv("MEDFLEX_DIGEST_KEY")
    with pytest.raises(ConfigurationError):
        connections.digest_key()
