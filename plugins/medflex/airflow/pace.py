"""How fast Medflex is asked: one rate for all workers, pauses that it asks for, and waiting before another attempt."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

from medflex.airflow.hooks.medflex import MedflexClient, NotProcessedError, UnknownOutcomeError, unavailable
from medflex.clock import Clock
from medflex.ledger.store import Ledger

_NAP_SECONDS = 5.0

T = TypeVar("T")


class Paced:
    """Speaks to Medflex at the rate that all workers share, from several threads.

    Args:
        jitter: a number between 0 and 1, drawn anew for each wait.
    """

    def __init__(
        self, *, client: MedflexClient, ledger: Ledger, clock: Clock, jitter: Callable[[], float] = random.random
    ) -> None:
        self._client = client
        self._settings = client.settings
        self._ledger = ledger
        self._clock = clock
        self._jitter = jitter
        self._rate_name = urlsplit(self._settings.base_url).netloc
        self._lock = threading.Lock()
        self._halted = False
        self._waited = 0.0
        self._paused_until = clock.now()

    def _wait_for_slot(self) -> bool:
        """Wait for a place in Medflex's rate, which all workers share; ``False`` when sending has stopped meanwhile."""
        while not self._halted:
            if self._settings.rate_per_second:
                most = self._settings.retry_budget
                seconds = self._ledger.reserve_slot(self._rate_name, 1 / self._settings.rate_per_second, most)
                if seconds > most:
                    self._halted = True
                    raise unavailable("it asked for a pause that is not over")
                self._sleep(seconds)
            seconds = (self._paused_until - self._clock.now()).total_seconds()
            if seconds <= 0:
                break
            # A place that was taken before the pause is given up: all who held one would leave at once behind it.
            self._sleep(seconds)
        return not self._halted

    def _sleep(self, seconds: float) -> None:
        """Sleep, but notice soon when sending has stopped."""
        while seconds > 0 and not self._halted:
            self._clock.sleep(min(seconds, _NAP_SECONDS))
            seconds -= _NAP_SECONDS

    def _pause(self, seconds: float) -> None:
        """Medflex asked for a pause: neither this task nor another one sends before it is over."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock.now() + timedelta(seconds=seconds))
        self._ledger.pause_rate(self._rate_name, seconds)

    def _back_off(self, number: int, retry_after: float | None) -> bool:
        """Wait before attempt ``number``; ``False`` when the budget of waiting does not allow it."""
        settings = self._settings
        seconds = retry_after
        if seconds is None:
            seconds = min(settings.max_backoff, settings.backoff * 2 ** (number - 1)) * (0.5 + self._jitter() / 2)
        with self._lock:
            if self._halted or self._waited + seconds > settings.retry_budget:
                return False
            self._waited += seconds
        self._sleep(seconds)
        return True

    def _repeat(self, request: Callable[[], T]) -> T:
        """Make a request that may be made again as it is, until it is answered or the budget of waiting is spent.

        Raises:
            MedflexUnavailableError: it was not answered.
        """
        failure, wait = "", None
        for number in range(self._settings.attempts):
            if number and not self._back_off(number, wait):
                break
            try:
                return request()
            except NotProcessedError as error:
                failure, wait = f"HTTP {error.status}" if error.status else "no connection", error.retry_after
            except UnknownOutcomeError as error:
                failure, wait = error.what, error.retry_after
            if wait:
                self._pause(wait)
        raise unavailable(failure)
