"""What the benchmark of 20,000 clinics takes for broken, and what it writes."""

from __future__ import annotations

from typing import Any

import pytest

from bench.scale import LIMIT_PLAN_SECONDS, STEPS, broken, instances, main, packing, render
from medflex.domain.packing import MOST_OPEN, MOST_SHARDS


def figures() -> dict[str, Any]:
    """Sound figures of two small runs."""
    tasks = [
        {"task": name, "instances": 3, "succeeded": 3, "skipped": 0, "seconds": 6.0, "most_seconds": 2.5}
        for name in ("plan_shards", *(f"shard.{number}" for number in range(6)), "settle_run")
    ]
    funnel = dict.fromkeys(("extracted", "eligible", "unchanged", "accepted"), 1_000)
    run = {
        "name": "first",
        "shards": 3,
        "tasks": tasks,
        "funnel": funnel,
        "shown": 1_000,
        "write_requests": 7,
        "seconds": 60.0,
    }
    planned = {
        "seconds": 7.0, "cpu_seconds": 5.0, "query_seconds": 3.0, "queries": 9, "peak_mb": 200.0, "shards": 3
    }  # fmt: skip
    return {
        "clinics": 20_000, "appointments": 400_000, "shard_rows": 12_000, "command": "it", "circumstances": "here",
        "packing": {
            "rows": 300_000_000, "largest_clinic": 1_500_000, "shards": MOST_SHARDS, "open_shards": MOST_OPEN,
            "least_rows": 3_300_000, "mean_rows": 3_333_333, "most_rows": 3_400_000, "seconds": 0.2,
        },
        "planning": {"empty ledger": planned, "after two runs": planned},
        "runs": [run, run | {"write_requests": 0}],
        "decisions": [
            {
                "shards": 40,
                "grid_seconds": 2.0,
                "steps": [{"title": title, "seconds": 0.7, "cpu_seconds": 0.5, "queries": 900} for title in STEPS],
            }
        ],
        "pages": {"grid": 1.5},
    }  # fmt: skip


def test_sound_figures_are_not_broken_and_the_document_has_them() -> None:
    assert broken(figures()) == []
    text = render(figures())
    assert "| empty ledger | 7.0 | 5.0 | 3.0 | 9 | 200 | 3 |" in text
    assert "| `0` | 3 | 2.0 | 2.5 | 2.0 | 2.5 |" in text
    assert "| 40 | 240 | 0.7 (0.5) |" in text
    assert f"never more than {MOST_SHARDS} shards: {6 * MOST_SHARDS:,} mapped instances" in text


def test_slow_planning_is_broken() -> None:
    slow = figures()
    slow["planning"]["after two runs"] = slow["planning"]["empty ledger"] | {"seconds": LIMIT_PLAN_SECONDS + 1}
    (sentence,) = broken(slow)
    assert "31 s (after two runs)" in sentence


def test_a_second_run_that_writes_is_broken() -> None:
    writing = figures()
    writing["runs"][1]["write_requests"] = 2
    (sentence,) = broken(writing)
    assert "2 write requests" in sentence


def test_too_many_instances_are_broken() -> None:
    many = figures()
    tasks = many["runs"][0]["tasks"]
    # Nine tasks in each shard instead of six.
    many["runs"][0]["tasks"] = tasks + [tasks[1] | {"task": f"shard.{name}"} for name in ("seventh", "eighth", "ninth")]
    assert instances(many) > 1_000
    assert len(broken(many)) == 1


def test_packing_keeps_to_the_limit_whatever_the_kinds() -> None:
    packed = packing()
    assert packed["shards"] <= MOST_SHARDS
    assert packed["open_shards"] == MOST_OPEN
    assert packed["most_rows"] < 1.02 * packed["least_rows"]


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--clinic", "a few"])
    assert "invalid int value" in capsys.readouterr().err
