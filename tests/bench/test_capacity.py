"""docs/capacity.md says what the measured figures say, and its arithmetic is right."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from bench import capacity
from bench.capacity import PAGE, RATE, TASKS, Compared, Line, Looked, connections, main, measured, page, planned, render
from bench.document import DOCUMENT
from bench.looks import Measured
from bench.scale import CLINICS, EXPECTED_ROWS, OUTPUT, shard_tasks
from medflex.airflow.hooks.medflex import MedflexSettings
from medflex.domain.packing import MOST_OPEN
from tests.airflow.dag_runs import dag
from tests.deploy.compose import raw


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


def changed_day(size: int, extracted: int, seconds: list[float]) -> dict[str, Any]:
    tasks = [{"task": "withdraw_revoked", "seconds": one} for one in seconds]
    measurement = {"size": size, "what": "product", "day": "changed", "extracted": extracted}
    return {**measurement, "tasks": [*tasks, {"task": "extract", "seconds": 1e6}]}


def test_the_look_at_what_is_shown_is_the_median_of_its_repeats_and_counted_behind_a_first_run(
    scale: dict[str, Any], compared: dict[str, Any]
) -> None:
    days = [
        *(changed_day(100_000, 100_000, [seconds]) for seconds in (3.0, 4.0, 90.0)),
        *(changed_day(2_000_000, 2_200_000, [each, each + 2.0]) for each in (22.0, 23.0, 90.0)),
    ]
    # Of another day, of another way, of a size at which only the work by itself was measured.
    others = [
        {**days[0], "day": "unchanged", "tasks": [{"task": "withdraw_revoked", "seconds": 1e6}]},
        {**days[0], "what": "latency"},
        {"size": 1_000_000, "what": "work", "day": "first", "tasks": {}, "staged_bytes": {"extract": 1}},
    ]
    looked = Looked.of({"measurements": [*days, *others]})
    assert looked.repeats == 3
    assert looked.seconds.at(0.1) == pytest.approx(4.0)
    assert looked.seconds.at(1.1) == pytest.approx(24.0)
    with pytest.raises(ValueError, match="at two sizes"):
        Looked.of({"measurements": [*days[:3], *others]})
    figures = measured(DOCUMENT.read_text(encoding="utf-8"), scale, compared)
    looks = Measured(
        4_000_000, 2_000_000, 500_000, sweep=20.0, quick=[0.5], beside=[0.3, 0.4, 0.9], far=8.0, near=[0.5]
    )
    hours: dict[str, list[float]] = {}
    shards = planned(figures).shards
    for one in (replace(figures, looked=Looked(Line(seconds, 0.0), 3)) for seconds in (0.0, 3600.0)):
        for title, spent in re.findall(
            r"^\| (first|a day|nothing)[^|]* \| ([\d.]+) \|", render(one, looks), re.MULTILINE
        ):
            hours.setdefault(title, []).append(float(spent))
    more = {title: spent[1] - spent[0] for title, spent in hours.items()}
    assert more == {"first": 0, "a day": pytest.approx(shards), "nothing": pytest.approx(shards)}


def test_a_size_at_which_only_the_work_was_measured_does_not_stand_for_the_whole(compared: dict[str, Any]) -> None:
    work = {"size": 1_000_000, "what": "work", "day": "first", "repeat": 1, "staged_bytes": {"extract": 10**12}}
    middle = {"sizes": {**compared["sizes"], "1000000": {"open_clinics": 1, "extracted": 1}}}
    middle |= {"measurements": [*compared["measurements"], work]}
    assert Compared.of(middle) == Compared.of(compared)
    assert Looked.of(middle) == Looked.of(compared)


def test_what_moves_with_the_slots_is_told_for_each_number_of_them() -> None:
    text = page()
    section = text.partition("### What moves with the slots\n")[2].partition("\n## ")[0]
    rows = [list(map(int, re.findall(r"\d+", line))) for line in section.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == list(capacity.SLOTS)
    for slots, of_a_worker, parallelism, lets_in, heartbeats in rows:
        assert f" {slots} slots |" in text
        assert of_a_worker == slots + 2
        assert parallelism >= 2 * of_a_worker
        # Loads, other tasks, and one more for each process of a worker, which Celery keeps whatever the process runs.
        others = 2 * of_a_worker - (slots + 2)
        assert lets_in >= connections(slots, of_a_worker) == 10 * (slots + 2) + others + 2 * of_a_worker + 50
        assert heartbeats == 2 * of_a_worker
    assert connections(64, 66) == 660 + 66 + 132 + 50
    environment = raw()["services"]["airflow-api-server"]["environment"]
    assert environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] == "1"
    assert environment["AIRFLOW__API__WORKERS"] == "${AIRFLOW_API_WORKERS:-1}"


def test_rate_and_batch_size_are_the_connections_defaults() -> None:
    fields = MedflexSettings.__dataclass_fields__
    assert fields["rate_per_second"].default == RATE
    assert fields["batch_size"].default == capacity.BATCH_SIZE


def test_the_tables_of_tasks_are_found_in_the_document(scale: dict[str, Any], compared: dict[str, Any]) -> None:
    figures = measured(DOCUMENT.read_text(encoding="utf-8"), scale, compared)
    assert {task for _, task in figures.seconds} == set(TASKS)
    assert 0.3 < figures.eligible_share < 1
