"""The search for leaks must find what is there, or the tests that find nothing say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg

from sandbox.medlock import canaries
from tests.airflow.leaks import database_text, folder_text, found_canaries

NAME = next(item for item in canaries() if item.startswith("Канар"))


def test_a_name_in_a_file_is_found_plain_and_escaped(tmp_path: Path) -> None:
    (tmp_path / "plain.log").write_text(f"x {NAME} y")
    (tmp_path / "escaped.json").write_text(json.dumps({"a": NAME}))
    (tmp_path / "clean.txt").write_text("nothing")
    assert {hit.split(":")[0] for hit in found_canaries(folder_text(tmp_path))} == {"plain.log", "escaped.json"}


def test_a_name_in_any_column_of_a_database_is_found(new_database: Callable[[], str]) -> None:
    uri = new_database()
    with psycopg.connect(uri) as connection:
        connection.execute(
            "CREATE TABLE a (t text); CREATE TABLE b (j jsonb); CREATE TABLE c (x bytea); CREATE TABLE d (t text)"
        )
        connection.execute("INSERT INTO a VALUES (%s)", [NAME])
        connection.execute("INSERT INTO b VALUES (%s)", [json.dumps({"k": NAME})])
        connection.execute("INSERT INTO c VALUES (%s)", [NAME.encode()])
        connection.execute("INSERT INTO d VALUES ('nothing')")
    assert {hit.split(":")[0] for hit in found_canaries(database_text(uri))} == {"public.a", "public.b", "public.c"}
