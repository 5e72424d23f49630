"""The benchmark measures what it says: its own process's memory, and the real tasks on real servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.task import peak_mb

ROOT = Path(__file__).parents[2]


def peak_of(code: str) -> float:
    """Return what ``peak_mb`` says at the end of a process that runs ``code``."""
    program = f"{code}; from bench.task import peak_mb; print(peak_mb())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_the_peak_is_that_of_memory_already_given_back() -> None:
    assert peak_of("b'x' * 300_000_000") - peak_of("pass") == pytest.approx(300, abs=20)


def test_the_peak_of_a_process_is_not_that_of_its_parent() -> None:
    held = np.ones(60_000_000)
    assert peak_mb() > held.nbytes / 1e6
    assert peak_of("pass") < 150


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_benchmark_on_a_small_shard(capsys: pytest.CaptureFixture[str]) -> None:
    document = ROOT / "docs" / "benchmarks.md"
    before = document.read_bytes() if document.exists() else None
    assert main(["--rows", "3000", "--repeat", "1"]) == 0
    said = capsys.readouterr().out
    assert "| `load` | 0 |" in said
    assert said.count("| `withhold` |") == 3
    # Only figures of the default sizes are kept.
    assert (document.read_bytes() if document.exists() else None) == before
