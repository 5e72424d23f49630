"""What the control port shows, and what it must not."""

import pytest
import requests

from sandbox.medflex.control import Control, ControlError
from sandbox.medflex.process import MedflexProcess
from tests.sandbox.medflex.helpers import LPU, OTHER_LPU, Client, record, withdrawal


def test_dumps_can_be_had_for_one_clinic(client: Client, control: Control) -> None:
    client.put(record(1), record(2))
    client.put(record(1), lpu_id=OTHER_LPU)
    assert set(control.records()) == {(LPU, 1), (LPU, 2), (OTHER_LPU, 1)}
    assert set(control.records(OTHER_LPU)) == {(OTHER_LPU, 1)}
    assert [(item["lpu_id"], item["id"]) for item in control.applied(OTHER_LPU)] == [(OTHER_LPU, 1)]
    assert len(control.applied()) == 3


def test_of_a_withdrawn_record_only_its_tombstone_is_shown(client: Client, control: Control) -> None:
    client.put(record(1, client={"first_name": "Канарейка"}))
    client.withdraw(withdrawal(1, 2))
    assert control.records() == {}
    assert set(control.tombstones()[LPU, 1]) == {"lpu_id", "id", "version", "reason"}


def test_counters_and_log_tell_what_happened_without_bodies_and_tokens(
    medflex: MedflexProcess, client: Client, control: Control
) -> None:
    client.write("putAppointments", [record(1), record(2, entry="?")], key="one")
    client.write("putAppointments", [record(1), record(2, entry="?")], key="one")
    control.add_fault("reset_after_effect", times=1)
    with pytest.raises(requests.ConnectionError):
        client.write("withdrawAppointments", [withdrawal(1, 2)], key="two")
    client.session.get(client.url + "/nowhere", timeout=5)
    counters = control.counters()
    assert counters["putAppointments"] == {
        "requests": 2,
        "records": 2,
        "replies": {"200": 2},
        "verdicts": {"204": 1, "400": 1},
    }
    assert counters["withdrawAppointments"]["replies"] == {"reset": 1}
    assert counters["unknown"]["replies"] == {"404": 1}
    log = control.request_log()
    assert [
        (entry["operation"], entry["key"], entry["lpu_id"], entry["records"], entry["status"], entry["carriage"])
        for entry in log
    ] == [
        ("putAppointments", "one", LPU, 2, 200, "answer"),
        ("putAppointments", "one", LPU, 2, 200, "answer"),
        ("withdrawAppointments", "two", LPU, 1, None, "reset"),
        (None, None, None, 0, 404, "answer"),
    ]
    assert log[2]["faults"] == ["reset_after_effect"]
    assert [entry["started"] for entry in log] == sorted(entry["started"] for entry in log)
    for secret in ("Тест", "79001112233", medflex.token):
        assert secret not in str(log)
    control.forget_request_log()
    assert control.request_log() == []
    assert control.counters()["putAppointments"]["requests"] == 0


def test_the_rate_limit_refuses_with_both_forms_of_retry_after(client: Client, control: Control) -> None:
    control.settings(requests_per_second=0.01)
    assert client.get("listClinics", "/appointments/lpu").status_code == 200
    refused = client.get("listClinics", "/appointments/lpu")
    assert refused.status_code == 429
    assert 90 <= int(refused.headers["Retry-After"]) <= 100
    control.settings(requests_per_second=0.01, retry_after_form="http_date")
    client.get("listClinics", "/appointments/lpu")
    assert client.get("listClinics", "/appointments/lpu").headers["Retry-After"].endswith(" GMT")
    control.settings()
    assert {client.get("listClinics", "/appointments/lpu").status_code for _ in range(5)} == {200}


def test_reset_makes_the_server_new(client: Client, control: Control) -> None:
    control.add_fault("late_delivery", status=504, times=1)
    client.write("putAppointments", [record(1)], key="same")
    client.put(record(2), key="other")
    control.add_fault("status", status=500)
    control.settings(requests_per_second=0.01, latency_ms=1)
    control.add_actions([{"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm", "base_version": 1}])
    control.reset()
    assert control.deliver() == 0
    assert (control.records(), control.faults(), control.request_log(), control.results()) == ({}, [], [], {})
    assert client.get("listClinics", "/appointments/lpu").json()["data"] == []
    control.put_clinics([{"lpu_id": LPU, "name": "Новая", "time_offset": 0}])
    assert client.put(record(1), key="same") == {1: 204}
    assert client.put(record(3), key="other") == {3: 204}
    assert client.get("listActions", "/actions/").json()["data"] == []


def test_clinics_can_be_replaced(client: Client, control: Control) -> None:
    assert control.put_clinics([{"lpu_id": LPU, "name": "Другое имя", "time_offset": -60}]) == 2
    first = client.get("listClinics", "/appointments/lpu").json()["data"][0]
    assert first == {"lpu_id": LPU, "name": "Другое имя", "time_offset": -60}


def test_what_the_control_port_refuses_is_one_clear_error(control: Control) -> None:
    with pytest.raises(ControlError, match="time_offset"):
        control.put_clinics([{"lpu_id": 1, "name": "A", "time_offset": 9999}])
    with pytest.raises(ControlError, match="base_version"):
        control.add_actions([{"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm"}])
    with pytest.raises(ControlError, match="no such action"):
        control.repeat_action("00000000-0000-0000-0000-000000000000")
    with pytest.raises(ControlError, match="there is no fault 9"):
        control.remove_fault(9)


def test_a_server_that_is_away_is_one_clear_error() -> None:
    with (
        Control("http://127.0.0.1:1") as nobody,
        pytest.raises(ControlError, match=r"does not answer at http://127\.0\.0\.1:1"),
    ):
        nobody.counters()
