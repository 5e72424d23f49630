"""The queries of include/sql, read once by name, and what is put into them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import orjson

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

Ids: TypeAlias = "Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]"
"""Ids of rows, none of them missing: a list, or a column of a frame as it is."""

ROOT = Path(__file__).resolve().parents[2]
SQL_FOLDER = ROOT / "include" / "sql"


@cache
def query(name: str) -> str:
    """Return the text of ``include/sql/<name>.sql``, for example ``query("medlock/clinics")``."""
    return (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


def bigints(ids: Ids) -> str:
    """Return ids as the text of a Postgres ``bigint[]``, for a parameter that is cast to it.

    A list as a parameter takes the driver some seventy times as long: it looks at each number by itself.

    Raises:
        TypeError: an id is missing, or no whole number.
    """
    # Arrays whose numbers don't lie side by side are no use to orjson.
    numbers = orjson.dumps(ids, default=lambda array: array.tolist(), option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1]
    if any(mark in numbers for mark in 'ne."['):  # null, true and false, fractions, texts, lists.
        raise TypeError("An id is missing, or no whole number.")
    return f"{{{numbers}}}"
