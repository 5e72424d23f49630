"""Attempts of one task that writes: the last one to begin is the living one."""

from __future__ import annotations

import pytest

from medflex.errors import LeaseLostError
from medflex.ledger.store import Ledger


def test_a_new_attempt_lets_go_of_what_a_dead_one_held_and_of_nothing_else(ledger: Ledger) -> None:
    """The new one may find nothing left to do for these clinics; nobody is to wait for them until the lease expires."""
    token = ledger.begin_writing("run/0")
    ledger.acquire([1, 2], "run/0", purpose="withdraw", token=token)
    ledger.acquire([3], "run/1", purpose="withdraw")
    ledger.begin_writing("run/0")
    assert ledger.acquire([1, 2, 3], "somebody else") == {1: 2, 2: 2}
    with pytest.raises(LeaseLostError):
        ledger.acquire([1], "run/0", token=token)
