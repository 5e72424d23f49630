"""What the pages read about clinics. Mixed into :class:`medflex.ledger.overview.LedgerOverview`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from medflex.sql import query

TRANSFER = "medflex_transfer"


class LastRun(NamedTuple):
    """What the newest transfer of its day did with a clinic; numbers are ``None`` where it did not come to them."""

    clinic_id: int
    run_id: str
    mode: str
    started_at: datetime
    outcome: str
    extracted: int | None
    withheld: int | None
    quarantined: int | None
    accepted: int | None

    @property
    def held_back_share(self) -> float | None:
        """The share of what was extracted that was withheld or quarantined, from 0 to 1; ``None`` of nothing."""
        if not self.extracted:
            return None
        return ((self.withheld or 0) + (self.quarantined or 0)) / self.extracted


@dataclass(frozen=True)
class SwitchEvent:
    """One turn of an access switch, as it was seen."""

    enabled: bool | None
    changed_at: datetime | None
    role: str | None
    via: str
    seen_at: datetime


class ClinicOverview:
    """Reads about single clinics, and about all of them in short; and what is wrong right now."""

    def _rows(self, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a query as mappings."""
        raise NotImplementedError

    def open_alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that stand: ``kind``, ``since``, ``sentence``, the newest first."""
        return self._rows(
            "SELECT kind, since, sentence FROM ledger.alert WHERE cleared_at IS NULL ORDER BY since DESC", {}
        )

    def last_runs(self, clinic_id: int | None = None) -> dict[int, LastRun]:
        """Return what the newest transfers did with each clinic, or with one, by its id."""
        rows = self._rows(query("ledger/pages/clinic_last_runs"), {"dag_id": TRANSFER, "clinic_id": clinic_id})
        return {row["clinic_id"]: LastRun(**row) for row in rows}

    def switch_events(self, clinic_id: int, shown: int = 20) -> tuple[list[SwitchEvent], int]:
        """Return how a clinic's switch was turned, the newest first, and how often in all."""
        rows = self._rows(
            "SELECT enabled, changed_at, role, via, seen_at, count(*) OVER () AS turns FROM ledger.switch_event"
            " WHERE clinic_id = %(clinic_id)s ORDER BY coalesce(changed_at, seen_at) DESC, event_id DESC"
            " LIMIT %(shown)s",
            {"clinic_id": clinic_id, "shown": shown},
        )
        names = ("enabled", "changed_at", "role", "via", "seen_at")
        return [SwitchEvent(**{name: row[name] for name in names}) for row in rows], rows[0]["turns"] if rows else 0

    def clinic_runs(self, clinic_id: int, since: datetime) -> list[dict[str, Any]]:
        """Return the clinic's funnel in each transfer since then, the newest first (clinic_runs.sql)."""
        return self._rows(
            query("ledger/pages/clinic_runs"), {"dag_id": TRANSFER, "clinic_id": clinic_id, "since": since}
        )

    def clinic_reasons(self, clinic_id: int, since: datetime) -> list[dict[str, Any]]:
        """Return for how many of the clinic's records each reason held in each transfer (clinic_reasons.sql)."""
        return self._rows(
            query("ledger/pages/clinic_reasons"), {"dag_id": TRANSFER, "clinic_id": clinic_id, "since": since}
        )

    def clinic_held_back(self, run_key: int, clinic_id: int) -> list[dict[str, Any]]:
        """Return what a run quarantined of the clinic, by reasons, with the first ids."""
        return self._rows(query("ledger/pages/clinic_held_back"), {"run_key": run_key, "clinic_id": clinic_id})

    def clinic_rejected(self, clinic_id: int) -> list[dict[str, Any]]:
        """Return what Medflex rejects of the clinic, by fields, with the first ids."""
        return self._rows(query("ledger/pages/clinic_rejected"), {"clinic_id": clinic_id})

    def live_count(self, clinic_id: int) -> int:
        """Return how many of the clinic's records Medflex shows or may show, by the rule of withdrawals."""
        rows = self._rows(query("ledger/live_counts"), {"clinic_ids": [clinic_id], "in_window": False})
        return rows[0]["records"] if rows else 0

    def has_records(self, clinic_id: int) -> bool:
        """Tell whether the ledger has any record of the clinic, withdrawn ones included."""
        rows = self._rows(
            "SELECT EXISTS (SELECT FROM ledger.record WHERE clinic_id = %(clinic_id)s) AS known",
            {"clinic_id": clinic_id},
        )
        return bool(rows[0]["known"])

    def clinic_withdrawals(self, clinic_id: int, shown: int = 20) -> list[dict[str, Any]]:
        """Return the clinic's newest withdrawals by batch and reason (clinic_withdrawals.sql)."""
        return self._rows(query("ledger/pages/clinic_withdrawals"), {"clinic_id": clinic_id, "shown": shown})

    def clinic_open_revocations(self, clinic_id: int) -> list[dict[str, Any]]:
        """Return what of the clinic waits for its withdrawal: ``reason``, ``records``, ``oldest``."""
        return self._rows(
            "SELECT reason, count(*) AS records, min(revoked_at) AS oldest FROM ledger.revocation"
            " WHERE clinic_id = %(clinic_id)s GROUP BY reason ORDER BY oldest",
            {"clinic_id": clinic_id},
        )

    def clinic_actions(self, clinic_id: int, shown: int = 20) -> list[dict[str, Any]]:
        """Return the newest decisions about partner actions of the clinic (clinic_actions.sql)."""
        return self._rows(query("ledger/pages/clinic_actions"), {"clinic_id": clinic_id, "shown": shown})
