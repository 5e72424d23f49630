"""A request's body, made column by column, says what the records made one by one say."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from medflex.airflow.encoding import batch_body, record_tails
from medflex.domain.payload import build_payload, to_records
from tests.domain.frames import KEY, clinics, rows

HUGE = 2**53 + 1
# Postgres stores no NUL, and UTF-8 knows no surrogates.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
RECORD = build_payload(rows({}), clinics({}), KEY)


def payload_of(*changed: dict[str, Any]) -> pd.DataFrame:
    """The payload of one appointment, with these changes each."""
    payload = RECORD.loc[RECORD.index.repeat(len(changed))].reset_index(drop=True)
    for name in {name for change in changed for name in change}:
        values = [change.get(name, RECORD[name].iloc[0]) for change in changed]
        payload[name] = pd.array(values, dtype=RECORD[name].dtype)
    return payload


def body_of(payload: pd.DataFrame, versions: list[int]) -> Any:
    return orjson.loads(
        batch_body(40001, payload["id"].to_numpy("int64"), np.array(versions, dtype="int64"), record_tails(payload))
    )


CHANGES = st.fixed_dictionaries(
    {
        "id": st.integers(1, HUGE),
        "doctor_id": st.integers(1, HUGE),
        "first_name": texts,
        "second_name": st.none() | texts,
    },
    optional={"mis_status": texts, "partners": st.sampled_from(["", "3", f"3,{HUGE}"])},
)


@given(st.lists(CHANGES, min_size=1, max_size=5))
def test_the_body_is_that_of_the_records(changed: list[dict[str, Any]]) -> None:
    payload = payload_of(*changed)
    versions = [HUGE + number for number in range(len(payload))]
    assert body_of(payload, versions) == {"lpu_id": 40001, "records": to_records(payload, versions)}


def test_what_json_escapes_is_escaped_beside_what_it_leaves() -> None:
    names = ['"', "\\", "\u2028", "Анна\x1fМария", '","mobile_phone":"70000000000', "😀", "\x7f", "Анна"]
    body = body_of(payload_of(*({"first_name": name} for name in names)), [1] * len(names))
    assert [record["client"]["first_name"] for record in body["records"]] == names


def test_of_no_records_there_are_no_texts() -> None:
    none = np.array([], dtype="int64")
    assert record_tails(payload_of()).to_pylist() == []
    assert orjson.loads(batch_body(40001, none, none, record_tails(payload_of()))) == {"lpu_id": 40001, "records": []}
