"""Ten thousand revocations at once, while Medflex answers every third request with 429 or 503."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from medflex.airflow.pace import Paced
from medflex.ledger.store import Ledger
from sandbox.medflex.control import Match
from tests.airflow.test_loading import load, planned
from tests.airflow.test_withdrawing import REFUSE, numbers, withdraw
from tests.airflow.world import World

REVOKED = 10_000
RATE = 6
BATCH_SIZE = 350
CLOCKS = 0.01
"""Seconds by which the ledger's clock and ours may drift apart meanwhile."""
JITTER = 0.25
"""Seconds in which a thread that has just seen that there is no pause has said so, on a busy machine."""


@dataclass
class Watched:
    """What a test sees of the rate, in seconds of ``time.monotonic``."""

    places: list[tuple[float, float]] = field(default_factory=list)
    """Between which two instants each place lies: the ledger says how far it is away, some time during a statement."""
    let_in: list[tuple[float, float]] = field(default_factory=list)
    """When each request was let in, and where at the earliest its place lies."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """Between which instants nobody may be let in."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watch the rate where it is kept: how long a request then takes to Medflex's door is the machine's matter."""
    seen, mine = Watched(), threading.local()
    reserve, wait, pause = Ledger.reserve_slot, Paced._wait_for_slot, Paced._pause

    def reserve_slot(ledger: Ledger, *arguments: Any) -> float:
        before = time.monotonic()
        seconds = reserve(ledger, *arguments)
        mine.place = before + seconds
        seen.places.append((mine.place, time.monotonic() + seconds))
        return seconds

    def wait_for_slot(paced: Paced) -> bool:
        is_let_in = wait(paced)
        if is_let_in:
            seen.let_in.append((time.monotonic(), mine.place))
        return is_let_in

    def pause_all(paced: Paced, seconds: float) -> None:
        end = time.monotonic() + seconds
        pause(paced, seconds)
        seen.pauses.append((time.monotonic(), end))

    monkeypatch.setattr(Ledger, "reserve_slot", reserve_slot)
    monkeypatch.setattr(Paced, "_wait_for_slot", wait_for_slot)
    monkeypatch.setattr(Paced, "_pause", pause_all)
    return seen


@pytest.fixture
def sent(world: World) -> World:
    """More than REVOKED records of three clinics at Medflex, and a quick look that has seen them all."""
    world.fill(appointments=15_000, clinics=3)
    flags = ("refused_personal_data", "refused_notifications", "refused_marketing")
    world.edit(f"UPDATE medlock.patient SET {', '.join(f'{flag} = false' for flag in flags)}")
    assert not load(world, planned(world), chunk=5000).problems
    assert numbers(withdraw(world)) == {}
    world.control.forget_request_log()
    return world


def refuse(world: World) -> set[int]:
    """Let so many patients refuse, in one transaction, that REVOKED of the records shown may be so no longer."""
    shown = [record_id for _, record_id in world.control.records()]
    of_patient = world.read(
        "SELECT patient_id, array_agg(id) FROM medlock.appointment WHERE id = ANY(%s) GROUP BY 1 ORDER BY 1", [shown]
    )
    gone: set[int] = set()
    for _, ids in of_patient:
        if len(gone) + len(ids) <= REVOKED:
            gone.update(ids)
    assert len(gone) == REVOKED < len(shown)
    world.edit(REFUSE.format("refused_personal_data", "true"), [list(gone)])
    return gone


def strike_every_third(world: World) -> None:
    """Of each clinic every third request fails: of the smallest with 429, since each of these is a second's pause for
    all, of the others with 503.
    """
    lpu_ids = Counter(lpu_id for lpu_id, _ in world.control.records())
    smallest = min(lpu_ids, key=lambda key: lpu_ids[key])
    for lpu_id in lpu_ids:
        match = Match(lpu_id=lpu_id, path_prefix="/appointments/withdraw/")
        if lpu_id == smallest:
            world.control.add_fault("rate_limited", match=match, every=3, retry_after=1)
        else:
            world.control.add_fault("status", match=match, every=3, status=503)


def test_ten_thousand_refusals_are_all_withdrawn_within_the_rate_from_a_medflex_that_fails_every_third_time(
    sent: World, watched: Watched
) -> None:
    gone = refuse(sent)
    before = {record_id for _, record_id in sent.control.records()}
    strike_every_third(sent)
    withdrawn = 0
    for _attempt in range(3):  # as often as Airflow tries the task
        result = withdraw(sent, rate_per_second=RATE, batch_size=BATCH_SIZE, attempts=5, backoff=0.2)
        withdrawn += result.total("withdrawn")
        if not result.problems:
            break
    assert not result.problems
    assert withdrawn == REVOKED
    assert sent.read_ledger("SELECT count(*) FROM ledger.revocation") == [(0,)]
    sent.control.clear_faults()

    assert before - {record_id for _, record_id in sent.control.records()} == gone
    assert sent.shown() == sent.expected()
    assert {record_id for _, record_id in sent.control.tombstones()} == gone

    requests = [item for item in sent.control.request_log() if item["method"] == "POST"]
    statuses = Counter(item["status"] for item in requests)
    assert statuses[429] >= 2
    assert statuses[503] >= 5
    assert len(requests) // 3 - 3 <= statuses[429] + statuses[503] <= len(requests) // 3

    assert len(requests) <= len(watched.let_in)
    for one, next_ in itertools.pairwise(sorted(watched.places)):
        assert max(one[1], next_[1]) - min(one[0], next_[0]) >= 1 / RATE - CLOCKS
    for let_in, place in watched.let_in:
        assert let_in >= place - CLOCKS
    # At Medflex's door: what a busy machine has kept for a moment comes close behind the others, and no more than that.
    starts = sorted(item["started"] for item in requests)
    for first, start in enumerate(starts):
        assert bisect_left(starts, start + 1) - first <= 2 * RATE + 1
    assert len(watched.pauses) == statuses[429]
    for told, end in watched.pauses:
        assert not [let_in for let_in, _ in watched.let_in if told + JITTER < let_in < end - CLOCKS]
