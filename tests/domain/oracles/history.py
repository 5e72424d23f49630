"""Small generated worlds: a clinic or two, who turned the switch and when, partners, people, flags and appointments.

The same seed gives the same world, and no two seeds share an id, so thousands of them fit into one Medlock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

CLOCKS = 20
"""How many different moments (now, run's day) the worlds are spread over."""

PARTNERS = {1: "mailing", 3: "call_robot", 17: "reviews"}

READABLE_PHONES = {
    "8 (900) 111-22-33": "79001112233",
    "+7 900 111-22-34": "79001112234",
    "79001112235": "79001112235",
    "9001112236": "79001112236",
    "8-900-111-22-37": "79001112237",
    " 8\u00a0900\u00a0111 22 38 ": "79001112238",
    "+7 (495) 123-45-67": "74951234567",
    "8 800 555-35-35": "78005553535",
    "+7 701 123 45 67": "77011234567",
    "+49 30 901820": "4930901820",
    "+39 06 6982 1234": "390669821234",
    "+375 29 123-45-67": "375291234567",
    "810 49 30 901820": "4930901820",
}
"""As typed → digits, worked out by hand."""
UNREADABLE_PHONES = (
    "123",
    "8 900 111-22-3",
    "8 900 111-22-33 доб. 12",
    "не звонить 8 900 111-22-33",
    "8 900 111-22-33, 8 900 111-22-34",
    "+0 900 111-22-33",
    "нет",
    "-",
)
BLANKS = (None, "", "  ", "\u00a0", "\u200b", "\t ")

ZONES = (
    "Europe/Moscow",
    "Europe/Kaliningrad",
    "Asia/Kamchatka",
    "Asia/Yekaterinburg",
    "Europe/Samara",
    "Asia/Kathmandu",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Pacific/Apia",
)
CLOCK_CHANGES = (
    (datetime(2011, 3, 27, 9, tzinfo=UTC), "Europe/Moscow"),  # to summer time for good
    (datetime(2014, 10, 26, 9, tzinfo=UTC), "Europe/Moscow"),  # to winter time for good
    (datetime(2011, 12, 30, 11, tzinfo=UTC), "Pacific/Apia"),  # the day before, local, was left out
    (datetime(2017, 10, 15, 9, tzinfo=UTC), "America/Sao_Paulo"),  # no midnight
    (datetime(2024, 3, 31, 9, tzinfo=UTC), "Asia/Beirut"),  # no midnight
)
JUNK_ZONES = (None, "", "Moon/Base", "posixrules", "localtime", "../Europe/Moscow", "europe/moscow", "MSK+3")
STATUSES = ("unconfirmed", "confirmed", "arrived", "completed", "cancelled", "no_show", "postponed", "", None)


@dataclass(frozen=True)
class Moment:
    """When a world is judged.

    anchor: the instant whose local day is the run's day, before now in a backfill. zone: where clocks change at an edge
    of the window, so that many clinics should be there.
    """

    now: datetime
    anchor: datetime
    zone: str | None


@dataclass(frozen=True)
class History:
    """Rows of the Medlock tables, in the order of ``COLUMNS``, of the world made from ``seed``."""

    seed: int
    tables: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    @property
    def clinic_ids(self) -> list[int]:
        return [row[0] for row in self.tables["clinic"]]


COLUMNS: dict[str, tuple[str, ...]] = {
    "clinic": ("id", "lpu_id", "name", "timezone"),
    "staff": ("id", "clinic_id", "full_name", "login", "role"),
    "medflex_access": ("clinic_id", "enabled", "changed_at", "changed_by"),
    "clinic_partner": ("clinic_id", "partner_id", "enabled"),
    "doctor": ("id", "clinic_id", "full_name", "medflex_banned"),
    "patient": (
        *("id", "clinic_id", "last_name", "first_name", "patronymic", "phone"),
        *("refused_personal_data", "refused_notifications", "refused_marketing"),
    ),
    "appointment": (
        *("id", "clinic_id", "patient_id", "doctor_id", "starts_at", "ends_at", "status", "is_anonymous", "entry"),
        *("created_at", "updated_at"),
    ),
}


def moment_of(seed: int) -> Moment:
    """The moment at which the world of that seed is judged; days of clock changes are among them."""
    clock = seed % CLOCKS
    choice = random.Random(clock)
    if clock < 2 * len(CLOCK_CHANGES):
        # The day of the change is the first day of the window, or the first one after it.
        day, zone = CLOCK_CHANGES[clock // 2]
        now = day + timedelta(days=45 if clock % 2 else -31, microseconds=choice.randrange(8 * 3600 * 10**6))
        return Moment(now=now, anchor=now, zone=zone)
    days, microseconds = choice.randrange(700), choice.randrange(24 * 3600 * 10**6)
    now = datetime(2026, 3, 15, tzinfo=UTC) + timedelta(days=days, microseconds=microseconds)
    return Moment(now=now, anchor=now - timedelta(days=choice.choice([0, 0, 1, 7, 74, 75, 90])), zone=None)


def make_history(seed: int) -> History:
    """The world of that seed."""
    choice = random.Random(f"history {seed}")
    history = History(seed)
    moment = moment_of(seed)
    clinics = [seed * 10 + number for number in range(1, choice.choice([2, 2, 3]))]
    for number, clinic in enumerate(clinics):
        neighbour = clinics[1 - number] if len(clinics) == 2 else None
        _add_clinic(history, choice, moment, clinic, neighbour)
    for clinic in clinics:
        _add_appointments(history, choice, moment, clinic)
    return history


def load(connection: psycopg.Connection[Any], histories: list[History]) -> None:
    """Put worlds into an empty Medlock."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO medlock.partner VALUES (%s, %s, %s)", [(id_, kind, kind) for id_, kind in PARTNERS.items()]
        )
        for table, columns in COLUMNS.items():
            with cursor.copy(f"COPY medlock.{table} ({', '.join(columns)}) FROM STDIN") as copy:
                for history in histories:
                    for row in history.tables[table]:
                        copy.write_row(row)


def _flag(choice: random.Random) -> bool | None:
    return choice.choices([False, True, None], [94, 3, 3])[0]


def _add_clinic(history: History, choice: random.Random, moment: Moment, clinic: int, neighbour: int | None) -> None:
    tables = history.tables
    zone = choice.choices(
        [choice.choice(JUNK_ZONES), moment.zone or choice.choice(ZONES), choice.choice(ZONES)], [8, 46, 46]
    )[0]
    tables["clinic"].append((clinic, None if choice.random() < 0.05 else clinic + 5_000_000, "clinic", zone))
    head, registrar = clinic * 10 + 1, clinic * 10 + 2
    for id_, role in ((head, "head"), (registrar, choice.choice(["administrator", "registrar", "doctor", None]))):
        tables["staff"].append((id_, clinic, "person", f"person-{id_}", role))

    # The switch keeps its last turn only, whatever happened before: off and on again starts the 24 hours anew.
    day = timedelta(hours=24)
    ages = [day, day - timedelta(microseconds=1), day + timedelta(microseconds=1), timedelta(0), timedelta(hours=23)]
    ages += [-timedelta(seconds=1), timedelta(days=2), timedelta(days=40), timedelta(days=400), timedelta(days=401)]
    turns = sorted(
        choice.choices(ages, [2, 1, 1, 1, 1, 1, 8, 8, 8, 8], k=choice.choices([0, 1, 2, 3, 4], [5, 45, 10, 30, 10])[0]),
        reverse=True,
    )
    persons = [head, registrar, neighbour * 10 + 1 if neighbour else 999_999_999, 999_999_999, None]
    is_on: bool | None = False
    for age in turns:
        is_on = choice.choices([not is_on, is_on, None], [90, 8, 2])[0]
        changed_by = choice.choices(persons, [90, 4, 2, 2, 2])[0]
        changed_at = None if choice.random() < 0.02 else moment.now - age
        row = (clinic, is_on, changed_at, changed_by)
        tables["medflex_access"] = [kept for kept in tables["medflex_access"] if kept[0] != clinic] + [row]

    linked = choice.sample([*PARTNERS, 404], k=choice.choices([0, 1, 2, 3], [3, 30, 45, 22])[0])  # 404: nobody has it
    for partner in linked:
        tables["clinic_partner"].append((clinic, partner, choice.choices([True, False, None], [85, 10, 5])[0]))
    for doctor in (clinic * 10 + 1, clinic * 10 + 2):
        tables["doctor"].append((doctor, clinic, "doctor", _flag(choice)))
    for patient in range(clinic * 10, clinic * 10 + 4):
        phone = choice.choices(
            [choice.choice(list(READABLE_PHONES)), choice.choice(UNREADABLE_PHONES), choice.choice(BLANKS)], [88, 7, 5]
        )[0]
        first_name = (
            choice.choice(BLANKS) if choice.random() < 0.05 else choice.choice(["Анна", " Мария  Луиза ", "nan"])
        )
        patronymic = choice.choice([*BLANKS, "Ивановна", "\u00a0Кара \u200b кызы"])
        flags = (_flag(choice), _flag(choice), _flag(choice))
        tables["patient"].append((patient, clinic, "surname", first_name, patronymic, phone, *flags))


def _add_appointments(history: History, choice: random.Random, moment: Moment, clinic: int) -> None:
    tables = history.tables
    name = next(row[3] for row in tables["clinic"] if row[0] == clinic)
    zone = ZoneInfo(name) if name in ZONES else ZoneInfo("UTC")
    patients = [row[0] for row in tables["patient"]]
    doctors = [row[0] for row in tables["doctor"]]
    for number in range(choice.choice([0, 6, 12, 18])):
        starts_at = _start(choice, moment, zone)
        lasts = choice.choices(
            [timedelta(minutes=30), timedelta(microseconds=1), timedelta(0), -timedelta(hours=1), None],
            [92, 2, 2, 2, 2],
        )[0]
        own = choice.random() < 0.95
        tables["appointment"].append(
            (
                clinic * 100 + number,
                clinic,
                choice.choice(
                    [id_ for id_ in patients if id_ // 10 == clinic] if own else [*patients, 999_999_999, None]
                ),
                choice.choice(
                    [id_ for id_ in doctors if id_ // 10 == clinic] if own else [*doctors, 999_999_999, None]
                ),
                starts_at,
                None if lasts is None or starts_at is None else starts_at + lasts,
                choice.choice(STATUSES),
                _flag(choice),
                choice.choices(["direct", "online", "phone", "Online", None], [48, 48, 2, 1, 1])[0],
                moment.now,
                moment.now,
            )
        )


def _start(choice: random.Random, moment: Moment, zone: ZoneInfo) -> datetime | None:
    """A start somewhere around the window, and often within a moment or a clock change of one of its edges."""
    if choice.random() < 0.01:
        return None
    day = choice.choice([moment.anchor, moment.now]).astimezone(zone).date()
    if choice.random() < 0.5:
        seconds = choice.randrange(-50 * 86_400, 35 * 86_400)
        return moment.now + timedelta(seconds=seconds - seconds % 300)
    edge = datetime.combine(day, datetime.min.time(), tzinfo=zone) + timedelta(
        days=choice.choice([-45, 31, -46, 0, 30])
    )
    steps = [0, 0, 1, -1, 10**6, -(10**6), 60 * 10**6, -60 * 10**6, 3600 * 10**6, -3600 * 10**6]
    return edge.astimezone(UTC) + timedelta(microseconds=choice.choice(steps))
