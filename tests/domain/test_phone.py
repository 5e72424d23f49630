"""R17 and the way phones are read: digits with the country code, or missing, or unreadable."""

from __future__ import annotations

import re

import pandas as pd
import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflex.domain import phone as phone_module
from medflex.domain.phone import missing_phones, normalise_phones, unreadable_phones

ANY_PHONE = st.one_of(
    st.from_regex(re.compile(phone_module._PLAIN_RUSSIAN, re.ASCII), fullmatch=True),
    st.text(st.sampled_from("0123456789+-() 789 ."), max_size=18),
    st.text(max_size=12),
)


def _read(text: str | None) -> str | None:
    """Digits, "missing" or "unreadable", of one phone."""
    digits, missing, unreadable = normalise_phones(pd.Series([text], dtype="str"))
    assert [pd.isna(digits[0])] == [missing[0] or unreadable[0]]
    assert not (missing[0] and unreadable[0])
    return "missing" if missing[0] else "unreadable" if unreadable[0] else digits[0]


@pytest.mark.parametrize(
    ("typed", "digits"),
    [
        ("8 (900) 111-22-33", "79001112233"),
        ("+7 900 111-22-33", "79001112233"),
        ("79001112233", "79001112233"),
        ("9001112233", "79001112233"),
        ("8-900-111-22-33", "79001112233"),
        ("+7(900)1112233", "79001112233"),
        ("8.900.111.22.33", "79001112233"),
        (" 8\u00a0900 111\u200b22 33\n", "79001112233"),
        ("８９００１１１２２３３", "79001112233"),  # full-width digits
        ("8 (495) 123-45-67", "74951234567"),  # a landline is a valid number
        ("(812) 123-45-67", "78121234567"),
        ("8 800 555-35-35", "78005553535"),
        ("+7 701 123 45 67", "77011234567"),  # Kazakhstan
        ("+49 30 901820", "4930901820"),
        ("+39 06 6982 1234", "390669821234"),  # the zero belongs to the number
        ("+1 (650) 253-0000", "16502530000"),
        ("810 49 30 901820", "4930901820"),  # the Russian prefix for going abroad
    ],
)
def test_valid_numbers_are_read_as_digits_with_country_code(typed: str, digits: str) -> None:
    assert _read(typed) == digits


@pytest.mark.parametrize("typed", [None, "", " ", "\t\u00a0", "\u200b"])
def test_r17_no_phone_is_missing(typed: str | None) -> None:
    assert _read(typed) == "missing"


@pytest.mark.parametrize(
    "typed",
    [
        "-",
        "нет",
        "nan",
        "123",
        "112",
        "8 900 111-22-3",
        "8 900 111-22-33-4",
        "+8 900 111 22 33",
        "+0 900 111-22-33",
        "8 (200) 111-22-33",
        "79001112233.0",
        "8 900 111-22-33, 8 900 111-22-34",
        "8 900 111-22-33 / 34",
        "9" * 300,
        # Without the extension somebody else would pick up.
        "8 900 111-22-33 доб. 12",
        "+7 495 123-45-67 ext 3",
        "8 900 111-22-33;12",
        # Words are doubt: whose number is it, and may it be called?
        "не звонить 8 900 111-22-33",
        "8 900 111-22-33 (мама)",
        "8-800-FLOWERS",
        "tel:+79001112233",
        # Two that together are a valid one, of somebody else.
        "912-34-56/789",
        "34512\\34567",
        "912-34-56 (789)",
        "47-12-3/45-678",
        # Who typed it was not sure.
        "8 900 111-22-33 ?",
    ],
)
def test_r17_what_is_not_exactly_one_valid_number_is_unreadable(typed: str) -> None:
    assert _read(typed) == "unreadable"


@pytest.mark.parametrize(
    "valid",
    [
        "+49 180 321 821 955 73",  # 16 digits
        "+43 1111",  # 6
        "+7 8108 429 124 80 69",  # 15, where 7 has 11
    ],
)
def test_r17_valid_numbers_that_medflex_does_not_take_are_unreadable(valid: str) -> None:
    """Else one of them would stop all that is sent with it, as the contract is checked before (R17)."""
    assert phonenumbers.is_valid_number(phonenumbers.parse(valid))
    assert _read(valid) == "unreadable"


def test_of_every_country_only_what_medflex_takes_is_read() -> None:
    """Examples of all kinds and lengths that phonenumbers has."""
    kinds = [
        getattr(phonenumbers.PhoneNumberType, name) for name in ("FIXED_LINE", "MOBILE", "TOLL_FREE", "SHARED_COST")
    ]
    examples = [
        phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
        if (number := phonenumbers.example_number_for_type(region, kind)) is not None
    ]
    assert len(examples) > 500
    read = [_read(example) for example in examples]
    for example, digits in zip(examples, read, strict=True):
        taken = re.fullmatch(r"\+(7[0-9]{10}|[1-689][0-9]{6,14})", example)
        assert digits == (example[1:] if taken else "unreadable")
    assert sum(digits == "unreadable" for digits in read) < len(read) / 10


@settings(max_examples=300)
@given(st.from_regex(re.compile(phone_module._PLAIN_RUSSIAN, re.ASCII), fullmatch=True))
def test_the_fast_path_says_exactly_what_phonenumbers_says(typed: str) -> None:
    number = phonenumbers.parse(typed, "RU")
    assert phonenumbers.is_valid_number(number)
    assert number.extension is None
    assert _read(typed) == phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:]


def test_the_fast_path_takes_only_codes_that_are_in_use_as_a_whole() -> None:
    """All six-digit beginnings, since a new phonenumbers may close a part of a code, as it did for 930 0."""
    beginnings = pd.Series(range(100_000, 1_000_000)).astype("str")
    plain = beginnings[(beginnings + "1111").str.fullmatch(phone_module._PLAIN_RUSSIAN)]
    assert len(plain) == 153 * 1000  # whole codes
    wrong = [
        beginning
        for beginning in plain
        if not phonenumbers.is_valid_number(
            phonenumbers.PhoneNumber(country_code=7, national_number=int(beginning) * 10_000 + int(beginning) % 9973)
        )
    ]
    assert wrong == []


def test_codes_that_are_only_partly_in_use_are_left_to_phonenumbers() -> None:
    assert _read("8 (930) 000-22-33") == "unreadable"
    assert _read("8 (930) 111-22-33") == "79301112233"


@given(st.lists(st.one_of(st.none(), ANY_PHONE), max_size=20))
def test_each_phone_is_read_missing_or_unreadable_and_alike_in_any_company(typed: list[str | None]) -> None:
    phones = pd.Series(typed, dtype="str", index=range(100, 100 + len(typed)))
    digits, missing, unreadable = normalise_phones(phones)
    assert missing_phones(phones).tolist() == missing.tolist()
    assert unreadable_phones(phones).tolist() == unreadable.tolist()
    assert digits.index.equals(phones.index)
    assert (digits.notna().to_numpy().astype(int) + missing + unreadable == 1).all()
    # Among many others they are read by other means.
    crowd = pd.Series([*typed, *(f"+7 900 {number:07}" for number in range(300))], dtype="str")
    assert normalise_phones(crowd)[0].head(len(typed)).tolist() == digits.tolist()
    assert unreadable_phones(crowd).tolist() == [*unreadable.tolist(), *[False] * 300]
    for text, read in zip(typed, digits, strict=True):
        assert _read(text) in (read, "missing", "unreadable")
        if not pd.isna(read):
            assert re.fullmatch(r"[1-9][0-9]{6,14}", read)
            assert _read(f"+{read}") == read  # what is sent is itself a valid number, and the same one
