"""Partners that are played: what they ask for, in which order, and that it reaches Medflex at the wanted rate."""

import datetime as dt
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.medflex import contract
from sandbox.medflex.control import Control, ControlError
from sandbox.medflex.process import MedflexProcess
from sandbox.partners import (
    ACTIONS,
    HOSTILE,
    MADE_UP,
    TIMES,
    UNKNOWN_PARTNER,
    Delivery,
    Partners,
    await_answers,
    play,
    summary,
)
from tests.sandbox.medflex.helpers import CLINICS, LPU, OTHER_LPU, Client, record

NOW = dt.datetime(2026, 3, 14, 9, 0, tzinfo=dt.UTC)
Records = dict[tuple[int, int], dict[str, Any]]


def _records(now: dt.datetime = NOW) -> Records:
    """Of two clinics 20 days with six appointments each of two doctors; partner 21 sees only some."""
    made: Records = {}
    for number in range(240):
        lpu_id = LPU if number < 200 else OTHER_LPU
        starts = now.replace(hour=9, minute=0) + dt.timedelta(days=number % 20 - 5, hours=number // 40)
        ends = starts + dt.timedelta(minutes=30)
        made[lpu_id, number + 1] = record(
            number + 1, version=number % 3 + 1, doctor_id=number % 2 + 1, dt_start=f"{starts:%Y-%m-%d %H:%M}",
            dt_end=f"{ends:%Y-%m-%d %H:%M}", partners=[3, 17, 21] if number % 5 == 0 else [3, 17],
            status="canceled" if number % 9 == 0 else "relevant",
        )  # fmt: skip
    return made


def _made(count: int = 2_000, **shares: float) -> list[Delivery]:
    partners = Partners(seed=4, **shares)  # type: ignore[arg-type]
    partners.look(_records(), NOW)
    return [item for step in range(count) for item in partners.deliveries(1, NOW + dt.timedelta(seconds=step))]


def test_the_same_seed_asks_for_the_same() -> None:
    shares = {"hostile": 0.2, "repeat": 0.2, "disorder": 0.2}
    assert _made(300, **shares) == _made(300, **shares)
    other = Partners(seed=5)
    other.look(_records(), NOW)
    assert other.deliveries(300, NOW) != _made(300)


def test_what_well_behaved_partners_ask_for_fits_the_contract_and_what_they_can_see() -> None:
    made, records = _made(), _records()
    assert len({item.action["id"] for item in made}) == len(made)
    for item in made:
        assert contract.schema("Action").is_valid(item.action), item
        seen = records[item.action["lpu_id"], item.action["appointment_id"]]
        assert item.action["partner_id"] in seen["partners"]
        assert item.action["base_version"] == seen["version"]
    kinds = Counter(item.kind for item in made)
    assert set(kinds) == {*ACTIONS, *(f"reschedule {where}" for where in TIMES)} - {"reschedule"}
    assert min(kinds.values()) > 20
    assert [item.action["created_at"] for item in made] == sorted(item.action["created_at"] for item in made)


def test_times_are_what_their_names_say() -> None:
    records = _records()
    standing = {key: row for key, row in records.items() if row["status"] == "relevant"}
    for item in _made():
        action, seen = item.action, records[item.action["lpu_id"], item.action["appointment_id"]]
        others = {
            (row["dt_start"], row["dt_end"])
            for (lpu_id, id_), row in standing.items()
            if (lpu_id, row["doctor_id"]) == (action["lpu_id"], seen["doctor_id"]) and id_ != seen["id"]
            and row["dt_start"] > "2026-03-14 13"
        }  # fmt: skip
        hour = int((action["dt_start"] or "2026-03-14 00:00")[11:13])
        match item.kind:
            case "reschedule to a free time":
                assert 8 <= hour < 20
                assert not any(begin < action["dt_end"] and action["dt_start"] < end for begin, end in others)
            case "reschedule to a taken time":
                assert (action["dt_start"], action["dt_end"]) in others
            case "reschedule outside working hours":
                assert hour <= 6 or action["dt_start"] < "2026-03-14"
            case "reschedule to the same time":
                assert (action["dt_start"], action["dt_end"]) == (seen["dt_start"], seen["dt_end"])
            case _:
                assert (action["dt_start"], action["dt_end"]) == (None, None)


def test_some_appointments_are_acted_on_again_and_again() -> None:
    times = Counter(item.action["appointment_id"] for item in _made(400))
    assert times.most_common(1)[0][1] >= 5
    assert len(times) > 50


def test_repetitions_are_the_same_action_again() -> None:
    made = _made(repeat=0.3)
    again = [item for item in made if not item.first]
    assert 500 < len(again) < 700
    known: dict[str, dict[str, Any]] = {}
    for item in made:
        assert item.first == (item.action["id"] not in known)
        assert known.setdefault(item.action["id"], item.action) == item.action


def test_disorder_brings_actions_later_than_they_were_asked_for() -> None:
    made = _made(disorder=0.3)
    asked = [item.action["created_at"] for item in made]
    late = sum(later < earlier for earlier, later in itertools.pairwise(asked))
    assert 200 < late < 700
    assert len({item.action["id"] for item in made}) == len(made)


def test_hostile_partners_have_no_right_to_what_they_ask_for() -> None:
    made, records = _made(hostile=1.0), _records()
    kinds = Counter(item.kind.removeprefix("hostile: ") for item in made)
    assert set(kinds) == set(HOSTILE)
    broken = ("malformed times", "malformed fields", "text for a scenario")
    for item in made:
        action, how = item.action, item.kind.removeprefix("hostile: ")
        if how not in broken:
            assert contract.schema("Action").is_valid(action), item
        seen = None
        if type(action["lpu_id"]) is int and type(action["appointment_id"]) is int:
            seen = records.get((action["lpu_id"], action["appointment_id"]))
        match how:
            case "made-up appointment":
                assert action["appointment_id"] >= MADE_UP
            case "appointment of another clinic" | "unknown clinic":
                assert seen is None
            case "appointment of another partner" | "unknown partner":
                assert seen is not None
                assert action["partner_id"] not in seen["partners"]
            case "future version":
                assert seen is not None
                assert action["base_version"] > seen["version"]
            case "text for a scenario" | "malformed fields":
                assert not contract.schema("Action").is_valid(action)
    foreign = {item.action["partner_id"] for item in made if item.kind.endswith("another partner")}
    assert 21 in foreign
    assert UNKNOWN_PARTNER in foreign


def test_partners_have_nothing_to_act_on_where_nothing_is_shown() -> None:
    with pytest.raises(ValueError, match="shows no appointment yet"):
        Partners().look({}, NOW)


def test_nothing_that_is_kept_of_a_record_tells_who_the_patient_is() -> None:
    partners = Partners(seed=1)
    partners.look(_records(), NOW)
    assert "79001112233" not in repr(vars(partners))
    assert "Тест" not in repr(vars(partners))


# Against a real Medflex


@pytest.fixture
def control(_medflex_process: MedflexProcess) -> Iterator[Control]:
    made = _medflex_process.control
    made.reset()
    made.put_clinics(CLINICS)
    yield made
    made.reset()


@pytest.fixture
def client(control: Control, _medflex_process: MedflexProcess) -> Iterator[Client]:
    made = Client(_medflex_process.url, _medflex_process.token)
    for lpu_id in (LPU, OTHER_LPU):
        shown = [row for (lpu, _), row in _records(dt.datetime.now(dt.UTC)).items() if lpu == lpu_id]
        made.put(*shown, lpu_id=lpu_id)
    yield made
    made.session.close()


def _listed(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page = client.session.get(f"{client.url}/actions/?size=500", timeout=5).json()
    while page["data"]:
        found += page["data"]
        page = client.session.get(
            f"{client.url}/actions/", params={"after": page["cursor"], "size": 500}, timeout=5
        ).json()
    return found


def test_actions_reach_medflex_at_the_rate_and_in_the_order(client: Client, control: Control) -> None:
    delivered: list[Delivery] = []
    started = time.monotonic()
    played = Partners(seed=2, hostile=0.2, repeat=0.2, disorder=0.2)
    play(control, played, rate=400, seconds=1, delivered=delivered)
    assert 0.9 < time.monotonic() - started < 5
    assert len(delivered) == 400
    assert _listed(client) == [item.action for item in delivered]
    first = next(item for item in delivered if item.kind == "confirm")
    assert client.answer(first.action["id"], 409).status_code == 204
    lines = summary(delivered, control.results())
    assert lines[0].split() == ["actions", "delivered", "409", "open"]
    assert lines[1].startswith("confirm ")
    assert lines[1].split()[3] == "1"
    actions = len({item.action["id"] for item in delivered})
    assert lines[-1].split() == ["all", str(actions), "400", "1", str(actions - 1)]


def test_a_play_that_is_broken_off_knows_what_was_delivered(client: Client, control: Control) -> None:
    delivered: list[Delivery] = []

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(control, Partners(), rate=0.1, seconds=60, delivered=delivered, pause=interrupt)
    assert _listed(client) == [item.action for item in delivered]
    assert len(delivered) == 1


def test_answers_are_awaited_until_the_last_or_for_so_long(client: Client, control: Control) -> None:
    delivered: list[Delivery] = []
    play(control, Partners(seed=2, hostile=0.5, repeat=0.3), rate=400, seconds=0.1, delivered=delivered)
    assert not await_answers(control, delivered, seconds=0)
    to_answer = sorted({item.action["id"] for item in delivered})
    asked: list[int] = []

    def answer(_: float) -> None:
        asked.append(len(to_answer))
        assert client.answer(to_answer.pop(), 409).status_code == 204

    actions = len(to_answer)
    assert await_answers(control, delivered, seconds=60, pause=answer)
    assert asked == list(range(actions, 0, -1))


def test_a_medflex_that_shows_nothing_or_is_away_is_told(control: Control) -> None:
    with pytest.raises(ValueError, match="shows no appointment yet"):
        play(control, Partners(), rate=5, seconds=1, delivered=[])
    with Control("http://127.0.0.1:1") as nobody, pytest.raises(ControlError, match="does not answer"):
        play(nobody, Partners(), rate=5, seconds=1, delivered=[])
