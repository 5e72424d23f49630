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
from medflex.domain.last_look import PERMITTED, last_look
from medflex.domain.payload import PAYLOAD_COLUMNS, to_records
from medflex.errors import (
    LeaseHeldError,
    LeaseLostError,
    MedflexContractError,
    MedflexPipelineError,
    VersionsOutdatedError,
)
from medflex.ledger.store import LEASE_SECONDS, BatchOutcome, Decision, Intent, Ledger

log = logging.getLogger(__name__)

LOAD_COLUMNS = (*PAYLOAD_COLUMNS, "patient_id", "lpu_id")
"""What the loader needs of a record: the payload, and by whom and where to it was prepared."""

_RENEW_SECONDS = LEASE_SECONDS / 5


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
        self._resync = resync
        self._jitter = jitter
        self._rate_name = urlsplit(self._settings.base_url).netloc
        self._lock = threading.Lock()
        self._result = LoadResult()
        self._epochs: dict[int, int] = {}
        self._lost: set[int] = set()
        self._outdated: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._halted = False
        self._waited = 0.0
        self._paused_until = clock.now()

    def load(self, clinic_ids: Sequence[int], chunks: Iterable[pd.DataFrame]) -> LoadResult:
        """Send the planned records of these clinics; each ends up in exactly one number of the result.

        Args:
            clinic_ids: all clinics of the shard.
            chunks: frames with ``LOAD_COLUMNS``, each record once.

        Trouble does not raise: it is in ``result.problems``, after everything that could be sent was sent. What was not
        sent counts as ``to_retry``, what may have been as ``unknown``.
        """
        self._epochs = self._ledger.acquire(clinic_ids, self._holder)
        missed = [clinic_id for clinic_id in clinic_ids if clinic_id not in self._epochs]
        if missed:
            self._lost.update(missed)
            self._problem(
                LeaseHeldError(
                    f"Another run is writing for {_clinics(missed)}: their records stay for the next attempt."
                )
            )
        try:
            self._ledger.fold_open_batches(list(self._epochs))
            known = _Known(self._ledger.known(list(self._epochs)))
            self._run(self._batches(chunks, known))
            self._catch_up()
        finally:
            self._ledger.release(self._epochs, self._holder)
        return self._result

    # -- cutting batches --------------------------------------------------------------------------------------------

    def _batches(self, chunks: Iterable[pd.DataFrame], known: _Known) -> Iterator[_Batch]:
        """Cut chunks into batches of one clinic each; a rest is kept until its clinic has more, or the end."""
        size = self._settings.batch_size
        rest: dict[int, list[pd.DataFrame]] = defaultdict(list)
        for chunk in chunks:
            for key, records in chunk.groupby("clinic_id", sort=False):
                clinic_id = cast("int", key)
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
        versions, acknowledged = known.look_up(clinic_id, records)
        if not self._resync and acknowledged.any():
            # An earlier attempt of this task, or another run since the plan, has brought them over.
            self._count(clinic_id, accepted=int(acknowledged.sum()))
            records, versions = records[~acknowledged], versions[~acknowledged]
        if len(records):
            yield _Batch(clinic_id, records, versions + 1)

    def _run(self, batches: Iterator[_Batch]) -> None:
        renewed = self._clock.now()
        if self._settings.parallel == 1:
            for batch in batches:
                self._send(batch)
                renewed = self._renew(renewed)
            return
        with ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="medflex") as pool:
            under_way: set[Future[None]] = set()
            for batch in batches:
                # Two per thread: enough to keep them busy, few enough to bound the memory.
                while len(under_way) >= 2 * self._settings.parallel:
                    done, under_way = wait(under_way, timeout=10, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    renewed = self._renew(renewed)
                under_way.add(pool.submit(self._send, batch))
            while under_way:
                done, under_way = wait(under_way, timeout=10, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                renewed = self._renew(renewed)

    def _renew(self, renewed: datetime) -> datetime:
        now = self._clock.now()
        if (now - renewed).total_seconds() < _RENEW_SECONDS:
            return renewed
        with self._contained():
            self._ledger.renew(self._epochs, self._holder)
        return now

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
        failure = ""
        for number in range(self._settings.attempts):
            if number and not self._back_off(number, delivery.retry_after):
                break
            if not self._wait_for_slot():
                return
            self._look_again(delivery)
            if not len(delivery.records):
                return
            delivery.retry_after = None
            try:
                reply = self._client.post_batch(SEND_PATH, delivery.body, delivery.key, delivery.by_id)
            except NotProcessedError as error:
                failure = f"HTTP {error.status}" if error.status else "no connection"
                delivery.retry_after = error.retry_after
            except UnknownOutcomeError as error:
                failure = error.what
                delivery.retry_after = error.retry_after
                delivery.in_doubt = True
            else:
                self._acknowledge(delivery, reply)
                return
            if delivery.retry_after:
                self._pause(delivery.retry_after)
        raise unavailable(failure)

    def _look_again(self, delivery: _Delivery) -> None:
        """Drop what may no longer leave, then see to it that what is left is written down as a batch."""
        clinic_id = delivery.clinic_id
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
            with self._lock:
                for reason in np.unique(reasons[dropped]):
                    self._result.dropped[clinic_id, str(reason)].extend(ids[reasons == reason].tolist())
            self._count(clinic_id, dropped=int(dropped.sum()))
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
            self._clock.sleep(self._ledger.reserve_slot(self._rate_name, 1 / self._settings.rate_per_second))
        while not self._halted and (seconds := (self._paused_until - self._clock.now()).total_seconds()) > 0:
            self._clock.sleep(seconds)
        return not self._halted

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
        self._clock.sleep(seconds)
        return True

    def _trouble(self, error: MedflexPipelineError, clinic_id: int) -> None:
        self._problem(error)
        if isinstance(error, LeaseLostError | MedflexContractError):
            # Only this clinic is concerned; others' records may go on.
            self._lost.add(clinic_id)
        else:
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
                self._ledger.raise_versions(clinic_id, shown)
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
    """The ledger's records of a shard, for quick look-up of versions: sorted arrays per clinic."""

    def __init__(self, known: pd.DataFrame) -> None:
        self._of: dict[int, tuple[Any, Any, Any, Any]] = {}
        for key, records in known.sort_values("appointment_id").groupby("clinic_id", sort=False):
            self._of[cast("int", key)] = (
                records["appointment_id"].to_numpy(),
                records["version"].to_numpy(),
                (records["state"] == "sent").to_numpy(dtype=bool) & records["acked_digest"].notna().to_numpy(),
                records["acked_digest"].to_numpy("int64", na_value=0),
            )

    def look_up(self, clinic_id: int, records: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return, per record, its highest version so far (0 if none) and whether this very content is acknowledged."""
        ids = records["id"].to_numpy()
        if clinic_id not in self._of:
            return np.zeros(len(ids), dtype="int64"), np.zeros(len(ids), dtype=bool)
        known_ids, versions, sent, digests = self._of[clinic_id]
        position = np.minimum(np.searchsorted(known_ids, ids), len(known_ids) - 1)
        found = known_ids[position] == ids
        acknowledged = found & sent[position] & (digests[position] == records["digest"].to_numpy())
        return np.where(found, versions[position], 0), acknowledged


def _clinics(clinic_ids: Sequence[int]) -> str:
    shown = ", ".join(str(item) for item in clinic_ids[:10])
    more = f" and {len(clinic_ids) - 10} more" if len(clinic_ids) > 10 else ""
    return f"clinic {shown}" if len(clinic_ids) == 1 else f"clinics {shown}{more}"
