"""The contract file, compiled: every check of a body, a parameter or a reply goes by the OpenAPI file itself."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import yaml

CONTRACT_FILE = Path(__file__).resolve().parents[2] / "include" / "contracts" / "medflex.openapi.yaml"

# The C loader is in every wheel of PyYAML; a source build may lack it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

FieldErrors = dict[str, list[str]]


class ContractError(ValueError):
    """A body that the contract does not allow. Names the operation and the fields, never a value.

    `errors` is {field path: [what is wrong]}, such as {"records.3.client.mobile_phone": ["pattern: …"]}.
    """

    def __init__(self, operation_id: str, errors: FieldErrors) -> None:
        self.operation_id = operation_id
        self.errors = errors
        shown = "; ".join(f"{field}: {', '.join(what)}" for field, what in list(errors.items())[:10])
        super().__init__(f"{operation_id} breaks the Medflex contract at {shown}")


@dataclass(frozen=True)
class Parameter:
    """One parameter of an operation: `place` is query, header or path; header names are lower case."""

    name: str
    place: str
    required: bool
    default: Any
    is_integer: bool
    validator: jsonschema_rs.Validator


@dataclass(frozen=True)
class Operation:
    """One operation of the contract. `path` matches a whole request path, its groups are the path parameters."""

    operation_id: str
    method: str
    path: re.Pattern[str]
    parameters: tuple[Parameter, ...]
    body: jsonschema_rs.Validator | None
    replies: Mapping[str, jsonschema_rs.Validator | None]

    @property
    def takes_key(self) -> bool:
        """True when the operation wants an Idempotency-Key."""
        return any(parameter.name == "idempotency-key" for parameter in self.parameters)

    def body_errors(self, body: Any) -> FieldErrors:
        """What is wrong with a request body, by dotted field path; empty when nothing is, or no body is taken."""
        if self.body is None or self.body.is_valid(body):
            return {}
        return field_errors(self.body, body)


@cache
def document() -> dict[str, Any]:
    """The contract file as it stands. Do not change what it returns."""
    loaded: dict[str, Any] = yaml.load(CONTRACT_FILE.read_text(encoding="utf-8"), _Loader)  # noqa: S506 a safe loader
    return loaded


@cache
def schema(name: str) -> jsonschema_rs.Validator:
    """The validator of `#/components/schemas/<name>`."""
    return _compile({"$ref": f"#/components/schemas/{name}"})


@cache
def operations() -> dict[str, Operation]:
    """All operations by operationId."""
    return {operation.operation_id: operation for operation in _read_operations()}


def operation(operation_id: str) -> Operation:
    """One operation; KeyError says which there are."""
    try:
        return operations()[operation_id]
    except KeyError:
        raise KeyError(
            f"the Medflex contract has no operation {operation_id!r}; it has {', '.join(sorted(operations()))}"
        ) from None


def validate(operation_id: str, body: Any) -> None:
    """Hold a request body (parsed JSON) against the contract; raises ContractError."""
    if operation(operation_id).body is None:
        raise KeyError(f"{operation_id} takes no body in the Medflex contract")
    if errors := operation(operation_id).body_errors(body):
        raise ContractError(operation_id, errors)


def validate_reply(operation_id: str, status: int, body: Any) -> None:
    """Hold a reply (parsed JSON, None for no body) against the contract; raises ContractError."""
    replies = operation(operation_id).replies
    known = next((code for code in (str(status), f"{str(status)[0]}XX") if code in replies), None)
    if known is None:
        raise ContractError(operation_id, {"status": [f"{status} is not in the contract"]})
    validator = replies[known]
    if validator is not None and not validator.is_valid(body):
        raise ContractError(operation_id, field_errors(validator, body))


def field_errors(validator: jsonschema_rs.Validator, instance: Any) -> FieldErrors:
    """What is wrong with `instance`, by dotted field path; the texts name the rule that is broken, never the value."""
    found: FieldErrors = {}
    for error in validator.iter_errors(instance):
        path = [str(step) for step in error.instance_path]
        kind = error.kind
        rule = kind.name
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
            path.append(str(kind.property))
            text = "This field is required."
        elif isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
            for unexpected in kind.unexpected:
                found.setdefault(".".join([*path, unexpected]), []).append("This field is not in the contract.")
            continue
        else:
            limit = next((getattr(kind, name) for name in ("limit", "pattern", "types") if hasattr(kind, name)), None)
            text = f"{rule}: must be {limit}." if limit is not None else f"{rule}: not allowed here."
        found.setdefault(".".join(path) or "body", []).append(text)
    return found


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no white space, UTF-8: the form over which the contract defines `digest`."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def record_digest(record: Mapping[str, Any]) -> str:
    """`digest` of the listing: SHA-256 hex over the canonical JSON of the record without `version`."""
    return hashlib.sha256(canonical_json({k: v for k, v in record.items() if k != "version"})).hexdigest()


def _compile(wanted: dict[str, Any]) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator(
        {**wanted, "components": document()["components"]}, validate_formats=True, ignore_unknown_formats=True
    )


def _resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = document()
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def _json_schema(node: dict[str, Any]) -> jsonschema_rs.Validator | None:
    content = node.get("content")
    return _compile(content["application/json"]["schema"]) if content else None


def _read_operations() -> Iterator[Operation]:
    for path, item in document()["paths"].items():
        for method, node in item.items():
            parameters = []
            for raw in map(_resolve, node.get("parameters", [])):
                value = _resolve(raw["schema"])
                parameters.append(
                    Parameter(
                        name=raw["name"].lower() if raw["in"] == "header" else raw["name"],
                        place=raw["in"],
                        required=raw.get("required", False),
                        default=value.get("default"),
                        is_integer=value["type"] == "integer",
                        validator=_compile(raw["schema"]),
                    )
                )
            yield Operation(
                operation_id=node["operationId"],
                method=method.upper(),
                path=re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)),
                parameters=tuple(parameters),
                body=_json_schema(_resolve(node["requestBody"])) if "requestBody" in node else None,
                replies={code: _json_schema(_resolve(reply)) for code, reply in node["responses"].items()},
            )
