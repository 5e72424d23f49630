"""Watches Medlock from the triggerer and tells when something changed that can revoke (R12)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from medflex.clock import SystemClock
from medflex.errors import ConfigurationError, MedflexPipelineError

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

CLOCK = SystemClock()
LOOK_BACK = timedelta(hours=1)
"""Rows stamped up to this long before the watch began are watched, too: a stamp is the time at which its transaction
began, and a long one commits behind the back of whoever looks at new stamps only."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts to reach a Medlock that is away."""
LOOK_SECONDS = 30
"""A look that takes longer is given up; it takes below a tenth of a second with 20,000 clinics."""
MOST_STAMPS = 1_000_000
"""Of each table so many changed rows are looked at, the newest: somebody may have touched all of them."""

STARTED = "watch_started"
RECOVERED = "medlock_is_back"
MOVED_ON = "look_back_moved_on"


class ConsentChangeTrigger(BaseEventTrigger):
    """Fire when something changed in Medlock that can revoke: flags, switches, partner links, deleted rows.

    An event says only what kind of thing changed and when (UTC); whoever is woken by it looks for himself. It fires

    - once when it starts, because something may have changed while nobody watched; so a restart loses nothing;
    - after a look that differs from the one before (``include/sql/medlock/change_stamp.sql``): ``revoking``,
      ``permissions``, ``deletions``, several of them joined by ``+``;
    - every LOOK_BACK, when the instant from which stamps are watched moves on;
    - when Medlock is back after it was away.

    It never ends by itself. A Medlock that is away or refuses is logged once, in one sentence, and tried again with
    growing pauses.

    Args:
        conn_id: the connection to Medlock; read anew at each attempt to connect.
        poll_seconds: pause between two looks.
    """

    def __init__(self, conn_id: str = "medlock_db", poll_seconds: float = 3.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and its arguments; Airflow keeps one watch per distinct result."""
        return (
            "medflex.airflow.triggers.consent.ConsentChangeTrigger",
            {"conn_id": self.conn_id, "poll_seconds": self.poll_seconds},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at Medlock until cancelled; yield ``{"reason", "at"}`` as the class says."""
        connection: psycopg.AsyncConnection[Any] | None = None
        since = CLOCK.now() - LOOK_BACK
        seen: dict[str, str] = {}
        owed: str | None = STARTED
        trouble: str | None = None
        attempts = 0
        try:
            while True:
                pause = self.poll_seconds
                reason: str | None = None
                try:
                    if connection is None:
                        connection = await self._connect()
                    if CLOCK.now() - since >= 2 * LOOK_BACK:
                        since, owed = CLOCK.now() - LOOK_BACK, owed or MOVED_ON
                    began = time.monotonic()
                    found = await _look(connection, since)
                    # However much there is to look at, Medlock is at work for us a fifth of the time at most.
                    pause = max(pause, 4 * (time.monotonic() - began))
                except Exception as error:
                    await _close(connection)
                    connection = None
                    owed = owed or RECOVERED
                    attempts += 1
                    pause = min(LONGEST_PAUSE, self.poll_seconds * 2 ** min(attempts, 10))
                    trouble = _tell(await _translated(error), trouble)
                else:
                    if trouble is not None:
                        log.info("Medlock is watched again.")
                    trouble, attempts = None, 0
                    # The event goes out after the look: what changes from then on shows in the next one.
                    reason = owed or "+".join(name for name in found if found[name] != seen.get(name)) or None
                    seen, owed = found, None
                if reason is not None:
                    payload = {"reason": reason, "at": CLOCK.now().isoformat(timespec="seconds")}
                    yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
                await asyncio.sleep(pause)
        finally:
            await _close(connection)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        # In a thread: imports and the SDK's way to a connection block, and the triggerer serves everybody in one loop.
        connect, conninfo = await asyncio.to_thread(_how_to_connect, self.conn_id)
        # Without prepared statements: the plan has to fit `since`, and a pooler may stand between.
        connection = await connect(conninfo, autocommit=True, prepare_threshold=None)
        try:
            await connection.execute("SET default_transaction_read_only = on")
            await connection.execute(f"SET statement_timeout = '{LOOK_SECONDS}s'")
            # Planned anew for each look: to compile it as well would take longer than to look.
            await connection.execute("SET jit = off")
        except BaseException:
            await _close(connection)
            raise
        return connection


def _how_to_connect(conn_id: str) -> tuple[Any, str]:
    import psycopg

    from medflex.airflow.connections import postgres_conninfo
    from medflex.sql import query

    # Read now, since they are files.
    query("medlock/changed_rows")
    query("medlock/change_stamp")
    return psycopg.AsyncConnection.connect, postgres_conninfo(conn_id)


def _tell(error: MedflexPipelineError, told: str | None) -> str:
    """Log what keeps the watch from looking, unless it is what was told last; return it."""
    text = str(error)
    if text != told:
        level = logging.ERROR if isinstance(error, ConfigurationError) else logging.WARNING
        log.log(level, "Changes in Medlock cannot be watched, medflex_withdraw runs by its clock alone: %s", text)
    return text


async def _look(connection: psycopg.AsyncConnection[Any], since: datetime) -> dict[str, str]:
    """Return the fingerprints of what can revoke, by name."""
    from psycopg.rows import dict_row

    from medflex.sql import query

    # The server ends a slow look itself; this is for one that has gone without a word.
    async with asyncio.timeout(LOOK_SECONDS + 5):
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query("medlock/changed_rows").encode(), {"since": since, "most": MOST_STAMPS})
            cut = await cursor.fetchone() or {}
            sinces = {f"{name}_since": instant or since for name, instant in cut.items()}
            await cursor.execute(query("medlock/change_stamp").encode(), sinces)
            row = await cursor.fetchone()
    found = dict(row or {})
    # More people than are looked at were touched, perhaps all at one instant: that alone is a reason to look.
    if "revoking" in found and (cut.get("patients") or cut.get("doctors")):
        found["revoking"] = f"{found['revoking']}/{cut['patients']}/{cut['doctors']}"
    return found


async def _close(connection: psycopg.AsyncConnection[Any] | None) -> None:
    if connection is not None:
        with suppress(Exception):
            await connection.close()


async def _translated(error: Exception) -> MedflexPipelineError:
    """Return what went wrong as one sentence without the driver's text."""
    import psycopg

    if isinstance(error, MedflexPipelineError):
        return error
    if isinstance(error, psycopg.Error | OSError):
        return await asyncio.to_thread(_translate, error)
    return MedflexPipelineError(f"the watch itself failed with {type(error).__name__}, which is a fault of this code.")


def _translate(error: psycopg.Error | OSError) -> MedflexPipelineError:
    # Here, and in a thread: it brings pandas along, which takes seconds and is needed only in this rare case.
    from medflex.airflow.hooks.medlock import translated_error as translate

    return translate(error, getattr(error, "sqlstate", None))
