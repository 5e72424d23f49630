"""Medlock as partners' actions change it: include/sql/medlock/actions, each action in one transaction.

The connection is one of its own (``medlock_actions``), so that the log-in which reads everybody's data cannot write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader

from medflex.airflow.hooks.medlock import translated_error
from medflex.domain.partner_actions import STATUS_ASKED, YEARS, Action, ActionType, Ruling, Slot
from medflex.errors import ActionsWaitError, MedlockRefusedError
from medflex.sql import bigints, query

LOCK_SECONDS = 3
"""So long is somebody waited for who is changing the appointment; then the action waits for the next run."""
BRIEF_MILLISECONDS = 10
"""So long in a clinic that has let this run wait in vain already: what it holds may be many appointments."""
IDLE_SECONDS = 15
"""A process that stops in the middle of a transaction must not keep the clinic from its appointment for longer."""

_BUSY = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
_OF_THE_SERVER = ("08", "25", "28", "3D", "42", "53", "54", "55", "57", "58", "F0", "XX")
"""Classes of SQLSTATE that are not about one action: connection, log-in, missing tables, resources, the server."""
_OF_A_FUNCTION = ("42", "54", "55")
"""Those of them that are about one action where a function of this MIS has met with them."""


class _Instants(TimestamptzLoader):
    """Reads instants; one that no calendar has (infinity, the year 20226) is missing, as for every other lane.

    So is one so near to the calendar's ends that another zone leads out of it.
    """

    def load(self, data: Any) -> Any:
        try:
            instant = super().load(data)
        except psycopg.DataError:
            return None
        return instant if YEARS[0] <= instant.year <= YEARS[1] else None


@dataclass(frozen=True)
class Entry:
    """What Medlock's journal says about an action.

    digest_after: of what would be sent of the appointment behind its effect; ``None`` without one.
    """

    clinic_id: int | None
    status_code: int
    reason: str
    digest_after: int | None
    decided_at: datetime


@dataclass(frozen=True)
class Facts:
    """Rows of one query as they came, to be compared with what another look at them gives, and its columns."""

    columns: tuple[str, ...]
    rows: Mapping[Any, tuple[Any, ...]]


class DecidedBeforeError(Exception):
    """Somebody else has decided about this action meanwhile; what was done in this transaction is undone."""


class MedlockActions:
    """Reads and writes Medlock for partner actions, through one connection.

    Args:
        conninfo: libpq connection string or URI.

    Raises (all methods):
        MedlockUnavailableError, MedlockRefusedError, MedlockSchemaError: see :class:`Medlock`.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.Connection[Any] | None = None
        self._slow: set[int] = set()

    def __enter__(self) -> MedlockActions:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def clinics_of(self, lpu_ids: Sequence[int]) -> dict[int, int]:
        """Return lpu_id → clinic id, without those that Medlock does not know."""
        with self._cursor() as cursor:
            cursor.execute(query("medlock/actions/clinics_of_lpu"), {"lpu_ids": list(lpu_ids)})
            return dict(cursor.fetchall())

    def appointments(self, keys: Sequence[tuple[int, int]]) -> Facts:
        """Return what is committed now behind appointments, by (clinic, appointment): appointments_now.sql."""
        with self._cursor() as cursor, cursor.connection.transaction():
            return _appointments(cursor, keys)

    def clinics(self, clinic_ids: Sequence[int]) -> Facts:
        """Return the permissions of clinics as committed now, by clinic: clinics.sql."""
        with self._cursor() as cursor:
            return _clinics(cursor, clinic_ids)

    def journalled(self, action_ids: Sequence[UUID]) -> dict[UUID, Entry]:
        """Return what was decided about actions."""
        with self._cursor() as cursor:
            cursor.row_factory = dict_row
            cursor.execute(query("medlock/actions/journal_find"), {"action_ids": list(action_ids)})
            return {row.pop("action_id"): Entry(**row) for row in cursor.fetchall()}

    def forget(self, days: int, chunk: int = 500) -> int:
        """Remove decisions that were made more than ``days`` times 24 hours ago; return how many."""
        removed = 0
        while True:
            with self._cursor() as cursor:
                cursor.execute(query("medlock/actions/journal_forget"), {"days": days, "size": chunk})
                done = cursor.rowcount
            removed += done
            if done < chunk:
                return removed

    @contextmanager
    def transaction(self) -> Iterator[ActionTransaction]:
        """Decide about one action: all that is done inside is committed at the end, or nothing.

        Raises:
            DecidedBeforeError: the action is in the journal already.
            ActionsWaitError: somebody else is changing the appointment.
        """
        with self._cursor(decides=True) as cursor, cursor.connection.transaction():
            yield ActionTransaction(cursor, self._slow)

    @contextmanager
    def _cursor(self, *, decides: bool = False) -> Iterator[psycopg.Cursor[Any]]:
        try:
            connection = self._connection
            if connection is None or connection.closed:
                connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=tuple_row)
                # Whatever the database's default is: what is read behind a lock has to be what is committed by then.
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                connection.adapters.register_loader("timestamptz", _Instants)
                connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
                connection.execute("SET statement_timeout = '60s'")
                connection.execute("SET jit = off")  # As in the sessions that only read: some queries are the same.
                connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
                self._connection = connection
            with connection.cursor() as cursor:
                yield cursor
        except _BUSY:
            raise ActionsWaitError(
                "An appointment is being changed in Medlock by somebody else: what partners asked of it waits for the"
                " next run."
            ) from None
        except psycopg.errors.InsufficientPrivilege:
            raise MedlockRefusedError(
                "The user of the connection medlock_actions may not do what the queries in"
                " include/sql/medlock/actions do: grant it what docs/data-contract.md lists."
            ) from None
        except psycopg.Error as error:
            if decides and error.sqlstate and not error.sqlstate.startswith(_OF_THE_SERVER):
                # A constraint or a trigger of this MIS: a matter of one action, which must not hold up the others.
                raise _refused(error) from None
            raise translated_error(error, error.sqlstate, "medlock_actions") from None


class ActionTransaction:
    """One transaction of :class:`MedlockActions`.

    Args:
        slow: clinics that have let an action wait in vain; one more is added.
    """

    def __init__(self, cursor: psycopg.Cursor[Any], slow: set[int]) -> None:
        self._cursor = cursor
        self._slow = slow

    def lock(self, clinic_id: int, appointment_id: int) -> None:
        """Keep the appointment as it is until the end; whoever is changing it is waited for."""
        if clinic_id in self._slow:
            self._cursor.execute(f"SET LOCAL lock_timeout = '{BRIEF_MILLISECONDS}ms'")
        try:
            self._run("lock_appointment", clinic_id=clinic_id, appointment_id=appointment_id)
        except psycopg.errors.LockNotAvailable:
            self._slow.add(clinic_id)
            raise

    def appointment(self, clinic_id: int, appointment_id: int) -> Facts:
        """Return what is committed now behind an appointment."""
        return _appointments(self._cursor, [(clinic_id, appointment_id)])

    def clinic(self, clinic_id: int) -> Facts:
        """Return the permissions of a clinic as committed now."""
        return _clinics(self._cursor, [clinic_id])

    def slot(
        self, clinic_id: int, appointment_id: int, doctor_id: int, patient_id: int, times: tuple[datetime, datetime]
    ) -> Slot:
        """Return what stands at a time to which an appointment is to be moved; nobody else moves one there."""
        people = {"clinic_id": clinic_id, "doctor_id": doctor_id, "patient_id": patient_id}
        self._run("lock_people", **people)
        # A statement of its own: it sees what was committed while the locks were waited for.
        self._run("slot", **people, appointment_id=appointment_id, starts_at=times[0], ends_at=times[1])
        return Slot(*self._cursor.fetchone())  # type: ignore[misc]

    def carry_out(self, action: Action, clinic_id: int, times: tuple[datetime, datetime] | None) -> bool:
        """Change the appointment as the partner asked; ``False`` when Medlock refuses the time as taken."""
        key = {"clinic_id": clinic_id, "appointment_id": action.appointment_id}
        try:
            with self._cursor.connection.transaction():
                if action.type is ActionType.RESCHEDULE:
                    assert times is not None  # noqa: S101 - for the type checker: the ruling has seen to it
                    self._run("reschedule", **key, starts_at=times[0], ends_at=times[1])
                else:
                    self._run("confirm" if action.type is ActionType.CONFIRM else "cancel", **key)
                rows = self._cursor.fetchall() if self._cursor.description else []
                # What Medlock would only look at when all is committed is looked at now.
                self._cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except (psycopg.errors.ExclusionViolation, psycopg.errors.UniqueViolation):
            # Where the MIS has a constraint against double bookings, it sees what no look beforehand can.
            if action.type is ActionType.RESCHEDULE:
                return False
            raise
        except psycopg.Error as error:
            if _is_of_the_row(error):
                raise _refused(error) from None
            raise
        asked = (STATUS_ASKED[action.type],) if action.type in STATUS_ASKED else times
        if [row[:1] if action.type in STATUS_ASKED else row[1:] for row in rows] != [asked]:
            # A trigger, a rule or row security of this MIS has swallowed it, or made something else of it.
            raise ActionsWaitError(
                "Medlock does not change an appointment as a partner asked, and does not say why: fit the queries in"
                " include/sql/medlock/actions to this MIS; the action waits until then."
            )
        return True

    def journal(self, action: Action, clinic_id: int | None, ruling: Ruling, digest_after: int | None) -> Entry:
        """Note the decision."""
        try:
            self._add_to_journal(action, clinic_id, ruling, digest_after)
        except psycopg.errors.UniqueViolation:
            raise DecidedBeforeError from None
        return Entry(clinic_id, ruling.status_code, ruling.value, digest_after, self._cursor.fetchone()[0])  # type: ignore[index]

    def _add_to_journal(self, action: Action, clinic_id: int | None, ruling: Ruling, digest_after: int | None) -> None:
        self._run(
            "journal_add",
            action_id=action.action_id,
            clinic_id=clinic_id,
            appointment_id=action.appointment_id,
            partner_id=action.partner_id,
            type=action.type,
            scenario=action.scenario,
            status_code=ruling.status_code,
            reason=ruling.value,
            digest_after=digest_after,
        )

    def _run(self, name: str, **parameters: Any) -> None:
        self._cursor.execute(query(f"medlock/actions/{name}"), parameters)


def _is_of_the_row(error: psycopg.Error) -> bool:
    """Tell whether it is this row that Medlock does not let be changed, whatever code it gives for that.

    By where the server says that the error comes from; its words are in the server's language, and may quote the row.
    """
    if isinstance(error, _BUSY):
        return False
    if error.diag.source_function in ("exec_stmt_raise", "ExecWithCheckOptions"):
        return True  # A function's RAISE, and row security.
    return "PL/" in (error.diag.context or "") and (error.sqlstate or "").startswith(_OF_A_FUNCTION)


def _refused(error: psycopg.Error) -> ActionsWaitError:
    return ActionsWaitError(
        f"Medlock refuses to carry out what a partner asked for (SQLSTATE {error.sqlstate}): fit the queries in"
        " include/sql/medlock/actions to this MIS; the action waits until then."
    )


def _appointments(cursor: psycopg.Cursor[Any], keys: Sequence[tuple[int, int]]) -> Facts:
    """Run appointments_now.sql, inside a transaction; its parameters are settings that end with it."""
    clinic_ids, appointment_ids = [key[0] for key in keys], [key[1] for key in keys]
    cursor.execute(
        "SELECT set_config('medflex.clinic_ids', %s, true), set_config('medflex.appointment_ids', %s, true)",
        (bigints(clinic_ids), bigints(appointment_ids)),
    )
    cursor.execute(query("medlock/appointments_now"))
    columns = tuple(column.name for column in cursor.description or ())
    clinic, appointment = columns.index("clinic_id"), columns.index("appointment_id")
    return Facts(columns, {(row[clinic], row[appointment]): row for row in cursor.fetchall()})


def _clinics(cursor: psycopg.Cursor[Any], clinic_ids: Sequence[int]) -> Facts:
    cursor.execute(query("medlock/clinics"), {"clinic_ids": list(clinic_ids)})
    columns = tuple(column.name for column in cursor.description or ())
    return Facts(columns, {row[columns.index("clinic_id")]: row for row in cursor.fetchall()})
