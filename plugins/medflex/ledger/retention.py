"""What the ledger forgets, and when: runs, batches, answered questions, partner actions, the marks of ended attempts.

Records are never forgotten: what is no longer there can no longer be withdrawn, and a version must never be given out
twice. Neither is an intent without outcome, nor an open question. Each method works in small transactions, so that it
holds nobody up, can be stopped at any point, and goes on from there.
"""

from __future__ import annotations

from medflex.domain.partner_actions import KEPT_DAYS
from medflex.ledger.store import Ledger
from medflex.sql import query

CHUNK = 500
"""Rows per transaction."""
KEPT_RUNS = 10
"""Runs of each kind and DAG that stay however old they are; later runs are judged beside the last seven."""
ANSWER_DAYS = 14
"""Answers stay at least so long, whatever is asked for: withdrawals go by those of the last seven days."""
ACTION_DAYS = KEPT_DAYS + 2
"""So long decisions about partner actions stay, here and in Medlock's journal: what is asked for anew behind that is
refused for its age alone. One of the days is how far ahead of the clock an action may claim to be asked for, the other
one is for clocks that differ."""
WRITER_DAYS = 30
"""Far beyond any attempt of a task, whose time is limited to hours."""


class LedgerRetention(Ledger):
    """The ledger as housekeeping sees it. Errors as in :class:`Ledger`; numbers returned are rows removed."""

    def prune_runs(self, days: int) -> int:
        """Remove runs that were settled more than ``days`` times 24 hours ago, one per transaction.

        A run hangs together: its shards, funnel, decisions, validations and findings go with it. The last
        ``KEPT_RUNS`` of each kind stay, and so does a run without an end until it is twice as old.
        """
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/retention_old_runs"), {"days": days, "keep": KEPT_RUNS, "now": self._present()}
            )
            run_keys = [row["run_key"] for row in cursor.fetchall()]
        removed = 0
        for run_key in run_keys:
            with self._statement() as cursor:
                cursor.execute(
                    query("ledger/retention_delete_run"), {"run_key": run_key, "days": days, "now": self._present()}
                )
                removed += cursor.rowcount
        return removed

    def prune_batches(self, days: int, chunk: int = CHUNK) -> int:
        """Remove batches that were written down more than ``days`` times 24 hours ago and have an outcome."""
        removed, after_id = 0, 0
        while True:
            with self._statement() as cursor:
                cursor.execute(
                    query("ledger/retention_delete_batches"),
                    {"after_id": after_id, "size": chunk, "days": days, "now": self._present()},
                )
                row = cursor.fetchone()
            removed += row["removed"]  # type: ignore[index]
            # What follows is younger still.
            if not row["old"]:  # type: ignore[index]
                return removed
            after_id = row["last_id"]  # type: ignore[index]

    def prune_holds(self, days: int, chunk: int = CHUNK) -> int:
        """Remove held absences that were decided more than ``days`` (at least ``ANSWER_DAYS``) times 24 hours ago.

        Open ones stay.
        """
        return self._in_chunks("ledger/retention_delete_holds", max(days, ANSWER_DAYS), chunk)

    def prune_actions(self, chunk: int = CHUNK) -> int:
        """Remove partner actions that were decided more than ``ACTION_DAYS`` times 24 hours ago and are answered."""
        return self._in_chunks("ledger/retention_delete_actions", ACTION_DAYS, chunk)

    def prune_alerts(self, days: int, chunk: int = CHUNK) -> int:
        """Remove alerts that were over, and told, more than ``days`` times 24 hours ago, and deadlines that were missed
        as long ago; those that stand stay.
        """
        removed = self._in_chunks("ledger/retention_delete_alerts", days, chunk)
        return removed + self._in_chunks("ledger/retention_delete_deadlines", days, chunk)

    def prune_writers(self, days: int = WRITER_DAYS, chunk: int = CHUNK) -> int:
        """Remove the marks of attempts that started more than ``days`` times 24 hours ago."""
        return self._in_chunks("ledger/retention_delete_writers", days, chunk)

    def run_ids(self, dag_id: str) -> list[str]:
        """Return the ids of all runs of a DAG that the ledger knows."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/retention_run_ids"), {"dag_id": dag_id})
            return [row["run_id"] for row in cursor.fetchall()]

    def _in_chunks(self, name: str, days: int, chunk: int) -> int:
        removed = 0
        while True:
            with self._statement() as cursor:
                cursor.execute(query(name), {"days": days, "size": chunk, "now": self._present()})
                done = cursor.rowcount
            removed += done
            if done < chunk:
                return removed
