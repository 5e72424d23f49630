"""The ledger's side of metrics: what is open now, and a run's reasons in sum."""

from __future__ import annotations

from dataclasses import dataclass

from medflex.ledger.connection import LedgerConnection
from medflex.sql import query


@dataclass(frozen=True)
class Standing:
    """What is open at one moment. Times in seconds; ``None``: it never happened.

    revocations, held_records: records. holds: questions that wait for a person. transfer_age_seconds: since a transfer
    of all clinics last succeeded. look_age_seconds: since somebody last looked for revocations.
    """

    revocations: int
    late_revocations: int
    oldest_revocation_seconds: float
    holds: int
    held_records: int
    undecided_actions: int
    unanswered_actions: int
    oldest_action_seconds: float
    transfer_age_seconds: float | None
    look_age_seconds: float | None


class Gauges(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    def standing(self, deadline_seconds: float) -> Standing:
        """Return what is open now.

        Args:
            deadline_seconds: a revocation that is open for longer is late.
        """
        with self._statement() as cursor:
            cursor.execute(query("ledger/standing"), {"deadline_seconds": deadline_seconds, "now": self._present()})
            return Standing(**cursor.fetchone())  # type: ignore[arg-type]

    def reason_totals(self, run_key: int) -> dict[tuple[str, str], int]:
        """Return (stage, reason) → records of a run; the stages are ``withhold``, ``last_look`` and ``revoke``."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/reason_totals"), {"run_key": run_key})
            return {(row["stage"], row["reason"]): row["records"] for row in cursor.fetchall()}
