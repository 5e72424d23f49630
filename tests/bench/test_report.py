"""What the benchmark takes for broken, and what it writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bench.report import LIMIT_MB, Measured, broken, render
from bench.task import SOURCE, Figures

TASKS = (SOURCE, "extract", "withhold", "validate", "plan_changes", "load")


def measured() -> list[Measured]:
    """Two sizes, all three runs, every task at 300 MB and 2 s; the second run writes nothing."""
    return [
        Measured(size, run, task, size, 0 if run == "second" else 7, Figures(None, 2.0, 142.0, 300.0))
        for size in (1_000, 10_000)
        for run in ("first", "second", "resync")
        for task in TASKS
        if run == "first" or task not in (SOURCE, "validate")
    ]


def with_peak(items: list[Measured], task: str, peak: float) -> list[Measured]:
    return [
        replace(item, figures=replace(item.figures, peak_mb=peak))
        if item.task == task and item.run == "first"
        else item
        for item in items
    ]


def text(items: list[Measured]) -> str:
    return render(items, begun=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), postgres="18.1", load=0.5, command="bench it")


def test_sound_figures_are_not_broken() -> None:
    assert broken(measured()) == []


@pytest.mark.parametrize("task", ["extract", "withhold", "validate", "plan_changes", "load"])
def test_a_task_at_its_limit_is_broken(task: str) -> None:
    found = broken(with_peak(measured(), task, float(LIMIT_MB)))
    assert len(found) == 2
    assert all(sentence.startswith(f"{task} (first run") for sentence in found)
    assert broken(with_peak(measured(), task, LIMIT_MB - 1.0)) == []


def test_the_query_alone_has_no_limit() -> None:
    assert broken(with_peak(measured(), SOURCE, 900.0)) == []


def test_a_second_run_that_writes_is_broken() -> None:
    items = [replace(item, writes=3) if item.run == "second" else item for item in measured()]
    assert sorted(broken(items)) == [
        "The second run of 1,000 rows made 3 write requests; none is wanted.",
        "The second run of 10,000 rows made 3 write requests; none is wanted.",
    ]


@pytest.mark.parametrize("run", ["first", "resync"])
def test_a_run_that_sends_nothing_has_measured_nothing(run: str) -> None:
    items = [replace(item, writes=0) if item.run == run else item for item in measured()]
    assert len(broken(items)) == 2


def test_the_document_has_medians_of_seconds_and_the_highest_peaks() -> None:
    items = measured()
    first = next(item for item in items if (item.size, item.task) == (1_000, "extract"))
    source = next(item for item in items if (item.size, item.task) == (1_000, SOURCE))
    for seconds, peak in ((1.0, 310.0), (9.0, 290.0)):
        items += [replace(first, figures=Figures(None, seconds, 142.0, peak)), source]
    assert "| `extract` | 1,000 | 2.0 | 500 | 310 | 10,000 | 2.0 | 5,000 | 300 |" in text(items)
    assert "Runs at the smaller size: 3," in text(items)


def test_the_document_says_what_grows_most_and_which_peak_is_the_highest() -> None:
    items = [
        replace(item, figures=replace(item.figures, peak_mb=345.0))
        if (item.size, item.run, item.task) == (10_000, "resync", "load")
        else item
        for item in measured()
    ]
    assert "The highest peak is 345 MB, `load` in the resync run of 10,000 rows." in text(items)
    assert "grow by 45 MB at most, 5000 bytes for each row more: `load`, resync run." in text(items)


def test_the_document_has_the_write_requests() -> None:
    assert "Write requests to Medflex: 0 with 1,000 rows, 0 with 10,000 rows." in text(measured())
    assert "Write requests to Medflex: 7 with 1,000 rows, 7 with 10,000 rows." in text(measured())
