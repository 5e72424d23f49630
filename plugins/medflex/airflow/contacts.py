"""Noting in the ledger whether Medflex answers, so that an outage is one alert and not one for each that waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from medflex.airflow.hooks.medflex import NoReply, Observer, Operation
from medflex.domain.alerts import Failure
from medflex.errors import MedflexPipelineError
from medflex.ledger.alerts import Alerts

log = logging.getLogger(__name__)

EVERY_SECONDS = 30.0
"""What has not changed is noted again after so long: enough to judge minutes by, and no work worth mentioning."""


BUSY_REQUESTS = 5
BUSY_SECONDS = 60.0
"""So often, or for so long, asked for a pause and answered nothing else: for us it is not there."""


class ContactNotes:
    """Notes how requests to Medflex end; an :class:`Observer` from which another one hears the same.

    The first contact of each task is noted, each change, and then one in ``EVERY_SECONDS``. A ledger that does not take
    the note must not turn an answered request into one that failed: what else is written there fails by itself.
    """

    def __init__(self, ledger: Alerts, other: Observer) -> None:
        self._ledger = ledger
        self._other = other
        self._lock = threading.Lock()
        self._noted: tuple[Failure | None, float] | None = None
        self._busy: tuple[int, float] | None = None

    def requested(self, operation: Operation, ended: int | NoReply, seconds: float) -> None:
        """Note one request, if it tells whether Medflex is there."""
        self._other.requested(operation, ended, seconds)
        now = time.monotonic()
        with self._lock:
            if ended == 429:
                requests, since = self._busy or (0, now)
                self._busy = requests + 1, since
                # It is there, and asks for a pause. Neither good nor bad, unless that is all it says.
                if requests + 1 < BUSY_REQUESTS and now - since < BUSY_SECONDS:
                    return
                failure: Failure | None = Failure.AWAY
            else:
                self._busy = None
                failure = failure_of(ended)
            if self._noted is not None and self._noted[0] == failure and now - self._noted[1] < EVERY_SECONDS:
                return
            self._noted = (failure, now)
        try:
            self._ledger.note_contact(failure)
        except MedflexPipelineError as error:
            with self._lock:
                self._noted = None
            log.debug("Whether Medflex answers could not be noted (%s).", type(error).__name__)

    def judged(self, operation: Operation, verdicts: Mapping[int | None, int]) -> None:
        """Pass on Medflex's verdicts."""
        self._other.judged(operation, verdicts)


def failure_of(ended: int | NoReply) -> Failure | None:
    """Tell what the end of a request says of Medflex; ``None``: it is there and takes our token."""
    if ended in (401, 403) or ended is NoReply.UNTRUSTED:
        return Failure.REFUSED
    if isinstance(ended, NoReply) or ended == 408 or ended >= 500:
        return Failure.AWAY
    return None
