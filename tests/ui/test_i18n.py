"""Both languages say everything, with the same things put in."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter

import pytest

from medflex.domain.access import ClosedReason
from medflex.domain.last_look import Turned
from medflex.domain.reasons import QUARANTINE, Reason
from medflex.domain.revocations import Revoked
from medflex.ui import i18n
from medflex.ui.i18n import LANGUAGES, Speech, accepted, known_language, texts

UI = Path(i18n.__file__).parent
_PLURAL = re.compile(r"\.(one|few|many|other)$")
_FORMS = {"en": {"one", "other"}, "ru": {"one", "few", "many", "other"}}


def stems(language: str) -> dict[str, set[str]]:
    """Keys without plural endings → what is put in."""
    found: dict[str, set[str]] = {}
    for key, text in texts(language).items():
        put_in = {name for _, name, _, _ in Formatter().parse(text) if name}
        found.setdefault(_PLURAL.sub("", key) if "n" in put_in else key, set()).update(put_in)
    return found


def test_both_languages_have_the_same_texts() -> None:
    assert stems("en") == stems("ru")


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_plural_has_all_its_forms(language: str) -> None:
    plurals: dict[str, set[str]] = {}
    for key, text in texts(language).items():
        if (found := _PLURAL.search(key)) and "{n}" in text:
            plurals.setdefault(key[: found.start()], set()).add(found[1])
    assert plurals
    for key, forms in plurals.items():
        assert forms == _FORMS[language], key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_has_a_text(language: str) -> None:
    known = texts(language)
    assert not [code for code in (*Reason, *Turned, *Revoked) if f"reason.{code}" not in known]
    assert not [code for code in ClosedReason if f"closed.{code}" not in known]
    assert not [code for code in QUARANTINE if f"remedy.{code}" not in known]


def test_russian_is_russian() -> None:
    """No text was left in English; what holds in both languages is named here."""
    alike = {key for key in texts("ru") if texts("en").get(key) == texts("ru")[key] and not key.startswith("pages.")}
    names = re.compile(r"\{\w+\}|lpu_id|Data Docs|HTTP|Airflow|Medflex")
    assert not [key for key in alike if re.search(r"[A-Za-z]{4}", names.sub("", texts("ru")[key]))]


def test_every_text_that_a_template_names_is_there() -> None:
    known = stems("en")
    named = {
        key
        for file in (UI / "templates").glob("*.html")
        for key in re.findall(r"""\bt\('([a-z_.]+[a-z_])'[,)]""", file.read_text())
    }
    assert len(named) > 50
    assert not named - known.keys()


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [(("ru",), "ru"), (("ru-RU",), "ru"), (("de", "ru"), "ru"), ((None, ""), "en"), (("russian",), "en"), ((), "en")],
)
def test_the_first_language_that_there_is(wishes: tuple[str | None, ...], expected: str) -> None:
    assert known_language(*wishes) == expected


def test_accept_language() -> None:
    assert accepted("de;q=0.3, ru-RU, en;q=0.8, x;q=no") == ["ru-RU", "en", "de", "x"]


def test_numbers_times_and_durations() -> None:
    russian, english = Speech("ru", "Europe/Moscow"), Speech("en")
    assert russian.number(1234567.5) == "1\xa0234\xa0567,5"
    assert english.percent(0.1234) == "12.3 %"
    assert "1 мая 2026" in russian.moment(datetime(2026, 5, 1, 21, 30, tzinfo=UTC)) or "2 мая 2026" in russian.moment(
        datetime(2026, 5, 1, 21, 30, tzinfo=UTC)
    )
    assert "00:30" in russian.moment(datetime(2026, 5, 1, 21, 30, tzinfo=UTC))
    assert [english.duration(value) for value in (None, 0, 0.25, 59.6, 3600, 90061, 86400 * 3 + 30)] == [
        "–", "0 s", "0.25 s", "1 min", "1 h", "1 d 1 h", "3 d"
    ]  # fmt: skip
    assert russian.text("clinic.at_medflex_text", n=21) == "21 запись"
    assert russian.text("clinic.at_medflex_text", n=5) == "5 записей"


def test_what_is_put_in_is_escaped() -> None:
    assert Speech("en").text("clinic.unknown", id="<b>") == "There is no clinic &lt;b&gt; in Medlock."
