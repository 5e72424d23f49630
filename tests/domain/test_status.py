"""Medlock's statuses in Medflex's words."""

from __future__ import annotations

import pandas as pd

from medflex.domain.status import map_status

MEDFLEX_WORDS = {"relevant", "arrived", "canceled", "confirmed", "failure", "undefined"}


def test_statuses_are_mapped_and_all_else_is_undefined() -> None:
    words = [
        "unconfirmed",
        "confirmed",
        "arrived",
        "completed",
        "cancelled",
        "no_show",
        "canceled",
        "Confirmed",
        "",
        None,
    ]
    status, unknown = map_status(pd.Series(words, dtype="str", index=range(5, 15)))
    assert status.tolist() == [
        *("relevant", "confirmed", "arrived", "arrived", "canceled", "failure"),
        *("undefined", "undefined", "undefined", "undefined"),
    ]
    assert unknown.tolist() == [False] * 6 + [True] * 4
    assert set(status) == MEDFLEX_WORDS
    assert status.index.tolist() == list(range(5, 15))
    assert all(word.isascii() for word in status)  # the published page has a Cyrillic letter in `confirmed`


def test_all_unknown_and_none_at_all() -> None:
    assert map_status(pd.Series([None, None], dtype="str"))[0].tolist() == ["undefined", "undefined"]
    assert map_status(pd.Series([], dtype="str"))[0].tolist() == []
