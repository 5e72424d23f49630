"""The rules once more, as a slow and obvious loop over the Medlock tables, row by row.

It shares no code with the product. Given a connection to Medlock it tells for each appointment of the window which
reasons hold and, when none does, the record that Medflex must show.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import phonenumbers
import psycopg
from psycopg.rows import dict_row


@dataclass(frozen=True)
class Judged:
    """One appointment in the window: why it may not be sent, or else the record, without its version."""

    lpu_id: int | None
    reasons: frozenset[str]
    record: dict[str, Any] | None


def expected_records(
    connection: psycopg.Connection[Any], now: datetime, day: date | datetime
) -> dict[tuple[int, int], dict[str, Any]]:
    """What Medflex must show after a quiet run: (lpu_id, appointment id) → record without version.

    now: aware, the moment of sending. day: the run's day; a datetime means its local day in each clinic.
    """
    return {
        (judged.lpu_id, appointment_id): judged.record
        for (_, appointment_id), judged in judge_appointments(connection, now, [day]).items()
        if judged.record is not None and judged.lpu_id is not None
    }


def judge_appointments(  # noqa: C901 - one loop that is read from top to bottom is the point
    connection: psycopg.Connection[Any],
    now: datetime,
    days: Collection[date | datetime],
    clinic_ids: list[int] | None = None,
) -> dict[tuple[int, int], Judged]:
    """Judge each appointment that lies in the windows of all these days: (clinic id, appointment id) → Judged."""
    clinics = {row["id"]: row for row in _table(connection, "clinic")}
    staff = {row["id"]: row for row in _table(connection, "staff")}
    switches = {row["clinic_id"]: row for row in _table(connection, "medflex_access")}
    partners = {row["id"] for row in _table(connection, "partner")}
    links: dict[int, list[int]] = {}
    for row in _table(connection, "clinic_partner"):
        if row["enabled"] is True and row["partner_id"] in partners:
            links.setdefault(row["clinic_id"], []).append(row["partner_id"])
    patients = {row["id"]: row for row in _table(connection, "patient")}
    doctors = {row["id"]: row for row in _table(connection, "doctor")}

    result = {}
    for appointment in _table(connection, "appointment"):
        clinic = clinics.get(appointment["clinic_id"])
        if clinic is None or (clinic_ids is not None and clinic["id"] not in clinic_ids):
            continue
        zone = _zone(clinic["timezone"])
        if not all(_in_window(appointment["starts_at"], day, zone or ZoneInfo("UTC")) for day in days):
            continue
        patient = patients.get(appointment["patient_id"])
        if patient is None or patient["clinic_id"] != clinic["id"]:
            patient = None
        doctor = doctors.get(appointment["doctor_id"])
        if doctor is None or doctor["clinic_id"] != clinic["id"]:
            doctor = None
        phone = _phone(patient["phone"]) if patient and patient["phone"] else None
        reasons = set()
        for flag in ("refused_personal_data", "refused_notifications", "refused_marketing"):
            if patient is None or patient[flag] is not False:
                reasons.add(flag)
        if appointment["is_anonymous"] is not False:
            reasons.add("anonymous_appointment")
        if doctor is None or doctor["medflex_banned"] is not False:
            reasons.add("doctor_banned")
        if not links.get(clinic["id"]):
            reasons.add("no_partner")
        if not _is_open(clinic, switches.get(clinic["id"]), staff, now):
            reasons.add("clinic_not_active")
        if patient is None or _clean(patient["phone"]) == "":
            reasons.add("phone_missing")
        elif phone is None:
            reasons.add("phone_unreadable")
        if patient is None or _clean(patient["first_name"]) == "":
            reasons.add("name_missing")
        if appointment["ends_at"] is None or appointment["ends_at"] <= appointment["starts_at"]:
            reasons.add("times_inverted")
        if zone is None:
            reasons.add("unknown_timezone")
        if patient is None or doctor is None or appointment["id"] < 1 or doctor["id"] < 1:
            reasons.add("reference_broken")
        if appointment["entry"] not in ("direct", "online"):
            reasons.add("entry_unknown")

        record = None
        if not reasons:
            assert patient is not None
            assert zone is not None
            start, end = appointment["starts_at"].astimezone(zone), appointment["ends_at"].astimezone(zone)
            record = {
                "id": appointment["id"],
                "doctor_id": appointment["doctor_id"],
                "dt_start": start.strftime("%Y-%m-%d %H:%M"),
                "dt_end": end.strftime("%Y-%m-%d %H:%M"),
                "time_offset": start.utcoffset() // timedelta(minutes=1),
                "status": _status(appointment["status"]),
                "mis_status": appointment["status"] or "",
                "entry": appointment["entry"],
                "partners": sorted(links[clinic["id"]]),
                "client": {
                    "first_name": _clean(patient["first_name"]),
                    "second_name": _clean(patient["patronymic"]) or None,
                    "mobile_phone": phone,
                },
            }
        result[clinic["id"], appointment["id"]] = Judged(clinic["lpu_id"], frozenset(reasons), record)
    return result


def _table(connection: psycopg.Connection[Any], name: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"SELECT * FROM medlock.{name}").fetchall()


def _zone(name: str | None) -> ZoneInfo | None:
    if name in (None, "", "localtime", "posixrules", "Factory") or name.startswith(("posix/", "right/")):
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return None


def _in_window(start: datetime | None, day: date | datetime, zone: ZoneInfo) -> bool:
    """R6, by calendar days: the start's local day is one of the 45 before, the day itself, or one of the 30 after."""
    if start is None:
        return False
    run_day = day.astimezone(zone).date() if isinstance(day, datetime) else day
    distance = (start.astimezone(zone).date() - run_day).days
    return -45 <= distance <= 30


def _is_open(
    clinic: dict[str, Any], switch: dict[str, Any] | None, staff: dict[int, dict[str, Any]], now: datetime
) -> bool:
    if clinic["lpu_id"] is None or switch is None or switch["enabled"] is not True or switch["changed_at"] is None:
        return False
    person = staff.get(switch["changed_by"])
    if person is None or person["clinic_id"] != clinic["id"] or person["role"] != "head":
        return False
    on_for = (now.astimezone(UTC) - switch["changed_at"].astimezone(UTC)).total_seconds()
    return on_for >= 24 * 60 * 60


def _clean(text: str | None) -> str:
    seen = [letter for letter in text or "" if letter.isspace() or unicodedata.category(letter) not in ("Cc", "Cf")]
    clean = " ".join("".join(seen).split())
    return clean if any(letter not in " \u3164\u115f\u1160\uffa0\u2800\u034f\ufe0f" for letter in clean) else ""


def _phone(text: str) -> str | None:
    text = _clean(text)
    if any(unicodedata.category(letter).startswith("L") for letter in text):
        return None
    before = text.partition("(")[0]
    if any(mark in text for mark in "/\\?*") or ("(" in text and sum(map(str.isdigit, before)) >= 5):
        return None
    try:
        number = phonenumbers.parse(text, "RU")
    except phonenumbers.NumberParseException:
        return None
    if number.extension is not None or not phonenumbers.is_valid_number(number):
        return None
    zeros = "0" * (number.number_of_leading_zeros or 1) if number.italian_leading_zero else ""
    digits = f"{number.country_code}{zeros}{number.national_number}"
    if not 7 <= len(digits) <= 15 or (digits[0] == "7" and len(digits) != 11):
        return None
    return digits


def _status(word: str | None) -> str:
    if word == "unconfirmed":
        return "relevant"
    if word == "confirmed":
        return "confirmed"
    if word in ("arrived", "completed"):
        return "arrived"
    if word == "cancelled":
        return "canceled"
    if word == "no_show":
        return "failure"
    return "undefined"
