"""Looking for personal data where none may be: in databases, folders and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from sandbox.medlock import canaries


def database_text(uri: str) -> Iterator[tuple[str, str]]:
    """Yield (table, content) for every table of a database, binary columns as the bytes they are."""
    with psycopg.connect(uri) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            copy = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(schema, table))
            with connection.cursor().copy(copy) as rows:
                content = b"".join(bytes(row) for row in rows)
            yield f"{schema}.{table}", _with_escapes(content.decode("utf-8", "replace"))


def folder_text(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, content) for every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), _with_escapes(path.read_bytes().decode("utf-8", "replace"))


def found_canaries(places: Iterable[tuple[str, str]]) -> list[str]:
    """Return the places in which a canary is, with the number of canary strings there, never the string itself."""
    known = canaries()
    hits = []
    for place, text in places:
        number = sum(canary in text for canary in known)
        if number:
            hits.append(f"{place}: {number}")
    return hits


def _with_escapes(text: str) -> str:
    """The text, and once more with JSON's and Python's \\uXXXX read, so that an escaped name is found too."""
    if "\\u" not in text:
        return text
    return text + text.encode("latin-1", "replace").decode("unicode_escape", "replace")
