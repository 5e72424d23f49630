"""Looks for messages that patients get twice (R15): asks Medlock and the ledger, and keeps what it finds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from medflex.domain.messages import (
    MESSAGE_DAYS,
    DoubledMessages,
    MessageLook,
    MessageWarning,
    Twice,
    overlap_warnings,
)
from medflex.errors import MedlockRefusedError, MedlockSchemaError, MedlockUnavailableError

if TYPE_CHECKING:
    import pandas as pd

    from medflex.ledger.store import Ledger, Run

log = logging.getLogger(__name__)

ASKED_ROWS = 20_000
"""About so many appointments Medlock is asked at a time."""


def look_for_double_messages(ledger: Ledger, run: Run, now: datetime, open_medlock: Callable[[], Any]) -> MessageLook:
    """Look for what the run's clinics' patients get twice, keep it in the ledger, and return it.

    When Medlock cannot be asked, nothing is said of that part but why: a warning about messages is no reason for a run
    to fail.

    Args:
        now: aware; messages of the ``MESSAGE_DAYS`` before are compared.
        open_medlock: returns Medlock, to be closed by its context.

    Raises:
        LedgerUnavailableError, LedgerRefusedError: the ledger's database does not answer or refuses.
    """
    since = now - timedelta(days=MESSAGE_DAYS)
    clinic_ids = set(ledger.run_clinics(run.run_key)["clinic_id"].astype("int64").tolist())

    def overlaps() -> list[MessageWarning]:
        with open_medlock() as medlock:
            found = medlock.scenario_overlaps(run.clinic_ids)
        return overlap_warnings(found[found["clinic_id"].isin(clinic_ids)])

    def doubled() -> list[MessageWarning]:
        messages = DoubledMessages()
        with open_medlock() as medlock, closing(ledger.notifications(run.run_key, since)) as parts:
            for part in _pieces(parts):
                sent = medlock.smart_care_messages(part["clinic_id"], part["appointment_id"], since)
                messages.add(part, sent)
        return messages.warnings()

    by_configuration, overlaps_problem = _judged(overlaps)
    by_record, doubled_problem = _judged(doubled)
    look = MessageLook(since, (*by_record, *by_configuration), overlaps_problem, doubled_problem)
    ledger.save_messages(run.run_key, look)
    for problem in filter(None, {overlaps_problem, doubled_problem}):
        log.warning("It could not be judged which messages patients get twice: %s", problem)
    for kind in Twice:
        found = look.of(kind)
        if found:
            log.warning("%s Clinics: %d.", kind.description, len({item.clinic_id for item in found}))
    return look


def _judged(judge: Callable[[], list[MessageWarning]]) -> tuple[list[MessageWarning], str | None]:
    """Return what was found, or why Medlock could not be asked."""
    try:
        return judge(), None
    except (MedlockUnavailableError, MedlockRefusedError, MedlockSchemaError) as error:
        return [], str(error)


def _pieces(parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for part in parts:
        for start in range(0, len(part), ASKED_ROWS):
            yield part.iloc[start : start + ASKED_ROWS]
