"""The ledger's side of alerts: what they are judged by, which stand, what was over, who was told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from medflex.domain.alerts import CAUSES, AlertKind, Change, Clear, Facts, Keep, Limits, Open, Raise, RaiseAnew
from medflex.ledger.connection import LedgerConnection
from medflex.sql import query

Judge = Callable[[Facts, Mapping[AlertKind, Open], "datetime | None", Limits], Sequence[Change]]

_TOLD = {"raised": "raise", "cleared": "clear"}
_FIELDS = 5
"""So many fields are named where records are rejected."""
_BATCHES, _IDS = 200, 50
"""So many batches are looked into for that, and so many records of each."""


@dataclass(frozen=True)
class Alert:
    """One time that something was wrong, as it can be shown. Times are aware; ``None``: not yet."""

    alert_id: int
    kind: str
    since: datetime
    raised_at: datetime
    cleared_at: datetime | None
    sentence: str
    over_sentence: str | None
    facts: dict[str, int]
    held_up: dict[str, int]
    raise_told_at: datetime | None
    clear_told_at: datetime | None


@dataclass(frozen=True)
class Message:
    """What somebody is to be told: ``state`` is ``raised`` or ``cleared``; ``told_to``: the channels that had it."""

    alert_id: int
    kind: str
    state: str
    at: datetime
    sentence: str
    since: datetime
    told_to: list[str]


class Alerts(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    # -- judging ----------------------------------------------------------------------------------------------------

    def alert_facts(self, limits: Limits) -> Facts:
        """Return what alerts are judged by."""
        with self._transaction() as cursor:
            return self._facts(cursor, limits)

    def turn_alerts(self, judge: Judge, limits: Limits) -> list[Raise | RaiseAnew | Clear]:
        """Judge, and write down what changes, in one transaction; nobody else does so meanwhile.

        Returns what was raised or cleared.
        """
        with self._transaction() as cursor:
            cursor.execute("LOCK TABLE ledger.alert IN SHARE ROW EXCLUSIVE MODE")
            cursor.execute(query("ledger/alerts/begin_watches"), {"now": self._present()})
            facts = self._facts(cursor, limits)
            cursor.execute("SELECT * FROM ledger.alert WHERE cleared_at IS NULL")
            standing = {
                AlertKind(row["kind"]): Open(
                    AlertKind(row["kind"]),
                    row["since"],
                    row["raised_at"],
                    row["sentence"],
                    row["calm_since"],
                    row["held_up"],
                    row["facts"],
                )
                for row in cursor.fetchall()
            }
            cursor.execute("SELECT max(cleared_at) AS at FROM ledger.alert WHERE kind = ANY(%s)", (list(CAUSES),))
            cause_over_at = cursor.fetchone()["at"]  # type: ignore[index]
            # Only for an alert that may be raised now: of one that stands the sentence stays as it was.
            if AlertKind.RECORDS_REJECTED not in standing and facts.are_many_rejected(limits):
                facts = replace(facts, rejected_fields=self._rejected_fields(cursor, facts.rejecting_run))
            changes = judge(facts, standing, cause_over_at, limits)
            for change in changes:
                self._write(cursor, change, facts.as_of)
        return [change for change in changes if not isinstance(change, Keep)]

    def _facts(self, cursor: psycopg.Cursor[Any], limits: Limits) -> Facts:
        cursor.execute(
            query("ledger/alerts/facts"),
            {
                "deadline_seconds": limits.withdraw.total_seconds(),
                "daily_seconds": limits.daily.total_seconds(),
                "now": self._present(),
            },
        )
        return Facts(**cursor.fetchone())  # type: ignore[arg-type]

    @staticmethod
    def _rejected_fields(cursor: psycopg.Cursor[Any], run_key: int | None) -> tuple[str, ...]:
        cursor.execute(
            query("ledger/alerts/rejected_fields"),
            {"run_key": run_key, "size": _FIELDS, "batches": _BATCHES, "ids": _IDS},
        )
        return tuple(row["name"] for row in cursor.fetchall())

    @staticmethod
    def _write(cursor: psycopg.Cursor[Any], change: Change, now: datetime) -> None:
        if isinstance(change, Raise):
            cursor.execute(
                "INSERT INTO ledger.alert (kind, since, raised_at, sentence, facts, held_up)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (
                    change.kind,
                    change.since,
                    now,
                    change.sentence,
                    Jsonb(dict(change.facts)),
                    Jsonb(dict(change.held_up)),
                ),
            )
        elif isinstance(change, RaiseAnew):
            cursor.execute(
                "UPDATE ledger.alert SET raised_at = %s, sentence = %s, facts = %s, calm_since = NULL,"
                " raise_told_to = '{}', raise_told_at = NULL WHERE kind = %s AND cleared_at IS NULL",
                (now, change.sentence, Jsonb(dict(change.facts)), change.kind),
            )
        elif isinstance(change, Clear):
            cursor.execute(
                "UPDATE ledger.alert SET cleared_at = %s, over_sentence = %s, held_up = %s"
                " WHERE kind = %s AND cleared_at IS NULL",
                (now, change.sentence, Jsonb(dict(change.held_up)), change.kind),
            )
        else:
            cursor.execute(
                "UPDATE ledger.alert SET calm_since = %s, facts = %s, held_up = %s"
                " WHERE kind = %s AND cleared_at IS NULL",
                (change.calm_since, Jsonb(dict(change.facts)), Jsonb(dict(change.held_up)), change.kind),
            )

    def alerts(self, limit: int = 50) -> list[Alert]:
        """Return the alerts that stand and the last ones that were cleared, those first, the newest first."""
        with self._statement() as cursor:
            cursor.execute(
                "SELECT alert_id, kind, since, raised_at, cleared_at, sentence, over_sentence, facts, held_up,"
                " raise_told_at, clear_told_at FROM ledger.alert"
                " ORDER BY cleared_at IS NULL DESC, raised_at DESC, alert_id DESC LIMIT %s",
                (limit,),
            )
            return [Alert(**row) for row in cursor.fetchall()]

    # -- telling ----------------------------------------------------------------------------------------------------

    def untold(self) -> list[Message]:
        """Return the messages that not every channel has had, in the order in which they arose."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/alerts/untold"))
            return [Message(**row) for row in cursor.fetchall()]

    def note_told(self, message: Message, channel: str) -> None:
        """Note that a channel has had a message."""
        name = _TOLD[message.state]
        with self._statement() as cursor:
            cursor.execute(
                f"UPDATE ledger.alert SET {name}_told_to = {name}_told_to || %s::text WHERE alert_id = %s"
                f" AND %s <> ALL({name}_told_to)",
                (channel, message.alert_id, channel),
            )

    def note_all_told(self, message: Message) -> None:
        """Note that no channel is left that has not had a message."""
        name = _TOLD[message.state]
        with self._statement() as cursor:
            cursor.execute(
                f"UPDATE ledger.alert SET {name}_told_at = coalesce(%s::timestamptz, clock_timestamp())"
                " WHERE alert_id = %s",
                (self._present(), message.alert_id),
            )

    # -- what others note -------------------------------------------------------------------------------------------

    def note_contact(self, failure: str | None) -> None:
        """Note how a request to Medflex went: ``None`` for a good contact, else a ``Failure``."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/alerts/note_contact"), {"failure": failure, "now": self._present()})

    def is_failing(self, since: datetime | None = None) -> bool:
        """Tell whether the last requests to Medflex have failed.

        Args:
            since: and all others since then.
        """
        with self._statement() as cursor:
            cursor.execute(
                "SELECT 1 FROM ledger.contact WHERE name = 'medflex'"
                " AND failing_since <= coalesce(%s::timestamptz, failing_since)",
                (since,),
            )
            return cursor.fetchone() is not None

    def note_missed_deadline(self, dag_id: str, run_id: str) -> bool:
        """Note that Airflow's deadline has passed for a daily run; ``False`` when it is done but for clinics that wait.

        A run that the ledger does not know has not even begun.
        """
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/alerts/note_missed_deadline"),
                {"dag": dag_id, "run": run_id, "now": self._present()},
            )
            return cursor.rowcount == 1


class AlertLedger(Alerts):
    """Only this part of the ledger, for tasks that need nothing else: it does not load pandas."""
