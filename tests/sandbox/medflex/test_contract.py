"""The contract file itself, and the checks that are made from it."""

import hashlib
import json
import re
from typing import Any

import pytest
from openapi_spec_validator import validate as validate_openapi

from sandbox.medflex import contract
from sandbox.medflex.contract import ContractError
from tests.sandbox.medflex.helpers import record, withdrawal


def test_the_file_is_valid_openapi() -> None:
    validate_openapi(contract.document())


def test_the_operations_are_those_of_the_domain() -> None:
    found = {(operation.method, operation.path.pattern) for operation in contract.operations().values()}
    assert found == {
        ("GET", "/appointments/lpu"),
        ("POST", "/appointments/batch/"),
        ("POST", "/appointments/withdraw/"),
        ("GET", "/appointments/"),
        ("GET", "/actions/"),
        ("POST", "/actions/(?P<id>[^/]+)/result/"),
    }


def test_r5_a_record_has_exactly_the_fields_of_the_domain() -> None:
    schemas = contract.document()["components"]["schemas"]
    for name, fields in {
        "Record": "id version doctor_id dt_start dt_end time_offset status mis_status entry partners client",
        "Client": "first_name second_name mobile_phone",
    }.items():
        assert schemas[name]["additionalProperties"] is False
        assert set(schemas[name]["properties"]) == set(schemas[name]["required"]) == set(fields.split())


def test_what_is_not_public_is_marked_as_assumption() -> None:
    document = contract.document()
    unmarked = {
        node["operationId"]
        for item in document["paths"].values()
        for node in item.values()
        if "x-assumption" not in node
    }
    assert unmarked == {"listClinics"}
    for name in ("IdempotencyKey", "Size", "ContentEncoding"):
        assert "x-assumption" in document["components"]["parameters"][name]
    assert "x-assumption" in document["components"]["responses"]["TooFast"]


def test_all_texts_of_the_contract_are_latin_where_they_are_codes() -> None:
    # Medflex's published page spells `confirmed` with a Cyrillic first letter.
    schemas = contract.document()["components"]["schemas"]
    for name in ("Status", "Entry"):
        assert all(word.isascii() for word in schemas[name]["enum"])
    assert len(schemas["Status"]["enum"]) == 6


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dt_start": "2026-03-01T09:30"}, "dt_start"),
        ({"dt_end": "2026-03-01 09:30:00"}, "dt_end"),
        ({"dt_end": "2026-03-01 09:30\n"}, "dt_end"),
        ({"status": "\u0441onfirmed"}, "status"),
        ({"entry": "phone"}, "entry"),
        ({"time_offset": 841}, "time_offset"),
        ({"partners": []}, "partners"),
        ({"partners": [3, 3]}, "partners"),
        ({"version": 0}, "version"),
        ({"id": "1"}, "id"),
        ({"id": 2**63}, "id"),
        ({"surname": "Тестов"}, "surname"),
        ({"client": {"mobile_phone": "+79001112233"}}, "client.mobile_phone"),
        ({"client": {"mobile_phone": "٧٩٠٠١١١٢٢٣٣"}}, "client.mobile_phone"),
        ({"client": {"first_name": ""}}, "client.first_name"),
        ({"client": {"first_name": None}}, "client.first_name"),
        ({"client": {"birth_date": "1990-01-01"}}, "client.birth_date"),
    ],
)
def test_a_bad_record_is_named_by_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractError) as caught:
        contract.validate("putAppointments", {"lpu_id": 7, "records": [record(1), record(2, **changes)]})
    assert list(caught.value.errors) == [f"records.1.{field}"]


def test_a_missing_field_is_named() -> None:
    lacking = record(1)
    del lacking["client"]["second_name"]
    with pytest.raises(ContractError) as caught:
        contract.validate("putAppointments", {"lpu_id": 7, "records": [lacking]})
    assert caught.value.errors == {"records.0.client.second_name": ["This field is required."]}


def test_an_error_quotes_no_value() -> None:
    bad = record(1, status="Канарейкин", client={"mobile_phone": "+7 900 CANARY", "first_name": "Ж" * 300})
    with pytest.raises(ContractError) as caught:
        contract.validate("putAppointments", {"lpu_id": 7, "records": [bad]})
    shown = str(caught.value) + repr(caught.value.errors)
    assert not re.search("Канарейкин|CANARY|ЖЖ", shown)
    assert "client.mobile_phone" in shown


def test_good_bodies_pass() -> None:
    contract.validate("putAppointments", {"lpu_id": 7, "records": [record(n) for n in range(1, 501)]})
    contract.validate("withdrawAppointments", {"lpu_id": 7, "records": [withdrawal(1, 2)]})
    contract.validate("answerAction", {"status_code": 423, "detail": ""})


@pytest.mark.parametrize("size", [0, 501])
def test_a_batch_has_1_to_500_records(size: int) -> None:
    with pytest.raises(ContractError):
        contract.validate("putAppointments", {"lpu_id": 7, "records": [record(n) for n in range(1, size + 1)]})


def test_a_reason_is_a_code_and_not_text() -> None:
    with pytest.raises(ContractError):
        contract.validate(
            "withdrawAppointments", {"lpu_id": 7, "records": [{**withdrawal(1, 2), "reason": "by phone"}]}
        )


def test_replies_are_checked_too() -> None:
    contract.validate_reply("answerAction", 204, None)
    contract.validate_reply("listClinics", 503, None)
    with pytest.raises(ContractError):
        contract.validate_reply("putAppointments", 200, {"data": [{"id": 1}]})
    with pytest.raises(ContractError):
        contract.validate_reply("putAppointments", 302, None)


def test_unknown_operations_and_operations_without_body_say_so() -> None:
    with pytest.raises(KeyError, match="it has answerAction"):
        contract.validate("sendAppointments", {})
    with pytest.raises(KeyError, match="takes no body"):
        contract.validate("listClinics", {})


def test_the_digest_is_the_one_that_the_contract_words_define() -> None:
    made = record(1, 5, client={"first_name": 'Ёж "\t', "second_name": "Ильич"})
    without = {name: value for name, value in made.items() if name != "version"}
    canonical = json.dumps(without, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert contract.record_digest(made) == hashlib.sha256(canonical).hexdigest()
    assert contract.record_digest(made) == contract.record_digest({**made, "version": 6})
    # Golden: whatever library writes the JSON, partners of the contract must agree on these bytes.
    assert contract.record_digest(record(1)) == "f3f81d82b34b8a933f234889434849b5c455d7e4b2ebb88fcc39dd7ab5898f8a"
