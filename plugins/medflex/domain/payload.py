"""What is sent of an appointment, field by field (R5), and its keyed digest."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.phone import normalise_phones
from medflex.domain.status import map_status
from medflex.domain.text import fold
from medflex.domain.window import zone_or_none

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
_MISSING = "\x00"  # Postgres stores no NUL, so no name can be mistaken for a missing one.


def build_payload(rows: pd.DataFrame, clinics: pd.DataFrame, digest_key: bytes) -> pd.DataFrame:
    """Turn eligible rows into what is sent.

    rows: ROWS, eligible ones only. clinics: CLINICS with these rows' clinics. Returns PAYLOAD with the index of the
    rows: times are clinic-local and cut to the minute, ``time_offset`` is minutes east of UTC at the start of the
    appointment, a status that Medlock leaves empty has ``mis_status`` "", as the contract wants a text. Raises
    ValueError when a row cannot have been eligible (unknown clinic, zone, phone, name, doctor), naming the field only.
    """
    position = pd.Index(clinics["clinic_id"].to_numpy("int64")).get_indexer(rows["clinic_id"].to_numpy("int64"))
    if (position < 0).any():
        raise ValueError("A row's clinic is not among the clinics: build the payload of eligible rows only.")
    partners = pd.array([",".join(map(str, sorted(set(ids)))) for ids in clinics["partner_ids"]], dtype="str")
    starts, offset = _local(rows["starts_at"], clinics["timezone"], position)
    ends, _ = _local(rows["ends_at"], clinics["timezone"], position)
    status, _ = map_status(rows["status"])
    phone, _, _ = normalise_phones(rows["phone"])
    payload = pd.DataFrame(
        {
            "clinic_id": rows["clinic_id"].astype("int64"),
            "id": rows["appointment_id"].astype("int64"),
            "doctor_id": rows["doctor_id"],
            "dt_start": starts,
            "dt_end": ends,
            "time_offset": offset,
            "status": status,
            "mis_status": rows["status"].astype("str").fillna(""),
            "entry": rows["entry"].astype("str"),
            "partners": pd.Series(partners.take(position), index=rows.index, dtype="str"),
            "first_name": fold(rows["first_name"]),
            "second_name": fold(rows["patronymic"]),
            "mobile_phone": phone,
        },
        index=rows.index,
    )
    for field in ("doctor_id", "entry", "first_name", "mobile_phone"):
        if payload[field].isna().any():
            raise ValueError(f"A row has no {field}: build the payload of eligible rows only.")
    payload["doctor_id"] = payload["doctor_id"].astype("int64")
    payload["digest"] = digest(payload, digest_key)
    return payload[list(PAYLOAD_COLUMNS)]


def to_records(payload: pd.DataFrame, versions: Sequence[int]) -> list[dict[str, Any]]:
    """The contract's records, in the order of the payload. versions: one per row, else ValueError."""
    partners = {text: [int(partner) for partner in text.split(",")] for text in payload["partners"].unique() if text}
    columns = [payload[column].tolist() for column in DIGEST_COLUMNS if column not in ("partners", "second_name")]
    second_names = payload["second_name"].astype(object).where(payload["second_name"].notna(), None).tolist()
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
        ) in zip(
            zip(*columns, strict=True), second_names, payload["partners"].tolist(), map(int, versions), strict=True
        )
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
    if len(digest_key) < 16:
        raise ValueError("The digest key is shorter than 16 bytes: set MEDFLEX_DIGEST_KEY to a longer random secret.")
    mixed = np.zeros(len(payload), dtype=np.uint64)
    for column in DIGEST_COLUMNS:
        key = blake2b(column.encode(), key=digest_key[:64], digest_size=16).digest()
        mixed ^= _of_integers(payload[column], key) if column in _INTEGERS else _of_texts(payload[column], key)
    final = blake2b(b"record", key=digest_key[:64], digest_size=16).digest()
    return pd.Series(_mix(mixed, final).view(np.int64), index=payload.index, name="digest")


def _of_texts(texts: pd.Series, key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    codes, distinct = pd.factorize(texts)
    # pandas takes the key as text of 16 bytes in UTF-8: 7 bits of each byte, 112 bits in all.
    ascii_key = bytes(byte & 0x7F for byte in key).decode("ascii")
    values = np.array([*distinct, _MISSING], dtype=object)
    return np.asarray(pd.util.hash_array(values, hash_key=ascii_key, categorize=False)[codes])


def _of_integers(integers: pd.Series, key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return _mix(integers.to_numpy("int64").view(np.uint64), key)


def _mix(values: np.ndarray[Any, np.dtype[np.uint64]], key: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Scramble 64-bit values by two key words, each followed by the finaliser of SplitMix64; one to one."""
    for word in np.frombuffer(key, dtype="<u8"):
        values = values ^ word
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        values = values ^ (values >> np.uint64(31))
    return values


def _local(instants: pd.Series, zones: pd.Series, position: np.ndarray[Any, Any]) -> tuple[pd.Series, pd.Series]:
    """Clinic-local times as "YYYY-MM-DD hh:mm" and their offsets in minutes east of UTC (int16).

    position: for each instant, which of the zones is its own. ValueError for an unknown zone or a missing instant.
    """
    if instants.isna().any():
        raise ValueError(f"A row has no {instants.name}: build the payload of eligible rows only.")
    zone_codes, names = pd.factorize(zones.astype("str"))
    of_row = zone_codes[position]
    texts = np.empty(len(instants), dtype=object)
    offsets = np.zeros(len(instants), dtype=np.int16)
    utc = instants.astype("datetime64[us, UTC]").dt.tz_localize(None).to_numpy()
    for code in np.unique(of_row):
        zone = zone_or_none(names[code]) if code >= 0 else None
        if zone is None:
            raise ValueError("A row's clinic has no known time zone: build the payload of eligible rows only.")
        here = of_row == code
        # Appointments start on few distinct minutes, so only these are converted.
        inverse, distinct = pd.factorize(utc[here])
        local = pd.DatetimeIndex(distinct).tz_localize("UTC").tz_convert(zone).tz_localize(None).to_numpy()
        text = pd.Series(np.datetime_as_string(local, unit="m"), dtype="str").str.slice_replace(10, 11, " ")
        texts[here] = text.to_numpy(dtype=object)[inverse]
        offsets[here] = ((local - distinct) // np.timedelta64(1, "m")).astype(np.int16)[inverse]
    return pd.Series(texts, index=instants.index, dtype="str"), pd.Series(offsets, index=instants.index)
