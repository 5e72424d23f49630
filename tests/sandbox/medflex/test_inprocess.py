"""The engine without a network, on a fake clock: the same behaviour, and the same exceptions."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from sandbox.medflex.engine import Engine
from sandbox.medflex.faults import Fault, FaultKind, Params
from sandbox.medflex.inprocess import EngineAdapter
from sandbox.medflex.store import Store
from tests.sandbox.medflex.helpers import CLINICS, LPU, Client, record, withdrawal

URL = "http://medflex.test"
EPOCH = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(tmp_path: Path, clock: FakeClock) -> Iterator[Engine]:
    store = Store(tmp_path)
    store.put_clinics((clinic["lpu_id"], clinic["name"], clinic["time_offset"]) for clinic in CLINICS)
    yield Engine(store, "token", clock, lambda: EPOCH + timedelta(seconds=clock.now))
    store.close()


@pytest.fixture
def local(engine: Engine, clock: FakeClock) -> Client:
    session = requests.Session()
    session.mount(URL, EngineAdapter(engine, clock.sleep))
    return Client(URL, "token", session)


def test_it_answers_as_the_server_does(local: Client) -> None:
    assert local.put(record(1), record(2, entry="?")) == {1: 204, 2: 400}
    assert set(local.listing()) == {1}
    page = local.get("listClinics", "/appointments/lpu", size=1).json()
    assert page["links"]["next"] == f"{URL}/appointments/lpu?size=1&page=2"
    assert Client(URL, "wrong", local.session).write("putAppointments", [record(1)]).status_code == 401


@pytest.mark.parametrize(
    ("fault", "error", "effect", "seconds"),
    [
        (Fault(kind=FaultKind.TIMEOUT_BEFORE_EFFECT), requests.ReadTimeout, False, 20),
        (Fault(kind=FaultKind.TIMEOUT_AFTER_EFFECT), requests.ReadTimeout, True, 20),
        (Fault(kind=FaultKind.TIMEOUT_AFTER_EFFECT, params=Params(seconds=3)), requests.ConnectionError, True, 3),
        (Fault(kind=FaultKind.RESET_BEFORE_EFFECT), requests.ConnectionError, False, 0),
        (Fault(kind=FaultKind.RESET_AFTER_EFFECT), requests.ConnectionError, True, 0),
        (Fault(kind=FaultKind.DOWN), requests.ConnectionError, False, 0),
    ],
)
def test_broken_connections_raise_and_take_their_time(
    local: Client, engine: Engine, clock: FakeClock, fault: Fault, error: type[Exception], effect: bool, seconds: int
) -> None:
    engine.faults.add(fault)
    with pytest.raises(error) as caught:
        local.put(record(1), key="same")
    assert caught.type is error
    assert clock.now == 1000 + seconds
    engine.faults.remove(None)
    assert bool(local.listing()) is effect
    assert local.put(record(1), key="same") == {1: 204}


def test_a_slow_request_is_done_after_the_client_has_gone(local: Client, engine: Engine, clock: FakeClock) -> None:
    engine.faults.add(Fault(kind=FaultKind.SLOW, times=1, params=Params(latency_ms=60_000)))
    with pytest.raises(requests.ReadTimeout):
        local.put(record(1), key="same")
    assert clock.now == 1020
    assert local.write("putAppointments", [record(1)], key="same").status_code == 409
    assert local.listing() == {}
    clock.sleep(60)
    assert set(local.listing()) == {1}
    assert local.put(record(1), key="same") == {1: 204}


def test_late_delivery_and_the_rate_limit_go_by_the_clock(local: Client, engine: Engine, clock: FakeClock) -> None:
    engine.faults.add(Fault(kind=FaultKind.LATE_DELIVERY, times=1, params=Params(status=504, delay=60)))
    assert local.write("putAppointments", [record(1)]).status_code == 504
    clock.sleep(59.5)
    assert local.listing() == {}
    clock.sleep(0.5)
    assert set(local.listing()) == {1}
    engine.set_rate_limit(2)
    codes = [local.get("listClinics", "/appointments/lpu").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    clock.sleep(0.5)
    assert local.get("listClinics", "/appointments/lpu").status_code == 200
    engine.set_rate_limit(0.1, "http_date")
    local.get("listClinics", "/appointments/lpu")
    expected = (EPOCH + timedelta(seconds=clock.now + 10)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert local.get("listClinics", "/appointments/lpu").headers["Retry-After"] == expected


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_writes_ends_as_the_highest_version_says(local: Client, engine: Engine, seed: int) -> None:
    """Writes with all versions, shuffled, repeated, and some late: what stays is the newest, as in a plain dict."""
    chance = random.Random(seed)
    engine.faults.add(
        Fault(kind=FaultKind.LATE_DELIVERY, probability=0.2, seed=seed, params=Params(status=504, delay=0))
    )
    engine.faults.add(Fault(kind=FaultKind.STATUS, probability=0.2, seed=seed, params=Params(status=500, when="after")))
    writes = [(id_, version, chance.random() < 0.4) for id_ in range(1, 21) for version in range(1, 7)] * 2
    chance.shuffle(writes)
    newest: dict[int, tuple[int, bool]] = {}
    withdrawn = {}
    for id_, version, withdraws in writes:
        # The first writer of a version decides what it is; a repetition must be the same.
        withdraws = withdrawn.setdefault((id_, version), withdraws)
        newest[id_] = max(newest.get(id_, (0, False)), (version, withdraws))
        if withdraws:
            local.write("withdrawAppointments", [withdrawal(id_, version)])
        else:
            local.write("putAppointments", [record(id_, version)])
    engine.faults.remove(None)
    expected = {id_: version for id_, (version, withdraws) in newest.items() if not withdraws}
    assert {id_: version for id_, (version, _) in local.listing(LPU).items()} == expected
