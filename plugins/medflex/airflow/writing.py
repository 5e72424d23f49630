"""Writing to Medflex: what sending and withdrawing have in common.

Requests leave under leases, each written down as a batch before its first byte leaves, at a rate that all workers
share, and are repeated under the same key until they are acknowledged or the budget is spent. Nothing here imports
Airflow, so that tests drive it against a real Postgres and a real Medflex with a clock of theirs.
"""

from __future__ import annotations

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa

from medflex.airflow.columns import Columns
from medflex.airflow.hooks.medflex import (
    BatchReply,
    MedflexClient,
    NotProcessedError,
    UnknownOutcomeError,
    unavailable,
)
from medflex.airflow.pace import Paced
from medflex.clock import Clock
from medflex.errors import (
    LeaseHeldError,
    LeaseLostError,
    MedflexContractError,
    MedflexPipelineError,
    MedflexRefusedError,
    MedflexUnavailableError,
    MedlockSlowError,
)
from medflex.ledger.store import LEASE_SECONDS, BatchContent, BatchOutcome, Intent, Ledger, Resolution
from medflex.sql import Ids

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How long before its first byte leaves a batch may have been looked at; later it is looked at again, by itself."""
_LOOKS = 3
"""How often it is, one after the other, where the look itself takes longer than that."""
_SLOW_LOOK_SECONDS = 10.0
"""How old the last of these may be: where Medlock is slow, it is better to send a little than nothing."""
_RENEW_SECONDS = LEASE_SECONDS / 5
_FAILING_CLINICS = 3
"""So many clinics one after the other whose requests keep failing mean that Medflex itself is failing."""
_FORBIDDEN_CLINICS = 20
"""So many clinics one after the other that Medflex forbids mean that it is the token: each costs a request."""
_PROBED_PART = 8
"""Where a batch has failed, so many times fewer records are tried at a time: Medflex may fail on one of them only."""
_PROBED_FAILURES = 3
"""So many of these smaller batches may fail before no more of them are tried."""
_MOST_ROUNDS = 20
"""How often a clinic may be taken over by withdrawals before its records are left for the next attempt."""


class MedlockReader(Protocol):
    """What is read of Medlock while writing; :class:`medflex.airflow.hooks.medlock.Medlock` is one."""

    def clinics(self, clinic_ids: Sequence[int] | None, now: datetime) -> pd.DataFrame:
        """Return CLINICS judged at ``now``."""
        ...

    def consent_now(self, clinic_ids: Ids, appointment_ids: Ids) -> pd.DataFrame:
        """Return the flags behind appointments as committed now."""
        ...

    def appointments_now(self, clinic_ids: Sequence[int], appointment_ids: Sequence[int]) -> pa.Table:
        """Return ROWS of appointments, each of the clinic at the same place, as committed now."""
        ...

    def stream_appointments_now(
        self, clinic_ids: Ids, appointment_ids: Ids, rows: int
    ) -> AbstractContextManager[Iterator[pa.Table]]:
        """Yield the same in tables of about so many rows, at least one."""
        ...

    def changed_rows(self, since: datetime, *, most: int) -> Mapping[str, datetime | None]:
        """Return from when on at most so many rows have changed; ``None`` where no more have since then."""
        ...

    def changed_appointments(self, since: Mapping[str, datetime], *, edited_since: datetime, most: int) -> pd.DataFrame:
        """Return ``clinic_id`` and ``appointment_id`` of what says no and has changed since then, or was edited."""
        ...

    def changed_patients(self, since: datetime, *, most: int) -> list[int]:
        """Return the ids of patients whose row changed since then and says no now."""
        ...

    def patients_now(self, patient_ids: Sequence[int]) -> pd.DataFrame:
        """Return the flags of patients as committed now."""
        ...

    def appointments_elsewhere(self, appointment_ids: Sequence[int]) -> pd.DataFrame:
        """Return what is said of appointments, whichever clinic they are in now."""
        ...

    def deleted_rows(self) -> str:
        """Return a stamp that changes when rows are deleted."""
        ...


@dataclass
class Batch:
    """Records of one clinic and lpu_id that leave together.

    records: at least ``id`` and ``lpu_id``. versions: int64, the one that each record gets, in the same order.
    """

    clinic_id: int
    records: Columns
    versions: np.ndarray[Any, Any]


class Delivery:
    """A batch on its way: the records not yet accounted for, and the intent they are written down with."""

    def __init__(self, batch: Batch) -> None:
        self.clinic_id = batch.clinic_id
        # Under which clinic's number Medflex has these records; known also when they are all accounted for.
        self.lpu_id = int(batch.records["lpu_id"][0])
        self.records = batch.records
        self.versions = batch.versions
        self.intent: Intent | None = None
        self.body = b""
        self.looked_at: datetime | None = None
        self.ready_at: datetime | None = None
        self.was_late = False
        self.in_doubt = False
        self.is_answered = True
        self.retry_after: float | None = None
        self.reply: BatchReply | None = None

    @property
    def key(self) -> str:
        """The idempotency key of the present intent."""
        return str(self.intent.idempotency_key) if self.intent else ""

    @property
    def by_id(self) -> dict[int, int]:
        """Appointment id → version."""
        return dict(zip(self.records["id"].tolist(), self.versions.tolist(), strict=True))

    def keep(self, mask: np.ndarray[Any, Any]) -> None:
        """Go on with these records only."""
        self.records = self.records.keep(mask)
        self.versions = self.versions[mask]

    def take_leave(self, now: datetime, within: float) -> bool:
        """Tell whether it may leave as it was prepared. It may so once, and within so many seconds."""
        ready_at, self.ready_at = self.ready_at, None
        # A clock that was set back tells no age.
        may_leave = ready_at is not None and 0 <= (now - ready_at).total_seconds() <= within
        self.was_late |= ready_at is not None and not may_leave
        return may_leave


@dataclass
class WriteResult:
    """What became of records, by clinic, and what went wrong.

    superseded: another attempt of the same task has begun since, and this one has stopped; the last problem says so.
    """

    numbers: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    problems: list[MedflexPipelineError] = field(default_factory=list)
    superseded: bool = False


class LeaseHolder(Paced, ABC):
    """Works for clinics under leases, at the rate that all workers share.

    Args:
        holder: who holds the leases: the same for each attempt of one task, so that an attempt takes over its
            predecessor's leases at once and fences it.
        run_key: the ledger's run, or ``None`` outside a run.
    """

    purpose: str
    """What leases are asked for: ``send``, ``withdraw`` or ``reconcile``."""
    poll_seconds = 5.0
    """How often a lease that another run holds is asked for."""
    patience_seconds = LEASE_SECONDS + 30.0
    """For how long: a run that was killed holds its leases for so long; one that lives lets go shard by shard."""

    def __init__(
        self,
        *,
        client: MedflexClient,
        medlock: MedlockReader,
        ledger: Ledger,
        clock: Clock,
        holder: str,
        run_key: int | None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(client=client, ledger=ledger, clock=clock, jitter=jitter)
        self._medlock = medlock
        self._holder = holder
        self._run_key = run_key
        self._token: UUID | None = None
        self._epochs: dict[int, int] = {}
        # Clinics that are written for no more, and those of whose records under one lpu_id Medflex will take no more.
        self._lost: set[int] = set()
        self._hopeless: set[tuple[int, int]] = set()
        # Where a batch has failed: how many records are tried at a time from then on, for which pairs that was known
        # before, how many records the batches had that have failed since, and how many batches were taken.
        self._sizes: dict[tuple[int, int], int] = {}
        self._probed: set[tuple[int, int]] = set()
        self._failures: dict[tuple[int, int], list[int]] = {}
        self._well: Counter[tuple[int, int]] = Counter()
        # Of whose batches one has failed without any answer.
        self._silent: set[tuple[int, int]] = set()
        self._taken_over: set[int] = set()
        self._failing: set[int] = set()
        self._forbidden: set[int] = set()
        self._failing_seconds = 0.0
        self._unreachable = False
        self._renewed = clock.now()
        self._outdated: dict[tuple[int, int], set[int]] = defaultdict(set)
        # Two at a time: one is prepared while the requests of the other are under way. What more of them had looked at
        # would wait for long.
        self._turns = threading.Semaphore(2)

    # -- what is done under leases -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _written(self) -> WriteResult:
        """Where numbers and problems go."""

    @abstractmethod
    def _write_held(self) -> None:
        """Write for the clinics whose leases we hold (``self._epochs``)."""

    @abstractmethod
    def _give_up(self, clinic_ids: Sequence[int]) -> None:
        """Count what stays undone because other runs hold these clinics, or because all writing has stopped."""

    def _forget(self, clinic_id: int) -> None:
        """Count a clinic anew: it was taken over in between, and everything of it is looked at once more."""
        self._written.numbers[clinic_id].clear()

    # -- leases -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Become the living attempt of this task, once; what a dead one still holds is let go."""
        if self._token is None:
            # Before anything is sent: this task may have begun before, or behind, a migration of the ledger.
            self._ledger.check_schema()
            self._token = self._ledger.begin_writing(self._holder)

    def _under_leases(self, clinic_ids: Sequence[int], deadline: datetime | None = None) -> None:
        """Write for these clinics as their leases can be had; one that a withdrawal takes over is begun again.

        Args:
            deadline: until when leases that another run holds are waited for; default: ``patience_seconds``.
        """
        pending = list(clinic_ids)
        rounds: Counter[int] = Counter()
        waits = False
        deadline = deadline or self._clock.now() + timedelta(seconds=self.patience_seconds)
        try:
            self.begin()
            while pending and not self._halted:
                self._epochs = self._ledger.acquire(pending, self._holder, purpose=self.purpose, token=self._token)
                if self._epochs:
                    pending = [clinic_id for clinic_id in pending if clinic_id not in self._epochs]
                    pending += self._hold(rounds)
                elif self._clock.now() >= deadline:
                    break
                else:
                    if not waits:
                        # A task that was killed, or ended by hand, has held its clinics for up to five minutes more.
                        log.info("Another task writes for %s: waiting, until %s.", _clinics(pending), deadline)
                        waits = True
                    self._clock.sleep(self.poll_seconds)
        except LeaseLostError as error:
            self._halted = True
            self._written.superseded = True
            self._problem(error)
        if pending:
            if not self._halted:
                self._problem(
                    LeaseHeldError(f"Another run is writing for {_clinics(pending)}: their records stay for later.")
                )
            self._lost.update(pending)
            self._give_up(pending)

    def _hold(self, rounds: Counter[int]) -> list[int]:
        """Write for the clinics that are held, let go of them, and return those that were taken over meanwhile."""
        self._renewed = self._clock.now()
        self._taken_over.clear()
        try:
            self._ledger.fold_open_batches(list(self._epochs))
            self._write_held()
        finally:
            self._ledger.release(self._epochs, self._holder)
        again = []
        for clinic_id in sorted(self._taken_over):
            rounds[clinic_id] += 1
            if rounds[clinic_id] < _MOST_ROUNDS:
                self._lost.discard(clinic_id)
                self._hope_again({clinic_id})
                self._forget(clinic_id)
                again.append(clinic_id)
            else:
                self._problem(
                    LeaseLostError(f"Clinic {clinic_id} was taken over again and again: its records stay for later.")
                )
        return again

    def _hope_again(self, clinic_ids: Collection[int]) -> None:
        """Try once more what Medflex has not taken of these clinics."""
        self._hopeless = {pair for pair in self._hopeless if pair[0] not in clinic_ids}
        self._failures = {pair: sizes for pair, sizes in self._failures.items() if pair[0] not in clinic_ids}

    def _keep_leases(self) -> None:
        """Renew the leases when it is time to."""
        now = self._clock.now()
        with self._lock:
            if (now - self._renewed).total_seconds() < _RENEW_SECONDS:
                return
            self._renewed = now
        self._ledger.renew(self._epochs, self._holder)

    def _require_lease(self, clinic_id: int) -> None:
        """Raise :class:`LeaseLostError` unless the clinic is still ours."""
        if not self._ledger.renew({clinic_id: self._epochs[clinic_id]}, self._holder):
            raise LeaseLostError.of(clinic_id)

    # -- trouble -------------------------------------------------------------------------------------------------------

    def _problem(self, error: MedflexPipelineError) -> None:
        with self._lock:
            problems = self._written.problems
            if str(error) not in map(str, problems):
                log.error("%s", error)
                problems.append(error)

    def _failed(self, error: MedflexPipelineError, clinic_id: int) -> None:
        """Stop everything, unless the trouble is one of this clinic only, or of a few among others that are well."""
        self._problem(error)
        if isinstance(error, MedflexUnavailableError):
            with self._lock:
                self._failing.add(clinic_id)
                if len(self._failing) >= _FAILING_CLINICS:
                    self._halted = True
        elif isinstance(error, MedflexRefusedError) and error.is_of_clinic:
            log.error("Medflex does not let this token work for clinic %d.", clinic_id)
            with self._lock:
                self._forbidden.add(clinic_id)
                if len(self._forbidden) >= _FORBIDDEN_CLINICS:
                    self._halted = True
        elif not isinstance(error, MedflexContractError):
            self._halted = True

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except MedflexPipelineError as error:
            self._problem(error)

    def _count(self, clinic_id: int, **numbers: int) -> None:
        with self._lock:
            self._written.numbers[clinic_id].update(numbers)

    def _visible(self, lpu_id: int) -> Iterator[dict[str, Any]]:
        """What partners of a clinic can see now, at the rate that all workers share.

        Raises:
            NotProcessedError: all work has stopped; what was read so far is not all there is.
        """

        def pace() -> None:
            if not self._wait_for_slot():
                raise NotProcessedError(None)

        return self._client.visible(lpu_id, pace)


class Writer(LeaseHolder):
    """Writes to Medflex under leases; arguments as for :class:`LeaseHolder`."""

    operation: str
    """``send`` or ``withdraw``, as the ledger notes it."""
    path: str
    """Medflex's path."""

    # -- what a writer writes ---------------------------------------------------------------------------------------

    failing_seconds = 600.0
    """So long in all may requests of clinics that fail keep others waiting, also where these are answered in between:
    each time-out takes a minute."""
    together: int = 1
    """So many batches at most are written down, looked at and resolved in one go: each of these costs a fixed part."""

    @abstractmethod
    def _prepare(self, deliveries: Sequence[Delivery]) -> None:
        """See to it that what is left of these is written down and may leave now (``ready_at``)."""

    @abstractmethod
    def _content(self, delivery: Delivery) -> BatchContent:
        """Return what is written down of a delivery before its first byte leaves."""

    @abstractmethod
    def _acknowledged(self, delivery: Delivery, reply: BatchReply) -> None:
        """Count Medflex's verdicts."""

    @abstractmethod
    def _left(self, delivery: Delivery) -> None:
        """Count what could not be brought to an end."""

    # -- batches ----------------------------------------------------------------------------------------------------

    def _run(self, batches: Iterator[Batch]) -> None:
        """Deliver batches, several at a time."""
        self._group_size = self.together
        groups = iter(lambda: list(islice(batches, self._group_size)), [])
        if self._settings.parallel == 1:
            for group in groups:
                self._send(group)
            return
        # Some groups of batches are prepared and resolved while the requests of others are under way.
        with (
            ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="medflex-request") as requests,
            ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="medflex-batches") as pool,
        ):
            try:
                under_way: set[Future[None]] = set()
                for group in groups:
                    # As many as threads: enough to keep them busy, few enough to bound the memory.
                    under_way = self._await(under_way, self._settings.parallel - 1)
                    under_way.add(pool.submit(self._send, group, requests))
                self._await(under_way, 0)
            except BaseException:
                # A time-out of the task, a signal, a bug: the threads must not go on sending behind its back.
                self._halted = True
                raise

    def _await(self, under_way: set[Future[None]], most: int) -> set[Future[None]]:
        """Wait until no more than ``most`` groups of batches are under way."""
        while len(under_way) > most:
            done, under_way = wait(under_way, timeout=10, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            with self._contained():
                self._keep_leases()
        return under_way

    def _send(self, batches: Sequence[Batch], requests: Executor | None = None) -> None:
        """Bring some batches to their end; every record of them is counted exactly once.

        Args:
            requests: makes the requests, several at a time; without it they are made here, one after the other.
        """
        deliveries = [Delivery(batch) for batch in batches]
        answered: list[Delivery] = []
        if requests is None or len(deliveries) == 1:
            self._prepare_contained(deliveries)
            for delivery in deliveries:
                self._deliver_contained(delivery, answered)
        else:
            with ExitStack() as turn:
                turn.enter_context(self._turns)
                self._prepare_contained(deliveries)
                futures = [requests.submit(self._deliver_contained, delivery, answered) for delivery in deliveries]
                under_way = set(futures)
                while under_way:
                    _, under_way = wait(under_way, timeout=LOOK_SECONDS)
                    self._settle(answered)
                    # Who is slow, for a fault of its clinics, say, does not keep others waiting.
                    turn.close()
                for future in futures:
                    future.result()
        self._settle(answered)
        self._fit_group_size(deliveries)
        for delivery in deliveries:
            if len(delivery.records):
                if delivery.intent is not None:
                    with self._contained():
                        self._close(delivery)
                self._left(delivery)

    def _fit_group_size(self, deliveries: Sequence[Delivery]) -> None:
        """Let next time only so many batches be prepared together as can leave before their look is too old.

        Where not even one for each thread can, smaller groups would cost more looks and save none.
        """
        least = min(self.together, self._settings.parallel)
        with self._lock:
            if any(delivery.was_late for delivery in deliveries):
                self._group_size = max(least, self._group_size // 2)
            else:
                self._group_size = min(self.together, self._group_size + 1)

    def _prepare_contained(self, deliveries: Sequence[Delivery]) -> None:
        with self._troubled(deliveries):
            if ready := self._not_stopped(deliveries):
                self._prepare(ready)

    def _deliver_contained(self, delivery: Delivery, answered: list[Delivery]) -> None:
        begun = self._clock.now()
        if self._not_stopped([delivery]):
            with self._troubled([delivery]):
                self._deliver(delivery, answered)
        if (self._clock.now() - begun).total_seconds() > LOOK_SECONDS:
            self._settle(answered)

    def _not_stopped(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Return those of them for which sending has not stopped."""
        if self._halted:
            return []
        return [item for item in deliveries if len(item.records) and not self._is_stopped(item)]

    def _is_stopped(self, delivery: Delivery) -> bool:
        return delivery.clinic_id in self._lost or (delivery.clinic_id, delivery.lpu_id) in self._hopeless

    @contextmanager
    def _troubled(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """Whatever goes wrong in here is trouble of these deliveries' clinics, at Medflex."""
        try:
            yield
        except MedflexPipelineError as error:
            for delivery in {(item.clinic_id, item.lpu_id): item for item in deliveries}.values():
                self._trouble(error, delivery)

    def _deliver(self, delivery: Delivery, answered: list[Delivery]) -> None:
        """Post one batch until it is answered, or there is no hope.

        Args:
            answered: takes it up when it is; what is in there is written down before any longer wait.
        """
        failure, everywhere, turned_away = "", False, False
        seconds = 0.0
        for number in range(self._settings.attempts):
            if number:
                self._settle(answered)
                if not self._back_off(number, delivery.retry_after):
                    # For longer than there is time to wait nobody is let in.
                    everywhere |= turned_away
                    break
                if delivery.in_doubt and (delivery.clinic_id, delivery.lpu_id) in self._probed:
                    # What is known to fail keeps nobody waiting for long: a smaller batch is the next attempt.
                    break
            if not self._wait_for_slot() or self._is_stopped(delivery):
                return
            self._keep_leases()
            delivery.retry_after = None
            begun = self._clock.now()
            try:
                # Before the look's age is asked for: to connect can take seconds.
                self._client.connect(self.path)
                may_leave = delivery.take_leave(self._clock.now(), LOOK_SECONDS) or self._look_again(delivery)
                if not may_leave:
                    return
                reply = self._client.post_batch(self.path, delivery.body, delivery.key, delivery.by_id)
            except NotProcessedError as error:
                failure = f"HTTP {error.status}" if error.status else "no connection"
                # Nobody can reach it: that is no matter of this clinic. Turned away may be one request of many.
                everywhere, turned_away = error.status is None, error.status is not None
                delivery.retry_after = error.retry_after
            except UnknownOutcomeError as error:
                failure = error.what
                everywhere = turned_away = False
                delivery.retry_after = error.retry_after
                delivery.in_doubt = True
                delivery.is_answered = error.status is not None
            else:
                # Medflex has it; should the ledger fail now, that must not look as if it had not.
                delivery.in_doubt = True
                delivery.reply = reply
                answered.append(delivery)
                return
            # Not the waiting for a place in the rate, or for Medflex's pause: others wait for these as well.
            seconds += (self._clock.now() - begun).total_seconds()
            if delivery.retry_after:
                self._pause(delivery.retry_after)
        self._in_vain(delivery, seconds, everywhere)
        raise unavailable(failure)

    def _look_again(self, delivery: Delivery) -> bool:
        """Prepare one batch by itself; tell whether anything of it may leave now.

        Raises:
            MedlockSlowError: each look was older than it may be when it had ended.
        """
        for within in [LOOK_SECONDS] * (_LOOKS - 1) + [_SLOW_LOOK_SECONDS]:
            if delivery.intent is not None:
                self._require_lease(delivery.clinic_id)
            self._prepare([delivery])
            if not self._not_stopped([delivery]):
                return False
            # Medflex may have closed it while Medlock took its time.
            self._client.connect(self.path)
            if delivery.take_leave(self._clock.now(), within):
                return True
        raise MedlockSlowError(
            f"Medlock takes longer than {_SLOW_LOOK_SECONDS:g} s to say whether a batch may still leave, so it has not"
            " left: the next attempt sends it; see what keeps Medlock's database."
        )

    def _in_vain(self, delivery: Delivery, seconds: float, everywhere: bool) -> None:
        """Stop all sending if nobody gets through, or if requests that fail have kept others waiting for too long."""
        with self._lock:
            # The other batches of such a clinic, which fail beside this one, are ended by the first one that does.
            if (delivery.clinic_id, delivery.lpu_id) not in self._hopeless:
                self._failing_seconds += seconds / self._settings.parallel
            self._unreachable |= everywhere
            if everywhere or self._failing_seconds > self.failing_seconds:
                self._halted = True

    def _write_down(self, deliveries: Sequence[Delivery]) -> None:
        """Write down those that are not yet; one whose clinic has been taken over stays without an intent."""
        new = [delivery for delivery in deliveries if delivery.intent is None]
        if not new:
            return
        intents = self._ledger.record_intents([self._content(delivery) for delivery in new])
        for delivery, intent in zip(new, intents, strict=True):
            delivery.intent = intent
            if intent is None:
                self._trouble(LeaseLostError.of(delivery.clinic_id), delivery)

    def _settle(self, answered: list[Delivery]) -> None:
        """Write Medflex's verdicts down, and empty the list."""
        with self._lock:
            deliveries = list(answered)
            answered.clear()
        if not deliveries:
            return
        with self._troubled(deliveries):
            resolved = self._ledger.resolve_together([self._resolution(delivery) for delivery in deliveries])
            for delivery, is_ours in zip(deliveries, resolved, strict=True):
                if is_ours:
                    self._settled(delivery)
                else:
                    self._trouble(LeaseLostError.of(delivery.clinic_id), delivery)

    def _resolution(self, delivery: Delivery) -> Resolution:
        """What Medflex has answered, as the ledger notes it."""
        reply, intent = delivery.reply, delivery.intent
        assert reply is not None and intent is not None  # noqa: S101, PT018 - for the type checker: it was answered
        outcome = BatchOutcome(
            "acknowledged",
            reply.http_status,
            rejected=reply.rejected,
            outdated=sorted(reply.outdated),
            unknown=sorted(reply.unknown),
        )
        is_first = self.operation == "send" and bool((delivery.versions == 1).all())
        return Resolution(intent.batch_id, outcome, delivery.looked_at, is_first=is_first)

    def _settled(self, delivery: Delivery) -> None:
        reply = delivery.reply
        assert reply is not None  # noqa: S101 - for the type checker: only what is answered comes here
        with self._lock:
            # It answers others.
            self._failing.clear()
            self._forbidden.clear()
            pair = (delivery.clinic_id, delivery.lpu_id)
            if pair in self._sizes and pair not in self._failures:
                # Not before as many were taken as had failed together.
                self._well[pair] += 1
                if self._well[pair] % _PROBED_PART == 0:
                    self._sizes[pair] = min(2 * self._sizes[pair], self._settings.batch_size)
            if reply.outdated:
                self._outdated[pair].update(reply.outdated)
        self._acknowledged(delivery, reply)
        delivery.intent = None
        delivery.records = delivery.records.cut(0, 0)
        if reply.unknown:
            self._problem(unavailable("a reply that leaves records out"))

    def _close(self, delivery: Delivery) -> None:
        """End an intent that is not acknowledged; what is left of the delivery needs another one."""
        assert delivery.intent is not None  # noqa: S101 - for the type checker: callers have looked
        outcome = (
            BatchOutcome("unknown", unknown=delivery.records["id"].tolist())
            if delivery.in_doubt
            else BatchOutcome("to_retry")
        )
        self._ledger.resolve(delivery.intent.batch_id, outcome, delivery.looked_at)
        delivery.intent = None
        delivery.body = b""
        delivery.versions = delivery.versions + 1

    # -- trouble ----------------------------------------------------------------------------------------------------

    def _trouble(self, error: MedflexPipelineError, delivery: Delivery) -> None:
        """Stop what has no hope: the clinic's sending, or, where it is no matter of one clinic, all of it.

        What Medflex says holds for the number that it was asked about: an old one that it knows no more must not keep
        what the clinic shows under its present one from being withdrawn.
        """
        clinic_id = delivery.clinic_id
        if isinstance(error, MedflexContractError | MedflexRefusedError) and error.is_of_clinic:
            self._hopeless.add((clinic_id, delivery.lpu_id))
        elif isinstance(error, MedflexContractError | MedflexUnavailableError):
            self._batch_failed(delivery)
        else:
            self._lost.add(clinic_id)
        if isinstance(error, LeaseLostError):
            # Not yet a problem: whoever took it over will let go of it, unless it is a later attempt of this task.
            log.info("%s", error)
            self._taken_over.add(clinic_id)
            return
        self._failed(error, clinic_id)

    def _batch_failed(self, delivery: Delivery) -> None:
        """Try no more of the clinic, unless the batch was a small one of which some may fail; the next are smaller.

        Medflex may fail on one record, whenever it is in a request: that must not keep the clinic's others waiting.
        """
        pair = (delivery.clinic_id, delivery.lpu_id)
        with self._lock:
            failed = self._failures.setdefault(pair, [])
            failed.append(len(delivery.records))
            smaller = max(1, min(failed) // _PROBED_PART)
            self._sizes[pair] = min(self._sizes.get(pair, smaller), smaller)
            if not delivery.is_answered:
                self._silent.add(pair)
            if pair not in self._probed or len(failed) >= _PROBED_FAILURES:
                self._hopeless.add(pair)

    def _size_of(self, clinic_id: int, lpu_id: int) -> int:
        """How many records of the clinic leave together; of those that leave no more, as many as may."""
        most, pair = self._settings.batch_size, (clinic_id, lpu_id)
        return most if pair in self._hopeless else min(self._sizes.get(pair, most), most)

    # -- versions ---------------------------------------------------------------------------------------------------

    def _catch_up(self) -> dict[int, int]:
        """Number on from what Medflex shows, where it holds newer versions than the ledger knew of.

        Under the lease: a version that is raised while another task's request is under way would have the verdict on
        that left out as one on an older version.

        Where all writing has stopped nothing is asked: the next attempt meets the same verdicts.

        Returns:
            Clinic → number of such records.
        """
        caught_up: dict[int, int] = {}
        for (clinic_id, lpu_id), ids in self._outdated.items():
            if self._halted:
                break
            with self._contained():
                self._keep_leases()
                try:
                    shown = {item["id"]: item["version"] for item in self._visible(lpu_id) if item["id"] in ids}
                except (NotProcessedError, UnknownOutcomeError):
                    shown = {}
                is_ours = self._ledger.raise_versions(
                    clinic_id,
                    lpu_id,
                    shown,
                    sorted(ids - shown.keys()),
                    holder=self._holder,
                    epoch=self._epochs[clinic_id],
                )
                if is_ours:
                    caught_up[clinic_id] = caught_up.get(clinic_id, 0) + len(ids)
                else:
                    self._lost.add(clinic_id)
                    self._taken_over.add(clinic_id)
        self._outdated.clear()
        return caught_up


def _clinics(clinic_ids: Sequence[int]) -> str:
    shown = ", ".join(str(item) for item in clinic_ids[:10])
    more = f" and {len(clinic_ids) - 10} more" if len(clinic_ids) > 10 else ""
    return f"clinic {shown}" if len(clinic_ids) == 1 else f"clinics {shown}{more}"
