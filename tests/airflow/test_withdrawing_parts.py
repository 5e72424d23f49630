"""Withdrawals look Medlock's answer up part by part: whatever the parts, the same is found. Without any server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from medflex.airflow import withdrawing
from medflex.airflow.withdrawing import Withdrawer
from medflex.domain.access import judge_access
from medflex.domain.revocations import aged, find_revocations
from medflex.domain.window import clinic_windows
from medflex.ledger.withdrawals import KEY
from tests.airflow.test_loading import FakeClock
from tests.domain.frames import NOW, clinics
from tests.domain.test_revocations import A_CLINIC, APPOINTMENT, HUGE, RECORD, STARTS_FROM, key, live, patients, present

Row = Mapping[str, Any]
BIG = {100: HUGE, 101: HUGE - 1, 102: -5, 103: 103}
"""Ids that a float cannot tell apart, and one below zero."""


class AnsweringMedlock:
    """Answers from frames, so many rows at a time."""

    def __init__(self, rows: pd.DataFrame, judged: pd.DataFrame, said: pd.DataFrame, rows_at_once: int) -> None:
        self.rows, self.judged, self.said, self.rows_at_once = rows, judged, said, rows_at_once
        self.asked: list[tuple[int, int]] = []
        self.patients: set[int] = set()

    def clinics(self, clinic_ids: Sequence[int] | None, now: datetime) -> pd.DataFrame:
        return self.judged[self.judged["clinic_id"].isin(clinic_ids or [])].reset_index(drop=True)

    @contextmanager
    def stream_appointments_now(self, clinic_ids: Any, appointment_ids: Any, rows: int) -> Iterator[Iterator[pa.Table]]:
        self.asked += zip(clinic_ids.tolist(), appointment_ids.tolist(), strict=True)
        pairs = zip(self.rows["clinic_id"].tolist(), self.rows["appointment_id"].tolist(), strict=True)
        there = self.rows[np.array([pair in self.asked for pair in pairs], dtype=bool)]
        answer = pa.Table.from_pandas(there, preserve_index=False)
        starts = range(0, max(len(there), 1), self.rows_at_once)
        yield (answer.slice(start, self.rows_at_once) for start in starts)

    def appointments_elsewhere(self, appointment_ids: Sequence[int]) -> None:
        """Of what is gone nobody says anything."""

    def patients_now(self, patient_ids: Sequence[int]) -> pd.DataFrame:
        self.patients |= set(patient_ids)
        return self.said[self.said["patient_id"].isin(patient_ids)].reset_index(drop=True)


def judge(medlock: AnsweringMedlock, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge LIVE as a sweep does."""
    nobody: Any = SimpleNamespace(settings=SimpleNamespace(base_url="http://medflex"))
    writer = Withdrawer(
        client=nobody, medlock=medlock, ledger=nobody, clock=FakeClock(NOW), holder="test", run_key=None
    )
    return writer._judge(records, NOW)


def by_key(records: pd.DataFrame) -> pd.DataFrame:
    return records.sort_values(list(KEY), ignore_index=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(RECORD, min_size=1, max_size=9, unique_by=lambda item: (*key(item), item["lpu_id"])),
    st.lists(APPOINTMENT, max_size=9, unique_by=key),
    st.dictionaries(st.sampled_from([1, 2]), A_CLINIC),
    st.sampled_from([True, False, None]),
    st.integers(1, 9),
)
def test_parts_of_any_size_find_what_one_look_at_everything_finds(
    shown: list[Row], now: list[Row], of: dict[int, Row], refused: bool | None, rows_at_once: int
) -> None:
    """With appointments under two lpu_ids, ids that two clinics have, rows and patients that are gone."""
    records = live(*({**record, "appointment_id": BIG[record["appointment_id"]]} for record in shown))
    rows = present(*({**row, "appointment_id": BIG[row["appointment_id"]]} for row in now))
    judged = judge_access(clinics(*({**clinic, "clinic_id": key} for key, clinic in sorted(of.items()))), NOW)
    windows = clinic_windows(judged, NOW, NOW, cut_to_today=False)
    said = patients({"refused_marketing": refused}, {"patient_id": 8})
    medlock = AnsweringMedlock(rows, judged, said, rows_at_once)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(withdrawing, "_PRESENT_ROWS", rows_at_once)
        found, behind = judge(medlock, records.copy())

    expected = find_revocations(records, rows, judged, windows, patients=said)
    assert_frame_equal(by_key(found), by_key(expected))
    left = aged(records, rows, windows)
    revoked = set(expected[list(KEY)].itertuples(index=False, name=None))
    stays = [record not in revoked for record in left[list(KEY)].itertuples(index=False, name=None)]
    assert_frame_equal(by_key(behind), by_key(left[np.array(stays, dtype=bool)]))

    # Each is asked for once, in the order of the ledger.
    pairs = list(zip(records["clinic_id"].tolist(), records["appointment_id"].tolist(), strict=True))
    assert medlock.asked == list(dict.fromkeys(pairs))
    found_rows = rows[rows["patient_found"].fillna(False).astype(bool)]
    led_to = set(zip(found_rows["clinic_id"].tolist(), found_rows["appointment_id"].tolist(), strict=True))
    of_records = zip(pairs, records["patient_id"].tolist(), strict=True)
    assert medlock.patients == {patient for pair, patient in of_records if pair not in led_to and not pd.isna(patient)}


def test_what_is_found_is_in_the_order_of_the_ledger_and_then_what_is_gone() -> None:
    refusing = {"refused_marketing": True}
    records = live(*({"appointment_id": id_, "lpu_id": lpu} for id_, lpu in [(9, 1001), (5, 7), (8, 1001), (5, 1001)]))
    rows = present(*({"appointment_id": id_, **refusing} for id_ in (5, 9)))
    medlock = AnsweringMedlock(rows, judge_access(clinics({}), NOW), patients({}), rows_at_once=2)
    found, _ = judge(medlock, records)
    assert found[["appointment_id", "lpu_id"]].to_numpy().tolist() == [[9, 1001], [5, 7], [5, 1001], [8, 1001]]


@pytest.mark.parametrize("refused", [False, True])
def test_what_left_the_window_by_time_ages_unless_it_is_revoked(refused: bool) -> None:
    rows = present({"starts_at": STARTS_FROM - timedelta(hours=1), "refused_marketing": refused})
    medlock = AnsweringMedlock(rows, judge_access(clinics({}), NOW), patients({}), rows_at_once=2)
    found, behind = judge(medlock, live({}))
    assert found["appointment_id"].tolist() == ([100] if refused else [])
    assert behind["appointment_id"].tolist() == ([] if refused else [100])


def test_a_part_is_looked_up_in_the_records_that_it_has_and_not_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million records are answered in twenty parts: all of them for each part were ten million."""
    number = 300
    looked_up = []
    original = withdrawing.positions

    def counting(part: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        looked_up.append(len(part))
        return original(part, rows)

    monkeypatch.setattr(withdrawing, "positions", counting)
    monkeypatch.setattr("medflex.domain.revocations.positions", counting)
    ids = np.random.default_rng(5).permutation(number)
    rows = present(*({"appointment_id": int(id_)} for id_ in ids))
    medlock = AnsweringMedlock(rows, judge_access(clinics({}), NOW), patients({}), rows_at_once=10)
    judge(medlock, live(*({"appointment_id": id_} for id_ in range(number))))
    assert looked_up == [10] * 30
