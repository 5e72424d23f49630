"""Medlock, the source, read over SQL: the output columns of the queries in include/sql/medlock are the contract."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import tuple_row

from medflex.arrow import Streams, is_driver_error, read_ahead, tables
from medflex.domain.access import AccessState, judge_access
from medflex.errors import (
    MedflexPipelineError,
    MedlockRefusedError,
    MedlockSchemaError,
    MedlockSlowError,
    MedlockUnavailableError,
)
from medflex.postgres import ThreadConnections, has_no_room, refused_login
from medflex.sql import Ids, bigints, query

APPOINTMENT_COLUMNS: dict[str, pa.DataType] = {
    "clinic_id": pa.int64(),
    "appointment_id": pa.int64(),
    "patient_id": pa.int64(),
    "doctor_id": pa.int64(),
    "starts_at": pa.timestamp("us", "UTC"),
    "ends_at": pa.timestamp("us", "UTC"),
    "status": pa.string(),
    "entry": pa.string(),
    "is_anonymous": pa.bool_(),
    "first_name": pa.string(),
    "patronymic": pa.string(),
    "phone": pa.string(),
    "refused_personal_data": pa.bool_(),
    "refused_notifications": pa.bool_(),
    "refused_marketing": pa.bool_(),
    "doctor_banned": pa.bool_(),
    "patient_found": pa.bool_(),
    "doctor_found": pa.bool_(),
    "created_at": pa.timestamp("us", "UTC"),
    "updated_at": pa.timestamp("us", "UTC"),
}
"""The output columns of appointments.sql and their types (docs/data-contract.md)."""

CLINIC_TYPES = MappingProxyType(
    {
        "clinic_id": "int64",
        "lpu_id": "Int64",
        "timezone": "str",
        "access_enabled": "boolean",
        "access_changed_at": "datetime64[us, UTC]",
        "access_changed_by_role": "str",
    }
)
_REFUSALS = ("refused_personal_data", "refused_notifications", "refused_marketing")
_CONSENT_TYPES = MappingProxyType(
    dict.fromkeys(
        ("is_anonymous", *_REFUSALS, "doctor_banned", "patient_found", "doctor_found", "has_phone", "has_name"),
        "boolean",
    )
)
_CONSENT_NUMBERS = MappingProxyType(
    {
        "clinic_ids": "clinic_id",
        "appointment_ids": "appointment_id",
        "patient_ids": "patient_id",
        "doctor_ids": "doctor_id",
        "starts": "starts",
    }
)
_PATIENT_TYPES = MappingProxyType(
    {"patient_id": "int64", **dict.fromkeys(_REFUSALS, "boolean"), "updated_at": "datetime64[us, UTC]"}
)
_ELSEWHERE_TYPES = MappingProxyType(
    {
        "appointment_id": "int64",
        **dict.fromkeys(("is_anonymous", "doctor_banned"), "boolean"),
        **dict.fromkeys(("updated_at", "doctor_updated_at"), "datetime64[us, UTC]"),
    }
)
CHANGING = ("appointments", "patients", "doctors")
"""What has change stamps."""
_CHANGED_TYPES = MappingProxyType(dict.fromkeys(CHANGING, "datetime64[us, UTC]"))
_PATIENT_IDS = MappingProxyType({"patient_id": "int64"})
_OVERLAP_TYPES = MappingProxyType({"clinic_id": "int64", "scenario": "str", "partner_ids": "object"})
_MESSAGE_TYPES = MappingProxyType(
    {"clinic_id": "int64", "appointment_id": "int64", "scenario": "str", "messages": "int64"}
)

_PARALLEL_WORKERS = "max_parallel_workers_per_gather"
"""Postgres' setting: how many more processes may work on one query."""
PERSONAL_COLUMNS = ("first_name", "patronymic", "phone")
MOST_COUNTED = 100
"""Of more clinics the appointments are not counted one by one: of 300 with two million that takes two seconds, of all
20,000 together minutes, and a sample some tenths of a second."""


class Medlock:
    """Reads from Medlock's database. Connections are per thread or stream, and read-only.

    Args:
        conninfo: libpq connection string or URI.
        timeout_seconds: so long may one statement take.

    Raises (all methods):
        MedlockUnavailableError: the database does not answer.
        MedlockRefusedError: it refuses the log-in.
        MedlockSchemaError: a table or column is missing or has another type.
    """

    def __init__(self, conninfo: str, *, timeout_seconds: int = 120) -> None:
        self._conninfo = conninfo
        self._timeout_seconds = timeout_seconds
        self._connections = ThreadConnections(self._connect)
        self._streams = Streams(conninfo)
        self._open: _Open | None = None

    def __enter__(self) -> Medlock:
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.close()
        self._streams.close()

    def clinics(self, clinic_ids: Sequence[int] | None, now: datetime) -> pd.DataFrame:
        """Return CLINICS, judged by :func:`judge_access` at ``now``; ``clinic_ids`` of ``None`` means all."""
        columns, rows = self._rows("medlock/clinics", {"clinic_ids": _list(clinic_ids)})
        # Batches ask for their clinics just before they leave. One that was open stays open while its row is the same.
        known = self._open
        if known is not None and rows and known.at <= now:
            found = [known.places.get(_comparable(row), -1) for row in rows]
            if min(found) >= 0:
                return known.clinics.take(found).reset_index(drop=True)
        clinics = judge_access(typed_frame("medlock/clinics", columns, rows, CLINIC_TYPES), now)
        is_open = clinics["state"].eq(AccessState.OPEN).tolist()
        places = {_comparable(row): place for place, row in enumerate(rows) if is_open[place]}
        # Who asks for all that it works on first has them at hand for each part of them.
        if known is None or len(places) >= len(known.places):
            self._open = _Open(now, places, clinics.copy())
        return clinics

    def clinic_labels(self, clinic_ids: Sequence[int] | None) -> dict[int, tuple[str, int | None]]:
        """Return each clinic's name and the id of the person who turned its switch last, by the clinic's id."""
        frame = self._frame("medlock/clinic_labels", {"clinic_ids": _list(clinic_ids)})
        return {int(key): (str(name or ""), staff_id) for key, name, staff_id in frame.itertuples(index=False)}

    def partners(self) -> dict[int, tuple[str, str]]:
        """Return each partner's name and kind by its id."""
        frame = self._frame("medlock/partners", {})
        return {int(key): (str(name or ""), str(kind or "")) for key, name, kind in frame.itertuples(index=False)}

    def headed_clinics(self, login: str) -> set[int]:
        """Return the clinics that a log-in's owner is the head of (R2)."""
        return {int(item) for item in self._frame("medlock/headed_clinics", {"login": login})["clinic_id"]}

    def consent_now(self, clinic_ids: Ids, appointment_ids: Ids) -> pd.DataFrame:
        """Return the flags behind these appointments of these clinics as they are committed now, and when they start
        (``starts``: Int64, microseconds since 1970, UTC); one that was deleted, or moved to a clinic that is not named,
        has no row.
        """
        parameters = {"clinic_ids": bigints(clinic_ids), "appointment_ids": bigints(appointment_ids)}
        name = "medlock/consent_now"
        columns, rows = self._rows(name, parameters, binary=True)
        answers = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
        numbers = {}
        for column, one in _CONSENT_NUMBERS.items():
            numbers[one] = answers.get(column, [None])
            if not all(isinstance(part, tuple) for part in numbers[one]):
                raise MedlockSchemaError(
                    f"The column {column} of include/sql/medlock/consent_now.sql is missing or not bigint[], as the"
                    " contract in docs/data-contract.md wants it: cast it in the query."
                )
        number = [len(ids) for ids, _ in numbers["appointment_id"]]
        flags = typed_frame(name, columns, rows, _CONSENT_TYPES)
        return pd.DataFrame(
            {one: _one_behind_the_other(parts) for one, parts in numbers.items()}
            | {flag: flags[flag].array.repeat(number) for flag in _CONSENT_TYPES}
        )

    def appointments_now(self, clinic_ids: Sequence[int], appointment_ids: Sequence[int]) -> pa.Table:
        """Return what is committed now behind appointments, each of the clinic at the same place.

        The columns are those of the extract, with ``patient_updated_at`` and ``doctor_updated_at``; an appointment that
        does not exist, or belongs to another clinic, has no row.
        """
        with self._reader("appointments_now", _pairs(clinic_ids, appointment_ids)) as reader, _translated():
            return reader.read_all()

    @contextmanager
    def stream_appointments_now(self, clinic_ids: Ids, appointment_ids: Ids, rows: int) -> Iterator[Iterator[pa.Table]]:
        """Yield what ``appointments_now`` returns in tables of about ``rows`` rows, at least one, in no particular
        order: for many of them.
        """
        with (
            # Several of these run beside each other, and one's parallel workers would take the others' time.
            self._reader("appointments_now", _pairs(clinic_ids, appointment_ids) | {_PARALLEL_WORKERS: "0"}) as reader,
            closing(_batches(reader)) as batches,
        ):
            yield tables(batches, rows, reader.schema)

    def changed_rows(self, since: datetime, *, most: int) -> dict[str, datetime | None]:
        """Return, of ``appointments``, ``patients`` and ``doctors``, from which instant (UTC) on at most ``most`` rows
        have changed; ``None`` where no more than that have since then.
        """
        found = self._frame("medlock/changed_rows", {"since": since, "most": most}, _CHANGED_TYPES)
        cut = {name: found[name].iloc[0] for name in CHANGING}
        return {name: None if pd.isna(instant) else instant.to_pydatetime() for name, instant in cut.items()}

    def changed_appointments(self, since: Mapping[str, datetime], *, edited_since: datetime, most: int) -> pd.DataFrame:
        """Return the appointments for which something may have been revoked: ``clinic_id`` (Int64, missing where it has
        none any more), ``appointment_id`` (int64), those that changed last first.

        Args:
            since: of what says no now, by whose row has changed: ``appointments``, ``patients``, ``doctors``.
            edited_since: of other changes of the appointment.
            most: so many of them.
        """
        sinces = {f"{name}_since": since[name] for name in CHANGING}
        types = {"clinic_id": "Int64", "appointment_id": "int64"}
        return self._frame(
            "medlock/changed_appointments", {**sinces, "edited_since": edited_since, "most": most}, types
        )

    def changed_patients(self, since: datetime, *, most: int) -> list[int]:
        """Return the ids of the patients whose row changed since then and says no now, ``most`` of those that changed
        last.
        """
        found = self._frame("medlock/changed_patients", {"since": since, "most": most}, _PATIENT_IDS)
        return [int(item) for item in found["patient_id"]]

    def patients_now(self, patient_ids: Sequence[int]) -> pd.DataFrame:
        """Return PATIENTS (see ``find_revocations``): their flags as committed now; one who is gone has no row."""
        return self._frame("medlock/patients_now", {"patient_ids": _list(patient_ids)}, _PATIENT_TYPES)

    def appointments_elsewhere(self, appointment_ids: Sequence[int]) -> pd.DataFrame:
        """Return ELSEWHERE (see ``find_revocations``): what is said of these appointments, whichever clinic they are in
        now; one that does not exist has no row.
        """
        parameters = {"appointment_ids": _list(appointment_ids)}
        return self._frame("medlock/appointments_elsewhere", parameters, _ELSEWHERE_TYPES)

    def scenario_overlaps(self, clinic_ids: Sequence[int] | None) -> pd.DataFrame:
        """Return which scenarios a clinic's Smart Care and its partners both run (R15): ``clinic_id`` (int64),
        ``scenario`` (str; missing: partners of which it is not known what they run), ``partner_ids`` (lists).

        ``clinic_ids`` of ``None`` means all.
        """
        return self._frame("medlock/scenario_overlaps", {"clinic_ids": _list(clinic_ids)}, _OVERLAP_TYPES)

    def smart_care_messages(
        self, clinic_ids: Sequence[int], appointment_ids: Sequence[int], since: datetime
    ) -> pd.DataFrame:
        """Return what Smart Care has sent since then about appointments, each of the clinic at the same place:
        ``clinic_id``, ``appointment_id`` (int64), ``scenario`` (str), ``messages`` (int64: how many).
        """
        parameters = {"clinic_ids": _list(clinic_ids), "appointment_ids": _list(appointment_ids), "since": since}
        return self._frame("medlock/smart_care_messages", parameters, _MESSAGE_TYPES)

    def deleted_rows(self) -> str:
        """Return a stamp that changes when rows are deleted from the tables that stand behind a record."""
        return str(self._frame("medlock/deleted_rows", {})["stamp"].tolist()[0])

    def appointment_counts(self, windows: pd.DataFrame) -> dict[int, int]:
        """Return how many appointments lie in each clinic's window, about so many where more than ``MOST_COUNTED``
        clinics are asked for; clinics without any are left out.
        """
        name = "appointment_counts" if len(windows) <= MOST_COUNTED else "appointment_samples"
        frame = self._frame(f"medlock/{name}", {"windows": windows_json(windows)})
        return {int(key): int(value) for key, value in frame.itertuples(index=False)}

    @contextmanager
    def stream_appointments(self, windows: pd.DataFrame) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the appointments in these windows as Arrow record batches, with the columns of the contract.

        Args:
            windows: ``clinic_id``, ``starts_from``, ``starts_before`` (UTC).
        """
        with (
            self._reader("appointments", {"medflex.windows": windows_json(windows)}) as reader,
            closing(_batches(reader)) as batches,
        ):
            yield batches

    @contextmanager
    def _reader(self, name: str, settings: Mapping[str, str]) -> Iterator[pa.RecordBatchReader]:
        """Run one of the queries that give appointments, by way of ADBC."""
        with ExitStack() as stack:
            with _translated():
                # In a transaction that is never committed.
                sql = query(f"medlock/{name}")
                reader = stack.enter_context(self._streams.stream(sql, settings=settings))
                _check_columns(reader.schema, name)
            # Not translated: what goes wrong with the rows outside is not Medlock's fault.
            yield reader

    def _frame(
        self, name: str, parameters: dict[str, Any], types: Mapping[str, Any] = MappingProxyType({})
    ) -> pd.DataFrame:
        """Run a query; its columns are objects but for those whose types are given, and these have to be there."""
        columns, rows = self._rows(name, parameters)
        return typed_frame(name, columns, rows, types)

    def _rows(
        self, name: str, parameters: dict[str, Any], *, binary: bool = False
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a query; return the names of its columns and its rows.

        Args:
            binary: have the values sent as Postgres keeps them; ``bigint[]`` then come as ``_IdsLoader`` says.
        """
        with _translated(), self._connections.get().cursor() as cursor:
            cursor.execute(query(name), parameters, binary=binary)
            return [column.name for column in cursor.description or ()], cursor.fetchall()

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=tuple_row)
        connection.adapters.register_loader(connection.adapters.types["int8"].array_oid, _IdsLoader)
        # psycopg's own read_only is for the transactions that it opens itself, and here it opens none.
        connection.execute("SET default_transaction_read_only = on")
        connection.execute(f"SET statement_timeout = '{self._timeout_seconds}s'".encode())
        # Compiling these queries takes longer than running them.
        connection.execute("SET jit = off")
        return connection


@dataclass(frozen=True)
class _Open:
    """Clinics as they were judged at an instant, and at which places those are that were open, by their rows."""

    at: datetime
    places: Mapping[tuple[Any, ...], int]
    clinics: pd.DataFrame


def _comparable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row whose lists will not change behind its back."""
    return tuple(tuple(item) if isinstance(item, list) else item for item in row)


def typed_frame(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], types: Mapping[str, Any]
) -> pd.DataFrame:
    """Return rows of the query ``name`` as a frame; columns without a type in ``types`` are objects.

    Each column has its type at once: a missing id beside others would make them floats, which cannot hold every id, and
    turning the columns of a frame into others costs more than the query.

    Raises:
        MedlockSchemaError: a column that has a type is missing, or holds something else. It is never cast here: a
            switch that came as the text 'N' would be on.
    """
    values = dict(zip(columns, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True))
    if missing := types.keys() - values.keys():
        raise MedlockSchemaError(
            f"The query include/sql/{name}.sql returns no column {', '.join(sorted(missing))}: the contract of its"
            " output columns is in docs/data-contract.md."
        )
    for column, dtype in types.items():
        if not _is_of_type(values[column], dtype):
            raise MedlockSchemaError(
                f"The column {column} of include/sql/{name}.sql is not {_IN_SQL[dtype]}, as the contract in"
                " docs/data-contract.md wants it: cast it in the query."
            )
    return pd.DataFrame(
        {
            column: _typed(items, types[column])
            if column in types
            else pd.Series(items, dtype=object, index=range(len(rows)))
            for column, items in values.items()
        }
    )


_IN_SQL = MappingProxyType(
    {
        "boolean": "boolean", "Int64": "bigint", "int64": "bigint", "str": "text", "datetime64[us, UTC]": "timestamptz",
    }
)  # fmt: skip
_IN_PYTHON = MappingProxyType(
    {"boolean": bool, "Int64": int, "int64": int, "str": str, "datetime64[us, UTC]": datetime}
)  # fmt: skip


def _is_of_type(items: Sequence[Any], dtype: Any) -> bool:
    """Tell whether the driver gave what the column's type in SQL gives, or nothing. An instant has a zone."""
    wanted = _IN_PYTHON.get(dtype)
    if wanted is None:
        return True
    there = [item for item in items if item is not None]
    return {type(item) for item in there} <= {wanted} and (wanted is not datetime or all(item.tzinfo for item in there))


def _typed(items: Sequence[Any], dtype: Any) -> Any:
    """The array that ``pd.array`` makes, which takes ten times as long for a few hundred values."""
    if dtype in ("boolean", "Int64", "int64") and len(items):
        missing = np.array([item is None for item in items], dtype=bool)
        if dtype == "boolean":
            return pd.arrays.BooleanArray(np.array(items, dtype=bool), missing)  # None becomes False.
        whole = [0 if item is None else item for item in items] if missing.any() else items
        if dtype == "Int64":
            return pd.arrays.IntegerArray(np.array(whole, dtype="int64"), missing)
        if not missing.any():
            return np.array(items, dtype="int64")
    return pd.array(list(items), dtype=dtype)


class _IdsLoader(Loader):
    """Reads ``bigint[]`` as Postgres sends it: the driver makes an object of each id, and thousands come at a time."""

    format = Format.BINARY
    _HEADER = np.dtype([("dimensions", ">i4"), ("has_missing", ">i4"), ("type", ">u4")])
    _DIMENSION = np.dtype([("length", ">i4"), ("first", ">i4")])
    _ELEMENT = np.dtype([("bytes", ">i4"), ("id", ">i8")])

    def load(self, data: Buffer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the ids (int64), and which of them are missing (bool); a missing one is 0."""
        header = np.frombuffer(data, self._HEADER, count=1)[0]
        start = self._HEADER.itemsize + int(header["dimensions"]) * self._DIMENSION.itemsize
        if not header["has_missing"]:
            ids = np.frombuffer(data, self._ELEMENT, offset=start)["id"].astype(np.int64)
            return ids, np.zeros(len(ids), dtype=bool)
        found: list[int | None] = []
        rest = memoryview(data)[start:]
        while rest:
            size = int.from_bytes(rest[:4], signed=True)  # −1: missing, and no more of it.
            found.append(int.from_bytes(rest[4:12], signed=True) if size > 0 else None)
            rest = rest[4 + max(size, 0) :]
        return np.array([item or 0 for item in found], np.int64), np.array([item is None for item in found], bool)


def _one_behind_the_other(parts: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> Any:
    """The ids of all parts (Int64), of which some may be missing."""
    ids, missing = zip(*parts, strict=True) if parts else ((np.array([], np.int64),), (np.array([], bool),))
    return pd.arrays.IntegerArray(np.concatenate(ids), np.concatenate(missing))


def windows_json(windows: pd.DataFrame) -> str:
    """Return windows as the JSON that the queries unfold."""
    return windows[["clinic_id", "starts_from", "starts_before"]].to_json(
        orient="records", date_format="iso", date_unit="us"
    )


def _pairs(clinic_ids: Ids, appointment_ids: Ids) -> dict[str, str]:
    return {"medflex.clinic_ids": bigints(clinic_ids), "medflex.appointment_ids": bigints(appointment_ids)}


def _list(ids: Sequence[int] | None) -> list[int] | None:
    return None if ids is None else [int(item) for item in ids]


def _batches(reader: pa.RecordBatchReader) -> Generator[pa.RecordBatch]:
    """To be closed before the reader's connection: it may still be reading."""
    with _translated():
        yield from read_ahead(reader)


def _check_columns(schema: pa.Schema, sql: str) -> None:
    for name, expected in APPOINTMENT_COLUMNS.items():
        if name not in schema.names:
            raise MedlockSchemaError(
                f"The query include/sql/medlock/{sql}.sql returns no column {name}: the contract of its output"
                " columns is in docs/data-contract.md."
            )
        if not schema.field(name).type.equals(expected):
            raise MedlockSchemaError(
                f"The column {name} of include/sql/medlock/{sql}.sql has type {schema.field(name).type}, the"
                f" contract in docs/data-contract.md wants {expected}: cast it in the query."
            )


_IDENTIFIER = re.compile(r'(column|relation|schema) "?([\w.]+)"? does not exist')


@contextmanager
def _translated() -> Iterator[None]:
    """Turn driver errors into this product's errors, without the driver's text, which may quote data."""
    try:
        yield
    except MedflexPipelineError:
        raise
    except psycopg.Error as error:
        raise translated_error(error, error.sqlstate) from None
    except Exception as error:
        if not is_driver_error(error):
            raise
        raise translated_error(error, getattr(error, "sqlstate", None)) from None


def translated_error(error: Exception, sqlstate: str | None, conn_id: str = "medlock_db") -> MedflexPipelineError:
    """Return the product's error for a driver's, without the driver's text."""
    text = str(error)
    state = sqlstate or ""
    if state.startswith("28") or state == "3D000" or ((not state or state == "08001") and refused_login(error)):
        return MedlockRefusedError(
            f"Medlock's database refuses the log-in: check user, password and database of the connection {conn_id}."
        )
    if state in ("42P01", "42703", "3F000") or (found := _IDENTIFIER.search(text)):
        found = _IDENTIFIER.search(text)
        what = f"the {found[1]} {found[2]}" if found else "a table or column"
        return MedlockSchemaError(
            f"Medlock lacks {what} that the queries in include/sql/medlock read: adapt the query to this MIS"
            " (docs/data-contract.md)."
        )
    if state == "42501":
        return MedlockRefusedError(
            f"The user of the connection {conn_id} may not read a table of Medlock: grant it SELECT on the schema"
            " medlock."
        )
    if state.startswith(("22", "42")) or "invalid input syntax" in text:
        return MedlockSchemaError(
            f"A query of include/sql/medlock fails on Medlock's data (SQLSTATE {state or 'unknown'}): a column has"
            " another type than the contract says, or a cast fails on some row (docs/data-contract.md)."
        )
    if state in ("55P03", "57014"):
        return MedlockSlowError(
            "Medlock's database kept a query waiting for too long: look whether a table is locked there, or the server"
            f" of the connection {conn_id} is overloaded."
        )
    if state == "53300" or has_no_room(error):
        return MedlockUnavailableError(
            "Medlock's database takes no more connections: let fewer tasks run at once, or raise max_connections of the"
            f" server of the connection {conn_id} (docs/capacity.md)."
        )
    if state == "25006":
        return MedlockRefusedError(
            f"Medlock's database takes no writes (SQLSTATE 25006), since it is a standby or set to read only: point the"
            f" connection {conn_id} at the primary."
        )
    return MedlockUnavailableError(
        f"Medlock's database does not answer or broke off: check that the server of the connection {conn_id} is up and"
        " reachable from the workers."
    )
