"""How large shards are: ``MEDFLEX_SHARD_ROWS``."""

from __future__ import annotations

from pathlib import Path

import pytest

from medflex.airflow.tasks.transfer import MOST_TARGET_ROWS, TARGET_ROWS, shard_rows
from medflex.errors import ConfigurationError

NAME = "MEDFLEX_SHARD_ROWS"
ROOT = Path(__file__).resolve().parents[2]


def test_it_is_what_the_variable_says_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    assert shard_rows() == TARGET_ROWS
    for text, rows in {"": TARGET_ROWS, " 25000 ": 25_000, "1": 1, str(MOST_TARGET_ROWS): MOST_TARGET_ROWS}.items():
        monkeypatch.setenv(NAME, text)
        assert shard_rows() == rows


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "1e5", "400_000", "10000001", "999999999999", "٣"])
def test_an_unusable_value_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ConfigurationError, match=r"^MEDFLEX_SHARD_ROWS is no whole number of rows from 1 to 10000000:"):
        shard_rows()


def test_the_documents_tell_the_default_and_the_bound() -> None:
    row = next(line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if f"`{NAME}`" in line)
    assert row.endswith(f"; default {TARGET_ROWS}, at most {MOST_TARGET_ROWS} |")
    assert f"\n#{NAME}={TARGET_ROWS}\n" in (ROOT / ".env.example").read_text()
