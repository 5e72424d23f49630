"""A time that tests of the ledger set themselves."""

from __future__ import annotations

from datetime import UTC, datetime

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Time:
    """What the ledger takes for the present: ``now``, until a test moves it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now
