"""A machine that is gone closes no connection: what it had locked in the ledger must not hold up the others."""

from __future__ import annotations

import pytest

from medflex.errors import LedgerUnavailableError
from medflex.ledger import connection
from medflex.ledger.store import LEASE_SECONDS, Ledger
from tests.ledger.times import Time


def test_what_a_lost_machine_had_locked_is_free_before_others_give_up(
    ledger_db: str, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the two minutes that a statement may wait, and than a lease.
    assert 2 * connection.IDLE_SECONDS <= 120 < LEASE_SECONDS
    monkeypatch.setattr(connection, "IDLE_SECONDS", 1)
    with Ledger(ledger_db, now=time) as lost, Ledger(ledger_db, now=time) as alive:
        lost.reserve_slot("m", 0.5)

        def say_nothing_more() -> None:
            with lost._transaction() as cursor:
                cursor.execute("SELECT 1 FROM ledger.rate FOR UPDATE")
                assert alive.reserve_slot("m", 0.5) == 0.5

        with pytest.raises(LedgerUnavailableError, match="25P03"):
            say_nothing_more()
        # Should it be there after all, it goes on with another connection.
        assert lost.reserve_slot("m", 0.5) == 1
