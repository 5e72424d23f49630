"""Sending: batches to Medflex under leases, each written down before it leaves and looked at once more before that.

Nothing here imports Airflow, so that tests drive it against a real Postgres and a real Medflex with a clock of theirs.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from medflex.airflow.hooks.medflex import (
    SEND_PATH,
    BatchReply,
    MedflexClient,
    NotProcessedError,
    UnknownOutcomeError,
    unavailable,
)
from medflex.clock import Clock
from medflex.domain.last_look import PERMITTED, Turned, last_look
from medflex.domain.payload import PAYLOAD_COLUMNS, to_records
from medflex.errors import (
    LeaseHeldError,
    LeaseLostError,
    MedflexContractError,
    MedflexPipelineError,
    MedflexUnavailableError,
    VersionsOutdatedError,
)
from medflex.ledger.store import LEASE_SECONDS, BatchOutcome, Decision, Intent, Ledger

log = logging.getLogger(__name__)

LOAD_COLUMNS = (*PAYLOAD_COLUMNS, "patient_id", "lpu_id")
"""What the loader needs of a record: the payload, and by whom and where to it was prepared."""

_RENEW_SECONDS = LEASE_SECONDS / 5
_POLL_SECONDS = 5.0
_NAP_SECONDS = 5.0
_FAILING_CLINICS = 3
"""So many clinics whose requests keep failing mean that Medflex itself is failing."""


class ConsentReader(Protocol):
    """What the last look reads; :class:`medflex.airflow.hooks.medlock.Medlock` is one."""

    def clinics(self, clinic_ids: Sequence[int] | None, now: datetime) -> pd.DataFrame:
        """Return CLINICS judged at ``now``."""
        ...

    def consent_now(self, clinic_id: int, appointment_ids: Sequence[int]) -> pd.DataFrame:
        """Return the flags behind appointments as committed now."""
        ...


@dataclass
class LoadResult:
    """What became of the planned records, by clinic, and what went wrong."""

    numbers: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    dropped: dict[tuple[int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    rejected_fields: Counter[str] = field(default_factory=Counter)
    problems: list[MedflexPipelineError] = field(default_factory=list)

    def frame(self, clinic_ids: Iterable[int]) -> pd.DataFrame:
        """Return ``clinic_id`` and the five numbers, one row per clinic."""
        names = ("accepted", "rejected", "to_retry", "unknown", "dropped")
        return pd.DataFrame(
            [{"clinic_id": key, **{name: self.numbers[key][name] for name in names}} for key in clinic_ids]
        )

    def decisions(self) -> list[Decision]:
        """Return which records the last look held back."""
        return [
            Decision(clinic_id, "dropped", (reason,), sorted(ids)) for (clinic_id, reason), ids in self.dropped.items()
        ]


@dataclass
class _Batch:
    clinic_id: int
    records: pd.DataFrame
    versions: np.ndarray[Any, Any]


class Loader:
    """Sends planned records of a shard.

    Args:
        holder: who holds the leases: the same for each attempt of one task, so that an attempt takes over its
            predecessor's leases at once and fences it.
        run_key: the ledger's run, or ``None`` outside a run.
        extracted_at: the instant whose state of Medlock the records show (aware); what was read later stays.
        resync: also send what Medflex has acknowledged with the same content.
    """

    def __init__(
        self,
        *,
        client: MedflexClient,
        medlock: ConsentReader,
        ledger: Ledger,
        clock: Clock,
        holder: str,
        run_key: int | None,
        extracted_at: datetime,
        resync: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._settings = client.settings
        self._medlock = medlock
        self._ledger = ledger
        self._clock = clock
        self._holder = holder
        self._run_key = run_key
        self._extracted_at = extracted_at
        self._resync = resync
        self._jitter = jitter
        self._rate_name = urlsplit(self._settings.base_url).netloc
        self._lock = threading.Lock()
        self._result = LoadResult()
        self._epochs: dict[int, int] = {}
        self._lost: set[int] = set()
        self._failing: set[int] = set()
        self._renewed = clock.now()
        self._outdated: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._halted = False
        self._waited = 0.0
        self._paused_until = clock.now()

    def load(self, clinic_ids: Sequence[int], chunks: Callable[[], Iterable[pd.DataFrame]]) -> LoadResult:
        """Send the planned records of these clinics; each ends up in exactly one number of the result.

        Args:
            clinic_ids: all clinics of the shard.
            chunks: gives frames with ``LOAD_COLUMNS``, each record once; called again for clinics that another run
                was still writing for.

        Trouble does not raise: it is in ``result.problems``, after everything that could be sent was sent. What was not
        sent counts as ``to_retry``, what may have been as ``unknown``.
        """
        pending = list(clinic_ids)
        # A run that was killed holds its leases for this long; one that lives lets go shard by shard.
        deadline = self._clock.now() + timedelta(seconds=LEASE_SECONDS + 30)
        while pending:
            self._epochs = self._ledger.acquire(pending, self._holder)
            if self._epochs:
                pending = [clinic_id for clinic_id in pending if clinic_id not in self._epochs]
                self._load_held(chunks)
            elif self._halted or self._clock.now() >= deadline:
                self._lost.update(pending)
                self._problem(
                    LeaseHeldError(f"Another run is writing for {_clinics(pending)}: their records stay for later.")
                )
                self._run(self._batches(chunks(), set(pending), _Known(None)))
                break
            else:
                self._clock.sleep(_POLL_SECONDS)
        self._catch_up()
        return self._result

    def _load_held(self, chunks: Callable[[], Iterable[pd.DataFrame]]) -> None:
        """Send the records of the clinics whose leases we hold, then let go of them."""
        self._renewed = self._clock.now()
        try:
            self._ledger.fold_open_batches(list(self._epochs))
            known = _Known(self._ledger.known(list(self._epochs)))
            self._run(self._batches(chunks(), set(self._epochs), known))
        finally:
            self._ledger.release(self._epochs, self._holder)

    # -- cutting batches --------------------------------------------------------------------------------------------

    def _batches(self, chunks: Iterable[pd.DataFrame], clinic_ids: set[int], known: _Known) -> Iterator[_Batch]:
        """Cut chunks into batches of one clinic each; a rest is kept until its clinic has more, or the end."""
        size = self._settings.batch_size
        rest: dict[int, list[pd.DataFrame]] = defaultdict(list)
        for chunk in chunks:
            for key, records in chunk.groupby("clinic_id", sort=False):
                clinic_id = cast("int", key)
                if clinic_id not in clinic_ids:
                    continue
                pending = rest.pop(clinic_id, [])
                records = pd.concat([*pending, records]) if pending else records
                full = len(records) // size * size
                for start in range(0, full, size):
                    yield from self._batch(clinic_id, records.iloc[start : start + size], known)
                if full < len(records):
                    # A copy, or the rest would keep its whole chunk in memory.
                    rest[clinic_id].append(records.iloc[full:].copy())
        for clinic_id, pending in rest.items():
            yield from self._batch(clinic_id, pd.concat(pending), known)

    def _batch(self, clinic_id: int, records: pd.DataFrame, known: _Known) -> Iterator[_Batch]:
        versions, acknowledged, overtaken = known.look_up(clinic_id, records, self._extracted_at)
        if overtaken.any():
            # Another run has sent, or tried to send, a copy that was read later than ours: ours would undo it.
            self._drop(clinic_id, records["id"].to_numpy()[overtaken], Turned.OVERTAKEN)
        if self._resync:
            acknowledged[:] = False
        self._count(clinic_id, accepted=int((acknowledged & ~overtaken).sum()))
        # What is acknowledged with this very content came over in an earlier attempt, or with another run.
        left = ~(acknowledged | overtaken)
        if left.any():
            yield _Batch(clinic_id, records[left], versions[left] + 1)

    def _drop(self, clinic_id: int, ids: np.ndarray[Any, Any], reason: str) -> None:
        with self._lock:
            self._result.dropped[clinic_id, reason].extend(ids.tolist())
        self._count(clinic_id, dropped=len(ids))

    def _run(self, batches: Iterator[_Batch]) -> None:
        if self._settings.parallel == 1:
            for batch in batches:
                self._send(batch)
            return
        with ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="medflex") as pool:
            try:
                under_way: set[Future[None]] = set()
                for batch in batches:
                    # Two per thread: enough to keep them busy, few enough to bound the memory.
                    under_way = self._await(under_way, 2 * self._settings.parallel - 1)
                    under_way.add(pool.submit(self._send, batch))
                self._await(under_way, 0)
            except BaseException:
                # A time-out of the task, a signal, a bug: the threads must not go on sending behind its back.
                self._halted = True
                raise

    def _await(self, under_way: set[Future[None]], most: int) -> set[Future[None]]:
        """Wait until no more than ``most`` batches are under way."""
        while len(under_way) > most:
            done, under_way = wait(under_way, timeout=10, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            with self._contained():
                self._keep_leases()
        return under_way

    def _keep_leases(self) -> None:
        """Renew the leases when it is time to."""
        now = self._clock.now()
        with self._lock:
            if (now - self._renewed).total_seconds() < _RENEW_SECONDS:
                return
            self._renewed = now
        self._ledger.renew(self._epochs, self._holder)

    # -- one batch --------------------------------------------------------------------------------------------------

    def _send(self, batch: _Batch) -> None:
        """Bring one batch to its end; every record of it is counted exactly once."""
        delivery = _Delivery(batch.clinic_id, batch.records, batch.versions)
        if not self._halted and batch.clinic_id not in self._lost:
            try:
                self._deliver(delivery)
            except MedflexPipelineError as error:
                self._trouble(error, batch.clinic_id)
        if len(delivery.records):
            self._leave(delivery)

    def _deliver(self, delivery: _Delivery) -> None:
        failure, everywhere = "", False
        for number in range(self._settings.attempts):
            if number and not self._back_off(number, delivery.retry_after):
                break
            if not self._wait_for_slot() or delivery.clinic_id in self._lost:
                return
            self._look_again(delivery)
            if not len(delivery.records):
                return
            delivery.retry_after = None
            try:
                reply = self._client.post_batch(SEND_PATH, delivery.body, delivery.key, delivery.by_id)
            except NotProcessedError as error:
                failure = f"HTTP {error.status}" if error.status else "no connection"
                # Nobody can reach it, or nobody is let in: that is no matter of this clinic.
                everywhere = True
                delivery.retry_after = error.retry_after
            except UnknownOutcomeError as error:
                failure = error.what
                everywhere = False
                delivery.retry_after = error.retry_after
                delivery.in_doubt = True
            else:
                self._acknowledge(delivery, reply)
                return
            if delivery.retry_after:
                self._pause(delivery.retry_after)
        self._halted |= everywhere
        raise unavailable(failure)

    def _look_again(self, delivery: _Delivery) -> None:
        """Drop what may no longer leave, then see to it that what is left is written down as a batch."""
        clinic_id = delivery.clinic_id
        self._keep_leases()
        if delivery.intent is not None and not self._ledger.renew({clinic_id: self._epochs[clinic_id]}, self._holder):
            raise LeaseLostError(
                f"Clinic {clinic_id} has been taken over by another task, so this one stops sending for it."
            )
        looked_at = self._clock.now()
        reasons = np.array(
            last_look(
                delivery.records,
                self._medlock.consent_now(clinic_id, delivery.records["id"].tolist()),
                self._medlock.clinics([clinic_id], looked_at),
            )
        )
        dropped = reasons != PERMITTED
        if dropped.any():
            if delivery.intent is not None:
                # Another body needs another key; what the old one did stays written down.
                self._close(delivery)
            ids = delivery.records["id"].to_numpy()
            for reason in np.unique(reasons[dropped]):
                self._drop(clinic_id, ids[reasons == reason], str(reason))
            delivery.keep(~dropped)
        if delivery.intent is None and len(delivery.records):
            records = delivery.records
            lpu_id = int(records["lpu_id"].iloc[0])
            versions = [int(version) for version in delivery.versions]
            delivery.intent = self._ledger.record_intent(
                run_key=self._run_key,
                clinic_id=clinic_id,
                lpu_id=lpu_id,
                operation="send",
                holder=self._holder,
                epoch=self._epochs[clinic_id],
                appointment_ids=records["id"].tolist(),
                versions=versions,
                digests=records["digest"].tolist(),
                extracted_at=self._extracted_at,
                looked_at=looked_at,
                partner_ids=sorted({int(item) for ids in records["partners"].unique() for item in ids.split(",")}),
            )
            delivery.body = self._client.encode({"lpu_id": lpu_id, "records": to_records(records, versions)})

    def _acknowledge(self, delivery: _Delivery, reply: BatchReply) -> None:
        # Medflex has it; should the ledger fail now, that must not look as if it had not.
        delivery.in_doubt = True
        outcome = BatchOutcome(
            "acknowledged",
            reply.http_status,
            rejected=reply.rejected,
            outdated=sorted(reply.outdated),
            unknown=sorted(reply.unknown),
        )
        assert delivery.intent is not None  # noqa: S101 - for the type checker: _look_again has set it
        if not self._ledger.resolve(delivery.intent.batch_id, outcome):
            raise LeaseLostError(f"Clinic {delivery.clinic_id} was taken over while its batch was under way.")
        lpu_id = delivery.lpu_id
        delivery.intent = None
        delivery.records = delivery.records.iloc[:0]
        self._count(
            delivery.clinic_id,
            accepted=len(reply.accepted),
            rejected=len(reply.rejected),
            to_retry=len(reply.outdated),
            unknown=len(reply.unknown),
        )
        with self._lock:
            for fields in reply.rejected.values():
                self._result.rejected_fields.update(fields)
            if reply.outdated:
                self._outdated[delivery.clinic_id, lpu_id].update(reply.outdated)
        if reply.unknown:
            self._problem(unavailable("a reply that leaves records out"))

    def _leave(self, delivery: _Delivery) -> None:
        """Count what could not be brought to an end, and write down what may have become of it."""
        if delivery.intent is not None:
            with self._contained():
                self._close(delivery)
        number = len(delivery.records)
        self._count(delivery.clinic_id, **{"unknown" if delivery.in_doubt else "to_retry": number})

    def _close(self, delivery: _Delivery) -> None:
        assert delivery.intent is not None  # noqa: S101 - for the type checker: callers have looked
        outcome = (
            BatchOutcome("unknown", unknown=delivery.records["id"].tolist())
            if delivery.in_doubt
            else BatchOutcome("to_retry")
        )
        self._ledger.resolve(delivery.intent.batch_id, outcome)
        delivery.intent = None
        delivery.versions = delivery.versions + 1

    # -- pace and trouble -------------------------------------------------------------------------------------------

    def _wait_for_slot(self) -> bool:
        """Wait for a place in Medflex's rate, which all workers share; ``False`` when sending has stopped meanwhile."""
        if self._settings.rate_per_second:
            most = self._settings.retry_budget
            seconds = self._ledger.reserve_slot(self._rate_name, 1 / self._settings.rate_per_second, most)
            if seconds > most:
                self._halted = True
                raise unavailable("it asked for a pause that is not over")
            self._sleep(seconds)
        while not self._halted and (seconds := (self._paused_until - self._clock.now()).total_seconds()) > 0:
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

    def _trouble(self, error: MedflexPipelineError, clinic_id: int) -> None:
        """Stop what has no hope: the clinic's sending, or, where it is no matter of one clinic, all of it."""
        self._problem(error)
        self._lost.add(clinic_id)
        if isinstance(error, MedflexUnavailableError):
            self._failing.add(clinic_id)
            self._halted |= len(self._failing) >= _FAILING_CLINICS
        elif not isinstance(error, LeaseLostError | MedflexContractError):
            self._halted = True

    def _problem(self, error: MedflexPipelineError) -> None:
        with self._lock:
            if str(error) not in map(str, self._result.problems):
                log.error("%s", error)
                self._result.problems.append(error)

    @contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except MedflexPipelineError as error:
            self._problem(error)

    def _count(self, clinic_id: int, **numbers: int) -> None:
        with self._lock:
            self._result.numbers[clinic_id].update(numbers)

    def _catch_up(self) -> None:
        """Number on from what Medflex shows, where it holds newer versions than the ledger knew of."""
        for (clinic_id, lpu_id), ids in self._outdated.items():
            with self._contained():
                try:
                    shown = {item["id"]: item["version"] for item in self._client.visible(lpu_id) if item["id"] in ids}
                except (NotProcessedError, UnknownOutcomeError):
                    shown = {}
                self._ledger.raise_versions(clinic_id, lpu_id, shown)
            self._problem(
                VersionsOutdatedError(
                    f"Medflex holds newer versions than the ledger for {len(ids)} records of clinic {clinic_id} (a"
                    " ledger restored from a backup?): the ledger numbers on from there, the next attempt sends them."
                )
            )


class _Delivery:
    """A batch on its way: the records not yet accounted for, and the intent they were written down with."""

    def __init__(self, clinic_id: int, records: pd.DataFrame, versions: np.ndarray[Any, Any]) -> None:
        self.clinic_id = clinic_id
        self.records = records
        self.versions = versions
        self.intent: Intent | None = None
        self.body = b""
        self.in_doubt = False
        self.retry_after: float | None = None

    @property
    def key(self) -> str:
        return str(self.intent.idempotency_key) if self.intent else ""

    @property
    def lpu_id(self) -> int:
        return int(self.records["lpu_id"].iloc[0])

    @property
    def by_id(self) -> dict[int, int]:
        return dict(zip(self.records["id"].tolist(), self.versions.tolist(), strict=True))

    def keep(self, mask: np.ndarray[Any, Any]) -> None:
        self.records = self.records[mask]
        self.versions = self.versions[mask]


class _Known:
    """The ledger's records of some clinics, for quick look-up: sorted arrays per clinic and lpu_id."""

    def __init__(self, known: pd.DataFrame | None) -> None:
        self._of: dict[tuple[int, int], tuple[Any, ...]] = {}
        if known is None or not len(known):
            return
        # By arrays: sorting and grouping the frame would hold all of it three times.
        clinics, lpus, ids = (known[name].to_numpy() for name in ("clinic_id", "lpu_id", "appointment_id"))
        order = np.lexsort((ids, lpus, clinics))
        sent = (known["state"] == "sent").to_numpy(dtype=bool) & known["acked_digest"].notna().to_numpy()
        columns = (
            ids[order],
            known["version"].to_numpy()[order],
            sent[order],
            known["acked_digest"].to_numpy("int64", na_value=0)[order],
            _instants(known["extracted_at"])[order],
        )
        clinics, lpus = clinics[order], lpus[order]
        starts = np.flatnonzero(np.r_[True, (clinics[1:] != clinics[:-1]) | (lpus[1:] != lpus[:-1])])
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            self._of[int(clinics[start]), int(lpus[start])] = tuple(column[start:end] for column in columns)

    def look_up(
        self, clinic_id: int, records: pd.DataFrame, extracted_at: datetime
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return, per record, its highest version so far (0 if none), whether this very content is acknowledged, and
        whether a copy that was read after ``extracted_at`` has been sent.
        """
        ids = records["id"].to_numpy()
        key = (clinic_id, int(records["lpu_id"].iloc[0]))
        if key not in self._of:
            return np.zeros(len(ids), dtype="int64"), np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
        known_ids, versions, sent, digests, extracted = self._of[key]
        position = np.minimum(np.searchsorted(known_ids, ids), len(known_ids) - 1)
        found = known_ids[position] == ids
        acknowledged = found & sent[position] & (digests[position] == records["digest"].to_numpy())
        overtaken = found & (extracted[position] > _instants(pd.Series([extracted_at]))[0])
        return np.where(found, versions[position], 0), acknowledged, overtaken & ~acknowledged


def _instants(times: pd.Series) -> np.ndarray[Any, Any]:
    """Microseconds since 1970, UTC; a missing instant is the earliest."""
    return times.astype("datetime64[us, UTC]").astype("int64").to_numpy()


def _clinics(clinic_ids: Sequence[int]) -> str:
    shown = ", ".join(str(item) for item in clinic_ids[:10])
    more = f" and {len(clinic_ids) - 10} more" if len(clinic_ids) > 10 else ""
    return f"clinic {shown}" if len(clinic_ids) == 1 else f"clinics {shown}{more}"
