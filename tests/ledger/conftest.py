"""A ledger whose clock is the test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from medflex.ledger.store import Ledger
from tests.ledger.times import Time


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def ledger(ledger_db: str, time: Time) -> Iterator[Ledger]:
    with Ledger(ledger_db, now=time) as made:
        yield made
