"""Text as people type it: what counts as nothing, and how white space is folded."""

from __future__ import annotations

import unicodedata

import pandas as pd

_UNSEEN = ("Cc", "Cf")
"""Categories of what is not even seen: control and format characters, zero-width and soft marks."""
_BLANK = " \u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
"""What counts as letters, or goes with them, and leaves the paper white: fillers, an empty Braille cell, selectors."""


def fold(text: pd.Series) -> pd.Series:
    """Each text trimmed, inner white space folded to one space, unseen characters dropped; missing if nothing is left.

    text: str, missing allowed. Returns str with the same index. Works on distinct values, so repeated names cost
    nothing.
    """
    codes, distinct = pd.factorize(text if text.dtype == "str" else text.astype("str"))
    # In Python: as fast as pandas' text methods on a million texts, and far faster on ten, where each of these costs
    # more than all the texts.
    folded = pd.array([_fold(item) for item in distinct.tolist()], dtype="str")
    return pd.Series(folded.take(codes, allow_fill=True), index=text.index)


def _fold(text: str) -> str | None:
    # What is printable has nothing unseen, and that is asked faster than replaced.
    seen = text if text.isprintable() else "".join(filter(_is_seen, text))
    folded = " ".join(seen.split())
    return folded if folded.strip(_BLANK) else None


def _is_seen(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) not in _UNSEEN
