"""Medlock's appointment statuses in Medflex's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

UNDEFINED = "undefined"

MEDFLEX_STATUS: dict[str, str] = {
    "unconfirmed": "relevant",
    "confirmed": "confirmed",
    "arrived": "arrived",
    "completed": "arrived",
    "cancelled": "canceled",
    "no_show": "failure",
}
"""Medlock's word to Medflex's; every other word is ``undefined``."""


def map_status(mis_status: pd.Series) -> tuple[pd.Series, np.ndarray[Any, Any]]:
    """Medflex's status for each of Medlock's, and which of them nobody has heard of.

    mis_status: str, missing allowed. Returns the statuses (str, never missing) and a boolean array that is True where
    the word is unknown or missing. Report how many they are, not the words: they may be somebody's free text.
    """
    codes, distinct = pd.factorize(mis_status if mis_status.dtype == "str" else mis_status.astype("str"))
    words = [MEDFLEX_STATUS.get(word, UNDEFINED) for word in distinct.tolist()]
    # Code −1, no word at all, is the appended one; no known word is mapped to UNDEFINED.
    unknown = np.array([*(word == UNDEFINED for word in words), True], dtype=bool)[codes]
    status = pd.array([*words, UNDEFINED], dtype="str").take(codes)
    return pd.Series(status, index=mis_status.index, name=mis_status.name), unknown
