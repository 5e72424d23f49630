"""What the benchmark of partner actions says of its figures."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bench.partner_actions import LIMIT_RATE, LIMIT_SECONDS, Backlog, Trial, main, render, too_slow

BACKLOG = Backlog(
    actions=1000,
    deliveries=1100,
    read=1.0,
    apply=4.0,
    answer=3.0,
    bare_transactions=2.0,
    bare_requests=2.0,
    decisions={"done": 600, "changed": 400},
)


def trials(*seconds: float) -> list[Trial]:
    """Confirmations that took so long, and their answers two seconds more."""
    return [
        Trial(7, number, 3, 1, "id", 1000.0, 1000.0 + taken, 1002.0 + taken) for number, taken in enumerate(seconds)
    ]


def test_five_slow_actions_of_a_hundred_are_borne_and_six_are_not() -> None:
    quick, slow = [60.0] * 95, [LIMIT_SECONDS + 30.0] * 5
    assert too_slow(trials(*quick, *slow), BACKLOG) == []
    (failure,) = too_slow(trials(*quick[1:], *slow, 210.0), BACKLOG)
    assert "up to 210.0 seconds" in failure


def test_too_few_actions_a_second_are_told() -> None:
    assert BACKLOG.rate == 125.0
    (failure,) = too_slow(trials(1.0, 2.0), replace(BACKLOG, apply=96.0))
    assert failure.startswith("10 actions a second")
    assert too_slow(trials(1.0, 2.0), replace(BACKLOG, apply=1000 / LIMIT_RATE - 4.0)) == []


def test_each_step_stands_beside_the_bare_minimum() -> None:
    text = render(trials(*range(1, 101)), BACKLOG, begun=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), load=0.5, command="it")
    assert "| until Medlock's row is changed | 50.0 | 95.0 | 99.0 | 100.0 |" in text
    assert "| until Medflex has the answer | 52.0 | 97.0 | 101.0 | 102.0 |" in text
    assert "| read into the ledger | 1.0 | 1,000 | – |" in text
    assert "| decided and carried out | 4.0 | 250 | 2.0 |" in text
    assert "| all, one after the other | 8.0 | 125 | 2.0 |" in text
    assert "600 `done`, 400 `changed`" in text


def test_too_few_trials_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--trials", "1"])
    assert "give at least two trials" in capsys.readouterr().err
