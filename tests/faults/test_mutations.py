"""With any one of its guards taken out the product fails the schedules; else these would prove nothing."""

from __future__ import annotations

import pytest

from tests.faults.events import make_schedule
from tests.faults.mutations import MUTATIONS
from tests.faults.play import Stage, play

SEEDS = 300


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_schedules_notice_a_guard_that_is_gone(
    stage: Stage, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[mutation](monkeypatch)
    found = next((seed for seed in range(SEEDS) if play(stage, make_schedule(seed)).violations), None)
    assert found is not None, f"{SEEDS} schedules have not noticed {mutation}"
    # It was the mutation that was noticed.
    monkeypatch.undo()
    assert not play(stage, make_schedule(found)).violations
