"""Each fault does to a request exactly what its name says, and has the effect, or not, that it says."""

import email.utils
import http.client
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import requests

from sandbox.medflex.contract import ContractError, validate_reply
from sandbox.medflex.control import Control, ControlError, Fault, FaultKind, Match
from sandbox.medflex.process import MedflexProcess
from tests.sandbox.medflex.helpers import LPU, OTHER_LPU, Client, record, until, withdrawal

BATCH = Match(method="POST", path_prefix="/appointments/batch/")


def raw_put(medflex: MedflexProcess, key: str = "raw") -> http.client.HTTPResponse:
    """One POST over http.client, which shows how a connection broke."""
    connection = http.client.HTTPConnection("127.0.0.1", medflex.port, timeout=20)
    body = orjson.dumps({"lpu_id": LPU, "records": [record(1)]})
    headers = {"Authorization": f"Token {medflex.token}", "Idempotency-Key": key, "Content-Type": "application/json"}
    try:
        connection.request("POST", "/appointments/batch/", body, headers)
        return connection.getresponse()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("kind", "settings", "broken", "effect"),
    [
        ("timeout_before_effect", {"seconds": 0.1}, http.client.RemoteDisconnected, False),
        ("timeout_after_effect", {"seconds": 0.1}, http.client.RemoteDisconnected, True),
        ("reset_before_effect", {}, ConnectionResetError, False),
        ("reset_after_effect", {}, ConnectionResetError, True),
    ],
)
def test_broken_connections(
    medflex: MedflexProcess, control: Control, kind: str, settings: dict[str, Any], broken: type, effect: bool
) -> None:
    control.add_fault(kind, times=1, **settings)
    with pytest.raises(ConnectionResetError) as caught:
        raw_put(medflex)
    # RemoteDisconnected is a ConnectionResetError too: a plain end of the connection against a TCP RST.
    assert caught.type is broken
    assert bool(control.records()) is effect
    assert raw_put(medflex).status == 200
    assert len(control.applied()) == 1


def test_a_time_out_holds_the_connection_for_its_seconds(client: Client, control: Control) -> None:
    control.add_fault("timeout_before_effect", seconds=0.3, times=1)
    started = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        client.put(record(1))
    assert 0.3 <= time.monotonic() - started < 5


@pytest.mark.parametrize(("kind", "effect"), [("timeout_before_effect", False), ("timeout_after_effect", True)])
def test_a_client_that_gives_up_can_come_again_under_its_key(
    medflex: MedflexProcess, client: Client, control: Control, kind: str, effect: bool
) -> None:
    control.add_fault(kind, seconds=60, times=1)
    headers = {"Authorization": f"Token {medflex.token}", "Idempotency-Key": "same"}
    body = {"lpu_id": LPU, "records": [record(1)]}
    with pytest.raises(requests.ReadTimeout):
        requests.post(medflex.url + "/appointments/batch/", json=body, headers=headers, timeout=0.2)
    # The client has gone; Medflex may still be about to begin.
    until(lambda: bool(control.records()) is effect)
    until(lambda: client.write("putAppointments", [record(1)], key="same").status_code == 200)
    assert len(control.applied()) == 1


@pytest.mark.parametrize(("when", "effect"), [("before", False), ("after", True)])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 423])
def test_a_status_before_and_after_the_effect(
    client: Client, control: Control, when: str, effect: bool, status: int
) -> None:
    control.add_fault("status", status=status, when=when, detail="из прокси", times=1, match=BATCH)
    reply = client.session.post(
        client.url + "/appointments/batch/",
        json={"lpu_id": LPU, "records": [record(1)]},
        headers={"Idempotency-Key": "same"},
        timeout=5,
    )
    assert (reply.status_code, reply.json()) == (status, {"detail": "из прокси"})
    assert bool(control.records()) is effect
    assert client.put(record(1), key="same") == {1: 204}


@pytest.mark.parametrize("seconds", [3, 3600, -60])
def test_429_with_an_http_date(client: Client, control: Control, seconds: int) -> None:
    control.add_fault("rate_limited", retry_after=seconds, retry_after_form="http_date", times=1)
    reply = client.write("putAppointments", [record(1)])
    assert reply.status_code == 429
    told = email.utils.parsedate_to_datetime(reply.headers["Retry-After"])
    assert abs(told - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=5)
    assert control.records() == {}


def test_429_with_seconds_and_without(client: Client, control: Control) -> None:
    control.add_fault("rate_limited", retry_after=7, times=1)
    control.add_fault("rate_limited", times=1)
    assert client.write("putAppointments", [record(1)]).headers["Retry-After"] == "7"
    assert "Retry-After" not in client.write("putAppointments", [record(1)]).headers


@pytest.mark.parametrize("status", [401, 403])
def test_unauthorized(client: Client, control: Control, status: int) -> None:
    control.add_fault("unauthorized", status=status, times=1)
    assert client.write("putAppointments", [record(1)]).status_code == status
    assert client.put(record(1)) == {1: 204}


def _is_not_json(reply: requests.Response) -> bool:
    with pytest.raises(requests.JSONDecodeError):
        reply.json()
    return True


def _breaks_the_contract(reply: requests.Response) -> bool:
    with pytest.raises(ContractError):
        validate_reply("putAppointments", 200, reply.json())
    return True


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        ("truncated", _is_not_json),
        ("empty", lambda reply: reply.content == b""),
        ("wrong_type", _breaks_the_contract),
        ("missing_data", _breaks_the_contract),
        ("missing_items", lambda reply: [item["id"] for item in reply.json()["data"]] == [2]),
        ("wrong_ids", lambda reply: {item["id"] for item in reply.json()["data"]} == {1_000_000_001, 1_000_000_002}),
    ],
)
def test_malformed_replies_come_after_the_effect(
    medflex: MedflexProcess, client: Client, control: Control, form: str, holds: Callable[[requests.Response], bool]
) -> None:
    control.add_fault("malformed_body", form=form, times=1)
    body = {"lpu_id": LPU, "records": [record(1), record(2)]}
    headers = {"Idempotency-Key": "same"}
    reply = client.session.post(medflex.url + "/appointments/batch/", json=body, headers=headers, timeout=5)
    assert reply.status_code == 200
    assert holds(reply)
    assert set(control.records()) == {(LPU, 1), (LPU, 2)}
    assert client.put(record(1), record(2), key="same") == {1: 204, 2: 204}


@pytest.mark.parametrize("path", ["/appointments/lpu", "/appointments/?lpu_id=7", "/actions/"])
@pytest.mark.parametrize(
    "form",
    ["truncated", "empty", "wrong_type", "missing_data", "missing_items", "wrong_ids", "item_without_id", "bad_item"],
)
def test_lists_can_be_malformed_too(client: Client, control: Control, path: str, form: str) -> None:
    client.put(record(1), record(2))
    partner = {"lpu_id": LPU, "partner_id": 3, "type": "confirm", "base_version": 1}
    control.add_actions([{**partner, "appointment_id": n} for n in (1, 2)])
    good = client.session.get(client.url + path, timeout=5)
    control.add_fault("malformed_body", form=form, times=1)
    bad = client.session.get(client.url + path, timeout=5)
    assert (bad.status_code, bad.content != good.content) == (200, True)


def test_one_item_of_a_page_of_actions_can_be_bad(client: Client, control: Control) -> None:
    partner = {"lpu_id": LPU, "partner_id": 3, "type": "confirm", "base_version": 1}
    ids = control.add_actions([{**partner, "appointment_id": n} for n in (1, 2)])
    control.add_fault("malformed_body", form="item_without_id", times=1)
    control.add_fault("malformed_body", form="bad_item", times=1)
    nameless, unreadable, good = (client.session.get(client.url + "/actions/", timeout=5).json() for _ in range(3))
    assert nameless["data"][0] == {name: value for name, value in good["data"][0].items() if name != "id"}
    assert unreadable["data"][0]["id"] == ids[0]
    assert unreadable["data"][0]["appointment_id"] == unreadable["data"][0]["type"] == {"broken": True}
    for page in (nameless, unreadable):
        assert (page["data"][1], page["cursor"]) == (good["data"][1], good["cursor"])


def _answer(medflex: MedflexProcess, action_id: str) -> int:
    """One answer over http.client, which shows how a connection broke; the status of the reply."""
    connection = http.client.HTTPConnection("127.0.0.1", medflex.port, timeout=20)
    headers = {"Authorization": f"Token {medflex.token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"/actions/{action_id}/result/", b'{"status_code": 409, "detail": ""}', headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("kind", "settings", "outcome", "effect"),
    [
        ("timeout_before_effect", {"seconds": 0.05}, http.client.RemoteDisconnected, False),
        ("timeout_after_effect", {"seconds": 0.05}, http.client.RemoteDisconnected, True),
        ("reset_before_effect", {}, ConnectionResetError, False),
        ("reset_after_effect", {}, ConnectionResetError, True),
        ("status", {"status": 503, "when": "before"}, 503, False),
        ("status", {"status": 503, "when": "after"}, 503, True),
        ("rate_limited", {"retry_after": 1}, 429, False),
        ("unauthorized", {}, 401, False),
        ("late_delivery", {"status": 504}, 504, False),
        ("slow", {"latency_ms": 5}, 204, True),
        ("malformed_body", {"form": "truncated"}, 200, True),
        ("malformed_body", {"form": "wrong_ids"}, 200, True),
        ("malformed_body", {"form": "empty"}, 200, True),
    ],
)
def test_an_answer_to_an_action_meets_every_fault(
    medflex: MedflexProcess, control: Control, kind: str, settings: dict[str, Any], outcome: Any, effect: bool
) -> None:
    action = {"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm", "base_version": 1}
    (id_,) = control.add_actions([action])
    control.add_fault(kind, times=1, match=Match(path_prefix="/actions/", method="POST"), **settings)
    if isinstance(outcome, int):
        assert _answer(medflex, id_) == outcome
    else:
        with pytest.raises(ConnectionResetError) as caught:
            _answer(medflex, id_)
        assert caught.type is outcome
    assert bool(control.results()) is effect
    control.deliver()
    assert _answer(medflex, id_) == 204
    assert control.results() == {id_: {"status_code": 409, "detail": ""}}


def test_slow_requests_take_their_time(client: Client, control: Control) -> None:
    control.add_fault("slow", latency_ms=300, times=1)
    reply = client.write("putAppointments", [record(1)])
    assert reply.status_code == 200
    assert reply.elapsed >= timedelta(seconds=0.3)
    control.settings(latency_ms=150)
    assert client.get("listClinics", "/appointments/lpu").elapsed >= timedelta(seconds=0.15)


def test_a_slow_request_has_its_effect_when_the_client_has_gone(medflex: MedflexProcess, control: Control) -> None:
    control.add_fault("slow", latency_ms=1500, times=1)
    headers = {"Authorization": f"Token {medflex.token}", "Idempotency-Key": "same"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            medflex.url + "/appointments/batch/",
            json={"lpu_id": LPU, "records": [record(1)]},
            headers=headers,
            timeout=0.1,
        )
    assert control.records() == {}
    until(lambda: bool(control.records()))


def test_records_can_be_rejected_by_id(client: Client, control: Control) -> None:
    fault = control.add_fault("reject_records", ids=[2, 3])
    assert client.put(record(1), record(2), record(3)) == {1: 204, 2: 400, 3: 400}
    assert client.withdraw(withdrawal(2, 2)) == {2: 400}
    control.remove_fault(fault)
    assert client.put(record(2), record(3)) == {2: 204, 3: 204}


def test_records_can_be_rejected_by_share_and_the_seed_repeats(client: Client, control: Control) -> None:
    def rejected(seed: int) -> set[int]:
        fault = control.add_fault("reject_records", fraction=0.3, seed=seed)
        found = client.put(*[record(n) for n in range(1, 201)])
        control.remove_fault(fault)
        return {id_ for id_, status in found.items() if status == 400}

    first = rejected(1)
    assert 30 < len(first) < 90
    assert rejected(1) == first != rejected(2)


def test_a_careless_server_quotes_what_it_rejects(client: Client, control: Control) -> None:
    control.add_fault("reject_records", ids=[1], echo=True)
    reply = client.write("putAppointments", [record(1, client={"first_name": "Канарейка"})])
    assert "Канарейка" in str(reply.json()["data"][0]["errors"])


def test_late_delivery_on_command(client: Client, control: Control) -> None:
    control.add_fault("late_delivery", status=503, times=1)
    assert client.write("putAppointments", [record(1)]).status_code == 503
    assert control.records() == {}
    assert client.withdraw(withdrawal(1, 2)) == {1: 204}
    assert control.deliver() == 1
    assert control.deliver() == 0
    # The late write came behind the withdrawal, and its version is older.
    assert control.records() == {}
    assert control.tombstones()[LPU, 1]["version"] == 2


def test_late_delivery_by_time_and_after_a_time_out(medflex: MedflexProcess, client: Client, control: Control) -> None:
    control.add_fault("late_delivery", seconds=0.05, delay=1.5, times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        raw_put(medflex, "same")
    assert control.records() == {}
    assert client.write("putAppointments", [record(1)], key="same").status_code == 409
    until(lambda: bool(control.records()))
    assert client.put(record(1), key="same") == {1: 204}


def test_ignored_keys_let_a_request_in_twice(client: Client, control: Control) -> None:
    control.add_fault("ignore_keys")
    client.put(record(1, 1), key="same")
    client.put(record(1, 2), key="same")
    assert client.put(record(1, 1), key="same") == {1: 409}
    control.clear_faults()
    assert client.put(record(1, 3), key="same") == {1: 204}
    assert client.listing()[1][0] == 3


def test_ignored_versions_let_an_old_record_win(client: Client, control: Control) -> None:
    client.put(record(1, 5))
    control.add_fault("ignore_versions", times=1)
    assert client.put(record(1, 2)) == {1: 204}
    assert client.listing()[1][0] == 2
    assert client.put(record(1, 1)) == {1: 409}


def test_down_refuses_and_breaks_open_connections(medflex: MedflexProcess, client: Client, control: Control) -> None:
    client.put(record(1))
    fault = control.add_fault("down", match=Match(path_prefix="/"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", medflex.port), timeout=5)
    with pytest.raises(requests.ConnectionError):
        client.get("listClinics", "/appointments/lpu")
    assert set(control.records()) == {(LPU, 1)}
    control.remove_fault(fault)
    assert client.put(record(2)) == {2: 204}
    control.add_fault("down")
    control.reset()
    assert client.get("listClinics", "/appointments/lpu").status_code == 200


# When a fault strikes


def test_times_skip_and_every(client: Client, control: Control) -> None:
    control.add_fault("status", status=500, skip=1, every=2, times=2)
    codes = [client.session.get(client.url + "/appointments/lpu", timeout=5).status_code for _ in range(8)]
    assert codes == [200, 200, 500, 200, 500, 200, 200, 200]
    assert [(item["seen"], item["fired"]) for item in control.faults()] == [(5, 2)]


def test_probability_repeats_with_its_seed(client: Client, control: Control) -> None:
    def codes(seed: int) -> list[int]:
        control.clear_faults()
        control.add_fault("status", status=500, probability=0.5, seed=seed)
        return [client.session.get(client.url + "/appointments/lpu", timeout=5).status_code for _ in range(30)]

    first = codes(4)
    assert set(first) == {200, 500}
    assert codes(4) == first != codes(5)


def test_a_fault_may_strike_whatever_has_a_record(client: Client, control: Control) -> None:
    control.add_fault("status", status=500, match=Match(record_id=2))
    assert client.put(record(1)) == {1: 204}
    assert client.write("putAppointments", [record(2), record(3)]).status_code == 500
    assert client.put(record(3)) == {3: 204}
    assert client.write("withdrawAppointments", [withdrawal(1, 2), withdrawal(2, 1)]).status_code == 500
    assert client.get("listAppointments", "/appointments/", lpu_id=LPU).status_code == 200
    assert client.listing().keys() == {1, 3}


def test_faults_strike_only_what_they_match(client: Client, control: Control) -> None:
    control.add_fault("status", status=500, match=Match(method="POST", path_prefix="/appointments/w", lpu_id=LPU))
    assert client.put(record(1)) == {1: 204}
    assert client.withdraw(withdrawal(1, 2), lpu_id=OTHER_LPU) == {1: 204}
    assert client.get("listAppointments", "/appointments/", lpu_id=LPU).status_code == 200
    assert client.write("withdrawAppointments", [withdrawal(1, 2)]).status_code == 500
    control.add_fault("status", status=502, match=Match(method="GET", lpu_id=OTHER_LPU))
    assert client.session.get(client.url + "/appointments/?lpu_id=8", timeout=5).status_code == 502
    assert client.session.get(client.url + "/appointments/?lpu_id=7", timeout=5).status_code == 200


def test_modifiers_go_with_a_deciding_fault_and_the_first_of_those_wins(client: Client, control: Control) -> None:
    control.add_fault("slow", latency_ms=100)
    control.add_fault("status", status=502, times=1)
    control.add_fault("status", status=503, times=1)
    replies = [client.session.get(client.url + "/appointments/lpu", timeout=5) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [502, 503, 200]
    assert all(reply.elapsed >= timedelta(seconds=0.1) for reply in replies)


def test_faults_do_not_open_the_door(medflex: MedflexProcess, control: Control) -> None:
    control.add_fault("ignore_keys")
    control.add_fault("status", status=500, times=1)
    assert requests.get(medflex.url + "/appointments/lpu", timeout=5).status_code == 401
    assert [item["fired"] for item in control.faults()] == [0, 0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"kind": "slow", "params": {"seconds": 3}}, "fault slow does not read seconds; its params: latency_ms"),
        ({"kind": "unauthorized", "params": {"status": 500}}, "must be 401 or 403"),
        ({"kind": "down", "times": 1}, "until it is removed"),
        ({"kind": "flood"}, "kind"),
        ({"kind": "status", "params": {"status": 200}}, "greater than or equal to 400"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(control: Control, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Fault.model_validate(settings)
    with pytest.raises(ControlError, match="422"):
        control._call("POST", "/faults", settings)
    assert control.faults() == []


def test_every_kind_of_fault_is_tested_here() -> None:
    with open(__file__, encoding="utf-8") as file:  # noqa: PTH123
        text = file.read()
    assert [kind for kind in FaultKind if f'"{kind}"' not in text] == []
