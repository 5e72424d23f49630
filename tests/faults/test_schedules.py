"""Two thousand seeded histories of changes, faults and crashes; none may leave Medflex, Medlock and ledger at odds."""

from __future__ import annotations

import psycopg
import pytest

from tests.domain.oracles.loop import expected_records
from tests.faults.events import make_schedule
from tests.faults.play import Stage, play
from tests.faults.shrink import source

SCHEDULES = 2000
BLOCK = 50


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(SCHEDULES // BLOCK))
def test_after_any_faults_medflex_shows_exactly_what_may_be_shown(stage: Stage, block: int) -> None:
    """I1-I4 and I6; a failing seed is replayed by `python -m tests.faults --seed …` and cut down by `--shrink …`."""
    failed = {}
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        outcome = play(stage, make_schedule(seed), thorough=seed % 5 == 0)
        if outcome.violations:
            failed[seed] = [f"{item.invariant}: {item.text}" for item in outcome.violations[:5]]
    assert not failed


@pytest.mark.parametrize("seed", [1, 2, 3, 5, 8, 13, 21])
def test_a_seed_replays_exactly(stage: Stage, seed: int) -> None:
    first = play(stage, make_schedule(seed), thorough=True).trace
    # What was played in between must leave nothing behind.
    play(stage, make_schedule(seed + 1))
    assert play(stage, make_schedule(seed), thorough=True).trace == first
    assert len(first) > 20


def test_a_schedule_can_be_pasted_into_a_test() -> None:
    from tests.faults import events, medlock

    for seed in range(50):
        schedule = make_schedule(seed)
        names = {"Schedule": events.Schedule, "Clinic": medlock.Clinic}
        assert eval(source(schedule), names) == schedule  # noqa: S307 - our own text


def test_the_judge_agrees_with_the_oracle_of_the_rules(stage: Stage) -> None:
    """What the judge expects after a schedule is what the slow loop over the tables says."""
    records = 0
    for seed in range(40):
        outcome = play(stage, make_schedule(seed))
        assert outcome.now is not None
        expected = expected_records(stage.owner, now=outcome.now, day=outcome.now)
        assert stage.medlock.expected(outcome.now) == expected, seed
        records += len(expected)
    assert records > 100


def test_all_that_can_happen_does_happen(stage: Stage) -> None:
    counts = sum(
        (play(stage, make_schedule(seed)).counts for seed in range(60)), start=play(stage, make_schedule(60)).counts
    )
    for name in ("crashes", "pauses", "duplicates", "requests", "lost ledger", "event pass", "event vanish"):
        assert counts[name] > 0, name
    assert sum(number > 0 for name, number in counts.items() if name.startswith("fault ")) >= 10


def test_a_ledger_row_with_a_name_would_be_found(stage: Stage) -> None:
    """The search of I6 finds what it is to find."""
    from tests.faults.play import Play

    playing = Play(stage, make_schedule(0))
    name = next(iter(stage.medlock.rows["patient"].values()))["first_name"]
    assert isinstance(stage.ledger, psycopg.Connection)
    stage.ledger.execute(
        "INSERT INTO ledger.rate (name, next_at) VALUES (%s, now())", [f"http://medflex.test/?name={name}"]
    )
    playing.judge.judge_personal_data(stage.ledger)
    assert [violation.invariant for violation in playing.judge.violations] == ["I6"]
