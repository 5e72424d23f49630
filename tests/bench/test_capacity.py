"""docs/capacity.md says what the measured figures say, and its arithmetic is right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench import capacity
from bench.capacity import PAGE, RATE, TASKS, Line, main, measured, page, planned, render
from bench.document import DOCUMENT
from bench.looks import Measured
from bench.scale import CLINICS, EXPECTED_ROWS, OUTPUT, shard_tasks
from medflex.airflow.hooks.medflex import MedflexSettings
from medflex.domain.packing import MOST_OPEN
from tests.airflow.dag_runs import dag


@pytest.fixture(scope="module")
def scale() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(OUTPUT.read_text())
    return loaded


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(capacity.COMPARED.read_text())
    return loaded


def test_the_page_is_what_the_figures_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m bench.capacity`"


def test_a_stale_page_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    monkeypatch.setattr(capacity, "RATE", RATE + 1)
    assert main(["--check"]) == 1
    assert "run `python -m bench.capacity`" in capsys.readouterr().err


def test_the_figures_are_of_the_daily_run_as_it_is(scale: dict[str, Any]) -> None:
    tasks = {task.task_id for task in dag("medflex_transfer").tasks if task.task_id.startswith("shard.")}
    assert shard_tasks(scale) == tasks, "run `python -m bench.scale`"


def test_a_line_goes_through_both_measurements_and_never_falls() -> None:
    line = Line.through((0.1, 2.0), (1.1, 12.0))
    assert line.at(0.1) == pytest.approx(2.0)
    assert line.at(1.1) == pytest.approx(12.0)
    assert Line.through((0.1, 5.0), (1.0, 4.0)).at(3.0) == 5.0
    assert Line.through((0.1, 1.0), (1.0, 12.0)).fixed == 0.0


def test_the_figures_are_those_of_the_table(scale: dict[str, Any], compared: dict[str, Any]) -> None:
    table = """<!-- tasks: begin -->
### First run, all records are new

| task | rows | s | rows/s | peak MB at 100,000 | rows | s | rows/s | peak MB at 1,000,000 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| the query of `extract` alone | 100,000 | 0.3 | 1 | 238 | 1,000,000 | 2.5 | 1 | 238 |
| `extract` | 100,000 | 1.0 | 1 | 300 | 1,000,000 | 10.0 | 1 | 300 |
| `withhold` | 100,000 | 2.0 | 1 | 300 | 1,000,000 | 11.0 | 1 | 390 |
| `validate` | 100,000 | 6.0 | 1 | 300 | 1,000,000 | 15.0 | 1 | 300 |
| `plan_changes` | 70,000 | 1.0 | 1 | 300 | 700,000 | 1.0 | 1 | 300 |
| `load` | 70,000 | 6.0 | 1 | 300 | 700,000 | 60.0 | 1 | 300 |

### Second run, nothing has changed

| `extract` | 100,000 | 1.0 | 1 | 300 | 1,000,000 | 10.0 | 1 | 300 |
| `withhold` | 100,000 | 2.0 | 1 | 300 | 1,000,000 | 11.0 | 1 | 300 |
| `plan_changes` | 70,000 | 1.0 | 1 | 300 | 700,000 | 1.0 | 1 | 300 |
| `load` | 0 | 1.0 | – | 300 | 0 | 2.0 | – | 300 |
<!-- tasks: end -->"""
    figures = measured(table, scale, compared)
    assert figures.eligible_share == 0.7
    assert figures.copy_rows == 400_000
    assert figures.seconds["first", "extract"].at(3.0) == pytest.approx(30.0)
    assert figures.seconds["second", "validate"] == figures.seconds["first", "validate"]
    assert figures.peaks["first", "withhold"].at(2.0) == pytest.approx(490.0)
    plan = planned(figures)
    assert plan.shards == MOST_OPEN
    assert plan.eligible == pytest.approx(0.7 * EXPECTED_ROWS, rel=1e-3)
    # At least one request for each clinic that has a change, and the last batch of each is not full.
    assert CLINICS <= plan.changed_requests < 1.2 * CLINICS
    assert plan.eligible / 500 < plan.first_requests < plan.eligible / 500 + CLINICS
    looks = Measured(
        4_000_000, 2_000_000, 500_000, sweep=20.0, quick=[0.5], beside=[0.3, 0.4, 0.9], far=8.0, near=[0.5]
    )
    text = render(figures, looks)
    assert f"{plan.first_requests:,} requests" in text
    assert "processes per shard, 0.0 s each" not in text
    with pytest.raises(ValueError, match=r"no figures of withhold \(first run\)"):
        measured(table.replace("| `withhold` |", "| `other` |", 1), scale, compared)


def test_rate_and_batch_size_are_the_connections_defaults() -> None:
    fields = MedflexSettings.__dataclass_fields__
    assert fields["rate_per_second"].default == RATE
    assert fields["batch_size"].default == capacity.BATCH_SIZE


def test_the_tables_of_tasks_are_found_in_the_document(scale: dict[str, Any], compared: dict[str, Any]) -> None:
    figures = measured(DOCUMENT.read_text(encoding="utf-8"), scale, compared)
    assert {task for _, task in figures.seconds} == set(TASKS)
    assert 0.3 < figures.eligible_share < 1
