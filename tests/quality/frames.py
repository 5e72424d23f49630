"""Good frames of every kind that the suites see, to be broken one column at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from medflex.quality.suites import FLAGS, OUTGOING_COLUMNS, SOURCE_COLUMNS

NOW = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
ZONE = "Europe/Moscow"
#: 00:00 of day D−45 and of day D+31 in Moscow (UTC+3 the whole year).
STARTS_FROM = datetime(2026, 1, 23, 21, tzinfo=UTC)
STARTS_BEFORE = datetime(2026, 4, 9, 21, tzinfo=UTC)


def _utc(values: object) -> pd.Series:
    return pd.Series(pd.to_datetime(values, utc=True)).astype("datetime64[us, UTC]")  # type: ignore[arg-type]


def clinics(ids: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    """CLINICS: open for a month, one enabled partner each more."""
    n = len(ids)
    return pd.DataFrame(
        {
            "clinic_id": np.array(ids, dtype="int64"),
            "lpu_id": pd.array([1000 + one for one in ids], dtype="Int64"),
            "timezone": pd.Series([ZONE] * n, dtype="str"),
            "access_enabled": pd.array([True] * n, dtype="boolean"),
            "access_changed_at": _utc([NOW - timedelta(days=30)] * n),
            "access_changed_by_role": pd.Series(["head"] * n, dtype="str"),
            "partner_ids": pd.Series([[3, 17]] * n, dtype="object"),
        }
    )


def windows(ids: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    """The windows of those clinics."""
    n = len(ids)
    return pd.DataFrame(
        {
            "clinic_id": np.array(ids, dtype="int64"),
            "starts_from": _utc([STARTS_FROM] * n),
            "starts_before": _utc([STARTS_BEFORE] * n),
        }
    )


def history(rows: int, runs: int = 5, ids: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    """Row counts of earlier runs, the same in each."""
    return pd.DataFrame({"clinic_id": np.repeat(np.array(ids, dtype="int64"), runs), "rows": rows})


def rows(n: int = 200, ids: tuple[int, ...] = (1, 2), first_id: int = 1) -> pd.DataFrame:
    """ROWS without names, all as they should be."""
    starts = pd.Timestamp(STARTS_FROM) + pd.to_timedelta(np.arange(n) * 7 % (75 * 96) * 15, unit="min")
    frame = pd.DataFrame(
        {
            "clinic_id": np.resize(np.array(ids, dtype="int64"), n),
            "appointment_id": np.arange(first_id, first_id + n, dtype="int64"),
            "patient_id": pd.array(np.arange(n) % 97 + 1, dtype="Int64"),
            "doctor_id": pd.array(np.arange(n) % 7 + 1, dtype="Int64"),
            "starts_at": _utc(starts),
            "ends_at": _utc(starts + timedelta(minutes=30)),
            "status": pd.Series(np.resize(["unconfirmed", "confirmed", "no_show"], n), dtype="str"),
            "entry": pd.Series(np.resize(["direct", "online"], n), dtype="str"),
            "is_anonymous": pd.array([False] * n, dtype="boolean"),
            "phone": pd.Series([f"8 (900) {i % 1000:03d}-22-33" for i in range(n)], dtype="str"),
            **{flag: pd.array([False] * n, dtype="boolean") for flag in FLAGS if flag != "is_anonymous"},
            "patient_found": np.ones(n, dtype=bool),
            "doctor_found": np.ones(n, dtype=bool),
            "created_at": _utc([NOW - timedelta(days=60)] * n),
            "updated_at": _utc([NOW - timedelta(days=1)] * n),
        }
    )
    return frame[list(SOURCE_COLUMNS)]


def outgoing(n: int = 200, ids: tuple[int, ...] = (1, 2), first_id: int = 1) -> pd.DataFrame:
    """PAYLOAD with its witness columns, all as they should be."""
    source = rows(n, ids, first_id)
    local = source["starts_at"].dt.tz_convert(ZONE)
    frame = pd.DataFrame(
        {
            "clinic_id": source["clinic_id"],
            "id": source["appointment_id"],
            "doctor_id": source["doctor_id"].astype("int64"),
            "dt_start": local.dt.strftime("%Y-%m-%d %H:%M").astype("str"),
            "dt_end": (local + timedelta(minutes=30)).dt.strftime("%Y-%m-%d %H:%M").astype("str"),
            "time_offset": np.full(n, 180, dtype="int16"),
            "status": pd.Series(np.resize(["relevant", "confirmed", "failure"], n), dtype="str"),
            "mis_status": source["status"],
            "entry": source["entry"],
            "partners": pd.Series(["3,17"] * n, dtype="str"),
            "first_name": pd.Series(["Анна-Мария"] * n, dtype="str"),
            "second_name": pd.Series([None if i % 5 == 0 else "Петровна" for i in range(n)], dtype="str"),
            "mobile_phone": pd.Series([f"7900{i % 1000:03d}2233" for i in range(n)], dtype="str"),
            "digest": np.arange(n, dtype="int64"),
            "starts_at": source["starts_at"],
            "starts_from": _utc([STARTS_FROM] * n),
            "starts_before": _utc([STARTS_BEFORE] * n),
            **{flag: source[flag] for flag in FLAGS},
            "patient_found": source["patient_found"],
            "doctor_found": source["doctor_found"],
        }
    )
    return frame[list(OUTGOING_COLUMNS)]
