"""The pages' texts in English and Russian, and numbers and times as they are written there.

Texts are in ``locales/<language>/*.json``: flat keys, ``{name}`` for what is put in. Where a text depends on a number,
``key`` is followed by ``.one``, ``.few``, ``.many`` or ``.other`` (CLDR's plural categories) and picked by ``n``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_datetime
from babel.numbers import format_decimal, format_percent
from markupsafe import Markup, escape

from medflex.domain.access import ClosedReason
from medflex.domain.alerts import TITLES
from medflex.domain.last_look import Turned
from medflex.domain.reasons import Reason
from medflex.domain.revocations import Revoked

LANGUAGES = ("en", "ru")
_LOCALES = Path(__file__).with_name("locales")


@cache
def texts(language: str) -> Mapping[str, str]:
    """Return all texts of a language by their keys; a key that stands in two files is a mistake."""
    found: dict[str, str] = {}
    for file in sorted((_LOCALES / language).glob("*.json")):
        for key, text in json.loads(file.read_text(encoding="utf-8")).items():
            if key in found:
                raise ValueError(f"The text {key} stands twice in locales/{language}.")
            found[key] = text
    # What codes mean is written where they are defined, in English.
    described = {"reason": (*Reason, *Turned, *Revoked), "closed": tuple(ClosedReason)}
    if language == "en":
        for kind, codes in described.items():
            for code in codes:
                found.setdefault(f"{kind}.{code}", code.description)
        found |= {f"alert.{kind}": title for kind, title in TITLES.items()}
    return found


def known_language(*wishes: str | None) -> str:
    """Return the first wished language that there is (``ru-RU`` is Russian), else English."""
    for wish in wishes:
        language = (wish or "").strip().lower().replace("_", "-").partition("-")[0]
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]


def accepted(header: str) -> list[str]:
    """Return the languages of a header ``Accept-Language``, the most wanted first."""
    weighted: list[tuple[float, str]] = []
    for item in header.split(","):
        language, _, parameters = item.strip().partition(";")
        name, _, value = parameters.strip().partition("=")
        try:
            weight = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weight = 0.0
        weighted.append((-weight, language))
    return [language for _, language in sorted(weighted, key=lambda pair: pair[0])]


class Speech:
    """One reader's language and time zone.

    Args:
        language: one of :data:`LANGUAGES`.
        zone: a name of the tz database; one that is unknown counts as UTC.
    """

    def __init__(self, language: str, zone: str | None = None) -> None:
        self.language = language
        self.zone_name = "UTC"
        self._zone: tzinfo = UTC
        if zone and zone != "UTC":
            with suppress(KeyError, ValueError, OSError, TypeError):  # a zone that nobody knows
                self._zone, self.zone_name = ZoneInfo(zone), zone
        self._locale = Locale.parse(language)

    @property
    def zone(self) -> tzinfo:
        """The reader's time zone."""
        return self._zone

    def has(self, key: str) -> bool:
        """Tell whether there is a text of this key."""
        return key in texts(self.language)

    def text(self, key: str, /, **values: Any) -> Markup:
        """Return a text; what is put in is escaped. Raises KeyError for a key that nobody has written."""
        known = texts(self.language)
        if key not in known and "n" in values:
            key = f"{key}.{self._locale.plural_form(abs(values['n']))}"
        shown = {name: self.number(value) if _is_number(value) else value for name, value in values.items()}
        return Markup(known[key]).format(**shown)  # noqa: S704 - the texts are ours, what is put in is escaped

    def number(self, value: float | None) -> str:
        """Return a number with the language's separators; a dash for none."""
        return "–" if value is None else str(format_decimal(value, locale=self._locale))

    def percent(self, share: float | None) -> str:
        """Return a share (1 is all) as a percentage with one digit behind the point; a dash for none."""
        return "–" if share is None else str(format_percent(share, "#,##0.0 %", locale=self._locale))

    def moment(self, instant: datetime | None, *, seconds: bool = False) -> Markup:
        """Return an instant (aware) as a ``<time>`` in the reader's zone; a dash for none."""
        if instant is None:
            return Markup("–")
        shown = format_datetime(
            self.local(instant),
            "d MMM y, HH:mm:ss" if seconds else "d MMM y, HH:mm",
            locale=self._locale,
        )
        stamp = instant.astimezone(UTC).isoformat(timespec="seconds")
        return Markup('<time datetime="{}" title="{} ({})">{}</time>').format(
            stamp, shown, self.zone_name, escape(shown)
        )

    def day(self, instant: datetime) -> str:
        """Return the day of an instant (aware) in the reader's zone, without its year."""
        return str(format_datetime(self.local(instant), "d MMM", locale=self._locale))

    def local(self, instant: datetime) -> datetime:
        """Return an instant (aware) in the reader's zone; one that lies outside the calendar there stays as it is."""
        try:
            return instant.astimezone(self._zone)
        except OverflowError:
            return instant

    def duration(self, seconds: float | None) -> str:
        """Return a duration in its two largest units, as ``3 h 12 min``; a dash for none."""
        if seconds is None:
            return "–"
        if 0 < seconds < 1:
            return f"{self.number(round(seconds, 2))} {self.text('unit.second')}"
        left, parts = round(abs(seconds)), list[str]()
        for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
            count, left = divmod(left, size)
            if count or (unit == "second" and not parts):
                parts.append(f"{self.number(count)} {self.text(f'unit.{unit}')}")
            elif parts:
                break
        return " ".join(parts[:2])

    def words(self, items: Sequence[str]) -> str:
        """Return items with commas between."""
        return ", ".join(items)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
