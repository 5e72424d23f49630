"""Phones as people type them, as digits with the country code."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import phonenumbers

from medflex.domain.text import fold

# Russian numbers in the usual ways of writing them: every one of these is valid by phonenumbers, which tests hold. It
# saves parsing most phones one by one. Here are only codes all of whose numbers are in use (of 930 a part is not), and
# none that begins with 7 or 8, which is also what people write before a code.
_CODE = (
    "(?:9[0-24-9][0-9]|93[1-9]"  # mobiles
    "|30[12]|336|34[1-35-79]|35[1-3]|365|38[1-58]|39[0145]|401|41[1356]|42[13467]|47[1-5]|48[1-7]|49[1-689])"  # towns
)
_PLAIN_RUSSIAN = rf"(?:\+7|7|8)?[ -]?(?:\({_CODE}\)|{_CODE})[ -]?[0-9]{{3}}[ -]?[0-9]{{2}}[ -]?[0-9]{{2}}"
_PLAIN = re.compile(_PLAIN_RUSSIAN)
_NOT_A_DIGIT = re.compile("[^0-9]")
# Two numbers in one field, of which another one would be read, and marks of doubt.
_DOUBT = re.compile(r"[/\\?*]|(?:[0-9][^0-9(]*){5}\(")
# What Medflex takes (docs/data-contract.md); some countries have valid numbers that are shorter, longer, or both.
_FORM = re.compile("7[0-9]{10}|[1-689][0-9]{6,14}")
_SEPARATORS = str.maketrans("", "", "+-() ")

# Up to here reading text by text is faster than pandas' text methods, which cost some 0.5 ms before the first one.
_FEW = 256


def normalise_phones(phones: pd.Series) -> tuple[pd.Series, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read phones: any number that is valid for its country, national forms as Russian ones.

    phones: str, missing allowed. Returns digits with the country code and without a plus (str, missing where there is
    none), and two boolean arrays: missing (absent, empty, only white space) and unreadable (R17).

    Unreadable are also a valid number with an extension, since without it somebody else would pick up; two numbers in
    one field; anything with letters: "ask for", "do not call" and vanity numbers are doubt, and doubt never sends; and
    what Medflex does not take: fewer than 7 digits, more than 15, or other than 11 with the country code 7.
    """
    texts, is_plain, codes, others = _told_apart(phones)
    read = np.full(len(texts), None, dtype=object)
    read[is_plain] = _digits(texts[is_plain].tolist())
    read[~is_plain] = others[codes]
    missing = np.zeros(len(texts), dtype=bool)
    missing[~is_plain] = codes == -1
    digits = pd.Series(pd.array(read, dtype="str"), index=phones.index)
    return digits, missing, digits.isna().to_numpy() & ~missing


def unreadable_phones(phones: pd.Series) -> np.ndarray[Any, Any]:
    """Tell which phones :func:`normalise_phones` would call unreadable, without writing down the others' digits."""
    _, is_plain, codes, others = _told_apart(phones)
    unreadable = np.zeros(len(phones), dtype=bool)
    unreadable[~is_plain] = pd.isna(others)[codes] & (codes != -1)
    return unreadable


def _told_apart(
    phones: pd.Series,
) -> tuple[pd.Series, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the texts, which of them are plain, and of the others codes of what is read of each, −1 for no text."""
    texts = phones if phones.dtype == "str" else phones.astype("str")
    is_plain = np.zeros(len(texts), dtype=bool)
    if len(texts) > _FEW:
        # Most are told by the thousand, as they stand: folding would change nothing in what is plain.
        is_plain = texts.str.fullmatch(_PLAIN_RUSSIAN).to_numpy(dtype=bool)
    codes, distinct = pd.factorize(fold(texts[~is_plain]))
    # The appended one is that of code −1, no text at all.
    others = np.array([*(_read_plain(text) or _read(text) for text in distinct.tolist()), None], dtype=object)
    return texts, is_plain, codes, others


def missing_phones(phones: pd.Series) -> np.ndarray[Any, Any]:
    """Tell which phones :func:`normalise_phones` would call missing, without reading the others."""
    texts = phones if phones.dtype == "str" else phones.astype("str")
    missing = ~texts.str.contains("[0-9]").to_numpy(dtype=bool, na_value=False)
    missing[missing] = fold(texts[missing]).isna().to_numpy()
    return missing


def _digits(texts: list[str]) -> list[str]:
    """What ``_read_plain`` says of each of these texts, which are all plain."""
    bare = "\n".join(texts).translate(_SEPARATORS).split("\n") if texts else []
    return ["7" + item[-10:] for item in bare]


def _read_plain(text: str) -> str | None:
    """The digits of a Russian number in one of the usual ways of writing them, else None."""
    return "7" + _NOT_A_DIGIT.sub("", text)[-10:] if _PLAIN.fullmatch(text) else None


@lru_cache(maxsize=100_000)  # Rules and payload ask for the same phones, and parsing one takes some 80 µs.
def _read(text: str) -> str | None:
    """The digits of one phone, or None when it is not exactly one valid number."""
    if any(character.isalpha() for character in text) or _DOUBT.search(text):
        return None
    try:
        number = phonenumbers.parse(text, "RU")
    except phonenumbers.NumberParseException:
        return None
    if number.extension or not phonenumbers.is_valid_number(number):
        return None
    digits = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")
    return digits if _FORM.fullmatch(digits) else None
