"""Text as people type it: what counts as nothing, and how white space is folded."""

from __future__ import annotations

import re

import pandas as pd

# What is not even seen: control and format characters, zero-width and soft marks; not what Python calls white space.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"
)


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
    return " ".join((text if text.isprintable() else _UNSEEN.sub("", text)).split()) or None
