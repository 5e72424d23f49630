"""The ledger's side of reconciliation: what it knows of a clinic, corrected by what Medflex was seen to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import pandas as pd

from medflex.domain.revocations import Revoked
from medflex.errors import LeaseLostError
from medflex.ledger.connection import LedgerConnection, again_after_deadlock
from medflex.sql import query


class Reconciliation(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    def records(self, clinic_id: int) -> pd.DataFrame:
        """Return what is known of a clinic's records: ``appointment_id``, ``lpu_id``, ``version`` (int64), ``state``,
        ``acked_version`` (Int64), ``is_open`` (bool: in an intent without outcome); one row per record and lpu_id.
        """
        columns = ["appointment_id", "lpu_id", "version", "state", "acked_version", "is_open"]
        with self._statement() as cursor:
            cursor.execute(query("ledger/records"), {"clinic_id": clinic_id})
            frame = pd.DataFrame(cursor.fetchall(), columns=columns, dtype=object)
        return frame.astype(
            {**dict.fromkeys(("appointment_id", "lpu_id", "version"), "int64"), "acked_version": "Int64"}
            | {"state": "str", "is_open": "bool"}
        )

    def doubtful_clinics(self, since: datetime) -> list[int]:
        """Return the clinics with requests since then of which nobody could tell whether they had their effect."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/doubtful_clinics"), {"since": since})
            return [row["clinic_id"] for row in cursor.fetchall()]

    def last_full_comparison(self) -> datetime | None:
        """Return when all clinics were last compared, with whatever outcome; ``None`` if never."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT max(started_at) AS at FROM ledger.run WHERE mode = 'reconcile' AND clinic_ids IS NULL"
            )
            row = cursor.fetchone()
        return row["at"] if row else None

    @again_after_deadlock
    def correct_records(
        self,
        corrections: pd.DataFrame,
        *,
        clinic_id: int,
        lpu_id: int,
        holder: str,
        epoch: int,
        partner_ids: Sequence[int],
        extracted_at: datetime | None,
    ) -> int:
        """Make the ledger say what Medflex was seen to show, and keep what has to be withdrawn therefore until that is
        acknowledged; return the number of records.

        Args:
            corrections: ``appointment_id``, ``version`` (int64), ``state``, ``acked_version``, ``acked_digest``,
                ``patient_id`` (Int64, missing where there is none).
            partner_ids: who can see the records that are corrected to ``sent``.
            extracted_at: the instant whose state of Medlock those show, as far as known.

        Raises:
            LeaseLostError: another task has taken the clinic over.
        """
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/correct_records"),
                {
                    "clinic_id": clinic_id,
                    "lpu_id": lpu_id,
                    "holder": holder,
                    "epoch": epoch,
                    "appointment_ids": corrections["appointment_id"].astype("int64").tolist(),
                    "versions": corrections["version"].astype("int64").tolist(),
                    "states": corrections["state"].tolist(),
                    **{
                        f"{name}s": [None if pd.isna(value) else int(value) for value in corrections[name]]
                        for name in ("acked_version", "acked_digest", "patient_id")
                    },
                    "partner_ids": [int(item) for item in partner_ids],
                    "reason": str(Revoked.WITHDRAWAL_UNFINISHED),
                    "extracted_at": extracted_at,
                    "now": self._present(),
                },
            )
            row = cursor.fetchone()
        if not row or not row["fences"]:
            raise LeaseLostError(f"Clinic {clinic_id} has been taken over by another task while it was compared.")
        return int(row["records"])

    def save_findings(self, run_key: int, findings: Mapping[tuple[int, int, str], Sequence[int]]) -> None:
        """Add what reconciliation found: (clinic, lpu_id, kind) → appointment ids.

        Added to what an earlier attempt of the same run found, since that has been corrected and is not found again.
        """
        with self._transaction() as cursor:
            cursor.executemany(
                "INSERT INTO ledger.finding AS finding (run_key, clinic_id, lpu_id, kind, appointment_ids)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (run_key, clinic_id, lpu_id, kind) DO UPDATE"
                " SET appointment_ids = ARRAY(SELECT DISTINCT unnest(finding.appointment_ids ||"
                " excluded.appointment_ids) ORDER BY 1)",
                [
                    (run_key, clinic_id, lpu_id, kind, sorted(int(item) for item in ids))
                    for (clinic_id, lpu_id, kind), ids in sorted(findings.items())
                ],
            )

    def findings(self, run_key: int) -> pd.DataFrame:
        """Return what a reconciliation found: ``clinic_id``, ``lpu_id``, ``kind``, ``appointment_ids``."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT clinic_id, lpu_id, kind, appointment_ids FROM ledger.finding WHERE run_key = %s"
                " ORDER BY clinic_id, lpu_id, kind",
                (run_key,),
            )
            return pd.DataFrame(cursor.fetchall(), columns=["clinic_id", "lpu_id", "kind", "appointment_ids"])
