"""Canaries: made-up people whose names and phones are looked for wherever no personal data may be.

Each stands for one way that an appointment can go through the product, so that a leak on any path shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Path(StrEnum):
    """What the canary's appointment is there for; the values of the reasons are the product's codes."""

    ELIGIBLE = "eligible"
    ELIGIBLE_ONLINE = "eligible_online"
    OUTSIDE_WINDOW = "outside_window"
    REFUSED_PERSONAL_DATA = "refused_personal_data"
    REFUSED_NOTIFICATIONS = "refused_notifications"
    REFUSED_MARKETING = "refused_marketing"
    UNKNOWN_CONSENT = "unknown_consent"
    ANONYMOUS_APPOINTMENT = "anonymous_appointment"
    DOCTOR_BANNED = "doctor_banned"
    NO_PARTNER = "no_partner"
    CLINIC_NOT_ACTIVE = "clinic_not_active"
    PHONE_UNREADABLE = "phone_unreadable"
    NAME_MISSING = "name_missing"
    TIMES_INVERTED = "times_inverted"
    UNKNOWN_TIMEZONE = "unknown_timezone"
    REFERENCE_BROKEN = "reference_broken"
    ENTRY_UNKNOWN = "entry_unknown"


@dataclass(frozen=True)
class Canary:
    path: Path
    number: int

    @property
    def first_name(self) -> str | None:
        return None if self.path is Path.NAME_MISSING else f"Канарий{self._mark}"

    @property
    def patronymic(self) -> str:
        return f"Пернатович{self._mark}"

    @property
    def last_name(self) -> str:
        return f"Канарейкин{self._mark}"

    @property
    def comment(self) -> str:
        return f"Щебет{self._mark}"

    @property
    def digits(self) -> str:
        """The phone in full, country code first; the generator gives no other patient a number with this start."""
        return f"79955{self.number:02d}{(self.number * 7919) % 10_000:04d}".ljust(11, "3")[:11]

    @property
    def phone(self) -> str:
        """As it was typed into Medlock; for ``phone_unreadable`` a number that is a digit too long."""
        d = self.digits
        if self.path is Path.PHONE_UNREADABLE:
            return d + "4"
        return (f"8 ({d[1:4]}) {d[4:7]}-{d[7:9]}-{d[9:]}", f"+{d}", f" {d[1:]}", f"+7 {d[1:4]} {d[4:7]} {d[7:]}")[
            self.number % 4
        ]

    @property
    def _mark(self) -> str:
        return "Ъ" + "".join("бгджзклмнп"[int(digit)] for digit in f"{self.number * 37 + 1000}")


CANARIES = tuple(Canary(path, number) for number, path in enumerate(Path, start=1))


def canaries() -> list[str]:
    """Every string that would betray a canary: names, comment, and the phone as typed and in all usual forms."""
    found: list[str] = []
    for canary in CANARIES:
        national = canary.digits[1:]
        area, rest = national[:3], national[3:]
        grouped = f"{rest[:3]}-{rest[3:5]}-{rest[5:]}"
        found += [name for name in (canary.first_name, canary.patronymic, canary.last_name, canary.comment) if name]
        # The national digits are part of all unbroken forms: 7…, 8…, +7…
        found += [canary.phone.strip(), national, grouped, f"({area}) {grouped}", f"{area} {rest[:3]} {rest[3:]}"]
    return sorted(set(found))
