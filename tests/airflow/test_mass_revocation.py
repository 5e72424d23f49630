"""Ten thousand revocations at once, while Medflex answers every third request with 429 or 503."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import pytest

from sandbox.medflex.control import Match
from tests.airflow.test_loading import load, planned
from tests.airflow.test_withdrawing import REFUSE, numbers, withdraw
from tests.airflow.world import World

REVOKED = 10_000
RATE = 6
BATCH_SIZE = 350
JITTER = 0.25
"""Seconds that a request may take from its place in the rate to Medflex's door, on a busy machine."""


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
    sent: World,
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

    starts = sorted(item["started"] for item in requests)
    for first, start in enumerate(starts):
        # Places lie 1/RATE apart; a request that comes late may have the next ones close behind it.
        assert bisect_left(starts, start + 1) - first <= RATE * (1 + JITTER) + 1
    for item in requests:
        if item["status"] == 429:
            told = item["started"] + item["seconds"]
            assert not [start for start in starts if told + JITTER < start < told + 0.95]
