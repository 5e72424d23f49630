"""Thousands of actions amid edits, crashes, second attempts and lost replies: each is decided once, as it must be."""

from __future__ import annotations

import dataclasses

import pytest

from tests.faults.actions.attempt import Attempt, Judged
from tests.faults.actions.ground import Ground
from tests.faults.actions.model import CODES
from tests.faults.actions.mutations import MUTATIONS
from tests.faults.actions.storm import RUSH, Outcome, Storm, rage

NOTICED = {
    "no_look_behind_the_lock": 1,
    "no_look_at_permissions": 1,
    "no_row_lock": 1,
    "no_lock_on_people": 1,
    "cursor_before_page": 1,
    "lost_answers_count": 4,
}
"""The seed of a small storm that notices a mutation, where it is not the first one."""

_quiet: set[tuple[int, int]] = set()
"""Small storms, by seed and number of actions, of which it was seen that nothing goes wrong in them."""


def _happened(outcome: Outcome, *more: str) -> None:
    """Nothing is wrong, and it was a storm."""
    assert not outcome.violations
    for name in ("crash", "pause", "lose", "edit", "repeats", "two at once", "lost Medflex replies", "effects", *more):
        assert outcome.counts[name] > 0, name
    assert outcome.counts["changed between preparing and deciding"] > 0
    assert outcome.counts["clinics' changes of appointments"] > 0


@pytest.mark.timeout(300)
def test_each_action_is_decided_once_and_no_edit_of_a_clinic_is_lost(ground: Ground) -> None:
    """R13, R14; a failing seed is replayed by `python -m tests.faults.actions --actions 1000 --seed … --trace`."""
    outcome = rage(ground, 0, 1000)
    _happened(outcome, "waited")
    assert sum(outcome.reasons.values()) == 1000
    assert outcome.reasons["done"] > 100
    assert len(outcome.reasons) > 15


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_actions(ground: Ground) -> None:
    outcome = rage(ground, 0, 10_000)
    _happened(outcome, "waited", "cursors lost")
    assert sum(outcome.reasons.values()) == 10_000
    # Every row of the table in docs/partner-actions.md.
    assert set(outcome.reasons) == set(CODES)


@pytest.mark.long
def test_a_storm_replays_exactly(ground: Ground) -> None:
    first = rage(ground, 3, 120).trace
    # What raged in between must leave nothing behind.
    rage(ground, 4, 60)
    assert rage(ground, 3, 120).trace == first
    assert len(first) > 1000


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_storm_notices_a_guard_that_is_gone(ground: Ground, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few want the same time at once, but who does must not get it.
    rush, actions = (0.5, 120) if mutation == "no_lock_on_people" else (RUSH, 250)
    with monkeypatch.context() as patched:
        MUTATIONS[mutation](patched)
        seeds = (NOTICED.get(mutation, 0), *range(20))
        seed = next((seed for seed in seeds if rage(ground, seed, actions, rush).violations), None)
    assert seed is not None, f"no storm has noticed {mutation}"
    # It was the mutation that was noticed.
    if (seed, actions) not in _quiet:
        assert not rage(ground, seed, actions, rush).violations
        _quiet.add((seed, actions))


def test_an_effect_that_the_model_does_not_know_is_noticed(ground: Ground) -> None:
    """What is compared at the end would show a decision that is another one, and an effect that took place twice."""

    class Forgetful(Storm):
        def committed(self, attempt: Attempt, judged: Judged) -> None:
            done = judged.prediction is not None and judged.ruling == "done" and not self.model.effects
            if done and judged.prediction is not None:
                judged = dataclasses.replace(judged, prediction=dataclasses.replace(judged.prediction, values={}))
                self.model.effects = 1
            super().committed(attempt, judged)

    outcome = Forgetful(ground, 0).rage(60, patience=1000)
    assert any("appointments in Medlock" in text for text in outcome.violations)
