"""The loader against a real ledger, a real Medlock and the real sandbox Medflex with its faults switched on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from urllib3.util import connection

from medflex.airflow.columns import Columns
from medflex.airflow.hooks.medflex import SEND_PATH, MedflexClient, NotProcessedError
from medflex.airflow.loading import LOAD_COLUMNS, Loader, LoadResult, _Known
from medflex.airflow.withdrawing import Withdrawer
from medflex.airflow.writing import LOOK_SECONDS, Batch, Delivery
from medflex.arrow import to_pandas
from medflex.clock import SystemClock
from medflex.domain.eligibility import judge
from medflex.domain.payload import build_payload
from medflex.domain.window import clinic_windows
from medflex.errors import (
    LeaseHeldError,
    LedgerUnavailableError,
    MedflexContractError,
    MedflexRefusedError,
    MedflexUnavailableError,
    MedlockSlowError,
    VersionsOutdatedError,
)
from medflex.ledger.store import Ledger, Resolution
from sandbox.medflex.faults import Match
from tests.airflow.world import DIGEST_KEY, World

EXTRACTED_AT = datetime(2026, 11, 22, tzinfo=UTC)
NUMBERS = ("accepted", "rejected", "to_retry", "unknown", "dropped")


class FakeClock:
    """A clock that only moves when it is slept on."""

    def __init__(self, now: datetime | None = None) -> None:
        self.time = now or datetime.now(UTC)
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.time += timedelta(seconds=seconds)


@pytest.fixture
def filled(filled_world: World) -> World:
    """600 appointments of three clinics, all open."""
    return filled_world


def planned(world: World) -> pd.DataFrame:
    """Return the eligible records of all clinics, ready to be loaded."""
    now = datetime.now(UTC)
    with world.parts() as (medlock, _, _):
        clinics = medlock.clinics(None, now)
        windows = clinic_windows(clinics, now, now, cut_to_today=False)
        with medlock.stream_appointments(windows) as batches:
            rows = pd.concat([to_pandas(batch, ("patient_id", "doctor_id")) for batch in batches], ignore_index=True)
        eligible = rows[judge(rows, clinics).eligible]
        payload = build_payload(eligible, clinics, DIGEST_KEY.encode())
        payload["patient_id"] = eligible["patient_id"].astype("int64")
        payload["lpu_id"] = payload["clinic_id"].map(clinics.set_index("clinic_id")["lpu_id"]).astype("int64")
        return payload[list(LOAD_COLUMNS)]


def of_largest(records: pd.DataFrame) -> pd.DataFrame:
    """Return those of the clinic that has the most, by id, which is how batches are made.

    Which clinic is read first changes in the hour before a midnight: what ``see_to_midnights`` moves is read last.
    """
    return records[records["clinic_id"] == records["clinic_id"].mode()[0]].sort_values("id")


def load(world: World, records: pd.DataFrame, *, holder: str = "test/0", **settings: Any) -> LoadResult:
    """Load records with a new loader, as a task would; ``chunks`` gives them otherwise than in pieces of ``chunk``."""
    clock = settings.pop("clock", None) or SystemClock()
    resync = settings.pop("resync", False)
    chunk = settings.pop("chunk", 137)
    chunks = settings.pop("chunks", None)
    extracted_at = settings.pop("extracted_at", EXTRACTED_AT)
    with world.parts(**settings) as (medlock, ledger, client):
        loader = Loader(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=clock,
            holder=holder,
            run_key=None,
            extracted_at=extracted_at,
            resync=resync,
        )
        clinics = sorted(records["clinic_id"].unique().tolist())
        return loader.load(
            clinics, chunks or (lambda: (records.iloc[at : at + chunk] for at in range(0, len(records), chunk)))
        )


def totals(result: LoadResult) -> dict[str, int]:
    frame = result.frame(result.numbers)
    return {name: int(frame[name].sum()) if len(frame) else 0 for name in NUMBERS}


def only(**numbers: int) -> dict[str, int]:
    return dict.fromkeys(NUMBERS, 0) | numbers


@pytest.mark.parametrize(("batch_size", "chunk", "parallel"), [(500, 50, 4), (7, 13, 3), (1, 1000, 4), (100, 100, 1)])
def test_every_record_arrives_once_whatever_the_sizes(
    filled: World, batch_size: int, chunk: int, parallel: int
) -> None:
    records = planned(filled).head(150)
    result = load(filled, records, batch_size=batch_size, chunk=chunk, parallel=parallel)
    assert totals(result) == only(accepted=len(records))
    assert not result.problems
    shown = filled.control.records()
    assert {record_id for _, record_id in shown} == set(records["id"])
    assert {record["version"] for record in shown.values()} == {1}
    full = [item["records"] for item in filled.control.request_log() if item["method"] == "POST"]
    # No clinic leaves more than one batch that is not full.
    assert sum(size < batch_size for size in full) <= records["clinic_id"].nunique()


def test_what_is_sent_for_the_first_time_is_written_down_as_such_and_nothing_else(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_first: list[bool] = []
    original = Ledger.resolve_together

    def resolve_together(ledger: Ledger, resolutions: Sequence[Resolution]) -> list[bool]:
        is_first.extend(resolution.is_first for resolution in resolutions)
        return original(ledger, resolutions)

    monkeypatch.setattr(Ledger, "resolve_together", resolve_together)
    records = planned(filled)
    load(filled, records)
    assert is_first
    assert all(is_first)
    is_first.clear()
    load(filled, records, resync=True)
    assert is_first
    assert not any(is_first)


def test_what_is_held_of_clinics_is_let_go_behind_their_slice(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    records = planned(filled)
    asked: list[list[int]] = []
    really = Ledger.known

    def known(ledger: Ledger, clinic_ids: Sequence[int]) -> pd.DataFrame:
        asked.append(list(clinic_ids))
        return really(ledger, clinic_ids)

    monkeypatch.setattr(Ledger, "known", known)
    first, second, third = sorted(records["clinic_id"].unique().tolist())
    of = {key: records[records["clinic_id"] == key] for key in (first, second, third)}
    slices: list[pd.DataFrame | None] = [
        of[first].iloc[:30], pd.concat([of[first].iloc[30:], of[second]]), None, of[third].iloc[:5], of[third].iloc[5:]
    ]  # fmt: skip
    cut: list[int] = []
    really_cut = Loader._batch

    def batch(loader: Loader, clinic_id: int, *rest: Any) -> Any:
        cut.append(clinic_id)
        return really_cut(loader, clinic_id, *rest)

    monkeypatch.setattr(Loader, "_batch", batch)
    held: list[set[int]] = []
    really_look_up = _Known.look_up

    def look_up(known: _Known, *of: Any) -> Any:
        held.append({clinic_id for clinic_id, _ in known._of})
        return really_look_up(known, *of)

    monkeypatch.setattr(_Known, "look_up", look_up)

    def chunks() -> Iterator[pd.DataFrame | None]:
        for number, chunk in enumerate(slices):
            if number == 3:
                # Nothing waits for more of the first two any more.
                assert cut == [first, second]
            yield chunk

    assert totals(load(filled, records, chunks=chunks, parallel=1)) == only(accepted=len(records))
    assert cut == [first, second, third]
    # Each clinic's records are read once, with the first of its own.
    assert asked == [[first], [second], [third]]
    asked.clear()
    cut.clear()
    held.clear()
    before = filled.sent()
    assert totals(load(filled, records, chunks=chunks, parallel=1)) == only(accepted=len(records))
    assert filled.sent() == before
    assert asked == [[first], [second], [third]]
    assert held == [{first, second}, {first, second}, {third}]


def test_a_ledger_that_goes_away_in_the_middle_leaves_the_rest_and_loses_no_number(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = planned(filled)
    first, second, third = sorted(records["clinic_id"].unique().tolist())
    of = {key: records[records["clinic_id"] == key] for key in (first, second, third)}
    really = Ledger.known

    def known(ledger: Ledger, clinic_ids: Sequence[int]) -> pd.DataFrame:
        if second in clinic_ids:
            raise LedgerUnavailableError("gone")
        return really(ledger, clinic_ids)

    def chunks() -> Iterator[pd.DataFrame | None]:
        # The first clinic's batches have left before the second one's records are asked for.
        for key in (first, second, third):
            yield from (of[key], None)

    monkeypatch.setattr(Ledger, "known", known)
    result = load(filled, records, chunks=chunks, parallel=1, batch_size=5)
    numbers = totals(result)
    # Batches are gathered before they leave: of the first clinic's, fewer than a group are left with the rest.
    assert numbers == only(accepted=numbers["accepted"], to_retry=len(records) - numbers["accepted"])
    assert 0 < len(of[first]) - Loader.together * 5 < numbers["accepted"] <= len(of[first])
    assert [type(problem) for problem in result.problems] == [LedgerUnavailableError]
    # No version was given to what nothing was known of.
    shown = filled.control.records()
    assert {record["version"] for record in shown.values()} == {1}
    assert {key[1] for key in shown} <= set(of[first]["id"])
    monkeypatch.setattr(Ledger, "known", really)
    assert totals(load(filled, records, chunks=chunks)) == only(accepted=len(records))
    assert {record["version"] for record in filled.control.records().values()} == {1}


def test_what_is_acknowledged_is_not_sent_again_but_a_resync_is(filled: World) -> None:
    records = planned(filled)
    load(filled, records)
    before = filled.sent()
    assert totals(load(filled, records)) == only(accepted=len(records))
    assert filled.sent() == before
    load(filled, records, resync=True)
    assert {record["version"] for record in filled.control.records().values()} == {2}


def test_intents_are_durable_before_the_first_byte_and_resolved_after(filled: World) -> None:
    records = planned(filled)
    filled.control.add_fault("timeout_before_effect", seconds=1)
    result = load(filled, records, timeout=0.3, attempts=1, parallel=1)
    assert totals(result)["unknown"] > 0
    assert filled.read_ledger("SELECT DISTINCT outcome FROM ledger.batch") == [("unknown",)]
    states = filled.read_ledger("SELECT DISTINCT state FROM ledger.record")
    assert states == [("sending",)]


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        ("timeout_before_effect", {"seconds": 1}),
        ("timeout_after_effect", {"seconds": 1}),
        ("reset_before_effect", {}),
        ("reset_after_effect", {}),
        ("status", {"status": 503}),
        ("status", {"status": 500, "when": "after"}),
        ("malformed_body", {}),
        ("rate_limited", {"retry_after": 0}),
    ],
)
def test_a_passing_fault_costs_nothing(filled: World, fault: str, settings: dict[str, Any]) -> None:
    records = planned(filled)
    filled.control.add_fault(fault, times=2, **settings)
    # Only what has to run into it gets so little time: on a busy machine a reply takes its time, too.
    result = load(filled, records, timeout=0.5 if fault.startswith("timeout") else 5.0, attempts=6)
    assert totals(result) == only(accepted=len(records)), result.problems
    # Under the same key, so the effect happened once: no record has got a second version.
    assert {record["version"] for record in filled.control.records().values()} == {1}
    assert {(item["id"], item["version"]) for item in filled.control.applied()} == {(int(i), 1) for i in records["id"]}


@pytest.mark.parametrize(
    ("fault", "settings", "number"),
    [
        ("status", {"status": 503}, "unknown"),
        ("timeout_after_effect", {"seconds": 1}, "unknown"),
        ("rate_limited", {"retry_after": 0}, "to_retry"),
    ],
)
def test_a_lasting_fault_loses_nothing_and_the_next_attempt_heals_it(
    filled: World, fault: str, settings: dict[str, Any], number: str
) -> None:
    records = planned(filled)
    fault_id = filled.control.add_fault(fault, **settings)
    result = load(filled, records, timeout=0.3 if fault.startswith("timeout") else 5.0, attempts=2, batch_size=50)
    assert [type(problem) for problem in result.problems] == [MedflexUnavailableError]
    assert sum(totals(result).values()) == len(records)
    assert totals(result)[number] > 0
    # A time-out does not flood: once the clinics' first batches have given up, nobody tries any more.
    assert filled.sent() <= 2 * (4 + 3)
    filled.control.remove_fault(fault_id)
    assert totals(load(filled, records)) == only(accepted=len(records))
    assert {key[1] for key in filled.control.records()} == set(records["id"])


def test_a_refused_token_stops_at_once_and_says_so(filled: World) -> None:
    records = planned(filled)
    result = load(filled, records, token="wrong", parallel=1, batch_size=20)
    assert totals(result) == only(to_retry=len(records))
    assert [type(problem) for problem in result.problems] == [MedflexRefusedError]
    assert filled.sent() == 1


def fails_on(world: World, *ids: int, status: int = 500) -> None:
    """Let Medflex fail whenever one of these records is in a request."""
    for id_ in ids:
        world.control.add_fault("status", status=status, match=Match(record_id=id_))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the ids in each request to Medflex, as they are posted."""
    post = MedflexClient.post_batch
    requests: list[list[int]] = []

    def posting(client: MedflexClient, path: str, body: bytes, key: str, versions: dict[int, int]) -> Any:
        requests.append(sorted(versions))
        return post(client, path, body, key, versions)

    monkeypatch.setattr(MedflexClient, "post_batch", posting)
    return requests


@pytest.mark.parametrize("status", [500, 413])
def test_a_record_on_which_medflex_fails_keeps_no_other_of_its_clinic_from_being_sent(
    filled: World, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    records = planned(filled)
    bad = int(of_largest(records)["id"].iloc[5])
    requests = watched(monkeypatch)
    fails_on(filled, bad, status=status)
    result = load(filled, records)
    assert len(result.problems) == 1
    left = "unknown" if status == 500 else "to_retry"
    assert totals(result) == only(accepted=len(records) - 1, **{left: 1})
    assert {id_ for _, id_ in filled.control.records()} == set(records["id"]) - {bad}
    # In few requests: as often as any, and once each time that fewer were tried.
    failed = [len(request) for request in requests if bad in request]
    assert failed[-1] == 1
    assert len(failed) <= 3 + 3
    # The next attempt has nothing else to do.
    requests.clear()
    assert totals(load(filled, records)) == only(accepted=len(records) - 1, **{left: 1})
    assert {*map(tuple, requests)} == {(bad,)}
    filled.control.clear_faults()
    assert totals(load(filled, records)) == only(accepted=len(records))


def test_a_clinic_for_which_medflex_refuses_the_token_leaves_the_others_alone(filled: World) -> None:
    records = planned(filled)
    # The one whose turn comes first.
    lpu_id = int(records["lpu_id"].iloc[0])
    filled.control.add_fault("unauthorized", match={"lpu_id": lpu_id}, status=403)
    result = load(filled, records, parallel=1, batch_size=20)
    of_it = int((records["lpu_id"] == lpu_id).sum())
    assert totals(result) == only(accepted=len(records) - of_it, to_retry=of_it)
    assert [type(problem) for problem in result.problems] == [MedflexRefusedError]
    refused = [item for item in filled.control.request_log() if item["method"] == "POST" and item["status"] == 403]
    assert len(refused) == 1


def test_a_clinic_medflex_does_not_know_leaves_the_others_alone(filled: World) -> None:
    records = planned(filled)
    lpu_id = int(records["lpu_id"].iloc[0])
    filled.control.remove_clinics([lpu_id])
    result = load(filled, records, parallel=1, batch_size=20)
    of_it = int((records["lpu_id"] == lpu_id).sum())
    assert totals(result) == only(accepted=len(records) - of_it, to_retry=of_it)
    assert [type(problem) for problem in result.problems] == [MedflexContractError]
    # Smaller requests would meet with the same.
    assert sum(item["status"] == 404 for item in filled.control.request_log() if item["method"] == "POST") == 1


def test_a_200_with_failures_in_it_is_read_and_the_failed_rows_are_tried_again(filled: World) -> None:
    records = planned(filled)
    bad = [int(item) for item in records["id"].head(5)]
    fault_id = filled.control.add_fault("reject_records", ids=bad)
    result = load(filled, records)
    assert totals(result) == only(accepted=len(records) - 5, rejected=5)
    assert not result.problems
    assert filled.read_ledger("SELECT count(*) FROM ledger.record WHERE state = 'rejected'") == [(5,)]
    filled.control.remove_fault(fault_id)
    assert totals(load(filled, records)) == only(accepted=len(records))
    assert {key[1] for key in filled.control.records()} == set(records["id"])


def test_retry_after_is_waited_for_in_both_forms(filled: World) -> None:
    records = planned(filled).head(20)
    for form in ("seconds", "http_date"):
        clock = FakeClock()
        filled.control.add_fault("rate_limited", times=1, retry_after=7, retry_after_form=form)
        result = load(filled, records, clock=clock, parallel=1, resync=True, batch_size=500)
        assert totals(result) == only(accepted=len(records))
        # An HTTP date has whole seconds and is read a moment after it was made.
        assert 5 < sum(clock.slept) <= 7.5, form


def test_a_pause_longer_than_the_budget_leaves_the_rest_for_later(filled: World) -> None:
    records = planned(filled)
    clock = FakeClock()
    filled.control.add_fault("rate_limited", retry_after=3600)
    result = load(filled, records, clock=clock, parallel=1, batch_size=50)
    assert totals(result) == only(to_retry=len(records))
    assert sum(clock.slept) < 600
    assert filled.sent() == 1


def test_the_rate_is_kept_by_all_loaders_together(filled: World) -> None:
    records = planned(filled)
    halves = [records[records["clinic_id"] == clinic] for clinic in sorted(records["clinic_id"].unique())[:2]]
    started = SystemClock().now()
    threads = [
        threading.Thread(
            target=load, args=(filled, half), kwargs={"holder": f"h{i}", "rate_per_second": 20.0, "batch_size": 10}
        )
        for i, half in enumerate(halves)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = (SystemClock().now() - started).total_seconds()
    posts = [item["started"] for item in filled.control.request_log() if item["method"] == "POST"]
    assert len(posts) >= 20
    assert len(posts) <= 20 * seconds + 1


# -- the last look -----------------------------------------------------------------------------------------------------

TURNS: dict[str, tuple[str, str]] = {
    "refused_personal_data": ("UPDATE medlock.patient SET refused_personal_data = true WHERE id = %(patient)s", "R7"),
    "refused_notifications": ("UPDATE medlock.patient SET refused_notifications = NULL WHERE id = %(patient)s", "R8"),
    "refused_marketing": ("UPDATE medlock.patient SET refused_marketing = true WHERE id = %(patient)s", "R8"),
    "anonymous_appointment": ("UPDATE medlock.appointment SET is_anonymous = true WHERE id = %(id)s", "R9"),
    "doctor_banned": ("UPDATE medlock.doctor SET medflex_banned = true WHERE id = %(doctor)s", "R10"),
    "no_partner": ("UPDATE medlock.clinic_partner SET enabled = false WHERE clinic_id = %(clinic)s", "R4"),
    "clinic_not_active": ("UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = %(clinic)s", "R1"),
    "appointment_gone": ("DELETE FROM medlock.appointment WHERE id = %(id)s", "R12"),
    "person_changed": (
        "UPDATE medlock.appointment SET patient_id = (SELECT max(id) FROM medlock.patient WHERE clinic_id = %(clinic)s"
        " AND id <> %(patient)s AND NOT refused_personal_data AND NOT refused_notifications AND NOT refused_marketing)"
        " WHERE id = %(id)s",
        "R7",
    ),
    "partner_gone": (
        "UPDATE medlock.clinic_partner SET enabled = false WHERE clinic_id = %(clinic)s"
        " AND partner_id = (SELECT min(partner_id) FROM medlock.clinic_partner"
        " WHERE clinic_id = %(clinic)s AND enabled)",
        "R4",
    ),
    "moved_out_of_window": (
        "UPDATE medlock.appointment SET starts_at = now() + interval '60 days' WHERE id = %(id)s",
        "R6",
    ),
    "phone_missing": ("UPDATE medlock.patient SET phone = ' ' WHERE id = %(patient)s", "R17"),
    "name_missing": ("UPDATE medlock.patient SET first_name = NULL WHERE id = %(patient)s", "R17"),
}


@pytest.mark.parametrize("reason", TURNS)
def test_what_turns_between_plan_and_sending_is_dropped(filled: World, reason: str) -> None:
    records = planned(filled)
    if reason == "partner_gone":
        records = records[records["partners"].str.contains(",")]
    row = records.iloc[0]
    keys = {"patient": row["patient_id"], "id": row["id"], "doctor": row["doctor_id"], "clinic": row["clinic_id"]}
    assert filled.edit(TURNS[reason][0], {key: int(value) for key, value in keys.items()}) >= 1  # type: ignore[arg-type]
    result = load(filled, records)
    assert totals(result)["dropped"] >= 1
    assert totals(result)["accepted"] == len(records) - totals(result)["dropped"]
    assert (int(row["clinic_id"]), reason) in result.dropped
    assert int(row["id"]) not in {key[1] for key in filled.control.records()}
    assert not result.problems


def test_a_refusal_between_two_attempts_is_honoured(filled: World) -> None:
    """The first attempt failed for certain; before the second one the patient refuses."""
    records = of_largest(planned(filled))
    patient = int(records["patient_id"].iloc[0])
    refused = set(records.loc[records["patient_id"] == patient, "id"].tolist())

    class RefusingClock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            filled.edit("UPDATE medlock.patient SET refused_marketing = true WHERE id = %s", [patient])

    filled.control.add_fault("rate_limited", times=1, retry_after=1)
    result = load(filled, records, clock=RefusingClock(), parallel=1)
    assert totals(result) == only(accepted=len(records) - len(refused), dropped=len(refused))
    assert not refused & {key[1] for key in filled.control.records()}


def test_a_refusal_after_an_attempt_in_doubt_stays_written_down_as_maybe_sent(filled: World) -> None:
    records = of_largest(planned(filled))
    patient = int(records["patient_id"].iloc[0])
    refused = set(records.loc[records["patient_id"] == patient, "id"].tolist())

    class RefusingClock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            filled.edit("UPDATE medlock.patient SET refused_marketing = true WHERE id = %s", [patient])

    filled.control.add_fault("reset_after_effect", times=1)
    result = load(filled, records, clock=RefusingClock(), parallel=1)
    assert totals(result)["dropped"] == len(refused)
    states = filled.read_ledger(
        "SELECT DISTINCT state FROM ledger.record WHERE appointment_id = ANY(%s)", [list(refused)]
    )
    assert states == [("sending",)]


class Counting:
    """Medlock, and for how many appointments it was asked for flags, each time."""

    def __init__(self, medlock: Any) -> None:
        self._medlock = medlock
        self.looks: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._medlock, name)

    def consent_now(self, clinic_ids: Any, appointment_ids: Any) -> Any:
        self.looks.append(len(appointment_ids))
        return self._medlock.consent_now(clinic_ids, appointment_ids)


def look_sizes(
    world: World, monkeypatch: pytest.MonkeyPatch, *, batches: int, slow: int, seconds: float, parallel: int
) -> list[int]:
    """Send so many batches, eight at most together, the first ``slow`` requests taking ``seconds`` each.

    Returns how many batches each last look was for.
    """
    monkeypatch.setattr(Loader, "together", 8)
    records = of_largest(planned(world)).head(batches)
    assert len(records) == batches
    clock, left = FakeClock(), iter(range(slow))
    with world.parts(batch_size=1, parallel=parallel) as (medlock, ledger, client):
        counting, post = Counting(medlock), client.post_batch

        def slowly(*arguments: Any) -> Any:
            if next(left, None) is not None:
                clock.sleep(seconds)
            return post(*arguments)

        client.post_batch = slowly  # type: ignore[method-assign]
        loader = Loader(
            client=client, medlock=counting, ledger=ledger, clock=clock, holder="test/0", run_key=None,
            extracted_at=EXTRACTED_AT,
        )  # fmt: skip
        result = loader.load([int(records["clinic_id"].iloc[0])], lambda: [records])
    assert totals(result) == only(accepted=batches)
    assert world.read_ledger("SELECT count(*), count(*) FILTER (WHERE outcome = 'acknowledged') FROM ledger.batch") == [
        (batches, batches)
    ]
    return counting.looks


@pytest.mark.parametrize(
    ("seconds", "looks"),
    [
        (0.0, [8] * 5),
        # Of the first eight the fifth begins 1.2 s after the look: it and those behind it are looked at once more. Of
        # the next four each leaves in time, and when requests are quick again, groups grow as large as they were.
        (0.3, [8, 1, 1, 1, 1, 4, 5, 6, 7, 8, 2]),
    ],
)
def test_batches_are_looked_at_together_as_many_as_leave_in_time(
    filled: World, monkeypatch: pytest.MonkeyPatch, seconds: float, looks: list[int]
) -> None:
    assert look_sizes(filled, monkeypatch, batches=40, slow=12, seconds=seconds, parallel=1) == looks


def test_groups_stay_as_large_as_there_are_threads(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller ones would be looked at as often again, and once more for each.

    The threads share a clock that adds up what passes side by side, so requests take little more than a look may be
    old: a thread that a busy machine forgets for some requests of the others must not take Medlock for slow.
    """
    looks = look_sizes(filled, monkeypatch, batches=120, slow=120, seconds=1.1, parallel=4)
    groups = sorted(size for size in looks if size > 1)
    # The smallest may be what was left at the end.
    assert groups[1] == 4


def test_a_refusal_while_a_batch_waits_for_its_turn_is_honoured(filled: World) -> None:
    records = of_largest(planned(filled)).head(16)
    patient = int(records["patient_id"].iloc[-1])
    refused = set(records.loc[records["patient_id"] == patient, "id"].tolist())
    assert not refused & set(records["id"].head(2))

    class RefusingClock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            filled.edit("UPDATE medlock.patient SET refused_marketing = true WHERE id = %s", [patient])

    # One request in two seconds: all eight batches were looked at before the first of these waits.
    result = load(filled, records, clock=RefusingClock(), parallel=1, batch_size=2, rate_per_second=0.5)
    assert totals(result) == only(accepted=16 - len(refused), dropped=len(refused))
    assert not refused & {key[1] for key in filled.control.records()}


def test_a_refusal_while_a_connection_is_opened_is_honoured(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, TCP and TLS can take longer than a look may be old."""
    records = of_largest(planned(filled)).head(1)
    clock, open_really = FakeClock(), connection.create_connection

    def slow(address: tuple[str, int], *arguments: Any, **named: Any) -> Any:
        if address[1] == filled.medflex.port:
            clock.sleep(4)
            patient = int(records["patient_id"].iloc[0])
            filled.edit("UPDATE medlock.patient SET refused_personal_data = true WHERE id = %s", [patient])
        return open_really(address, *arguments, **named)

    monkeypatch.setattr(connection, "create_connection", slow)
    assert totals(load(filled, records, clock=clock, parallel=1)) == only(dropped=1)
    assert clock.slept == [4]  # Over the connection that was opened, nothing else had to wait.
    assert not filled.control.records()


@pytest.mark.parametrize(
    ("seconds", "slow", "looks", "numbers"),
    [
        (1.5, 2, 3, {"accepted": 10}),
        # Where Medlock is always as slow, it is better than nothing.
        (1.5, 9, 4, {"accepted": 10}),
        (11.0, 3, 4, {"accepted": 10}),
        (11.0, 9, 4, {"to_retry": 10}),
    ],
)
def test_a_look_that_takes_longer_than_it_may_be_old_is_made_again_and_at_last_lets_nothing_leave(
    filled: World, seconds: float, slow: int, looks: int, numbers: dict[str, int]
) -> None:
    clock, left = FakeClock(), iter(range(slow))
    done: list[str] = []

    class Slow(Counting):
        def consent_now(self, *arguments: Any) -> Any:
            done.append("look")
            present = super().consent_now(*arguments)
            if next(left, None) is not None:
                clock.sleep(seconds)
            return present

    ((clinic_id, records),) = of_largest(planned(filled)).head(10).groupby("clinic_id")
    with filled.parts(parallel=1) as (medlock, ledger, client):
        counting, connect = Slow(medlock), client.connect

        def connecting(path: str) -> None:
            done.append("connect")
            connect(path)

        client.connect = connecting  # type: ignore[method-assign]
        loader = Loader(
            client=client, medlock=counting, ledger=ledger, clock=clock, holder="test/0", run_key=None,
            extracted_at=EXTRACTED_AT,
        )  # fmt: skip
        result = loader.load([int(str(clinic_id))], lambda: [records])
    assert counting.looks == [10] * looks
    # Medflex may have closed the connection while Medlock took its time.
    assert done[-2:] == ["look", "connect"]
    assert totals(result) == only(**numbers)
    assert len(filled.control.records()) == numbers.get("accepted", 0)
    assert [type(error) for error in result.problems] == ([] if "accepted" in numbers else [MedlockSlowError])
    outcome = "acknowledged" if "accepted" in numbers else "to_retry"
    assert filled.read_ledger("SELECT outcome FROM ledger.batch") == [(outcome,)]


def test_a_look_from_the_future_is_none(filled: World) -> None:
    """A clock that is set back makes no look younger."""
    ((clinic_id, records),) = planned(filled).head(1).groupby("clinic_id")
    delivery = Delivery(Batch(int(str(clinic_id)), Columns.of_frame(records), np.array([1])))
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for seconds, may_leave in ((0, True), (1, True), (1.1, False), (-0.1, False)):
        delivery.ready_at = now
        assert delivery.take_leave(now + timedelta(seconds=seconds), LOOK_SECONDS) is may_leave


def test_clinics_that_number_their_appointments_alike_are_told_apart(filled: World) -> None:
    """Ids are unique within a clinic only (docs/data-contract.md); a look is at batches of several clinics."""
    filled.edit("ALTER TABLE medlock.appointment DROP CONSTRAINT appointment_pkey CASCADE")
    filled.edit(
        "UPDATE medlock.appointment SET id = numbered.n FROM (SELECT id, clinic_id, row_number() OVER"
        " (PARTITION BY clinic_id ORDER BY id) AS n FROM medlock.appointment) AS numbered"
        " WHERE appointment.id = numbered.id AND appointment.clinic_id = numbered.clinic_id"
    )
    records = planned(filled)
    assert records["id"].duplicated().any()
    one = records[records["id"].isin(records["id"][records["id"].duplicated()])].iloc[0]
    patient = int(one["patient_id"])
    filled.edit("UPDATE medlock.patient SET refused_marketing = true WHERE id = %s", [patient])
    refused = set(records.loc[records["patient_id"] == patient, ["lpu_id", "id"]].itertuples(index=False, name=None))
    result = load(filled, records, batch_size=20)
    assert totals(result) == only(accepted=len(records) - len(refused), dropped=len(refused))
    everything = set(records[["lpu_id", "id"]].itertuples(index=False, name=None))
    assert set(filled.control.records()) == everything - refused


# -- leases, crashes, restored ledgers -------------------------------------------------------------------------------


def test_a_copy_that_was_read_earlier_never_overwrites_a_later_one(filled: World) -> None:
    """Two runs of one clinic: the one that read first loads last."""
    old = planned(filled)
    phone, one = "79001234567", old.iloc[:1]
    filled.edit("UPDATE medlock.patient SET phone = %s WHERE id = %s", [phone, int(one["patient_id"].iloc[0])])
    new = planned(filled)
    assert load(filled, new, extracted_at=EXTRACTED_AT + timedelta(minutes=1)).numbers
    result = load(filled, old, extracted_at=EXTRACTED_AT, holder="another run")
    changed = int((new["digest"].to_numpy() != old["digest"].to_numpy()).sum())
    assert changed >= 1
    assert totals(result) == only(accepted=len(old) - changed, dropped=changed)
    key = (int(one["lpu_id"].iloc[0]), int(one["id"].iloc[0]))
    assert filled.control.records()[key]["client"]["mobile_phone"] == phone
    # Read later than that, it may go over again.
    assert totals(load(filled, old, extracted_at=EXTRACTED_AT + timedelta(hours=1)))["accepted"] == len(old)


@pytest.mark.parametrize("settled", [True, False])
def test_that_a_later_copy_was_sent_is_known_also_after_a_withdrawal(filled: World, settled: bool) -> None:
    """Sent, withdrawn, permitted again: a run that read before the copy that was sent would bring back what was."""
    one = planned(filled).head(1)
    clinic_id, patient = int(one["clinic_id"].iloc[0]), int(one["patient_id"].iloc[0])
    old = one.assign(dt_start="2026-01-01 10:00", dt_end="2026-01-01 10:30", digest=4711)
    assert totals(load(filled, one, extracted_at=EXTRACTED_AT)) == only(accepted=1)
    filled.edit("UPDATE medlock.patient SET refused_marketing = true WHERE id = %s", [patient])
    with filled.parts() as (medlock, ledger, client):
        writer = {"client": client, "medlock": medlock, "ledger": ledger, "clock": SystemClock(), "run_key": None}
        if settled:
            Withdrawer(holder="test/withdraw", **writer).sweep([clinic_id])
        else:
            # It was written down, and its task killed.
            (epoch,) = ledger.acquire([clinic_id], "test/withdraw", purpose="withdraw").values()
            ledger.record_intent(
                run_key=None, clinic_id=clinic_id, lpu_id=int(one["lpu_id"].iloc[0]), operation="withdraw",
                holder="test/withdraw", epoch=epoch, appointment_ids=one["id"].tolist(), versions=[2], digests=None,
                reasons=["refused_marketing"], revoked_at=[EXTRACTED_AT],
            )  # fmt: skip
            ledger.release({clinic_id: epoch}, "test/withdraw")
    filled.edit("UPDATE medlock.patient SET refused_marketing = false WHERE id = %s", [patient])
    before = EXTRACTED_AT - timedelta(minutes=10)
    assert totals(load(filled, old, extracted_at=before, holder="another run")) == only(dropped=1)
    assert totals(load(filled, one, extracted_at=EXTRACTED_AT + timedelta(minutes=10))) == only(accepted=1)
    assert next(iter(filled.control.records().values()))["dt_start"] == one["dt_start"].iloc[0]


def test_connections_do_not_grow_with_the_times_that_one_writer_writes(filled: World) -> None:
    """Each time has threads of its own; a database has room for a hundred connections by default."""
    records = planned(filled)
    with filled.parts(batch_size=20) as (medlock, ledger, client):
        loader = Loader(
            client=client, medlock=medlock, ledger=ledger, clock=SystemClock(), holder="test/0", run_key=None,
            extracted_at=EXTRACTED_AT, resync=True,
        )  # fmt: skip
        opened = []
        for _ in range(6):
            loader.load([1, 2, 3], lambda: [records])
            opened.append([len(part._connections._of) for part in (ledger, medlock)])
    # The threads of one time, and the caller.
    assert max(map(max, opened)) <= 2 * 4 + 1


def test_a_clinic_with_another_lpu_id_is_sent_there_anew(filled: World) -> None:
    load(filled, planned(filled))
    filled.edit("UPDATE medlock.clinic SET lpu_id = 49999 WHERE id = 2")
    filled.introduce_clinics()
    records = planned(filled)
    result = load(filled, records)
    assert totals(result) == only(accepted=len(records))
    of_it = set(records.loc[records["clinic_id"] == 2, "id"].tolist())
    assert {key[1] for key in filled.control.records() if key[0] == 49999} == of_it


def test_a_clinic_whose_requests_keep_failing_does_not_hold_up_the_others(filled: World) -> None:
    records = planned(filled)
    lpu_id = int(records["lpu_id"].iloc[0])
    filled.control.add_fault("status", match=Match(lpu_id=lpu_id), status=500)
    for parallel in (1, 4):
        result = load(filled, records, parallel=parallel, batch_size=20, holder=f"p{parallel}")
        others = int((records["lpu_id"] != lpu_id).sum())
        assert totals(result)["accepted"] == others, parallel
        assert [type(problem) for problem in result.problems] == [MedflexUnavailableError]


def test_two_clinics_that_wait_for_another_attempt_keep_no_others_waiting(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is among eight batches that were prepared together, of which two such groups are under way."""
    monkeypatch.setattr(Loader, "together", 8)
    records = planned(filled)
    first, second, third = (of_one for _, of_one in records.groupby("clinic_id", sort=False))
    for failing in (first, second):
        filled.control.add_fault("status", match=Match(lpu_id=int(failing["lpu_id"].iloc[0])), status=500)
    others = third.head(2 * 22)
    # One batch of a failing clinic and seven of the other one, twice, and then eight more of that one.
    order = [first.head(2), others.iloc[:14], second.head(2), others.iloc[14:28], others.iloc[28:]]
    all_sent = threading.Event()

    class Waiting(FakeClock):
        in_time = True

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            self.in_time &= all_sent.wait(20)

    clock = Waiting()
    with filled.parts(batch_size=2, parallel=4) as (medlock, ledger, client):
        post = client.post_batch

        def watching(*arguments: Any) -> Any:
            reply = post(*arguments)
            if len(filled.control.records()) == len(others):
                all_sent.set()
            return reply

        client.post_batch = watching  # type: ignore[method-assign]
        loader = Loader(
            client=client, medlock=medlock, ledger=ledger, clock=clock, holder="test/0", run_key=None,
            extracted_at=EXTRACTED_AT,
        )  # fmt: skip
        result = loader.load(sorted(records["clinic_id"].unique().tolist()), lambda: order)
    assert clock.in_time
    assert totals(result) == only(accepted=len(others), unknown=4)


def test_a_pause_that_medflex_asked_for_is_remembered_but_not_slept_through(filled: World) -> None:
    records = planned(filled).head(20)
    filled.control.add_fault("rate_limited", times=1, retry_after=86_400)
    load(filled, records, rate_per_second=50.0, parallel=1)
    clock = FakeClock()
    result = load(filled, records, rate_per_second=50.0, clock=clock, holder="next attempt")
    assert totals(result) == only(to_retry=len(records))
    assert sum(clock.slept) < 600
    assert filled.sent() == 1


def test_a_task_that_is_stopped_stops_sending(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's time-out rings in the main thread; the threads that send must not go on behind its back."""
    monkeypatch.setattr(Loader, "together", 8)
    records = planned(filled)
    begun, rung = threading.Event(), threading.Event()

    class Stopped(BaseException):
        pass

    def chunks() -> Any:
        yield of_largest(records).head(8 * 5)
        assert begun.wait(60)
        rung.set()
        raise Stopped

    filled.control.add_fault("slow", latency_ms=200)
    with filled.parts(batch_size=5, parallel=1 + 1) as (medlock, ledger, client):
        post = client.post_batch

        def watching(*arguments: Any) -> Any:
            begun.set()
            return post(*arguments)

        client.post_batch = watching  # type: ignore[method-assign]
        loader = Loader(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=SystemClock(),
            holder="h",
            run_key=None,
            extracted_at=EXTRACTED_AT,
        )
        with pytest.raises(Stopped):
            loader.load(sorted(records["clinic_id"].unique().tolist()), chunks)
    assert rung.is_set()
    # The group of eight was under way, and what had begun of it ends.
    assert 0 < filled.sent() < 8
    # What was under way is written down; a later attempt brings all over.
    assert totals(load(filled, records, holder="h")) == only(accepted=len(records))


def test_ids_beyond_what_a_float_can_hold_stay_exact(filled: World) -> None:
    """Another clinic without lpu_id stands beside them, which makes a float of every id in a careless frame."""
    huge = 2**53 + 1
    filled.edit("UPDATE medlock.clinic SET lpu_id = NULL WHERE id = 3")
    filled.edit("UPDATE medlock.clinic SET lpu_id = %s WHERE id = 2", [huge])
    with filled.parts() as (medlock, _, _):
        clinics = medlock.clinics(None, datetime.now(UTC)).set_index("clinic_id")
    assert int(clinics.loc[2, "lpu_id"]) == huge


def test_a_clinic_another_run_writes_for_is_left_alone(filled: World) -> None:
    records = planned(filled)
    taken = int(records["clinic_id"].iloc[0])
    with filled.parts() as (_, ledger, _):
        ledger.acquire([taken], "another run")
    clock = FakeClock()
    result = load(filled, records, clock=clock)
    of_it = int((records["clinic_id"] == taken).sum())
    assert totals(result) == only(accepted=len(records) - of_it, to_retry=of_it)
    assert [type(problem) for problem in result.problems] == [LeaseHeldError]
    # Long enough for the lease of a run that was killed to run out.
    assert sum(clock.slept) >= 300


def test_a_clinic_that_another_run_lets_go_of_is_taken_then(filled: World) -> None:
    records = planned(filled)
    taken = int(records["clinic_id"].iloc[0])
    with filled.parts() as (_, ledger, _):
        epochs = ledger.acquire([taken], "another run")

    class LettingGo(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            with filled.parts() as (_, ledger, _):
                ledger.release(epochs, "another run")

    result = load(filled, records, clock=LettingGo())
    assert totals(result) == only(accepted=len(records))
    assert not result.problems


def test_a_task_that_was_taken_over_cannot_send_any_more(filled: World) -> None:
    records = planned(filled)
    clinics = sorted(records["clinic_id"].unique().tolist())

    class TakingOver(FakeClock):
        """The same task is started again while the first one, thought dead, waits."""

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            with filled.parts() as (_, ledger, _):
                ledger.acquire(clinics, "test/0", token=ledger.begin_writing("test/0"))

    filled.control.add_fault("rate_limited", times=1, retry_after=1)
    result = load(filled, records, clock=TakingOver(), parallel=1, batch_size=10)
    # The intent that was written before the take-over may still be tried; no new one is written after it.
    epochs = filled.read_ledger("SELECT DISTINCT epoch FROM ledger.batch")
    assert epochs == [(1,)]
    assert totals(result)["to_retry"] > 0
    assert sum(totals(result).values()) == len(records)


def test_an_intent_left_open_by_a_crash_counts_as_maybe_sent_and_is_renewed(filled: World) -> None:
    records = of_largest(planned(filled)).head(10)
    clinic_id, lpu_id = int(records["clinic_id"].iloc[0]), int(records["lpu_id"].iloc[0])
    with filled.parts() as (_, ledger, _):
        epochs = ledger.acquire([clinic_id], "dead task")
        ledger.record_intent(
            run_key=None, clinic_id=clinic_id, lpu_id=lpu_id, operation="send", holder="dead task",
            epoch=epochs[clinic_id], appointment_ids=records["id"].tolist(), versions=[1] * len(records),
            digests=records["digest"].tolist(),
        )  # fmt: skip
        known = ledger.known([clinic_id])
        assert set(known["state"]) == {"sending"}
        ledger.release(epochs, "dead task")
    result = load(filled, records)
    assert totals(result) == only(accepted=len(records))
    assert {record["version"] for record in filled.control.records().values()} == {2}


def sent_before_a_restore(world: World) -> pd.DataFrame:
    """Send all records three times, let the ledger forget all but the first, and return them."""
    records = planned(world)
    load(world, records)
    load(world, records, resync=True)
    load(world, records, resync=True)
    with world.parts() as (_, ledger, _), ledger._transaction() as cursor:
        cursor.execute("UPDATE ledger.record SET version = 1, acked_version = 1, acked_digest = 0")
    return records


def test_a_ledger_restored_from_a_backup_catches_up_with_medflex(filled: World) -> None:
    records = sent_before_a_restore(filled)
    first = load(filled, records, holder="a")
    assert totals(first) == only(to_retry=len(records))
    assert first.problems
    assert first.problems[0].transient
    assert totals(load(filled, records, holder="b")) == only(accepted=len(records))
    assert {record["version"] for record in filled.control.records().values()} == {4}


def test_a_loader_numbers_on_only_while_the_clinic_is_its_own(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is raised while another task's request is under way would keep that one's verdict from being
    written down: what Medflex shows then, nobody knows of.
    """
    for _ in range(3):
        load(filled, planned(filled), resync=True)
    records = of_largest(sent_before_a_restore(filled)).head(5)
    clinic_id = int(records["clinic_id"].iloc[0])
    raise_versions, told = Ledger.raise_versions, []

    def taken_over_first(ledger: Ledger, *arguments: Any, **more: Any) -> bool:
        assert ledger.acquire([clinic_id], "another run") == {}
        if not told:
            ledger.release(ledger.acquire([clinic_id], "a withdrawal", purpose="withdraw"), "a withdrawal")
        told.append(raise_versions(ledger, *arguments, **more))
        assert filled.read_ledger("SELECT max(version) >= 5 FROM ledger.record") == [(len(told) == 2,)]
        return told[-1]

    monkeypatch.setattr(Ledger, "raise_versions", taken_over_first)
    result = load(filled, records, clock=FakeClock())
    assert told == [False, True]
    assert totals(result) == only(to_retry=5)
    assert [type(problem) for problem in result.problems] == [VersionsOutdatedError]
    monkeypatch.undo()
    assert totals(load(filled, records)) == only(accepted=5)


def test_a_loader_that_is_stopped_asks_medflex_nothing_more(filled: World) -> None:
    """Medflex asks for a pause behind a batch of outdated versions: what it shows would be read in that pause."""
    records = sent_before_a_restore(filled)
    filled.control.forget_request_log()
    pause = filled.control.add_fault("rate_limited", match=Match(path_prefix=SEND_PATH), skip=1, retry_after=3600)
    result = load(filled, records, clock=FakeClock(), parallel=1, batch_size=50, holder="a")
    assert totals(result) == only(to_retry=len(records))
    assert [type(problem) for problem in result.problems] == [MedflexUnavailableError]
    assert [item["method"] for item in filled.control.request_log()] == ["POST", "POST"]
    # Nor are versions guessed; the next attempts meet the same verdicts, and number on.
    assert filled.read_ledger("SELECT max(version) FROM ledger.record") == [(2,)]
    filled.control.remove_fault(pause)
    assert totals(load(filled, records, holder="b"))["to_retry"] > 0
    assert totals(load(filled, records, holder="c")) == only(accepted=len(records))


def test_what_is_read_ends_where_all_work_has_stopped(filled: World) -> None:
    with filled.parts() as (medlock, ledger, client):
        loader = Loader(
            client=client, medlock=medlock, ledger=ledger, clock=SystemClock(), holder="h", run_key=None,
            extracted_at=EXTRACTED_AT,
        )  # fmt: skip
        loader._halted = True
        # Not as if that were all that is shown.
        with pytest.raises(NotProcessedError):
            list(loader._visible(int(planned(filled)["lpu_id"].iloc[0])))
    assert filled.control.request_log() == []


def test_requests_are_compressed_and_keep_to_the_contract(filled: World) -> None:
    from sandbox.medflex import contract

    records = planned(filled).head(3)
    bodies: list[Any] = []
    with filled.parts(compress=False) as (medlock, ledger, client):
        original: Callable[..., Any] = client.encode

        def watching(body: Any) -> bytes:
            bodies.append(orjson.loads(body))
            return original(body)

        client.encode = watching  # type: ignore[method-assign]
        loader = Loader(
            client=client,
            medlock=medlock,
            ledger=ledger,
            clock=SystemClock(),
            holder="h",
            run_key=None,
            extracted_at=EXTRACTED_AT,
        )
        loader.load(records["clinic_id"].unique().tolist(), lambda: [records])
    assert bodies
    for body in bodies:
        contract.validate("putAppointments", body)
