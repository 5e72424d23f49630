"""The rate and the pauses that all workers share."""

from __future__ import annotations

from datetime import timedelta

from medflex.ledger.store import Ledger
from tests.ledger.times import Time


def test_a_quiet_time_is_not_saved_up_for_a_burst(ledger: Ledger, time: Time) -> None:
    assert ledger.reserve_slot("m", 0.5) == 0
    time.now += timedelta(hours=1)
    assert [ledger.reserve_slot("m", 0.5) for _ in range(4)] == [0, 0.5, 1, 1.5]


def test_a_shorter_pause_does_not_cut_a_longer_one_short(ledger: Ledger) -> None:
    ledger.pause_rate("m", 60)
    ledger.pause_rate("m", 5)
    assert ledger.reserve_slot("m", 0.5) == 60


def test_a_pause_does_not_free_places_that_are_taken(ledger: Ledger) -> None:
    for _ in range(100):
        ledger.reserve_slot("m", 0.5)
    ledger.pause_rate("m", 5)
    assert ledger.reserve_slot("m", 0.5) == 50


def test_a_place_too_far_away_is_not_taken(ledger: Ledger, time: Time) -> None:
    ledger.pause_rate("m", 100)
    for _ in range(3):
        assert ledger.reserve_slot("m", 0.5, 60) > 60
    time.now += timedelta(seconds=90)
    assert ledger.reserve_slot("m", 0.5, 60) == 10
