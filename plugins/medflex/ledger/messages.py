"""The ledger's side of double messages: what partners sent, and what a run found of what patients get twice."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pandas as pd
import psycopg

from medflex.arrow import to_pandas
from medflex.domain.messages import MessageLook, MessageWarning, Twice
from medflex.ledger.connection import LedgerConnection, translated_ledger_errors
from medflex.sql import query


class Messages(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    def notifications(self, run_key: int, since: datetime) -> Generator[pd.DataFrame, None, None]:
        """Yield, in parts, which messages partners sent about appointments of a run's clinics (R14).

        Each part: ``clinic_id``, ``appointment_id`` (int64), ``scenario`` (str), ``messages`` (int64: how many),
        ``partner_ids`` (arrays, ascending); one row per appointment and scenario, in order, over all parts.

        Args:
            since: aware; what was recorded earlier is left out.
        """
        settings = {"medflex.run_key": str(int(run_key)), "medflex.since": since.isoformat()}
        with (
            translated_ledger_errors(),
            self._streams.stream(query("ledger/notifications"), settings=settings) as reader,
        ):
            for batch in reader:
                if batch.num_rows:
                    yield to_pandas(batch)

    def save_messages(self, run_key: int, look: MessageLook) -> None:
        """Keep what a run found of messages that patients get twice, instead of what it found before."""
        with self._transaction() as cursor:
            for table in ("message_warning", "message_look"):
                cursor.execute(f"DELETE FROM ledger.{table} WHERE run_key = %s".encode(), (run_key,))
            cursor.execute(
                "INSERT INTO ledger.message_look (run_key, looked_at, since, overlaps_problem, doubled_problem)"
                " VALUES (%s, coalesce(%s::timestamptz, clock_timestamp()), %s, %s, %s)",
                (run_key, self._present(), look.since, look.overlaps_problem, look.doubled_problem),
            )
            with cursor.copy(
                "COPY ledger.message_warning"
                " (run_key, clinic_id, kind, scenario, partner_ids, appointments, appointment_ids) FROM STDIN"
            ) as copy:
                for item in look.warnings:
                    row = (item.clinic_id, item.kind.value, item.scenario, list(item.partner_ids))
                    copy.write_row((run_key, *row, item.appointments, list(item.appointment_ids)))

    def messages(self, run_key: int) -> MessageLook | None:
        """Return what a run found of messages that patients get twice; ``None`` if it has not looked."""
        with self._transaction() as cursor:
            look = _look(cursor, run_key)
            if look is None:
                return None
            cursor.execute(
                "SELECT clinic_id, kind, scenario, partner_ids, appointments, appointment_ids"
                " FROM ledger.message_warning WHERE run_key = %s ORDER BY kind, clinic_id, scenario",
                (run_key,),
            )
            warnings = tuple(
                MessageWarning(
                    item["clinic_id"],
                    Twice(item["kind"]),
                    item["scenario"],
                    tuple(item["partner_ids"]),
                    item["appointments"],
                    tuple(item["appointment_ids"]),
                )
                for item in cursor.fetchall()
            )
        return replace(look, warnings=warnings)

    def message_totals(self, run_key: int, shown: int) -> tuple[MessageLook, pd.DataFrame] | None:
        """Return the same in short: the look without its warnings, and one row per kind and scenario.

        Columns ``kind``, ``scenario``, ``clinics``, ``appointments``, ``clinic_ids`` (lists of ``shown`` at most, those
        with the most appointments first).
        """
        columns = ["kind", "scenario", "clinics", "appointments", "clinic_ids"]
        with self._transaction() as cursor:
            look = _look(cursor, run_key)
            if look is None:
                return None
            cursor.execute(query("ledger/message_totals"), {"run_key": run_key, "shown": shown})
            totals = pd.DataFrame(cursor.fetchall(), columns=columns)
        return look, totals


def _look(cursor: psycopg.Cursor[Any], run_key: int) -> MessageLook | None:
    """The look of a run, without what it found."""
    cursor.execute(
        "SELECT since, overlaps_problem, doubled_problem FROM ledger.message_look WHERE run_key = %s", (run_key,)
    )
    row = cursor.fetchone()
    return MessageLook(row["since"], (), row["overlaps_problem"], row["doubled_problem"]) if row else None
