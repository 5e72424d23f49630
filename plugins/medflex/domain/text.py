"""Text as people type it: what counts as nothing, and how white space is folded."""

from __future__ import annotations

import pandas as pd

# What Python calls white space, and what is not even seen: control and format characters, zero-width and soft marks.
# The characters themselves, not regular-expression escapes: these pandas would match text by text in Python.
_WHITE_SPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
_UNSEEN = "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+"


def fold(text: pd.Series) -> pd.Series:
    """Each text trimmed, inner white space folded to one space, unseen characters dropped; missing if nothing is left.

    text: str, missing allowed. Returns str with the same index. Works on distinct values, so repeated names cost
    nothing.
    """
    codes, distinct = pd.factorize(text.astype("str"))
    folded = pd.Series(distinct.array, dtype="str")
    folded = folded.str.replace(_UNSEEN, "", regex=True).str.replace(_WHITE_SPACE, " ", regex=True).str.strip(" ")
    folded = folded.mask(folded == "")
    return pd.Series(folded.array.take(codes, allow_fill=True), index=text.index, dtype="str")
