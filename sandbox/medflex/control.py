"""What tests and the command line say to a running sandbox Medflex over its control port."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Self, TypedDict

import orjson
import requests

from .faults import Fault, FaultKind, Match, Params

__all__ = ["Applied", "Control", "ControlError", "Counters", "Fault", "FaultKind", "LoggedRequest", "Match", "Params"]


class ControlError(RuntimeError):
    """The control port cannot be reached, or refuses."""


class Applied(TypedDict):
    """One write that had an effect; digest (hex) is null for a withdrawal."""

    lpu_id: int
    id: int
    version: int
    digest: str | None


class LoggedRequest(TypedDict):
    """One request; `started` on the server's monotonic clock, `seconds` it took, status null when none was sent."""

    started: float
    method: str
    path: str
    operation: str | None
    key: str | None
    lpu_id: int | None
    records: int
    faults: list[str]
    status: int | None
    carriage: Literal["answer", "hold", "reset"]
    seconds: float


class Counters(TypedDict):
    """Of one operation: requests, records judged (not counting repeated replies), replies by HTTP status (or `hold`,
    `reset`), verdicts by status_code."""

    requests: int
    records: int
    replies: dict[str, int]
    verdicts: dict[str, int]


class Control:
    """Client of the control port. Every method raises ControlError when the server is away or refuses."""

    def __init__(self, url: str) -> None:
        """`url`: the control address, as in the ready file. Does not connect yet."""
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    # Clinics

    def put_clinics(self, clinics: Iterable[Mapping[str, Any]]) -> int:
        """Add or replace clinics that the token sees: {"lpu_id", "name", "time_offset" (minutes)}; returns how many
        there are now."""
        return int(self._call("PUT", "/clinics", list(clinics)))

    def remove_clinics(self, lpu_ids: Iterable[int]) -> int:
        """The token sees these no more (404); what was stored of them stays."""
        return int(self._call("POST", "/clinics/remove", list(lpu_ids)))

    # Faults

    def add_fault(self, kind: FaultKind | str | Fault, *, match: Match | None = None, **settings: Any) -> int:
        """Switch a fault on; returns its id.

        `settings` are those of Fault (times, skip, every, probability, seed) and of Params (seconds, status, …):
        `add_fault("status", status=503, when="after", times=2, match=Match(path_prefix="/appointments/batch/"))`.
        """
        if isinstance(kind, Fault):
            fault = kind
        else:
            own = {name: settings.pop(name) for name in list(settings) if name in Fault.model_fields}
            if match is not None:
                own["match"] = match
            if settings:
                own["params"] = Params(**settings)
            fault = Fault(kind=FaultKind(kind), **own)
        return int(self._call("POST", "/faults", fault.model_dump(mode="json", exclude_unset=True)))

    def faults(self) -> list[dict[str, Any]]:
        """What is on: {"id", "seen", "fired", "fault"}."""
        return list(self._call("GET", "/faults"))

    def remove_fault(self, fault_id: int) -> None:
        """Switch one fault off."""
        self._call("DELETE", f"/faults/{fault_id}")

    def clear_faults(self) -> None:
        """Switch all faults off. Late writes still come late."""
        self._call("DELETE", "/faults")

    def deliver(self) -> int:
        """Let all late writes take effect now; returns how many requests."""
        return int(self._call("POST", "/late/deliver"))

    def settings(
        self,
        *,
        requests_per_second: float | None = None,
        retry_after_form: Literal["seconds", "http_date"] = "seconds",
        latency_ms: float = 0.0,
    ) -> None:
        """Set rate limit (None: none) and latency of every request; what is left out goes back to its default."""
        self._call(
            "PUT",
            "/settings",
            {
                "requests_per_second": requests_per_second,
                "retry_after_form": retry_after_form,
                "latency_ms": latency_ms,
            },
        )

    # What is there

    def records(self, lpu_id: int | None = None) -> dict[tuple[int, int], dict[str, Any]]:
        """All that partners can see: {(lpu_id, appointment id): record}, with version and personal data."""
        return {
            (line["lpu_id"], line["record"]["id"]): line["record"]
            for line in self._lines("/records", {"lpu_id": lpu_id})
        }

    def tombstones(self) -> dict[tuple[int, int], dict[str, Any]]:
        """All that was withdrawn: {(lpu_id, appointment id): {"version", "reason", …}}."""
        return {(line["lpu_id"], line["id"]): line for line in self._lines("/tombstones", {})}

    def applied(self, lpu_id: int | None = None, appointment_id: int | None = None) -> list[Applied]:
        """Every write that ever had an effect, in order; of one clinic or one appointment when given."""
        return list(self._lines("/applied", {"lpu_id": lpu_id, "appointment_id": appointment_id}))

    def counters(self) -> dict[str, Counters]:
        """By operationId of the contract, and `unknown`."""
        return dict(self._call("GET", "/counters"))

    def request_log(self) -> list[LoggedRequest]:
        """The last 100,000 requests, oldest first, without bodies."""
        return list(self._call("GET", "/requests"))

    def forget_request_log(self) -> None:
        """Empty the log of requests and set the counters to zero."""
        self._call("DELETE", "/requests")

    def reset(self) -> None:
        """The server as new: no data, keys, faults, limits or log."""
        self._call("POST", "/reset")

    # Partner actions

    def add_actions(self, actions: Iterable[Any], *, unchecked: bool = False) -> list[str]:
        """Queue partner actions as in the contract's Action; returns their ids. `id`, `created_at` and the optional
        fields may be left out.

        `unchecked`: queue them as they are, nothing added and whatever is wrong with them, as a Medflex that breaks its
        contract would; one without `id` cannot be answered.
        """
        return list(self._call("POST", f"/actions?unchecked={int(unchecked)}", list(actions)))

    def repeat_action(self, action_id: str) -> None:
        """Deliver an action a second time, at the end of the queue."""
        self._call("POST", f"/actions/{action_id}/repeat")

    def forget_actions(self, *, keep: bool = False) -> None:
        """Lose the queue: every cursor given so far points nowhere (404). The actions are gone with it, or with `keep`
        they are all listed again under new cursors. Answers are remembered either way, and still count for an action
        that is listed."""
        self._call("POST", f"/actions/forget?keep={int(keep)}")

    def results(self) -> dict[str, dict[str, Any]]:
        """How actions were answered: {action id: {"status_code", "detail"}}."""
        return dict(self._call("GET", "/results"))

    # The wire

    def _send(self, method: str, path: str, **more: Any) -> requests.Response:
        try:
            response = self._session.request(method, self.url + path, timeout=60, **more)
        except requests.RequestException as error:
            raise ControlError(
                f"the sandbox Medflex does not answer at {self.url} ({type(error).__name__}); is it running?"
            ) from None
        if not response.ok:
            raise ControlError(f"the sandbox Medflex refuses {method} {path}: {response.status_code} {response.text}")
        return response

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        sent = {} if body is None else {"data": orjson.dumps(body), "headers": {"content-type": "application/json"}}
        return orjson.loads(self._send(method, path, **sent).content)

    def _lines(self, path: str, query: Mapping[str, int | None]) -> Iterator[Any]:
        with self._send("GET", path, params=query, stream=True) as response:
            for line in response.iter_lines(chunk_size=65536):
                if line:
                    yield orjson.loads(line)
