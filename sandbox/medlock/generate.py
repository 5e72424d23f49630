"""Seeded demo data for Medlock: what clinics' databases hold, with all that is wrong in them.

The same seed, sizes and moment give the same rows, also over versions of this machine: everything comes from one
numpy generator in a fixed order, but working hours and Smart Care's messages, which have generators of their own.
Appointments and what comes with them are made and copied in chunks, so memory stays flat at any size.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from zoneinfo import ZoneInfo

import adbc_driver_postgresql.dbapi as adbc
import numpy as np
import psycopg
import pyarrow as pa
from faker.providers.person.ru_RU import Provider as RussianNames

from sandbox.medlock import canary
from sandbox.medlock.canary import CANARIES

SCHEMA = Path(__file__).with_name("schema.sql")
CHUNK = 250_000
DAYS_BACK, DAYS_AHEAD = 45, 30
SCHEDULE_DAYS_AHEAD = 60
"""Doctors' hours reach beyond the window, so that partners can move an appointment to where nobody has one."""

ZONES = (
    "Europe/Moscow", "Europe/Kaliningrad", "Asia/Kamchatka", "Asia/Yekaterinburg", "Asia/Vladivostok", "Europe/Samara",
    "Asia/Omsk", "Asia/Krasnoyarsk", "Asia/Irkutsk", "Asia/Yakutsk", "Asia/Magadan", "Europe/Volgograd",
)  # fmt: skip
UNKNOWN_ZONE = "Europe/Zarechye"


class Kind(StrEnum):
    """The state of a clinic's access switch and integrations."""

    OPEN = "open for long"
    OPENS_SOON = "waiting, opens within minutes"
    WAITING = "waiting, opens in a day"
    OFF = "switched off"
    BY_ADMINISTRATOR = "switched on by an administrator"
    NO_PARTNERS = "no partners"
    UNKNOWN_ZONE = "unknown time zone"
    BY_FOREIGN_HEAD = "switched on by the head of another clinic"
    BY_UNKNOWN = "switched on by an unknown person"
    NO_STAMP = "switched on, no time stamp"
    FUTURE_STAMP = "switched on in the future"
    PARTNERS_DISABLED = "partner links disabled or unknown"
    NEVER_CONFIGURED = "never configured"
    ENABLED_UNKNOWN = "switch neither on nor off"
    PARTNER_GONE = "link to a partner that does not exist"
    JUST_OPENED = "open since a moment ago"
    NO_LPU_ID = "no id at Medflex"


# The first five are open so that a demo has something to send; then one of each special kind.
FIRST_KINDS = (Kind.OPEN,) * 5 + tuple(kind for kind in Kind if kind is not Kind.OPEN)

PARTNERS = (
    (3, "Рассылка Плюс", "mailing"), (8, "Робот-регистратор", "call_robot"), (17, "Отзовик", "reviews"),
    (21, "Чат-помощник", "chat_bot"), (29, "Напоминалка", "mailing"), (34, "День рождения", "loyalty"),
)  # fmt: skip
SCENARIOS = (
    "greeting", "visit_details", "visit_confirmation", "visit_reminder", "before_visit_advice", "after_visit_advice",
    "after_visit_survey", "birthday_discount", "return_after_cancel",
)  # fmt: skip
SPECIALITIES = ("терапевт", "стоматолог", "кардиолог", "невролог", "педиатр", "хирург", "офтальмолог", "дерматолог")
COMMENTS = ("первичный", "повторный", "просит перезвонить", "по направлению", "опаздывает", "с ребёнком")


@dataclass(frozen=True)
class World:
    """What was made: the number of rows in each table, and the clinics' kinds."""

    anchor: dt.datetime
    rows: dict[str, int]
    kinds: dict[int, Kind] = field(repr=False)


@dataclass(frozen=True)
class _Clinics:
    kinds: list[Kind]
    zones: list[str | None]
    weights: np.ndarray
    offsets: np.ndarray
    """Minutes east of UTC at the anchor; the zones of Russia have kept theirs for years. Moscow's for a junk zone."""


def create_schema(uri: str) -> None:
    """Makes the schema ``medlock``, or adds what one made before lacks. ``uri``: the database owner's."""
    with psycopg.connect(uri) as connection:
        connection.execute(SCHEMA.read_text().encode())


def is_empty(uri: str) -> bool:
    """Whether nobody has put any clinic in yet."""
    with psycopg.connect(uri) as connection:
        return connection.execute("SELECT 1 FROM medlock.clinic LIMIT 1").fetchone() is None


def generate(
    uri: str,
    *,
    appointments: int = 20_000,
    clinics: int = 21,
    patients: int | None = None,
    doctors: int | None = None,
    seed: int = 1,
    anchor: dt.datetime | None = None,
    opens_in: dt.timedelta = dt.timedelta(seconds=90),
) -> World:
    """Replaces all content of the Medlock at ``uri`` (its owner's) by made-up data.

    ``anchor`` is the moment that counts as now: the window's day, ages and switches follow from it (default: now, UTC).
    ``opens_in`` after the anchor the 24 hours of the clinic of kind ``OPENS_SOON`` are over. Raises ``ValueError`` for
    sizes that make no sense.
    """
    if clinics < 1 or appointments < 0:
        raise ValueError("Demo data need at least one clinic and no negative number of appointments.")
    now = (anchor or dt.datetime.now(dt.UTC)).astimezone(dt.UTC).replace(microsecond=0)
    patients = max(clinics, appointments // 4) if patients is None else max(clinics, patients)
    doctors = max(clinics * 3, appointments // 700) if doctors is None else max(clinics, doctors)
    random = np.random.Generator(np.random.PCG64(seed))
    where = _clinics(random, clinics, now)
    with psycopg.connect(uri) as connection, adbc.connect(uri, autocommit=True) as bulk:
        indexes = _drop_indexes(connection)
        _fill_small_tables(connection, random, where, now, opens_in)
        connection.commit()

        doctor_clinic = _spread(random, where.weights, doctors)
        _copy(bulk, "doctor", _doctors(random, doctor_clinic, now))
        patient_clinic = _spread(random, where.weights, patients)
        _copy(bulk, "patient", _patients(random, patient_clinic, now))
        texting = np.random.Generator(np.random.PCG64([seed, 1]))
        scenarios, messages = _smart_care(connection, clinics), 0
        for chunk in _appointments(random, appointments, where, patient_clinic, doctor_clinic, now):
            _copy(bulk, "appointment", chunk)
            sent = _messages(texting, chunk, scenarios, messages, now)
            messages += len(sent["appointment_id"])
            _copy(bulk, "smart_care_message", sent)

        _add_canaries(connection, where.kinds, now)
        connection.commit()
        _fill_schedules(connection, bulk, seed, now)
        for definition in indexes:
            connection.execute(definition.encode())
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE)")
        tables = ("clinic", "staff", "doctor", "patient", "appointment", "partner", "doctor_schedule",
                  "smart_care_message")  # fmt: skip
        rows = {table: _count(connection, table) for table in tables}
    return World(now, rows, dict(enumerate(where.kinds, start=1)))


def clinic_offsets(uri: str, moment: dt.datetime) -> list[dict[str, object]]:
    """The clinics as Medflex knows them: ``lpu_id``, ``name``, ``time_offset`` (minutes east of UTC at ``moment``)."""
    with psycopg.connect(uri) as connection:
        known = connection.execute(
            "SELECT lpu_id, name, timezone FROM medlock.clinic WHERE lpu_id IS NOT NULL ORDER BY lpu_id"
        ).fetchall()
    return [{"lpu_id": lpu_id, "name": name, "time_offset": _offset(zone, moment)} for lpu_id, name, zone in known]


# Clinics and what belongs to them


def _clinics(random: np.random.Generator, count: int, now: dt.datetime) -> _Clinics:
    kinds = list(FIRST_KINDS[:count])
    kinds += [
        Kind.OPEN if draw < 0.85 else FIRST_KINDS[5 + int(draw * 1e6) % (len(FIRST_KINDS) - 5)]
        for draw in random.random(count - len(kinds))
    ]
    zones: list[str | None] = [
        UNKNOWN_ZONE if kind is Kind.UNKNOWN_ZONE else ZONES[number % len(ZONES)] for number, kind in enumerate(kinds)
    ]
    sizes = random.lognormal(0.0, 0.6, count) * [1.0 if kind is Kind.OPEN else 0.25 for kind in kinds]
    offsets = np.array([_offset(zone, now) for zone in zones])
    return _Clinics(kinds, zones, sizes / sizes.sum(), offsets)


def _offset(zone: str | None, moment: dt.datetime) -> int:
    offset = ZoneInfo(zone if zone in ZONES else "Europe/Moscow").utcoffset(moment.astimezone(dt.UTC))
    assert offset is not None
    return int(offset.total_seconds() // 60)


def _switch(
    kind: Kind, clinic: int, count: int, now: dt.datetime, opens_in: dt.timedelta, days: int
) -> tuple[bool | None, dt.datetime | None, int] | None:
    """``enabled``, ``changed_at``, ``changed_by`` of the clinic's access switch; None: no row at all."""
    day = dt.timedelta(hours=24)
    head, administrator = _staff_id(clinic, 0), _staff_id(clinic, 1)
    foreign_head = _staff_id(clinic % count + 1, 0)
    long_ago = now - dt.timedelta(days=days)
    special: dict[Kind, tuple[bool | None, dt.datetime | None, int] | None] = {
        Kind.OPENS_SOON: (True, now - day + opens_in, head),
        # Its hours are over after the next daily run, whatever the time of day: no run waits for it.
        Kind.WAITING: (True, now - dt.timedelta(minutes=1), head),
        Kind.OFF: (False, long_ago, head),
        Kind.BY_ADMINISTRATOR: (True, long_ago, administrator),
        Kind.BY_FOREIGN_HEAD: (True, long_ago, foreign_head if count > 1 else administrator),
        Kind.BY_UNKNOWN: (True, long_ago, 999_999_999),
        Kind.NO_STAMP: (True, None, head),
        Kind.FUTURE_STAMP: (True, now + dt.timedelta(days=2), head),
        Kind.NEVER_CONFIGURED: None,
        Kind.ENABLED_UNKNOWN: (None, long_ago, head),
        Kind.JUST_OPENED: (True, now - day, head),
    }
    return special.get(kind, (True, long_ago, head))


def _staff_id(clinic: int, place: int) -> int:
    return clinic * 10 + place


def _fill_small_tables(
    connection: psycopg.Connection[tuple[object, ...]],
    random: np.random.Generator,
    where: _Clinics,
    now: dt.datetime,
    opens_in: dt.timedelta,
) -> None:
    clinic: list[Sequence[object]] = []
    staff: list[Sequence[object]] = []
    access: list[Sequence[object]] = []
    links: list[Sequence[object]] = []
    smart_care: list[Sequence[object]] = []
    count = len(where.kinds)
    for number, (kind, zone) in enumerate(zip(where.kinds, where.zones, strict=True), start=1):
        clinic.append((number, None if kind is Kind.NO_LPU_ID else 40_000 + number, f"Клиника № {number}", zone))
        names = _full_names(random, 3)
        for place, role in enumerate(("head", "administrator", "registrar")):
            staff.append((_staff_id(number, place), number, names[place], f"{role}-{number}", role))
        switch = _switch(kind, number, count, now, opens_in, days=int(random.integers(30, 700)))
        if switch is not None:
            access.append((number, *switch))
        links += _partner_links(random, kind, number)
        smart_care += [
            (number, scenario, draw < 0.7 if draw < 0.97 else None)
            for scenario, draw in zip(SCENARIOS, random.random(len(SCENARIOS)), strict=True)
            if draw > 0.4
        ]
    connection.execute(
        "TRUNCATE medlock.clinic, medlock.staff, medlock.medflex_access, medlock.partner, medlock.clinic_partner,"
        " medlock.doctor, medlock.patient, medlock.appointment, medlock.smart_care_scenario,"
        " medlock.doctor_schedule, medlock.smart_care_message, medlock.partner_action"
    )
    tables: dict[str, Sequence[Sequence[object]]] = {
        "clinic": clinic,
        "staff": staff,
        "medflex_access": access,
        "partner": PARTNERS,
        "clinic_partner": links,
        "smart_care_scenario": smart_care,
    }
    for table, rows in tables.items():
        with connection.cursor().copy(f"COPY medlock.{table} FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(row)


def _partner_links(
    random: np.random.Generator, kind: Kind, clinic: int
) -> list[tuple[int, int, bool | None, list[str] | None]]:
    if kind is Kind.NO_PARTNERS:
        return []
    if kind is Kind.PARTNER_GONE:
        return [(clinic, 777, True, ["greeting"])]
    chosen = sorted(int(place) for place in random.choice(len(PARTNERS), size=random.integers(2, 5), replace=False))
    links: list[tuple[int, int, bool | None, list[str] | None]] = []
    for place, index in enumerate(chosen):
        scenarios = [SCENARIOS[(index + step) % len(SCENARIOS)] for step in range(int(random.integers(1, 4)))]
        draw = random.random()
        enabled: bool | None = True if place == 0 or draw < 0.7 else (False if draw < 0.9 else None)
        if kind is Kind.PARTNERS_DISABLED:
            enabled = None if place == 1 else False
        links.append((clinic, PARTNERS[index][0], enabled, None if draw > 0.95 else scenarios))
    return links


# People


def _pick(
    random: np.random.Generator, values: Sequence[object], count: int, chances: Sequence[float] | None = None
) -> np.ndarray:
    return np.array(values, dtype=object)[_draw(random, len(values), count, chances)]


def _draw(random: np.random.Generator, kinds: int, count: int, chances: Sequence[float] | None = None) -> np.ndarray:
    if chances is None:
        return random.integers(0, kinds, count)
    bounds = np.cumsum(np.array(chances) / np.sum(chances))
    return np.minimum(np.searchsorted(bounds, random.random(count), side="right"), kinds - 1)


def _spread(random: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """The clinic (from 1) of each of ``count`` things; every clinic gets one."""
    clinics = _draw(random, len(weights), count, list(weights)) + 1
    clinics[: len(weights)] = np.arange(1, len(weights) + 1)[:count]
    return clinics


def _names(lists: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    # Sorted and unique: the lists' order is the library's own business, and rows must not depend on it.
    male, female = (sorted(set(getattr(RussianNames, name))) for name in lists)
    return np.array(male, dtype=object), np.array(female, dtype=object)


def _by_sex(random: np.random.Generator, female: np.ndarray, lists: tuple[str, str]) -> np.ndarray:
    males, females = _names(lists)
    draws = random.random(len(female))
    return np.where(female, females[(draws * len(females)).astype(int)], males[(draws * len(males)).astype(int)])


LAST, FIRST, MIDDLE = ((f"{name}_male", f"{name}_female") for name in ("last_names", "first_names", "middle_names"))


def _full_names(random: np.random.Generator, count: int) -> np.ndarray:
    female = random.random(count) < 0.7
    last, first, middle = (_by_sex(random, female, lists) for lists in (LAST, FIRST, MIDDLE))
    return last + " " + first + " " + middle


def _doctors(random: np.random.Generator, clinic: np.ndarray, now: dt.datetime) -> dict[str, object]:
    count = len(clinic)
    return {
        "id": np.arange(1, count + 1),
        "clinic_id": clinic,
        "full_name": _full_names(random, count),
        "speciality": _pick(random, SPECIALITIES, count),
        "medflex_banned": _pick(random, (False, True, None), count, (94, 4, 2)),
        "updated_at": _before(random, count, now, days=900),
    }


def _patients(random: np.random.Generator, clinic: np.ndarray, now: dt.datetime) -> dict[str, object]:
    count = len(clinic)
    female = random.random(count) < 0.56
    last, first, middle = (_by_sex(random, female, lists) for lists in (LAST, FIRST, MIDDLE))
    birth = np.datetime64(now.date()) - random.integers(0, 95 * 365, count).astype("timedelta64[D]")
    return {
        "id": np.arange(1, count + 1),
        "clinic_id": clinic,
        "last_name": last,
        "first_name": _mistyped(random, first, missing=(0.001, 0.0005, 0.0005)),
        "patronymic": _mistyped(random, middle, missing=(0.06, 0.01, 0.003)),
        "phone": _phones(random, count),
        "birth_date": pa.array(birth, mask=random.random(count) < 0.02),
        "refused_personal_data": _pick(random, (False, True, None), count, (96, 3, 1)),
        "refused_notifications": _pick(random, (False, True, None), count, (95, 4, 1)),
        "refused_marketing": _pick(random, (False, True, None), count, (91, 8, 1)),
        "updated_at": _before(random, count, now, days=900),
    }


def _mistyped(random: np.random.Generator, names: np.ndarray, missing: tuple[float, float, float]) -> np.ndarray:
    """Names as registrars leave them: absent (NULL, empty, blank), padded with spaces, in capitals, doubled."""
    draws = random.random(len(names))
    out = names.copy()
    edits = (
        (missing[0], lambda name: None),
        (missing[1], lambda name: ""),
        (missing[2], lambda name: "  "),
        (0.02, lambda name: f" {name} "),
        (0.01, lambda name: f"\u00a0{name}"),
        (0.02, str.upper),
        (0.01, str.lower),
        (0.005, lambda name: f"{name}  {name}"),
    )
    start = 0.0
    for share, edit in edits:
        for place in np.flatnonzero((draws >= start) & (draws < start + share)):
            out[place] = edit(out[place])
        start += share
    return out


_JUNK_PHONES = (
    "нет", "б/н", "12345", "+7", "0000000000", "8 (000) 000-00-00", "не звонить", "+7 (9", "1", "8-800", "звонить мужу",
)  # fmt: skip
_AREAS = ("495", "812", "343", "401", "833")
# (share, form): {p} prefix of a mobile, {n} its seven digits, {a}-{b}-{c} the same in groups, {z} an area code,
# {x} two digits more; None is NULL, and JUNK stands for one of the list above.
_JUNK = "JUNK"
_PHONE_FORMS: tuple[tuple[float, str | None], ...] = (
    (22, "8 ({p}) {a}-{b}-{c}"), (14, "+7{p}{n}"), (14, "8{p}{n}"), (10, "+7 ({p}) {a}-{b}-{c}"), (8, "7{p}{n}"),
    (6, "{p}{n}"), (5, "+7 {p} {a} {b} {c}"), (4, "8-{p}-{a}-{b}-{c}"), (2, "  8{p}{n} "), (5, "8 ({z}) 2{x}-{b}-{c}"),
    (0.5, "+37529{n}"), (0.5, "+99890{n}"), (0.4, "+491511{n}"), (0.4, "+7701{n}"), (0.2, "+1202{n}"),
    (1, "8{p}{n}, 8{p}{x}{b}{c}"), (1, "8 ({z}) 2{x}-{b}-{c} доб. {x}"), (3, None), (0.5, ""), (0.5, "   "), (2, _JUNK),
)  # fmt: skip


def _phones(random: np.random.Generator, count: int) -> np.ndarray:
    """Phones as people type them. No mobile begins with 995, which is the canaries'."""
    forms = [form for _, form in _PHONE_FORMS]
    chosen = _draw(random, len(forms), count, [share for share, _ in _PHONE_FORMS])
    prefixes = np.array([number for number in range(900, 1000) if number not in (930, 995)])
    prefix = prefixes[random.integers(0, len(prefixes), count)]
    rest = random.integers(0, 10_000_000, count)
    other = random.integers(0, 90, count)

    def write(form: str | None, prefix: int, rest: int, other: int) -> str | None:
        if form is None:
            return None
        if form is _JUNK:
            return _JUNK_PHONES[other % len(_JUNK_PHONES)]
        n = f"{rest:07d}"
        return form.format(p=prefix, n=n, a=n[:3], b=n[3:5], c=n[5:], z=_AREAS[other % len(_AREAS)], x=other + 10)

    rows = zip(chosen.tolist(), prefix.tolist(), rest.tolist(), other.tolist(), strict=True)
    return np.array([write(forms[form], *numbers) for form, *numbers in rows], dtype=object)


# Appointments


def _appointments(
    random: np.random.Generator,
    count: int,
    where: _Clinics,
    patient_clinic: np.ndarray,
    doctor_clinic: np.ndarray,
    now: dt.datetime,
) -> Iterator[dict[str, object]]:
    patients, doctors = _Members(patient_clinic), _Members(doctor_clinic)
    last_id = 0
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        clinic = _draw(random, len(where.weights), size, list(where.weights)) + 1
        starts = _starts(random, size, where.offsets[clinic - 1], now)
        if start == 0:
            _set_on_edges(starts, clinic, where.offsets, now)
        past = starts < np.datetime64(now.replace(tzinfo=None))
        # Gaps: numbers of appointments that were deleted.
        ids = last_id + np.cumsum(1 + (random.random(size) < 0.01))
        last_id = int(ids[-1])
        created = np.minimum(starts, np.datetime64(now.replace(tzinfo=None))) - _seconds(random, size, 40 * 86_400)
        anonymous = _pick(random, (False, True, None), size, (97, 2, 1))
        yield {
            "id": ids,
            "clinic_id": clinic,
            "patient_id": _broken(random, patients.pick(random, clinic), len(patient_clinic)),
            "doctor_id": _broken(random, doctors.pick(random, clinic), len(doctor_clinic)),
            "starts_at": _utc(starts, mask=random.random(size) < 0.0001),
            "ends_at": _ends(random, starts),
            "status": _statuses(random, past),
            "is_anonymous": anonymous,
            "entry": _pick(random, ("direct", "online", "kiosk", None), size, (65, 34.85, 0.1, 0.05)),
            "comment": _pick(random, (None, *COMMENTS), size, (80, 4, 4, 3, 3, 3, 3)),
            "created_at": _utc(created),
            "updated_at": _utc(created + _seconds(random, size, 3 * 86_400)),
        }


class _Members:
    """Picks somebody of the wanted clinic: ids (from 1) sorted by clinic, and where each clinic's begin."""

    def __init__(self, clinic_of: np.ndarray) -> None:
        self.ids = np.argsort(clinic_of, kind="stable") + 1
        self.counts = np.bincount(clinic_of)
        self.begins = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def pick(self, random: np.random.Generator, clinic: np.ndarray) -> np.ndarray:
        return self.ids[self.begins[clinic] + (random.random(len(clinic)) * self.counts[clinic]).astype(int)]


def _broken(random: np.random.Generator, ids: np.ndarray, known: int) -> pa.Array:
    """One in a thousand each: nobody's id, somebody of any (mostly another) clinic; half as often: no id."""
    draws = random.random(len(ids))
    anybody = random.integers(1, known + 1, len(ids))
    ids = np.where(draws < 0.001, known + 1_000_000, np.where(draws < 0.002, anybody, ids))
    return pa.array(ids, mask=draws > 0.9995)


def _starts(random: np.random.Generator, count: int, offsets: np.ndarray, now: dt.datetime) -> np.ndarray:
    """UTC starts at quarters of an hour of the local working day; about nine in ten inside the window."""
    inside = random.random(count) < 0.9
    days = np.where(
        inside,
        random.integers(-DAYS_BACK, DAYS_AHEAD + 1, count),
        np.where(random.random(count) < 0.6, random.integers(-120, -DAYS_BACK, count), random.integers(31, 90, count)),
    )
    quarters = random.integers(8 * 4, 20 * 4, count)
    return _local(now, offsets, days, quarters * 15)


def _local(now: dt.datetime, offsets: np.ndarray, days: np.ndarray, minutes: np.ndarray | int) -> np.ndarray:
    """UTC of ``minutes`` after the local midnight ``days`` after the anchor's local day."""
    here = np.datetime64(now.replace(tzinfo=None), "s") + offsets.astype("timedelta64[m]")
    midnight = here.astype("datetime64[D]") + days.astype("timedelta64[D]")
    return midnight.astype("datetime64[us]") + (np.asarray(minutes) - offsets).astype("timedelta64[m]")


def _set_on_edges(starts: np.ndarray, clinic: np.ndarray, offsets: np.ndarray, now: dt.datetime) -> None:
    """Puts each clinic's first four appointments exactly on, and one second before, both edges of the window."""
    second = np.timedelta64(1, "s")
    for number, offset in enumerate(offsets, start=1):
        places = np.flatnonzero(clinic == number)[:4]
        first, behind = _local(now, np.array([offset] * 2), np.array([-DAYS_BACK, DAYS_AHEAD + 1]), 0)
        starts[places] = np.array([first, first - second, behind, behind - second])[: len(places)]


def _ends(random: np.random.Generator, starts: np.ndarray) -> pa.Array:
    minutes = np.array([15, 30, 45, 60])[random.integers(0, 4, len(starts))]
    draws = random.random(len(starts))
    minutes = np.where(draws < 0.001, -minutes, np.where(draws < 0.0015, 0, minutes))
    return _utc(starts + minutes.astype("timedelta64[m]"), mask=draws > 0.9995)


def _statuses(random: np.random.Generator, past: np.ndarray) -> np.ndarray:
    size = len(past)
    unheard_of = "перенесён колл-центром"
    before = _pick(
        random,
        ("completed", "arrived", "cancelled", "no_show", "confirmed", unheard_of, None),
        size,
        (68, 5, 13, 9, 4.7, 0.2, 0.02),
    )
    ahead = _pick(random, ("unconfirmed", "confirmed", "cancelled", unheard_of, None), size, (56, 34, 9.7, 0.2, 0.02))
    return np.where(past, before, ahead)


def _seconds(random: np.random.Generator, count: int, most: int) -> np.ndarray:
    return random.integers(0, most, count).astype("timedelta64[s]")


def _before(random: np.random.Generator, count: int, now: dt.datetime, days: int) -> pa.Array:
    return _utc(np.datetime64(now.replace(tzinfo=None), "us") - _seconds(random, count, days * 86_400))


def _utc(moments: np.ndarray, mask: np.ndarray | None = None) -> pa.Array:
    return pa.array(moments.astype("datetime64[us]"), type=pa.timestamp("us", tz="UTC"), mask=mask)


# Working hours


def add_schedules(uri: str, *, seed: int = 1, anchor: dt.datetime | None = None) -> int:
    """Gives the doctors of a Medlock that has none working hours around ``anchor`` (default: now); how many intervals.

    For a Medlock that was filled before there were any; does nothing where some are. ``uri``: the database owner's.
    """
    now = (anchor or dt.datetime.now(dt.UTC)).astimezone(dt.UTC).replace(microsecond=0)
    with psycopg.connect(uri) as connection, adbc.connect(uri, autocommit=True) as bulk:
        if connection.execute("SELECT 1 FROM medlock.doctor_schedule LIMIT 1").fetchone() is not None:
            return 0
        connection.commit()
        return _fill_schedules(connection, bulk, seed, now)


def _fill_schedules(
    connection: psycopg.Connection[tuple[object, ...]], bulk: adbc.Connection, seed: int, now: dt.datetime
) -> int:
    random = np.random.Generator(np.random.PCG64([seed, 2]))
    found = connection.execute(
        "SELECT d.id, d.clinic_id, c.timezone FROM medlock.doctor AS d JOIN medlock.clinic AS c ON c.id = d.clinic_id"
        " ORDER BY d.id"
    ).fetchall()
    offset_of = {zone: _offset(zone, now) for zone in {str(zone) for _, _, zone in found}}
    doctors = np.array([(doctor, clinic, offset_of[str(zone)]) for doctor, clinic, zone in found], dtype=np.int64)
    # One in ten goes for lunch, and then has two intervals a day.
    lunches = random.random(len(doctors)) < 0.1
    made = 0
    for day in range(-DAYS_BACK, SCHEDULE_DAYS_AHEAD + 1):
        works = random.random(len(doctors)) >= 0.02
        hours = [(~lunches, 8, 21), (lunches, 8, 13), (lunches, 14, 21)]
        rows = [(doctors[works & who], begin, end) for who, begin, end in hours]
        who = np.concatenate([part for part, _, _ in rows])
        days = np.full(len(who), day)
        begins, ends = (np.concatenate([np.full(len(row[0]), row[place] * 60) for row in rows]) for place in (1, 2))
        _copy(bulk, "doctor_schedule", {
            "id": made + 1 + np.arange(len(who)),
            "clinic_id": who[:, 1],
            "doctor_id": who[:, 0],
            "starts_at": _utc(_local(now, who[:, 2], days, begins)),
            "ends_at": _utc(_local(now, who[:, 2], days, ends)),
        })  # fmt: skip
        made += len(who)
    return made


# Smart Care


def _smart_care(connection: psycopg.Connection[tuple[object, ...]], clinics: int) -> list[list[int]]:
    """Of each clinic (from 0) the places in SCENARIOS of the scenarios that Smart Care runs there."""
    running: list[list[int]] = [[] for _ in range(clinics)]
    found = connection.execute(
        "SELECT clinic_id, scenario FROM medlock.smart_care_scenario WHERE enabled ORDER BY clinic_id, scenario"
    )
    for clinic, scenario in found.fetchall():
        running[int(str(clinic)) - 1].append(SCENARIOS.index(str(scenario)))
    return running


def _messages(
    random: np.random.Generator,
    appointments: dict[str, object],
    running: list[list[int]],
    last_id: int,
    now: dt.datetime,
) -> dict[str, np.ndarray | pa.Array]:
    """One message for every fourth appointment of the last weeks: before it, or after it where its name says so."""
    clinic = np.asarray(appointments["clinic_id"])
    starts = np.asarray(appointments["starts_at"]).astype("datetime64[us]")
    moment = np.datetime64(now.replace(tzinfo=None), "us")
    age = moment - starts
    counts = np.array([len(scenarios) for scenarios in running])[clinic - 1]
    draws, choice = random.random(len(clinic)), random.random(len(clinic))
    away = _seconds(random, len(clinic), 86_400)
    # A start that is missing is not a time, and compares as false.
    due = (age > np.timedelta64(0, "us")) & (age < np.timedelta64(DAYS_BACK, "D")) & (counts > 0) & (draws < 0.25)
    chosen = np.flatnonzero(due)
    places = [running[clinic[at] - 1][int(choice[at] * counts[at])] for at in chosen]
    after = np.array([SCENARIOS[place].startswith("after_") for place in places], dtype=bool)
    at = np.where(after, starts[chosen] + away[chosen], starts[chosen] - away[chosen])
    return {
        "id": last_id + 1 + np.arange(len(chosen)),
        "clinic_id": clinic[chosen],
        "appointment_id": np.asarray(appointments["id"])[chosen],
        "scenario": pa.array([SCENARIOS[place] for place in places], type=pa.string()),
        "sent_at": _utc(np.minimum(at, moment)),
    }


# Canaries


def _add_canaries(connection: psycopg.Connection[tuple[object, ...]], kinds: list[Kind], now: dt.datetime) -> None:
    """One patient and one appointment for each canary, in a clinic where its path ends as it says."""
    special = {
        canary.Path.NO_PARTNER: Kind.NO_PARTNERS,
        canary.Path.CLINIC_NOT_ACTIVE: Kind.OFF,
        canary.Path.UNKNOWN_TIMEZONE: Kind.UNKNOWN_ZONE,
    }
    doctors = _count(connection, "doctor")
    clinics = [kinds.index(Kind.OPEN) + 1, *(kinds.index(kind) + 1 for kind in special.values() if kind in kinds)]
    for clinic in clinics:
        for banned in (False, True):
            connection.execute(
                "INSERT INTO medlock.doctor VALUES (%s, %s, 'Айболит Корней Иванович', 'терапевт', %s, %s)",
                [doctors + clinic * 2 + banned, clinic, banned, now - dt.timedelta(days=90)],
            )
    patients, appointments = _count(connection, "patient"), _last_id(connection, "appointment")
    stamp = now - dt.timedelta(days=60)
    for place, bird in enumerate(CANARIES, start=1):
        path = bird.path
        kind = special.get(path, Kind.OPEN)
        if kind not in kinds:
            continue
        clinic = kinds.index(kind) + 1
        foreign = path is canary.Path.REFERENCE_BROKEN
        consent = [
            {canary.Path.UNKNOWN_CONSENT: None}.get(path, path == reason)
            for reason in ("refused_personal_data", "refused_notifications", "refused_marketing")
        ]
        connection.execute(
            "INSERT INTO medlock.patient VALUES (%s, %s, %s, %s, %s, %s, '1980-02-29', %s, %s, %s, %s)",
            [patients + place, clinic % len(kinds) + 1 if foreign else clinic, bird.last_name, bird.first_name,
             bird.patronymic, bird.phone, *consent, stamp],
        )  # fmt: skip
        days = 400 if path is canary.Path.OUTSIDE_WINDOW else place % 9 - 4
        starts = now.replace(hour=9, minute=0, second=0) + dt.timedelta(days=days)
        minutes = -30 if path is canary.Path.TIMES_INVERTED else 30
        entry = {canary.Path.ENTRY_UNKNOWN: "kiosk", canary.Path.ELIGIBLE_ONLINE: "online"}.get(path, "direct")
        connection.execute(
            "INSERT INTO medlock.appointment VALUES (%s, %s, %s, %s, %s, %s, 'confirmed', %s, %s, %s, %s, %s)",
            [appointments + place, clinic, patients + place,
             doctors + clinic * 2 + (path is canary.Path.DOCTOR_BANNED), starts, starts + dt.timedelta(minutes=minutes),
             path is canary.Path.ANONYMOUS_APPOINTMENT, entry, bird.comment, stamp, stamp],
        )  # fmt: skip


# Tables


def _copy(bulk: adbc.Connection, table: str, columns: Mapping[str, object]) -> None:
    arrays = {name: _array(values) for name, values in columns.items()}
    with bulk.cursor() as cursor:
        cursor.adbc_ingest(table, pa.table(arrays), mode="append", db_schema_name="medlock")


def _array(values: object) -> pa.Array:
    array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=False)
    # Without any value it has no type, and the driver wants one; for COPY each type's missing values are alike.
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _drop_indexes(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """Drops all indexes but the primary keys', for speed, and returns their definitions."""
    found = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'medlock'"
        " AND tablename IN ('doctor', 'patient', 'appointment', 'doctor_schedule', 'smart_care_message')"
        " AND indexdef NOT LIKE 'CREATE UNIQUE%' ORDER BY 1"
    ).fetchall()
    for name, _ in found:
        connection.execute(f'DROP INDEX medlock."{name}"'.encode())
    return [str(definition) for _, definition in found]


def _count(connection: psycopg.Connection[tuple[object, ...]], table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM medlock.{table}".encode()).fetchone()
    assert row is not None
    return int(str(row[0]))


def _last_id(connection: psycopg.Connection[tuple[object, ...]], table: str) -> int:
    row = connection.execute(f"SELECT coalesce(max(id), 0) FROM medlock.{table}".encode()).fetchone()
    assert row is not None
    return int(str(row[0]))
