"""The ledger's side of partner actions: which were read, what was decided, what Medflex was answered."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from psycopg.types.json import Jsonb

from medflex.domain.partner_actions import Action, ActionType, Made, Standing, Version
from medflex.ledger.connection import LedgerConnection
from medflex.sql import query

CURSOR = "partner_actions"
"""The watch that keeps how far Medflex's queue was read."""
HALTED = "answers_halted"
"""The watch that keeps behind which action answering is to begin."""
_NOTE_WATCH = (
    "INSERT INTO ledger.watch (name, looked_at, value) VALUES (%s, coalesce(%s::timestamptz, clock_timestamp()), %s)"
    " ON CONFLICT (name) DO UPDATE SET looked_at = excluded.looked_at, value = excluded.value"
)

RecordKey = tuple[int, int, int]
"""clinic id, appointment id, lpu_id"""


@dataclass(frozen=True)
class ActionDecision:
    """What was decided about an action, as Medlock's journal has it.

    digest_after: of what would be sent of the appointment behind its effect; ``None`` without one, or if not known.
    """

    action_id: UUID
    clinic_id: int | None
    status_code: int
    reason: str
    is_effect: bool
    decided_at: datetime
    digest_after: int | None


@dataclass(frozen=True)
class Unanswered:
    """A decision that Medflex is to be told."""

    seq: int
    action_id: UUID
    status_code: int
    reason: str
    read_at: datetime


@dataclass(frozen=True)
class Changed:
    """An appointment that partners have changed; ``seq`` is the last such action."""

    clinic_id: int
    appointment_id: int
    seq: int


@dataclass(frozen=True)
class Waiting:
    """Actions that are not decided, or whose answer Medflex has not taken; ``oldest`` is when the first was read."""

    undecided: int
    unanswered: int
    oldest: datetime | None


class PartnerActions(LedgerConnection):
    """Part of :class:`medflex.ledger.store.Ledger`."""

    # -- reading ----------------------------------------------------------------------------------------------------

    def action_cursor(self) -> str | None:
        """Return from where Medflex's queue is to be read on; ``None`` for its beginning."""
        with self._statement() as cursor:
            cursor.execute("SELECT value ->> 'cursor' AS place FROM ledger.watch WHERE name = %s", (CURSOR,))
            row = cursor.fetchone()
        return row["place"] if row else None

    def store_actions(self, actions: Sequence[Action], place: str | None, run_id: str) -> int:
        """Keep actions in the order given and, in the same transaction, from where to read on.

        Args:
            place: the cursor behind them; ``None`` leaves it where it is, and what was read before as it is.

        Returns:
            How many were not known before.
        """
        times = Counter(action.action_id for action in actions)
        once = {action.action_id: action for action in reversed(actions)}
        rows = [
            {"place": index, "deliveries": times[action_id], **vars(once[action_id])}
            for index, action_id in enumerate(times)
        ]
        with self._transaction() as cursor:
            cursor.execute(
                query("ledger/store_actions"),
                {
                    "actions": Jsonb(rows, dumps=orjson.dumps),
                    "moves": place is not None,
                    "read_in": run_id,
                    "now": self._present(),
                },
            )
            new = int(cursor.fetchone()["new"])  # type: ignore[index]
            if place is not None:
                cursor.execute(_NOTE_WATCH, (CURSOR, self._present(), Jsonb({"cursor": place})))
        return new

    # -- deciding ---------------------------------------------------------------------------------------------------

    def undecided(self, after_seq: int, size: int) -> list[tuple[int, Action]]:
        """Return actions that nobody has decided about, with their places, in the order of their first delivery."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/undecided_actions"), {"after_seq": after_seq, "size": size})
            rows = cursor.fetchall()
        return [(row.pop("seq"), _action(row)) for row in rows]

    def standings(
        self, keys: Iterable[tuple[RecordKey, int]], since: datetime
    ) -> dict[tuple[RecordKey, int], Standing]:
        """Return what partners can have seen of records, and made of them.

        Args:
            keys: record and partner.
            since: actions decided earlier are not looked at.

        Returns:
            No entry for a record of which Medflex shows nothing.
        """
        asked = list(keys)
        records = sorted({record for record, _ in asked})
        columns: list[list[int]] = [list(column) for column in zip(*records, strict=True)] if records else [[], [], []]
        with self._transaction() as cursor:
            cursor.execute(
                query("ledger/shown_versions"),
                {"clinic_ids": columns[0], "appointment_ids": columns[1], "lpu_ids": columns[2]},
            )
            shown = cursor.fetchall()
            cursor.execute(query("ledger/own_digests"), {"appointment_ids": columns[1], "since": since})
            made = cursor.fetchall()
        versions: dict[RecordKey, list[Version]] = defaultdict(list)
        partners: dict[RecordKey, set[int]] = defaultdict(set)
        for row in shown:
            record = (row["clinic_id"], row["appointment_id"], row["lpu_id"])
            versions[record].append(Version(row["version"], row["digest"], row["extracted_at"]))
            partners[record].update(row["partner_ids"] or ())
        own: dict[tuple[int, int, int], list[Made]] = defaultdict(list)
        for row in made:
            key = (row["clinic_id"], row["appointment_id"], row["partner_id"])
            own[key].append(Made(row["base_version"], row["digest_after"], row["decided_at"]))
        return {
            (record, partner_id): Standing(
                frozenset(partners[record]), tuple(versions[record]), tuple(own[(*record[:2], partner_id)])
            )
            for record, partner_id in asked
            if record in versions
        }

    def save_decided(self, decisions: Sequence[ActionDecision], run_id: str) -> None:
        """Copy decisions from Medlock's journal."""
        if not decisions:
            return
        rows = [vars(decision) for decision in decisions]
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/save_action_decisions"),
                {"decisions": Jsonb(rows, dumps=orjson.dumps), "decided_in": run_id},
            )

    # -- answering --------------------------------------------------------------------------------------------------

    def unanswered(self, after_seq: int, size: int) -> list[Unanswered]:
        """Return decisions that Medflex is to be told, in the order of their actions' first delivery."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/unanswered_actions"), {"after_seq": after_seq, "size": size})
            return [Unanswered(**row) for row in cursor.fetchall()]

    def save_answered(self, answers: Mapping[UUID, str], run_id: str) -> None:
        """Note what Medflex said to our answers: action → ``taken``, ``contradicted`` or ``unknown_action``."""
        if not answers:
            return
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/save_action_answers"),
                {
                    "action_ids": list(answers),
                    "answers": [str(answer) for answer in answers.values()],
                    "answered_in": run_id,
                    "now": self._present(),
                },
            )

    def answers_halted(self) -> int:
        """Return the place at which answering was halted last; 0 if it has come to its end since."""
        with self._statement() as cursor:
            cursor.execute("SELECT (value ->> 'seq')::bigint AS seq FROM ledger.watch WHERE name = %s", (HALTED,))
            row = cursor.fetchone()
        return row["seq"] if row else 0

    def note_answers_halted(self, seq: int) -> None:
        """Note the place at which answering was halted; 0 if it has come to its end."""
        with self._statement() as cursor:
            cursor.execute(_NOTE_WATCH, (HALTED, self._present(), Jsonb({"seq": seq})))

    def waiting_actions(self) -> Waiting:
        """Return how many actions wait, and since when."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/waiting_actions"))
            return Waiting(**cursor.fetchone())  # type: ignore[arg-type]

    # -- sharing the changes ----------------------------------------------------------------------------------------

    def unshared(self, since: datetime, size: int) -> list[Changed]:
        """Return appointments that partners have changed since then and of which Medflex was not told, oldest first."""
        with self._statement() as cursor:
            cursor.execute(query("ledger/unshared_actions"), {"since": since, "size": size})
            return [Changed(**row) for row in cursor.fetchall()]

    def mark_shared(self, changed: Sequence[Changed]) -> None:
        """Note that these changes need not be looked at again."""
        with self._statement() as cursor:
            cursor.execute(
                query("ledger/mark_shared"),
                {
                    "clinic_ids": [item.clinic_id for item in changed],
                    "appointment_ids": [item.appointment_id for item in changed],
                    "seqs": [item.seq for item in changed],
                    "now": self._present(),
                },
            )


def _action(row: dict[str, Any]) -> Action:
    kind = row.pop("type")
    return Action(type=ActionType(kind) if kind else None, malformed=tuple(row.pop("malformed")), **row)
