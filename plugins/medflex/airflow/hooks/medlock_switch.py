"""Medlock's access switch as the head of a clinic turns it: include/sql/medlock/switch, in one transaction.

The connection is one of its own (``medlock_switch``): the log-in that reads everybody's data still cannot write, and
this one can write nothing but switches.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg

from medflex.airflow.connections import MEDLOCK_SWITCH
from medflex.airflow.hooks.medlock import translated_error
from medflex.domain.access import HEAD
from medflex.errors import MedlockRefusedError, NotHeadError, SwitchTurnedError
from medflex.sql import query


@dataclass(frozen=True)
class Turned:
    """A switch that was turned. ``changed_at``: aware, by Medlock's clock."""

    changed_at: datetime
    staff_id: int
    role: str = HEAD


def turn_switch(
    conninfo: str,
    *,
    clinic_id: int,
    login: str,
    enabled: bool,
    seen_enabled: bool | None,
    seen_changed_at: datetime | None,
) -> Turned:
    """Turn a clinic's switch for the owner of a log-in, who has to be the head of that clinic (R2).

    Args:
        seen_enabled, seen_changed_at: how the switch stood when the decision was made.

    Raises:
        NotHeadError: the log-in is not that of the clinic's head.
        SwitchTurnedError: somebody has turned it meanwhile; nothing was changed.
        MedlockUnavailableError, MedlockRefusedError, MedlockSchemaError: see :class:`Medlock`.
    """
    try:
        with psycopg.connect(conninfo, connect_timeout=10) as connection, connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '10s'")
            cursor.execute(query("medlock/switch/head"), {"clinic_id": clinic_id, "login": login})
            head = cursor.fetchone()
            if head is None:
                raise NotHeadError(
                    f"Only the head of clinic {clinic_id} can turn its switch, with the log-in that Medlock has."
                )
            cursor.execute(
                query("medlock/switch/turn"),
                {
                    "clinic_id": clinic_id,
                    "enabled": enabled,
                    "staff_id": head[0],
                    "seen_enabled": seen_enabled,
                    "seen_changed_at": seen_changed_at,
                },
            )
            row = cursor.fetchone()
            if row is None:
                raise SwitchTurnedError(
                    f"The switch of clinic {clinic_id} was turned meanwhile: look at it as it stands now."
                )
    except psycopg.errors.InsufficientPrivilege:
        raise MedlockRefusedError(
            f"The user of the connection {MEDLOCK_SWITCH} may not turn switches: grant it SELECT on clinic and staff,"
            " and SELECT, INSERT, UPDATE on medflex_access, in the schema medlock."
        ) from None
    except psycopg.Error as error:
        raise translated_error(error, error.sqlstate, MEDLOCK_SWITCH) from None
    return Turned(changed_at=row[0], staff_id=head[0])
