"""Sending: planned records of a shard to Medflex, each looked at once more just before it leaves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from medflex.airflow.columns import Columns
from medflex.airflow.encoding import batch_body, record_tails
from medflex.airflow.hooks.medflex import SEND_PATH, BatchReply
from medflex.airflow.writing import Batch, Delivery, Writer, WriteResult
from medflex.domain.access import permissions
from medflex.domain.last_look import PERMITTED, Turned, last_look
from medflex.domain.payload import PAYLOAD_COLUMNS
from medflex.domain.window import as_utc, clinic_windows
from medflex.errors import MedflexPipelineError, VersionsOutdatedError
from medflex.ledger.store import BatchContent, Decision

LOAD_COLUMNS = (*PAYLOAD_COLUMNS, "patient_id", "lpu_id")
"""What the loader needs of a record: the payload, and by whom and where to it was prepared."""
_LOOKED_AT = ("clinic_id", "id", "doctor_id", "patient_id", "partners", "lpu_id")
"""What the last look needs of a record."""
_NOTED_FOR = timedelta(seconds=10)
"""After so long what a clinic permits is noted anew: looks for revocations may have seen less meanwhile."""
_SPLITS = 4
"""So many times at most it is tried with smaller batches what is left of a clinic of which one has failed: Medflex may
fail on one record only."""
_NUMBERS = ("clinic_id", "id", "doctor_id", "patient_id", "lpu_id", "digest")


@dataclass
class LoadResult(WriteResult):
    """What became of the planned records, by clinic, and what went wrong."""

    dropped: dict[tuple[int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    rejected_fields: Counter[str] = field(default_factory=Counter)

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


class Loader(Writer):
    """Sends planned records of a shard.

    Args:
        extracted_at: the instant whose state of Medlock the records show (aware); what was read later stays.
        resync: also send what Medflex has acknowledged with the same content.
        writer: see :class:`LeaseHolder`.
    """

    operation = "send"
    purpose = "send"
    path = SEND_PATH
    together = 16

    def __init__(self, *, extracted_at: datetime, resync: bool = False, **writer: Any) -> None:
        super().__init__(**writer)
        self._extracted_at = extracted_at
        self._resync = resync
        self._result = LoadResult()
        self._has_looked = False
        # Of each clinic what was noted last, and when.
        self._noted: dict[int, tuple[Mapping[str, Any], datetime]] = {}
        self._chunks: Callable[[], Iterable[pd.DataFrame | None]] = list

    @property
    def _written(self) -> WriteResult:
        return self._result

    def load(self, clinic_ids: Sequence[int], chunks: Callable[[], Iterable[pd.DataFrame | None]]) -> LoadResult:
        """Send the planned records of these clinics; each ends up in exactly one number of the result.

        Args:
            clinic_ids: all clinics of the shard.
            chunks: gives frames with ``LOAD_COLUMNS``, each record once, and ``None`` where no clinic comes again that
                has come so far: what is held of these is let go. Called again for clinics that another run was still
                writing for.

        Trouble does not raise: it is in ``result.problems``, after everything that could be sent was sent. What was not
        sent counts as ``to_retry``, what may have been as ``unknown``.
        """
        self._chunks = chunks
        self._under_leases(clinic_ids)
        return self._result

    def _write_held(self) -> None:
        clinic_ids = set(self._epochs)
        for is_last in [False] * _SPLITS + [True]:
            self._run(self._batches(self._chunks(), clinic_ids, _Known(self._ledger.known)))
            # Not in a resync, which would send each time all that Medflex has taken.
            if is_last or self._halted or self._resync:
                break
            # Nor where nobody has answered: time-outs are no reason to ask more often.
            self._probed = {pair for pair, sizes in self._failures.items() if max(sizes) > 1} - self._silent
            clinic_ids = {clinic_id for clinic_id, _ in self._probed} - self._lost
            if not clinic_ids:
                break
            self._hope_again(clinic_ids)
            for clinic_id in clinic_ids:
                self._forget(clinic_id)
        for clinic_id, number in self._catch_up().items():
            self._problem(
                VersionsOutdatedError(
                    f"Medflex holds newer versions than the ledger for {number} records of clinic {clinic_id} (a"
                    " ledger restored from a backup?): the ledger numbers on from there, the next attempt sends them."
                )
            )

    def _give_up(self, clinic_ids: Sequence[int]) -> None:
        self._run(self._batches(self._chunks(), set(clinic_ids), _Known(lambda _: None)))

    def _forget(self, clinic_id: int) -> None:
        super()._forget(clinic_id)
        for key in [key for key in self._result.dropped if key[0] == clinic_id]:
            del self._result.dropped[key]

    # -- cutting batches --------------------------------------------------------------------------------------------

    def _batches(self, chunks: Iterable[pd.DataFrame | None], clinic_ids: set[int], known: _Known) -> Iterator[Batch]:
        """Cut chunks into batches of one clinic each; a rest is kept until its clinic has more, or the end."""
        rest: dict[int, Columns] = {}
        for chunk in chain(chunks, [None]):
            if chunk is None:
                for clinic_id, records in rest.items():
                    yield from self._batch(clinic_id, records, known)
                rest.clear()
                known.forget()
                continue
            try:
                # When all sending has stopped, nothing is compared any more: it only counts.
                if not self._halted:
                    known.learn(clinic_ids.intersection(chunk["clinic_id"].unique().tolist()))
            except MedflexPipelineError as error:
                # Before any batch of these is cut: without what is known of them they would get wrong versions.
                self._halted = True
                self._problem(error)
            # By id, so that what is asked of databases for a batch lies close together there.
            records_of = _encoded(chunk).by("clinic_id", then="id")
            del chunk
            for clinic_id, found in records_of:
                if clinic_id not in clinic_ids:
                    continue
                records = Columns.joined([rest.pop(clinic_id), found]) if clinic_id in rest else found
                start, lpu_id = 0, int(records["lpu_id"][0])
                while start + (size := self._size_of(clinic_id, lpu_id)) <= len(records):
                    yield from self._batch(clinic_id, records.cut(start, start + size), known)
                    start += size
                if start < len(records):
                    # A copy, or the rest would keep its whole chunk in memory.
                    rest[clinic_id] = records.cut(start, len(records)).copy()
                del found, records  # Before the next chunk is read.

    def _batch(self, clinic_id: int, records: Columns, known: _Known) -> Iterator[Batch]:
        versions, acknowledged, overtaken = known.look_up(clinic_id, records, self._extracted_at)
        if overtaken.any():
            # Another run has sent, or tried to send, a copy that was read later than ours: ours would undo it.
            self._drop(clinic_id, records["id"][overtaken], Turned.OVERTAKEN)
        if self._resync:
            acknowledged[:] = False
        self._count(clinic_id, accepted=int((acknowledged & ~overtaken).sum()))
        # What is acknowledged with this very content came over in an earlier attempt, or with another run.
        left = ~(acknowledged | overtaken)
        if left.all():
            yield Batch(clinic_id, records, versions + 1)
        elif left.any():
            yield Batch(clinic_id, records.keep(left), versions[left] + 1)

    def _drop(self, clinic_id: int, ids: np.ndarray[Any, Any], reason: str) -> None:
        with self._lock:
            self._result.dropped[clinic_id, reason].extend(ids.tolist())
        self._count(clinic_id, dropped=len(ids))

    def _prepare(self, deliveries: Sequence[Delivery]) -> None:
        """Write down what is left, then drop what may no longer leave.

        In this order: whoever looks for revocations after a change either finds the intent, or the change came before
        this look.
        """
        pending = list(deliveries)
        while pending:
            self._write_down(pending)
            pending = [delivery for delivery in pending if delivery.intent is not None]
            if not pending:
                break
            ends = np.cumsum([len(delivery.records) for delivery in pending])[:-1]
            turned = []
            for delivery, reasons in zip(pending, np.split(self._look(pending), ends), strict=True):
                dropped = reasons != PERMITTED
                if not dropped.any():
                    delivery.ready_at = delivery.looked_at
                    continue
                # Another body needs another key; what the old one did stays written down.
                self._close(delivery)
                ids = delivery.records["id"]
                for reason in sorted(set(reasons[dropped])):
                    self._drop(delivery.clinic_id, ids[reasons == reason], reason)
                delivery.keep(~dropped)
                if len(delivery.records):
                    turned.append(delivery)
            pending = turned
        for delivery in deliveries:
            if delivery.ready_at is not None and not delivery.body:
                records = delivery.records
                body = batch_body(delivery.lpu_id, records["id"], delivery.versions, records["tail"])
                delivery.body = self._client.encode(body)

    def _look(self, deliveries: Sequence[Delivery]) -> np.ndarray[Any, Any]:
        """Return, for the records of these one after the other, why they may not leave now, or ``PERMITTED``."""
        now = self._clock.now()
        for delivery in deliveries:
            delivery.looked_at = now
        records = pd.DataFrame(
            {name: np.concatenate([item.records[name] for item in deliveries]) for name in _LOOKED_AT}
        )
        clinic_ids = sorted({delivery.clinic_id for delivery in deliveries})
        # The first one asks for all clinics, so that later ones of some of them are compared with what it has judged.
        asked = clinic_ids if self._has_looked else sorted({*clinic_ids, *self._epochs})
        present = self._medlock.consent_now(clinic_ids, records["id"].to_numpy())
        clinics = self._medlock.clinics(asked, now)
        self._note_permissions(clinics)
        reasons = last_look(records, present, clinics, clinic_windows(clinics, now, now, cut_to_today=False))
        self._has_looked = True
        return np.array(reasons, dtype=object)

    def _note_permissions(self, clinics: pd.DataFrame) -> None:
        """Let the next look for revocations know under which permissions records are about to leave."""
        now = self._clock.now()
        new = {}
        for clinic_id, permits in permissions(clinics).items():
            if not permits["is_open"]:
                # Should it open once more, that is news to a look that has seen it closed, too.
                self._noted.pop(clinic_id, None)
                continue
            noted, at = self._noted.get(clinic_id, (None, now))
            if noted != permits or not timedelta(0) <= now - at <= _NOTED_FOR:
                new[clinic_id] = permits
        if new:
            self._ledger.widen_clinics_seen(new)
            self._noted |= {clinic_id: (permits, now) for clinic_id, permits in new.items()}

    def _content(self, delivery: Delivery) -> BatchContent:
        records = delivery.records
        return BatchContent(
            run_key=self._run_key,
            clinic_id=delivery.clinic_id,
            lpu_id=delivery.lpu_id,
            operation=self.operation,
            holder=self._holder,
            epoch=self._epochs[delivery.clinic_id],
            appointment_ids=records["id"],
            versions=delivery.versions,
            digests=records["digest"],
            extracted_at=self._extracted_at,
            patient_ids=records["patient_id"],
            partner_ids=sorted({int(item) for ids in set(records["partners"].tolist()) for item in ids.split(",")}),
        )

    def _acknowledged(self, delivery: Delivery, reply: BatchReply) -> None:
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

    def _left(self, delivery: Delivery) -> None:
        number = len(delivery.records)
        self._count(delivery.clinic_id, **{"unknown" if delivery.in_doubt else "to_retry": number})


def _encoded(chunk: pd.DataFrame) -> Columns:
    """Return of a chunk with ``LOAD_COLUMNS`` what batches are cut of: the texts that are sent are one column,
    ``tail``, which stays with Arrow, as no batch looks into it.
    """
    return Columns(
        {
            **{name: chunk[name].to_numpy("int64") for name in _NUMBERS},
            "partners": chunk["partners"].to_numpy(object),
            "tail": record_tails(chunk),
        },
    )


class _Known:
    """The ledger's records of some clinics, for quick look-up: sorted arrays per clinic and lpu_id.

    Args:
        read: gives the ledger's records of clinics, or ``None``.
    """

    def __init__(self, read: Callable[[list[int]], pd.DataFrame | None]) -> None:
        self._read = read
        self._clinic_ids: set[int] = set()
        self._of: dict[tuple[int, int], tuple[Any, ...]] = {}

    def learn(self, clinic_ids: set[int]) -> None:
        """Read the records of those of these clinics that are not known yet."""
        if new := clinic_ids - self._clinic_ids:
            self._clinic_ids |= new
            self._take_up(self._read(sorted(new)))

    def forget(self) -> None:
        """Let go of everything."""
        self._clinic_ids.clear()
        self._of.clear()

    def _take_up(self, known: pd.DataFrame | None) -> None:
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
        self, clinic_id: int, records: Columns, extracted_at: datetime
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return, per record, its highest version so far (0 if none), whether this very content is acknowledged, and
        whether a copy that was read after ``extracted_at`` has been sent.
        """
        ids = records["id"]
        key = (clinic_id, int(records["lpu_id"][0]))
        if key not in self._of:
            return np.zeros(len(ids), dtype="int64"), np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
        known_ids, versions, sent, digests, extracted = self._of[key]
        position = np.minimum(np.searchsorted(known_ids, ids), len(known_ids) - 1)
        found = known_ids[position] == ids
        acknowledged = found & sent[position] & (digests[position] == records["digest"])
        instant = np.datetime64(as_utc(extracted_at).replace(tzinfo=None), "us").astype("int64")
        overtaken = found & (extracted[position] > instant)
        return np.where(found, versions[position], 0), acknowledged, overtaken & ~acknowledged


def _instants(times: pd.Series) -> np.ndarray[Any, Any]:
    """Microseconds since 1970, UTC; a missing instant is the earliest."""
    return times.astype("datetime64[us, UTC]").astype("int64").to_numpy()
