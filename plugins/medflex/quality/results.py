"""What remains of a validation: counts, percentages and the rules' own fixed bounds. Never a value of the data.

These objects are built from a whitelist, so they may be stored in staging, rendered and shown. They travel between
tasks as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """What a failure does: ``critical`` stops the shard's sending, ``warning`` is reported, ``info`` is recorded."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class ExpectationResult:
    """One rule's outcome over all rows of a shard."""

    name: str
    expectation_type: str
    columns: tuple[str, ...]
    #: The rule's severity; ``critical`` also when the rule could not be evaluated.
    severity: Severity
    success: bool
    #: Rows looked at, those with a missing value included.
    evaluated: int
    unexpected: int
    #: Of the rows that have a value, 0 to 100.
    unexpected_percent: float
    #: Rows without a value, which the rule does not judge.
    missing: int
    #: Class name of the exception that kept the rule from being evaluated, without its text.
    exception_class: str | None = None
    #: The rule's fixed arguments without the column names, as the suite states them.
    bounds: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteResult:
    """The outcome of one suite on one shard (or on a whole run)."""

    suite: str
    shard: str
    #: Rows that reached the suite.
    rows: int
    results: tuple[ExpectationResult, ...]

    @property
    def critical_failures(self) -> tuple[ExpectationResult, ...]:
        """Failures that stop the shard's sending."""
        return tuple(r for r in self.results if not r.success and r.severity is Severity.CRITICAL)

    @property
    def warnings(self) -> tuple[ExpectationResult, ...]:
        """Failures that are reported and stop nothing."""
        return tuple(r for r in self.results if not r.success and r.severity is Severity.WARNING)

    @property
    def success(self) -> bool:
        """Whether sending may go on."""
        return not self.critical_failures

    def to_json(self) -> str:
        """Return the result as one JSON document."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> SuiteResult:
        """Read what :meth:`to_json` wrote; raises ``KeyError`` or ``TypeError`` for anything else."""
        document = json.loads(text)
        results = tuple(
            ExpectationResult(
                **{**item, "columns": tuple(item["columns"]), "severity": Severity(item["severity"])},
            )
            for item in document["results"]
        )
        return cls(suite=document["suite"], shard=document["shard"], rows=document["rows"], results=results)
