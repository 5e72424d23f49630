"""What the tests of DAG runs share."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest


@pytest.fixture
def log_text(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """A function that returns all that was logged or printed since it was last called, by whichever way."""
    caplog.set_level(logging.INFO)

    def read() -> str:
        text = "".join(capfd.readouterr()) + caplog.text
        caplog.clear()
        return text

    return read
