"""What the benchmark of withdrawals says of its figures, and where it puts them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bench.document import DOCUMENT, HEAD, with_section
from bench.figures import histogram
from bench.withdrawals import LIMIT_SECONDS, STEPS, Trial, main, render, too_slow


def trials(*seconds: float) -> list[Trial]:
    """Trials that took so long, from the same moment on; the ledger's half a second more than Medflex's."""
    return [
        Trial(1, number, number, 1000.0, 1000.0 + taken - 0.5, 1000.0 + taken, taken, dict.fromkeys(STEPS, 1.0))
        for number, taken in enumerate(seconds)
    ]


def test_five_slow_trials_of_a_hundred_are_borne_and_six_are_not() -> None:
    quick, slow = [10.0] * 95, [LIMIT_SECONDS + 30.0] * 5
    assert too_slow(trials(*quick, *slow)) is None
    assert "up to 90.0 seconds" in str(too_slow(trials(*quick[1:], *slow, 90.0)))


def test_a_percentile_is_a_time_that_was_measured() -> None:
    text = render(
        trials(*range(1, 101)), begun=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), load=0.5, runs={"asset": 7}, command="it"
    )
    assert "| until the ledger has the acknowledgement | 50.0 | 95.0 | 99.0 | 100.0 |" in text
    assert "| until Medflex no longer shows the record | 49.5 | 94.5 | 98.5 | 99.5 |" in text
    assert "Runs of `medflex_withdraw`: 7 asset." in text


def test_every_time_is_in_one_class_of_the_histogram() -> None:
    lines = histogram([0.0, 0.99, 1.0, 5.5, 11.9])
    assert [int(line.split()[-1]) for line in lines] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert len(histogram([12.0])) == 7
    assert len(histogram([599.0, 3.0])) == 12


def test_a_section_is_written_in_its_place_and_leaves_the_others_alone() -> None:
    one = with_section("", "one", "## One\n\nfirst")
    assert one.startswith(HEAD)
    both = with_section(one, "two", "## Two")
    assert both.startswith(one)
    again = with_section(both, "one", "## One\n\nsecond")
    assert again == both.replace("first", "second")
    assert with_section(again, "two", "## Two") == again


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_whole_benchmark_with_two_trials(capsys: pytest.CaptureFixture[str]) -> None:
    before = DOCUMENT.read_bytes()
    assert main(["--trials", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 patients refuse" in said
    assert "| the task's process has begun |" in said
    # Only figures of the default number of trials are kept.
    assert DOCUMENT.read_bytes() == before
