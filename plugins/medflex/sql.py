"""The queries of include/sql, read once by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SQL_FOLDER = ROOT / "include" / "sql"


@cache
def query(name: str) -> str:
    """Return the text of ``include/sql/<name>.sql``, for example ``query("medlock/clinics")``."""
    return (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
