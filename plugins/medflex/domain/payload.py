"""What is sent of an appointment, field by field (R5), and its keyed digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.phone import normalise_phones
from medflex.domain.status import map_status
from medflex.domain.text import fold
from medflex.domain.window import utc_instants, zone_or_none

PAYLOAD_COLUMNS: tuple[str, ...] = (
    "clinic_id",
    "id",
    "doctor_id",
    "dt_start",
    "dt_end",
    "time_offset",
    "status",
    "mis_status",
    "entry",
    "partners",
    "first_name",
    "second_name",
    "mobile_phone",
    "digest",
)
"""The columns of PAYLOAD, in order."""

DIGEST_COLUMNS: tuple[str, ...] = tuple(column for column in PAYLOAD_COLUMNS if column not in ("clinic_id", "digest"))
"""What a digest covers: all that Medflex sees of a record, but its version."""

_INTEGERS = frozenset({"id", "doctor_id", "time_offset"})
_MINUTES_OF_DAY: Any = pd.array([f" {minute // 60:02}:{minute % 60:02}" for minute in range(24 * 60)], dtype="str")
_MISSING = "\x00"  # Postgres stores no NUL, so no name can be mistaken for a missing one.


def build_payload(
    rows: pd.DataFrame, clinics: pd.DataFrame, digest_key: bytes, phones: pd.Series | None = None
) -> pd.DataFrame:
    """Turn eligible rows into what is sent.

    rows: ROWS, eligible ones only. clinics: CLINICS with these rows' clinics. phones: the rows' phones in digits, in
    their order, where ``normalise_phones`` was asked before. Returns PAYLOAD with the index of the
    rows: times are clinic-local and cut to the minute, ``time_offset`` is minutes east of UTC at the start of the
    appointment, a status that Medlock leaves empty has ``mis_status`` "", as the contract wants a text. Raises
    ValueError when a row cannot have been eligible (unknown clinic, zone, phone, name, doctor), naming the field only.
    """
    clinic_ids = rows["clinic_id"].to_numpy("int64")
    position = pd.Index(clinics["clinic_id"].to_numpy("int64")).get_indexer(clinic_ids)
    if (position < 0).any():
        raise ValueError("A row's clinic is not among the clinics: build the payload of eligible rows only.")
    partners = pd.array([",".join(map(str, sorted(set(ids)))) for ids in clinics["partner_ids"]], dtype="str")
    starts, ends, offset = _local(rows, clinics["timezone"].tolist(), position)
    # Arrays, not columns with an index: one frame is put together at the end.
    fields: dict[str, Any] = {
        "clinic_id": clinic_ids,
        "id": rows["appointment_id"].to_numpy("int64"),
        "doctor_id": rows["doctor_id"].array,
        "dt_start": starts,
        "dt_end": ends,
        "time_offset": offset,
        "status": map_status(rows["status"])[0].array,
        "mis_status": _texts(rows["status"]).fillna(""),
        "entry": _texts(rows["entry"]),
        "partners": partners.take(position),
        "first_name": fold(rows["first_name"]).array,
        "second_name": fold(rows["patronymic"]).array,
        "mobile_phone": (normalise_phones(rows["phone"])[0] if phones is None else phones).array,
    }
    for field in ("doctor_id", "entry", "first_name", "mobile_phone"):
        if fields[field].isna().any():
            raise ValueError(f"A row has no {field}: build the payload of eligible rows only.")
    fields["doctor_id"] = fields["doctor_id"].to_numpy("int64")
    fields["digest"] = _digests(fields, len(rows), digest_key)
    return pd.DataFrame(fields, index=rows.index)


def to_records(payload: pd.DataFrame, versions: Sequence[int]) -> list[dict[str, Any]]:
    """The contract's records, in the order of the payload. versions: one per row, else ValueError."""
    # By way of objects: an array of texts is listed text by text, each from Arrow.
    columns = [
        payload[column].to_numpy(None if column in _INTEGERS else object).tolist()
        for column in DIGEST_COLUMNS
        if column not in ("partners", "second_name")
    ]
    second_name = payload["second_name"].to_numpy(object)
    second_name[payload["second_name"].isna().to_numpy()] = None
    second_names = second_name.tolist()
    partner_texts = payload["partners"].to_numpy(object).tolist()
    partners = {text: [int(partner) for partner in text.split(",")] for text in set(partner_texts) if text}
    return [
        {
            "id": id_,
            "version": version,
            "doctor_id": doctor_id,
            "dt_start": dt_start,
            "dt_end": dt_end,
            "time_offset": time_offset,
            "status": status,
            "mis_status": mis_status,
            "entry": entry,
            "partners": [*partners.get(partner_text, ())],
            "client": {"first_name": first_name, "second_name": second_name, "mobile_phone": mobile_phone},
        }
        for (
            (id_, doctor_id, dt_start, dt_end, time_offset, status, mis_status, entry, first_name, mobile_phone),
            second_name,
            partner_text,
            version,
        ) in zip(zip(*columns, strict=True), second_names, partner_texts, map(int, versions), strict=True)
    ]


def digest(payload: pd.DataFrame, digest_key: bytes) -> pd.Series:
    """One keyed 64-bit fingerprint per record, over DIGEST_COLUMNS; int64, with the index of the payload.

    It tells whether what would be sent is what was acknowledged. It takes the key to compute it: whoever reads the
    ledger cannot find a phone by trying all numbers. Texts go through SipHash (pandas' ``hash_array``) and integers
    through a keyed mix, with a key of its own for each column, so that equal values in two columns differ; the id is
    covered, so that two appointments of one patient do not look alike. A golden-value test pins the function: should a
    new pandas hash otherwise, every record would be sent again, and nobody would know why. Raises ValueError when the
    key is shorter than 16 bytes.
    """
    fields = {column: payload[column].array for column in DIGEST_COLUMNS}
    return pd.Series(_digests(fields, len(payload), digest_key), index=payload.index, name="digest")


def _digests(fields: Mapping[str, Any], length: int, digest_key: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    if len(digest_key) < 16:
        raise ValueError("The digest key is shorter than 16 bytes: set MEDFLEX_DIGEST_KEY to a longer random secret.")
    mixed = np.zeros(length, dtype=np.uint64)
    for column in DIGEST_COLUMNS:
        key = blake2b(column.encode(), key=digest_key[:64], digest_size=16).digest()
        mixed ^= _of_integers(fields[column], key) if column in _INTEGERS else _of_texts(fields[column], key)
    final = blake2b(b"record", key=digest_key[:64], digest_size=16).digest()
    return _mix(mixed, final).view(np.int64)


def _of_texts(texts: Any, key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    codes, distinct = pd.factorize(texts)
    # pandas takes the key as text of 16 bytes in UTF-8: 7 bits of each byte, 112 bits in all.
    ascii_key = bytes(byte & 0x7F for byte in key).decode("ascii")
    # Not by np.append: it would make an array of text of the appended one, and these lose a NUL at the end.
    values = np.array([*distinct.tolist(), _MISSING], dtype=object)
    return np.asarray(pd.util.hash_array(values, hash_key=ascii_key, categorize=False)[codes])


def _of_integers(integers: Any, key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return _mix(np.asarray(integers, dtype=np.int64).view(np.uint64), key)


def _mix(values: np.ndarray[Any, np.dtype[np.uint64]], key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Scramble 64-bit values by two key words, each followed by the finaliser of SplitMix64; one to one."""
    for word in np.frombuffer(key, dtype="<u8"):
        values = values ^ word
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        values = values ^ (values >> np.uint64(31))
    return values


def _local(rows: pd.DataFrame, zones: list[Any], position: np.ndarray[Any, Any]) -> tuple[Any, Any, Any]:
    """Clinic-local starts and ends as "YYYY-MM-DD hh:mm" (str) and minutes east of UTC at the start (int16).

    zones: the names of the clinics' zones. position: for each row, which of the clinics is its own. ValueError for an
    unknown zone or a missing instant.
    """
    utc = np.concatenate([utc_instants(rows[name]) for name in ("starts_at", "ends_at")])
    for name, half in zip(("starts_at", "ends_at"), np.split(utc, 2), strict=True):
        if np.isnat(half).any():
            raise ValueError(f"A row has no {name}: build the payload of eligible rows only.")
    # Clinics of one zone have one code, however many they are.
    codes = {name: code for code, name in enumerate(dict.fromkeys(zones))}
    of_row = np.tile(np.array([codes[name] for name in zones], dtype=np.int64)[position], 2)
    minutes = np.zeros(len(utc), dtype=np.int64)
    offsets = np.zeros(len(utc), dtype=np.int16)
    for name, code in codes.items():
        here = np.flatnonzero(of_row == code)
        if not len(here):
            continue
        zone = zone_or_none(name)
        if zone is None:
            raise ValueError("A row's clinic has no known time zone: build the payload of eligible rows only.")
        # Many appointments start at the same instant, so only different ones are converted.
        inverse, distinct = pd.factorize(utc[here])
        local = pd.DatetimeIndex(distinct).tz_localize("UTC").tz_convert(zone).tz_localize(None).to_numpy()
        minutes[here] = local.astype("datetime64[m]").astype(np.int64)[inverse]
        offsets[here] = ((local - distinct) // np.timedelta64(1, "m")).astype(np.int16)[inverse]
    starts, ends = (_written(half) for half in np.split(minutes, 2))
    return starts, ends, offsets[: len(rows)]


def _written(minutes: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Minutes since 1970 as "YYYY-MM-DD hh:mm" (str), put together of a day's and a minute's text."""
    days, of_day = np.divmod(minutes, len(_MINUTES_OF_DAY))
    codes, distinct = pd.factorize(days)
    texts = pd.array(np.datetime_as_string(distinct.astype("datetime64[D]")).astype(object), dtype="str")
    return texts.take(codes) + _MINUTES_OF_DAY.take(of_day)


def _texts(column: pd.Series) -> Any:
    return (column if column.dtype == "str" else column.astype("str")).array
