"""The contract's records as JSON text, column by column: to build each as an object takes longer than to send it.

What is built here equals what :func:`medflex.domain.payload.to_records` says; a test holds the two together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_TO_ESCAPE = r'["\\\x00-\x1f]'
_TEXT = pa.string()


def record_tails(payload: pd.DataFrame) -> pa.StringArray:
    """Return of each record of PAYLOAD its JSON text behind the version: all that stays the same when it is sent again.

    ``f'{{"id":{id},"version":{version}{tail}'`` is the whole record.
    """
    number, text = _number, _text
    return pc.binary_join_element_wise(
        ',"doctor_id":',
        number(payload["doctor_id"]),
        ',"dt_start":',
        text(payload["dt_start"]),
        ',"dt_end":',
        text(payload["dt_end"]),
        ',"time_offset":',
        number(payload["time_offset"]),
        ',"status":',
        text(payload["status"]),
        ',"mis_status":',
        text(payload["mis_status"]),
        ',"entry":',
        text(payload["entry"]),
        ',"partners":[',
        _array(payload["partners"]),
        '],"client":{"first_name":',
        text(payload["first_name"]),
        ',"second_name":',
        text(payload["second_name"]),
        ',"mobile_phone":',
        text(payload["mobile_phone"]),
        "}}",
        "",
    )


def batch_body(lpu_id: int, ids: np.ndarray[Any, Any], versions: np.ndarray[Any, Any], tails: pa.StringArray) -> bytes:
    """Return the body of a request that sends these records, as JSON.

    Args:
        ids, versions: int64, of the records whose ``tails`` these are.
    """
    records = pc.binary_join_element_wise('{"id":', _digits(ids), ',"version":', _digits(versions), tails, ",", "")
    # The texts lie one behind the other as they are to leave, so none of them becomes an object; the last comma is
    # one too many.
    _, offsets, texts = records.buffers()
    length = int(np.frombuffer(offsets, dtype=np.int32)[len(records)]) - 1 if len(records) else 0
    return b"".join((f'{{"lpu_id":{lpu_id},"records":['.encode(), memoryview(texts)[:length] if length else b"", b"]}"))


def _array(column: pd.Series) -> Any:
    array = pa.array(column, from_pandas=True).cast(_TEXT)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _number(column: pd.Series) -> Any:
    return _digits(column.to_numpy("int64"))


def _digits(integers: np.ndarray[Any, Any]) -> Any:
    return pc.cast(pa.array(integers), _TEXT)


def _text(column: pd.Series) -> Any:
    """A JSON string each, ``null`` where it is missing. Each distinct text is looked at once."""
    encoded = pc.dictionary_encode(_array(column))
    texts = encoded.dictionary
    if pc.any(pc.match_substring_regex(texts, _TO_ESCAPE)).as_py():
        quoted = pa.array([orjson.dumps(item).decode() for item in texts.to_pylist()], type=_TEXT)
    else:
        quoted = pc.binary_join_element_wise('"', texts, '"', "")
    return pc.fill_null(pc.take(quoted, encoded.indices), "null")
