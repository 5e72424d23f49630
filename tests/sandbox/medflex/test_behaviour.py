"""What the server does when nothing is wrong with it: the contract, over a real connection."""

import gzip
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import requests

from sandbox.medflex.contract import record_digest
from sandbox.medflex.control import Control
from sandbox.medflex.process import MedflexProcess
from tests.sandbox.medflex.helpers import LPU, OTHER_LPU, Client, record, withdrawal

# Authorisation


@pytest.mark.parametrize("header", ["", "Bearer {}", "Token", "Token wrong", "token {}", "Token {} x"])
def test_only_the_token_with_its_prefix_opens(medflex: MedflexProcess, header: str) -> None:
    reply = requests.get(
        medflex.url + "/appointments/lpu", headers={"Authorization": header.format(medflex.token)}, timeout=5
    )
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"] == "Token"
    assert list(reply.json()) == ["detail"]


def test_unknown_paths_and_methods_are_told(client: Client) -> None:
    assert client.session.get(client.url + "/appointments/batch", timeout=5).status_code == 404
    reply = client.session.get(client.url + "/appointments/batch/", timeout=5)
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")


# Sharing and withdrawing


def test_records_are_stored_and_listed_with_their_digest(client: Client, control: Control) -> None:
    records = [record(n) for n in range(1, 501)]
    assert client.put(*records) == dict.fromkeys(range(1, 501), 204)
    assert client.listing() == {n: (1, record_digest(records[n - 1])) for n in range(1, 501)}
    assert control.records() == {(LPU, made["id"]): made for made in records}


def test_replies_do_not_keep_the_order_of_the_request(client: Client) -> None:
    reply = client.write("putAppointments", [record(1), record(2)])
    assert [item["id"] for item in reply.json()["data"]] == [2, 1]


def test_gzip_bodies_are_read(client: Client) -> None:
    body = gzip.compress(orjson.dumps({"lpu_id": LPU, "records": [record(1)]}))
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert client.put(data=body, headers=headers) == {1: 204}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(orjson.dumps({"lpu_id": LPU, "records": [record(1)]}))[:-4], {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b" " * 9_000_000), {"Content-Encoding": "gzip"}, 413),
        (b" " * 9_000_000, {}, 413),
        (b"{}", {"Content-Encoding": "br"}, 415),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b'{"lpu_id": 7', {}, 400),
        (b'"text"', {}, 400),
        (b"[]", {}, 400),
        (b"{}", {}, 400),
        (b"", {}, 400),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(
    client: Client, body: bytes, headers: dict[str, str], status: int
) -> None:
    reply = client.write("putAppointments", [], data=body, headers={"Content-Type": "application/json", **headers})
    assert reply.status_code == status


def test_a_bad_record_is_rejected_alone_and_its_field_named(client: Client) -> None:
    reply = client.write("putAppointments", [record(1), record(2, dt_start="2026-03-01T09:30")])
    first, second = sorted(reply.json()["data"], key=lambda item: item["id"])
    assert first == {"id": 1, "version": 1, "status_code": 204, "errors": None}
    assert second["status_code"] == 400
    assert list(second["errors"]) == ["dt_start"]
    assert set(client.listing()) == {1}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dt_start": "2026-02-30 09:30"}, "dt_start"),
        ({"dt_end": "2026-03-01 24:01"}, "dt_end"),
        ({"partners": [17, 3]}, "partners"),
        ({"client": {"first_name": "Тест "}}, "client.first_name"),
        ({"client": {"second_name": " "}}, "client.second_name"),
        ({"client": {"last_name": "Тестов"}}, "client.last_name"),
    ],
)
def test_what_the_contract_says_in_words_is_held(client: Client, changes: dict[str, Any], field: str) -> None:
    reply = client.write("putAppointments", [record(1, **changes)])
    assert [list(item["errors"]) for item in reply.json()["data"]] == [[field]]


@pytest.mark.parametrize(
    "records",
    [
        [record(1), record(1, 2)],
        [record(1), {**record(2), "id": "2"}],
        [record(1), {**record(2), "version": 0}],
        [record(1), {name: value for name, value in record(2).items() if name != "id"}],
        [record(1), 5],
        [],
        [record(n) for n in range(1, 502)],
    ],
)
def test_a_request_whose_reply_could_not_name_its_records_does_nothing(client: Client, records: list[Any]) -> None:
    assert client.write("putAppointments", records).status_code == 400
    assert client.listing() == {}


def test_whole_numbers_may_be_written_with_a_fraction(client: Client) -> None:
    assert client.put({**record(1), "id": 1.0, "partners": [3.0, 17]}) == {1: 204}
    assert client.listing() == {1: (1, record_digest(record(1)))}


def test_newer_versions_win_and_older_ones_are_409(client: Client) -> None:
    newer = record(1, 5, status="confirmed")
    assert client.put(newer) == {1: 204}
    assert client.put(record(1, 4)) == {1: 409}
    assert client.put(newer) == {1: 204}
    assert client.put(record(1, 5, status="canceled")) == {1: 409}
    assert client.listing() == {1: (5, record_digest(newer))}


def test_a_withdrawal_leaves_its_version_behind(client: Client, control: Control) -> None:
    assert client.put(record(1, 1)) == {1: 204}
    assert client.withdraw(withdrawal(1, 1)) == {1: 409}
    assert client.withdraw(withdrawal(1, 2)) == {1: 204}
    assert client.withdraw(withdrawal(1, 2)) == {1: 204}
    assert client.withdraw(withdrawal(1, 1)) == {1: 409}
    assert client.listing() == {}
    assert client.put(record(1, 1)) == {1: 409}
    assert client.put(record(1, 2)) == {1: 409}
    assert control.tombstones()[LPU, 1] == {"lpu_id": LPU, "id": 1, "version": 2, "reason": "refused_personal_data"}
    assert client.put(record(1, 3)) == {1: 204}
    assert set(client.listing()) == {1}
    assert [item["version"] for item in control.applied(LPU, 1)] == [1, 2, 3]
    assert [item["digest"] is None for item in control.applied(LPU, 1)] == [False, True, False]


def test_withdrawing_what_never_was_there_is_204_and_holds(client: Client) -> None:
    assert client.withdraw(withdrawal(9, 3)) == {9: 204}
    assert client.put(record(9, 2)) == {9: 409}


def test_ids_belong_to_their_clinic(client: Client) -> None:
    client.put(record(1, 5))
    client.put(record(1, 1), lpu_id=OTHER_LPU)
    client.withdraw(withdrawal(1, 6))
    assert set(client.listing(OTHER_LPU)) == {1}
    assert client.listing(LPU) == {}


def test_a_clinic_that_the_token_does_not_see_is_404(client: Client, control: Control) -> None:
    assert client.write("putAppointments", [record(1)], lpu_id=99).status_code == 404
    assert client.write("withdrawAppointments", [withdrawal(1, 1)], lpu_id=99).status_code == 404
    assert client.get("listAppointments", "/appointments/", lpu_id=99).json() == {
        "detail": "There is no such clinic, or the token does not see it."
    }
    client.put(record(1))
    control.remove_clinics([LPU])
    assert client.write("putAppointments", [record(2)]).status_code == 404
    assert set(control.records()) == {(LPU, 1)}


# Idempotency


def test_a_write_without_key_is_400(client: Client) -> None:
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "a b"}, {"Idempotency-Key": "k" * 256}):
        reply = client.session.post(
            client.url + "/appointments/batch/",
            json={"lpu_id": LPU, "records": [record(1)]},
            headers=headers,
            timeout=5,
        )
        assert reply.status_code == 400
        assert list(reply.json()) == ["idempotency-key"]
    assert client.listing() == {}


def test_the_same_key_gets_the_first_reply_byte_for_byte(client: Client, control: Control) -> None:
    first = client.write("putAppointments", [record(1, 1), record(2, 1, entry="?")], key="same")
    client.put(record(1, 2))
    again = client.write("putAppointments", [record(1, 1), record(2, 1, entry="?")], key="same")
    assert again.status_code == first.status_code == 200
    assert again.content == first.content
    assert client.listing()[1][0] == 2
    assert control.counters()["putAppointments"]["records"] == 3


def test_a_body_is_the_same_whatever_its_bytes(client: Client) -> None:
    body = {"lpu_id": LPU, "records": [record(1)]}
    first = client.write("putAppointments", body["records"], key="same")
    turned = orjson.dumps(dict(reversed(body.items())), option=orjson.OPT_INDENT_2)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    again = client.write("putAppointments", [], key="same", data=gzip.compress(turned), headers=headers)
    assert again.content == first.content


def test_the_same_key_for_another_request_is_422(client: Client) -> None:
    client.write("putAppointments", [record(1)], key="same")
    assert client.write("putAppointments", [record(2)], key="same").status_code == 422
    assert client.write("withdrawAppointments", [withdrawal(1, 2)], key="same").status_code == 422
    assert client.write("withdrawAppointments", [record(1)], key="same").status_code == 422
    assert set(client.listing()) == {1}


def test_a_key_is_not_spent_by_a_refused_request(client: Client) -> None:
    assert client.write("putAppointments", [], key="same").status_code == 400
    assert client.put(record(1), key="same") == {1: 204}


def test_a_key_in_flight_is_409_until_its_write_is_done(client: Client, control: Control) -> None:
    control.add_fault("late_delivery", status=504, times=1)
    assert client.write("putAppointments", [record(1)], key="same").status_code == 504
    assert client.write("putAppointments", [record(1)], key="same").status_code == 409
    assert client.listing() == {}
    assert control.deliver() == 1
    assert client.put(record(1), key="same") == {1: 204}
    assert len(control.applied()) == 1


def test_many_at_once_lose_nothing(medflex: MedflexProcess, control: Control) -> None:
    def share(worker: int) -> set[int]:
        mine = Client(medflex.url, medflex.token)
        codes: set[int] = set()
        for first in range(worker * 1000, worker * 1000 + 1000, 100):
            codes |= set(mine.put(*[record(n) for n in range(first + 1, first + 101)]).values())
        mine.session.close()
        return codes

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(share, range(4))) == {204}
    assert set(control.records()) == {(LPU, n) for n in range(1, 4001)}


# Lists


def test_clinics_are_listed_in_the_envelope(client: Client) -> None:
    page = client.get("listClinics", "/appointments/lpu", size=1).json()
    assert page == {
        "links": {"next": f"{client.url}/appointments/lpu?size=1&page=2", "previous": None},
        "count": 2,
        "num_pages": 2,
        "data": [{"lpu_id": LPU, "name": "Клиника семь", "time_offset": 180}],
    }
    last = client.session.get(page["links"]["next"], timeout=5).json()
    assert [clinic["lpu_id"] for clinic in last["data"]] == [OTHER_LPU]
    assert last["links"] == {"next": None, "previous": f"{client.url}/appointments/lpu?size=1&page=1"}


def test_pages_hold_everything_once(client: Client) -> None:
    client.put(*[record(n) for n in range(1, 251)])
    client.withdraw(withdrawal(100, 2))
    assert set(client.listing()) == set(range(1, 251)) - {100}
    page = client.get("listAppointments", "/appointments/", lpu_id=LPU, size=1000).json()
    assert (page["count"], page["num_pages"], len(page["data"])) == (249, 1, 249)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "lpu_id=",
        "lpu_id=x",
        "lpu_id=0",
        "lpu_id=7&page=0",
        "lpu_id=7&size=1001",
        "lpu_id=7&size=+5",
        "lpu_id=7&lpu_id=8",
    ],
)
def test_bad_parameters_are_400_and_named(client: Client, query: str) -> None:
    reply = client.session.get(f"{client.url}/appointments/?{query}", timeout=5)
    assert reply.status_code == 400
    assert set(reply.json()) < {"lpu_id", "page", "size"}


def test_a_page_behind_the_last_is_404_and_an_empty_list_has_one(client: Client) -> None:
    assert client.get("listAppointments", "/appointments/", lpu_id=LPU, page=2).status_code == 404
    empty = client.get("listAppointments", "/appointments/", lpu_id=LPU).json()
    assert empty == {"links": {"next": None, "previous": None}, "count": 0, "num_pages": 1, "data": []}


# Partner actions


def action(**changes: Any) -> dict[str, Any]:
    return {"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm", "base_version": 1, **changes}


def test_actions_come_oldest_first_behind_the_cursor(client: Client, control: Control) -> None:
    ids = control.add_actions([action(appointment_id=n) for n in range(1, 6)])
    page = client.get("listActions", "/actions/", size=2).json()
    assert [item["id"] for item in page["data"]] == ids[:2]
    assert (page["count"], page["num_pages"]) == (5, 3)
    assert page["links"]["next"] == f"{client.url}/actions/?after={page['cursor']}&size=2"
    assert client.session.get(page["links"]["next"], timeout=5).json()["data"][0]["id"] == ids[2]
    rest = client.get("listActions", "/actions/", after=page["cursor"]).json()
    assert [item["id"] for item in rest["data"]] == ids[2:]
    assert rest["links"]["next"] is None
    end = client.get("listActions", "/actions/", after=rest["cursor"]).json()
    assert (end["data"], end["cursor"]) == ([], rest["cursor"])
    (later,) = control.add_actions([action()])
    assert [item["id"] for item in client.get("listActions", "/actions/", after=end["cursor"]).json()["data"]] == [
        later
    ]
    assert client.get("listActions", "/actions/", size=501).status_code == 400


def test_an_empty_queue_gives_a_cursor_too(client: Client, control: Control) -> None:
    cursor = client.get("listActions", "/actions/").json()["cursor"]
    assert client.get("listActions", "/actions/", after=cursor).json()["cursor"] == cursor
    ids = control.add_actions([action(), action()])
    assert [item["id"] for item in client.get("listActions", "/actions/", after=cursor).json()["data"]] == ids


def test_a_cursor_that_points_nowhere_is_404_and_one_that_is_none_400(client: Client, control: Control) -> None:
    (id_,) = control.add_actions([action()])
    cursor = client.get("listActions", "/actions/").json()["cursor"]
    queue, _, place = cursor.rpartition("-")
    for nowhere in (
        id_,
        "17",
        f"{queue}-{int(place) + 1}",
        f"{queue}-",
        f"{queue}--1",
        f"{queue}-x",
        f"{queue}-{10**30}",
        "-1",
        "x" * 64,
    ):
        assert client.get("listActions", "/actions/", after=nowhere).status_code == 404, nowhere
    for none in ("", "a b", "я", "x" * 65):
        reply = client.get("listActions", "/actions/", after=none)
        assert (reply.status_code, list(reply.json())) == (400, ["after"]), none


@pytest.mark.parametrize("keep", [False, True])
def test_a_queue_that_was_lost_knows_none_of_its_cursors(client: Client, control: Control, keep: bool) -> None:
    beginning = client.get("listActions", "/actions/").json()["cursor"]
    ids = control.add_actions([action(), action()])
    assert client.answer(ids[0], 409).status_code == 204
    cursor = client.get("listActions", "/actions/").json()["cursor"]
    control.forget_actions(keep=keep)
    assert client.get("listActions", "/actions/", after=cursor).status_code == 404
    assert client.get("listActions", "/actions/", after=beginning).status_code == 404
    listed = client.get("listActions", "/actions/").json()
    assert [item["id"] for item in listed["data"]] == (ids if keep else [])
    assert client.get("listActions", "/actions/", after=listed["cursor"]).status_code == 200
    # What was answered stays answered; what is gone cannot be answered any more.
    assert client.answer(ids[0], 204).status_code == (409 if keep else 404)
    assert list(control.results()) == ids[:1]
    # A place is never given twice, so no old cursor can come to mean something else.
    control.add_actions([action(), action(), action()])
    assert client.get("listActions", "/actions/", after=cursor).status_code == 404


def test_actions_that_break_the_contract_can_be_queued(client: Client, control: Control) -> None:
    id_ = str(uuid.uuid4())
    odd = [{**action(), "type": "dance"}, {"id": id_, "type": 5}, 17, {}]
    made = control.add_actions(odd, unchecked=True)
    (good,) = control.add_actions([action()])
    page = client.session.get(client.url + "/actions/", timeout=5).json()
    assert page["data"][:4] == odd
    assert page["data"][4]["id"] == good
    assert (made[1], len(set(made))) == (id_, 4)
    assert client.answer(id_, 400).status_code == 204


def test_an_action_can_come_twice(client: Client, control: Control) -> None:
    first, second = control.add_actions([action(), action(appointment_id=2)])
    control.repeat_action(first)
    assert [item["id"] for item in client.get("listActions", "/actions/").json()["data"]] == [first, second, first]
    # Each delivery has a place of its own, so whoever stands at the first one misses nothing.
    cursor = client.get("listActions", "/actions/", size=1).json()["cursor"]
    assert [item["id"] for item in client.get("listActions", "/actions/", after=cursor).json()["data"]] == [
        second,
        first,
    ]


def test_every_kind_of_action_fits_the_contract(client: Client, control: Control) -> None:
    control.add_actions(
        [
            action(type="confirm"),
            action(type="cancel"),
            action(type="reschedule", dt_start="2026-03-02 09:00", dt_end="2026-03-02 09:30"),
            action(type="notification", scenario="visit_reminder"),
        ]
    )
    data = client.get("listActions", "/actions/").json()["data"]
    assert [item["type"] for item in data] == ["confirm", "cancel", "reschedule", "notification"]


def test_an_action_is_answered_once(client: Client, control: Control) -> None:
    (id_,) = control.add_actions([action()])
    assert client.answer(id_, 409, "changed meanwhile").status_code == 204
    assert client.answer(id_, 409).status_code == 204
    other = client.answer(id_, 204)
    assert other.status_code == 409
    assert list(other.json()) == ["detail"]
    assert control.results() == {id_: {"status_code": 409, "detail": "changed meanwhile"}}
    assert client.answer(str(uuid.uuid4()), 204).status_code == 404
    assert client.answer("17", 204).status_code == 400
    assert client.answer(id_, 500).status_code == 400
    # An answered action stays in the list.
    assert client.get("listActions", "/actions/").json()["count"] == 1
