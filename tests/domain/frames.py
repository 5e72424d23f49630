"""ROWS and CLINICS for tests: a permitted appointment of an open clinic, from which a test changes what it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

NOW = datetime(2026, 3, 15, 10, 0, tzinfo=UTC)
KEY = b"a key for tests, 32 bytes long.."

ROW_TYPES = {
    "clinic_id": "int64",
    "appointment_id": "int64",
    "patient_id": "Int64",
    "doctor_id": "Int64",
    "starts_at": "datetime64[us, UTC]",
    "ends_at": "datetime64[us, UTC]",
    "status": "str",
    "entry": "str",
    "is_anonymous": "boolean",
    "first_name": "str",
    "patronymic": "str",
    "phone": "str",
    "refused_personal_data": "boolean",
    "refused_notifications": "boolean",
    "refused_marketing": "boolean",
    "doctor_banned": "boolean",
    "patient_found": "boolean",
    "doctor_found": "boolean",
    "created_at": "datetime64[us, UTC]",
    "updated_at": "datetime64[us, UTC]",
}

CLINIC_TYPES = {
    "clinic_id": "int64",
    "lpu_id": "Int64",
    "timezone": "str",
    "access_enabled": "boolean",
    "access_changed_at": "datetime64[us, UTC]",
    "access_changed_by_role": "str",
}


def rows_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the types of ROWS."""
    return pd.DataFrame({name: _typed(rows[name], type_) for name, type_ in ROW_TYPES.items()})


def clinics_frame(clinics: pd.DataFrame) -> pd.DataFrame:
    """The same clinics with the types of CLINICS."""
    typed = {name: _typed(clinics[name], type_) for name, type_ in CLINIC_TYPES.items()}
    return pd.DataFrame({**typed, "partner_ids": clinics["partner_ids"]})


def _typed(column: pd.Series, type_: str) -> pd.Series:
    if type_.startswith("datetime"):
        return pd.to_datetime(column, utc=True).astype(type_)
    return column.astype(type_)


def rows(*changes: dict[str, Any]) -> pd.DataFrame:
    """ROWS: one permitted appointment per argument, with these changes; ids 100, 101, … unless changed."""
    made = []
    for number, change in enumerate(changes):
        row = {
            "clinic_id": 1,
            "appointment_id": 100 + number,
            "patient_id": 7,
            "doctor_id": 5,
            "starts_at": NOW,
            "ends_at": NOW + timedelta(minutes=30),
            "status": "confirmed",
            "entry": "direct",
            "is_anonymous": False,
            "first_name": "Анна",
            "patronymic": "Ивановна",
            "phone": "8 (900) 111-22-33",
            "refused_personal_data": False,
            "refused_notifications": False,
            "refused_marketing": False,
            "doctor_banned": False,
            "patient_found": True,
            "doctor_found": True,
            "created_at": NOW,
            "updated_at": NOW,
        }
        assert change.keys() <= row.keys(), "a test changes a column that is not there"
        made.append(row | change)
    return rows_frame(pd.DataFrame(made, columns=list(ROW_TYPES), dtype=object))


def clinics(*changes: dict[str, Any]) -> pd.DataFrame:
    """CLINICS: one open clinic per argument, with these changes; ids 1, 2, … unless changed."""
    made = []
    for number, change in enumerate(changes, start=1):
        clinic = {
            "clinic_id": number,
            "lpu_id": 1000 + number,
            "timezone": "Europe/Moscow",
            "access_enabled": True,
            "access_changed_at": NOW - timedelta(days=10),
            "access_changed_by_role": "head",
            "partner_ids": [3, 17],
        }
        assert change.keys() <= clinic.keys(), "a test changes a column that is not there"
        made.append(clinic | change)
    return clinics_frame(pd.DataFrame(made, columns=[*CLINIC_TYPES, "partner_ids"], dtype=object))
