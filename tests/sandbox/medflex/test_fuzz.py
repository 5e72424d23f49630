"""schemathesis fuzzes the running server from the contract file: good and bad data, headers, methods, parameters."""

import gzip
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from sandbox.medflex.contract import CONTRACT_FILE
from sandbox.medflex.process import MedflexProcess
from tests.sandbox.medflex.helpers import LPU

_numbers = itertools.count(1)


schema = schemathesis.openapi.from_path(CONTRACT_FILE)
# The token is left out of the fuzz; the check `ignored_auth` sends requests again without it and with a wrong one.
schema.config.generation.update(modes=list(GenerationMode), with_security_parameters=False)


@pytest.fixture
def action_id(medflex: MedflexProcess) -> str:
    """An action that can be answered."""
    action = {"lpu_id": LPU, "appointment_id": 1, "partner_id": 3, "type": "confirm", "base_version": 1}
    return medflex.control.add_actions([action])[0]


@pytest.fixture
def cursor(medflex: MedflexProcess, action_id: str) -> str:
    """A place behind that action."""
    headers = {"Authorization": f"Token {medflex.token}"}
    return str(requests.get(f"{medflex.url}/actions/", headers=headers, timeout=5).json()["cursor"])


@pytest.fixture
def seen() -> Iterator[Counter[int]]:
    """Statuses of one operation. A fuzz that is turned away at the door proves nothing: it must hear yes, and no."""
    statuses: Counter[int] = Counter()
    yield statuses
    assert statuses[200] + statuses[204], "no request was accepted"
    assert statuses[400], "no request was refused as bad"


@schema.parametrize()
@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_the_contract(
    case: Case, medflex: MedflexProcess, action_id: str, cursor: str, seen: Counter[int]
) -> None:
    options: dict[str, Any] = {"base_url": medflex.url, "headers": {"Authorization": f"Token {medflex.token}"}}
    if case.meta is not None and case.meta.generation.mode.is_positive:
        options |= _made_acceptable(case, action_id, cursor)
    response = case.call(**options)
    seen[response.status_code] += 1
    # A bad record inside a good request is refused by its verdict, as the contract says, and not by the status.
    refused_inside = response.status_code == 200 and case.method == "POST" and _has_a_refusal(response.json())
    case.validate_response(
        response,
        excluded_checks=[negative_data_rejection] if refused_inside else [],
        headers=options["headers"],
        transport_kwargs={"base_url": medflex.url},
    )


def _made_acceptable(case: Case, action_id: str, cursor: str) -> dict[str, Any]:
    """What no schema can say: clinic and cursor that exist, a fresh key, each id once, a body as its header says."""
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = action_id
    if "lpu_id" in (case.query or {}):
        case.query["lpu_id"] = LPU
    if "after" in (case.query or {}):
        case.query["after"] = cursor
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = f"fuzz-{next(_numbers)}"
    if isinstance(case.body, dict) and isinstance(case.body.get("records"), list):
        case.body = {
            "lpu_id": LPU,
            "records": [{**record, "id": number} for number, record in enumerate(case.body["records"], 1)],
        }
    if (case.headers or {}).get("Content-Encoding") == "gzip":
        return {"data": gzip.compress(orjson.dumps(case.body)), "json": None}
    return {}


def _has_a_refusal(body: dict[str, list[dict[str, int]]]) -> bool:
    return any(item["status_code"] == 400 for item in body["data"])
