"""The ledger's part about access switches: how each one was turned over time. Mixed into :class:`Ledger`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from medflex.ledger.connection import LedgerConnection
from medflex.sql import query


@dataclass(frozen=True)
class Switch:
    """How a clinic's access switch stands in Medlock. ``role``: of whoever turned it, in that clinic."""

    clinic_id: int
    enabled: bool | None
    changed_at: datetime | None
    role: str | None


class Switches(LedgerConnection):
    """Methods of the ledger about access switches (R1, R2)."""

    def note_switches(self, switches: Iterable[Switch], *, via: str = "medlock") -> int:
        """Note how switches stand; return how many were not known to stand so. One that was never set is nothing.

        Args:
            via: ``page`` for those that were turned there, else ``medlock``.
        """
        rows = [
            {
                "clinic_id": switch.clinic_id,
                "enabled": switch.enabled,
                "changed_at": switch.changed_at.isoformat() if switch.changed_at else None,
                "role": switch.role,
            }
            for switch in switches
            if switch.enabled is not None or switch.changed_at is not None
        ]
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/note_switches"), {"switches": json.dumps(rows), "via": via, "now": self._present()}
            )
            return cursor.rowcount
