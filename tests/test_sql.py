"""What is put into the queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.sql import bigints
from sandbox.postgres import Cluster

BIGINT = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(BIGINT))
def test_ids_are_written_as_an_array_whatever_holds_them(ids: list[int]) -> None:
    literal = "{" + ",".join(map(str, ids)) + "}"
    array = np.array(ids, dtype="int64")
    beside_others = np.column_stack([array, array])[:, 0]
    for held in (ids, tuple(ids), array, beside_others, list(array)):
        assert bigints(held) == literal


def test_postgres_reads_them(postgres: Cluster) -> None:
    ids = [2**63 - 1, -(2**63), 0, 7]
    with psycopg.connect(postgres.uri("postgres")) as connection:
        row = connection.execute("SELECT %s::bigint[], %s::bigint[]", [bigints(ids), bigints([])]).fetchone()
    assert row == (ids, [])


@pytest.mark.parametrize(
    "ids", [[None], [1.5], [1e300], [True], ["1"], [[1]], [2**70], [float("nan")], np.array([1.5]), [object()]]
)
def test_what_is_no_id_is_refused(ids: Any) -> None:
    with pytest.raises(TypeError):
        bigints(ids)
