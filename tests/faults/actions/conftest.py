"""Databases for storms, used for one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.postgres import Cluster
from tests.faults.actions.ground import Ground, open_ground


@pytest.fixture(scope="session")
def ground(postgres: Cluster, _medlock_template: str, _ledger_template: str) -> Iterator[Ground]:
    """The databases of a storm; each one empties them before it begins."""
    made = open_ground(postgres, _medlock_template, _ledger_template)
    with made.stage:
        yield made
