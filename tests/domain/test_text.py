"""R17: what counts as an empty text, and how white space is folded."""

from __future__ import annotations

import unicodedata

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.text import fold


def _fold(*texts: str | None) -> list[str | None]:
    folded = fold(pd.Series(list(texts), dtype="str"))
    assert folded.dtype == "str"
    return [None if pd.isna(text) else text for text in folded]


def test_texts_are_trimmed_and_folded() -> None:
    assert _fold(" Анна  Мария\t\n", "Кара\u00a0\u2003кызы", "О'Нил-Смит", "nan", "Ё") == [
        *("Анна Мария", "Кара кызы", "О'Нил-Смит", "nan", "Ё")
    ]


def test_unseen_characters_are_dropped_not_made_spaces() -> None:
    assert _fold("\ufeffАн\u200bна\u200d", "Ива\u00adнов\u202eна", "а\x01б\x7f") == ["Анна", "Ивановна", "аб"]


def test_r17_white_space_only_is_missing() -> None:
    assert _fold(None, "", " ", "\u00a0\u200b", "\ufeff", "\x1c\x85") == [None] * 6


def test_every_white_space_that_python_knows_counts() -> None:
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    assert len(spaces) > 20
    assert _fold(*spaces) == [None] * len(spaces)
    assert _fold(*(f"а{space}б" for space in spaces)) == ["а б"] * len(spaces)


FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))


def test_no_letter_digit_or_mark_is_dropped() -> None:
    letters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code))[0] in "LNMPS"]
    assert _fold(*letters) == [None if letter in FILLERS else letter for letter in letters]
    assert _fold(*(f"а{letter}" for letter in FILLERS)) == [f"а{letter}" for letter in FILLERS]


def test_r17_what_nobody_can_see_is_missing() -> None:
    unseen = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf")]
    assert len(unseen) > 200
    assert _fold(*unseen, FILLERS, " \u3164\u200b") == [None] * (len(unseen) + 2)


def test_index_and_repetitions_are_kept() -> None:
    texts = pd.Series(["б ", None, "а", "б "], index=[9, 9, 3, 1], dtype="str")
    folded = fold(texts)
    assert folded.index.tolist() == [9, 9, 3, 1]
    assert folded.fillna("-").tolist() == ["б", "-", "а", "б"]
    assert fold(texts.iloc[:0]).tolist() == []


@given(st.lists(st.one_of(st.none(), st.text(st.sampled_from("аБ \t\u00a0\u200b-\x00"), max_size=8))))
def test_folding_again_changes_nothing(texts: list[str | None]) -> None:
    once = fold(pd.Series(texts, dtype="str"))
    pd.testing.assert_series_equal(fold(once), once)
    for text in once.dropna():
        assert text == " ".join(text.split()) != ""
