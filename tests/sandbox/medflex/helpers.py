"""A small Medflex client for these tests, and records to send with it."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import requests

from sandbox.medflex.contract import validate_reply

LPU, OTHER_LPU = 7, 8
CLINICS = [
    {"lpu_id": LPU, "name": "Клиника семь", "time_offset": 180},
    {"lpu_id": OTHER_LPU, "name": "Клиника восемь", "time_offset": 120},
]
_keys = itertools.count(1)


def record(id_: int, version: int = 1, **changes: Any) -> dict[str, Any]:
    """A record as the contract wants it; `client=` replaces single fields of the patient."""
    client = {"first_name": "Тест", "second_name": None, "mobile_phone": "79001112233", **changes.pop("client", {})}
    return {
        "id": id_,
        "version": version,
        "doctor_id": 3,
        "dt_start": "2026-03-01 09:30",
        "dt_end": "2026-03-01 10:00",
        "time_offset": 180,
        "status": "relevant",
        "mis_status": "unconfirmed",
        "entry": "direct",
        "partners": [3, 17],
        "client": client,
        **changes,
    }


def withdrawal(id_: int, version: int) -> dict[str, Any]:
    """A withdrawn record."""
    return {"id": id_, "version": version, "reason": "refused_personal_data"}


class Client:
    """Speaks the contract; every reply that it reads is held against it."""

    def __init__(self, url: str, token: str, session: requests.Session | None = None) -> None:
        self.url = url
        self.session = session or requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Token {token}"

    def write(
        self,
        operation_id: str,
        records: list[dict[str, Any]],
        *,
        key: str | None = None,
        lpu_id: int = LPU,
        **more: Any,
    ) -> requests.Response:
        """POST records; a new key is made when none is given."""
        path = {"putAppointments": "batch", "withdrawAppointments": "withdraw"}[operation_id]
        headers = {"Idempotency-Key": key or f"test-{next(_keys)}", **more.pop("headers", {})}
        body = {"lpu_id": lpu_id, "records": records}
        if "data" not in more:
            more["json"] = body
        response = self.session.post(f"{self.url}/appointments/{path}/", headers=headers, timeout=(5, 20), **more)
        if response.headers["content-type"] == "application/json":
            validate_reply(operation_id, response.status_code, response.json())
        return response

    def put(self, *records: dict[str, Any], **more: Any) -> dict[int, int]:
        """Share records; {id: status_code}."""
        return verdicts(self.write("putAppointments", list(records), **more))

    def withdraw(self, *records: dict[str, Any], **more: Any) -> dict[int, int]:
        """Withdraw records; {id: status_code}."""
        return verdicts(self.write("withdrawAppointments", list(records), **more))

    def get(self, operation_id: str, path: str, **query: Any) -> requests.Response:
        """GET one page."""
        response = self.session.get(self.url + path, params=query, timeout=(5, 20))
        validate_reply(operation_id, response.status_code, response.json())
        return response

    def listing(self, lpu_id: int = LPU) -> dict[int, tuple[int, str]]:
        """What is visible: {id: (version, digest)}, by following the links."""
        found: dict[int, tuple[int, str]] = {}
        page = self.get("listAppointments", "/appointments/", lpu_id=lpu_id).json()
        while True:
            found.update({item["id"]: (item["version"], item["digest"]) for item in page["data"]})
            if page["links"]["next"] is None:
                return found
            page = self.session.get(page["links"]["next"], timeout=(5, 20)).json()

    def answer(self, action_id: str, status_code: int, detail: str = "") -> requests.Response:
        """POST the result of an action."""
        return self.session.post(
            f"{self.url}/actions/{action_id}/result/",
            json={"status_code": status_code, "detail": detail},
            timeout=(5, 20),
        )


def verdicts(response: requests.Response) -> dict[int, int]:
    """{id: status_code} of a reply that must be 200."""
    assert response.status_code == 200, (response.status_code, response.text)
    return {item["id"]: item["status_code"] for item in response.json()["data"]}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Ask (the server, so each try takes its time) until the condition holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
    raise AssertionError("the condition never held")
