"""How what Medflex shows can differ from what it should show, and what is done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any


class Drift(StrEnum):
    """What was found of a record at one ``lpu_id``; the order is that of reports."""

    EXTRA = "extra"
    MISSING = "missing"
    OLDER = "older"
    NEWER = "newer"
    LEDGER_BEHIND = "ledger_behind"
    GONE = "gone"

    @property
    def description(self) -> str:
        """One line for reports and pages: what it is, and what is done."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Drift.EXTRA: "Medflex shows it, and by the ledger it is withdrawn or was never sent: it is withdrawn.",
    Drift.MISSING: "The ledger says sent, and Medflex does not show it: the next transfer sends it.",
    Drift.OLDER: "Medflex shows an older version than it acknowledged: it is withdrawn and sent anew.",
    Drift.NEWER: "Medflex shows a newer version than the ledger knows of: it is withdrawn and sent anew.",
    Drift.LEDGER_BEHIND: "Medflex shows exactly what it should; only the ledger said otherwise and is corrected.",
    Drift.GONE: "It has left the window, and Medflex does not show it any more: it is withdrawn, to be sure.",
}


@dataclass(frozen=True)
class Shown:
    """What Medflex shows of a record."""

    version: int
    digest: str


@dataclass(frozen=True)
class Believed:
    """What the ledger says of a record. is_open: it is in an intent without outcome."""

    version: int
    state: str
    acked_version: int | None
    is_open: bool = False


def judge_drift(shown: Shown | None, believed: Believed | None, expected: str | None) -> Drift | None:
    """Tell how a record differs from what it should be; ``None`` if it does not, or if it is being dealt with anyway.

    Args:
        shown: what Medflex shows, or ``None``.
        believed: what the ledger says, or ``None`` if it knows nothing.
        expected: the digest that Medflex must show if the record may be shared now at this ``lpu_id``, else ``None``.

    What may no longer be shared, although Medflex and the ledger agree on it, is no drift: that is a revocation. So is
    what has changed in Medlock since it was sent: the next transfer sends it.
    """
    if shown is None:
        if believed is None or believed.is_open or believed.state not in ("sent", "aged_out"):
            return None
        return Drift.MISSING if expected is not None else Drift.GONE
    if believed is not None and (believed.is_open or believed.state == "withdrawing"):
        return None
    if shown.digest == expected:
        if believed is not None and believed.state == "sending" and shown.version < believed.version:
            # A newer version is on its way, perhaps with other content: only a still newer one settles that.
            return None
        # Its content is as it should be, whatever its version.
        agrees = believed is not None and believed.state == "sent" and believed.acked_version == shown.version
        return None if agrees else Drift.LEDGER_BEHIND
    if believed is None or believed.state == "withdrawn":
        return Drift.EXTRA
    if shown.version > believed.version:
        return Drift.NEWER
    if believed.state in ("sent", "aged_out") and shown.version != believed.acked_version:
        return Drift.OLDER
    # In doubt (sending, rejected): the next transfer or withdrawal settles it. Else it is what was acknowledged.
    return None


def contract_digest(record: Mapping[str, Any]) -> str:
    """Return the digest by which Medflex tells what it shows: SHA-256 of the record's canonical JSON, version left out.

    Unkeyed, as the contract has it: it is compared and never kept.
    """
    body = {name: value for name, value in record.items() if name != "version"}
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
