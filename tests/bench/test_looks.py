"""What the benchmark of looks at size says of its figures."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from bench.document import DOCUMENT
from bench.looks import OUTPUT, Measured, main, render, waits


def found(**more: object) -> Measured:
    given: dict[str, object] = {
        "appointments": 4_000_000, "records": 2_000_000, "edits": 500_000, "sweep": 20.0, "sweep_beside": 22.0,
        "quick": [0.5, 0.6, 0.7], "beside": [0.8, 1.0, 1.9], "far": 8.5, "near": [0.5], **more,
    }  # fmt: skip
    return Measured(**given)  # type: ignore[arg-type]


def test_the_figures_are_those_that_were_measured() -> None:
    text = render(found(), begun=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), load=0.5, command="it")
    assert "| look for refusals while the search goes on | 3 | 1.00 | 1.90 |" in text
    assert "| look over 500,000 edits of two hours | 1 | 8.50 | 8.50 |" in text
    assert "10.0 µs per record for the search, 16.0 µs per edit" in text


def test_a_look_that_waited_for_the_search_is_told() -> None:
    assert waits(found()) is None
    assert "took 21.5 s while a sweep of 22.0 s" in str(waits(found(beside=[0.5, 21.5])))


def test_the_document_says_what_was_kept() -> None:
    kept = Measured(**json.loads(OUTPUT.read_text(encoding="utf-8")))
    assert waits(kept) is None
    assert f"{1e6 * kept.per_record:.1f} µs per record for the search" in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_benchmark_with_few_appointments(capsys: pytest.CaptureFixture[str]) -> None:
    before = DOCUMENT.read_bytes()
    # Whether a search of half a second is waited for cannot be told.
    assert main(["--appointments", "200000"]) in (0, 1)
    assert "200,000 appointments in the window" in capsys.readouterr().out
    assert DOCUMENT.read_bytes() == before
