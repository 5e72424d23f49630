"""Sharing: what becomes of judged rows before they may leave, and, at once, of what partners have changed.

Nothing here imports Airflow, so that tests drive it against a real Postgres and a real Medflex with a clock of theirs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from medflex.airflow.hooks.medflex import BatchReply, MedflexClient
from medflex.airflow.loading import LOAD_COLUMNS, Loader
from medflex.airflow.writing import Delivery, MedlockReader
from medflex.arrow import to_pandas
from medflex.clock import Clock
from medflex.domain.access import AccessState
from medflex.domain.changes import Change, plan_changes
from medflex.domain.eligibility import judge
from medflex.domain.payload import PAYLOAD_COLUMNS, build_payload
from medflex.domain.window import clinic_windows
from medflex.errors import LeaseHeldError, MedflexPipelineError, ValidationFailedError
from medflex.ledger.actions import Changed
from medflex.ledger.store import Ledger
from medflex.quality.suites import WITNESS_COLUMNS
from medflex.quality.validation import validate_outgoing

log = logging.getLogger(__name__)

MOST = 2_000
"""Appointments of one run; the next one, two minutes later, goes on behind them."""
WITHIN = timedelta(hours=24)
"""What is older has gone out with a daily transfer."""
LONGEST = timedelta(seconds=60)
"""After so long of sending no further clinics are begun: the next run, and with it the next answers, would wait. The
first ones are begun in any case, or nothing would ever leave where preparing it takes long."""
CLINICS_AT_ONCE = 50
"""So many clinics are kept from other runs at a time."""
SOURCE_WITNESSES = tuple(name for name in WITNESS_COLUMNS if name not in ("starts_from", "starts_before"))
"""What the suite *outgoing* wants to see of ROWS beside the records."""
JUDGED_COLUMNS = ["state", "closed_reason", "opens_at"]
"""What ``judge_access`` adds to CLINICS."""


# -- what every lane that sends has in common ------------------------------------------------------------------------


def records_of(
    eligible: pd.DataFrame, clinics: pd.DataFrame, digest_key: bytes, phones: pd.Series | None = None
) -> pd.DataFrame:
    """Return the records that eligible rows become: PAYLOAD with ``patient_id`` and ``lpu_id`` (int64).

    eligible: ROWS. clinics: CLINICS with these rows' clinics. phones, errors: as of :func:`build_payload`.
    """
    records = build_payload(eligible, clinics, digest_key, phones)
    records["patient_id"] = eligible["patient_id"].astype("int64")
    records["lpu_id"] = records["clinic_id"].map(clinics.set_index("clinic_id")["lpu_id"]).astype("int64")
    return records


def with_witnesses(records: pd.DataFrame, rows: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Return what the suite *outgoing* judges: PAYLOAD beside what the source says about the same appointments.

    records: at least PAYLOAD. rows: at least SOURCE_WITNESSES of ROWS. windows: ``clinic_id``,
    ``starts_from``, ``starts_before``.
    """
    source = rows[["clinic_id", "appointment_id", *SOURCE_WITNESSES]].rename(columns={"appointment_id": "id"})
    joined = records[list(PAYLOAD_COLUMNS)].merge(source, how="left", on=["clinic_id", "id"])
    return joined.merge(windows, how="left", on="clinic_id")


def at_present_lpu(known: pd.DataFrame, clinics: pd.DataFrame) -> pd.DataFrame:
    """Only what is shown where the clinics are now: a clinic with another lpu_id than before has nothing there yet."""
    lpu_ids = clinics.set_index("clinic_id")["lpu_id"]
    return known[(known["lpu_id"] == known["clinic_id"].map(lpu_ids)).fillna(False).to_numpy(dtype=bool)]


def require_valid(results: Iterable[Any], what_is_not_sent: str) -> int:
    """Tell what of suites' results did not hold, in counts; return how many warnings there are.

    Raises:
        ValidationFailedError: a critical expectation failed.
    """
    looked_at = list(results)
    failures = [failure for result in looked_at for failure in result.critical_failures]
    warned = [warning for result in looked_at for warning in result.warnings]
    for item in (*failures, *warned):
        log.warning("%s: %s, %d of %d.", item.severity, item.name, item.unexpected, item.evaluated)
    if failures:
        names = [item.name for item in failures]
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ValidationFailedError(f"{len(failures)} critical expectations failed ({listed}), so {what_is_not_sent}")
    return len(warned)


# -- what partners have changed --------------------------------------------------------------------------------------


@dataclass
class Shared:
    """What became of appointments that partners have changed, and what is wrong.

    Numbers: ``changed`` (looked at), ``sent``, ``rejected``, ``unchanged`` (Medflex shows them so already),
    ``not_shared`` (may not be, or lie outside the window), ``waiting`` (for the next run).
    """

    numbers: Counter[str] = field(default_factory=Counter)
    rejected_fields: Counter[str] = field(default_factory=Counter)
    problems: list[MedflexPipelineError] = field(default_factory=list)


class ChangeLoader(Loader):
    """A loader that waits for nobody and knows which records need not be tried again; arguments as for
    :class:`Loader`.
    """

    # Whoever holds a clinic may hold it for minutes. What he sends was read earlier, or has the change already.
    patience_seconds = 0.0

    def __init__(self, **loader: Any) -> None:
        # Whatever is given is to be sent: what Medflex has acknowledged is not among it.
        super().__init__(resync=True, **loader)
        self.accepted: set[tuple[int, int]] = set()
        self.rejected: set[tuple[int, int]] = set()

    def _acknowledged(self, delivery: Delivery, reply: BatchReply) -> None:
        super()._acknowledged(delivery, reply)
        with self._lock:
            self.accepted.update((delivery.clinic_id, id_) for id_ in reply.accepted)
            self.rejected.update((delivery.clinic_id, id_) for id_ in reply.rejected)

    def _problem(self, error: MedflexPipelineError) -> None:
        if isinstance(error, LeaseHeldError):
            log.info("%s", error)
            return
        super()._problem(error)


class ChangeSharer:
    """Sends appointments that partners have changed, by the rules, looks and guards of every sending.

    Args:
        digest_key: the secret of the ledger's digests.
        holder: see :class:`LeaseHolder`.
    """

    def __init__(
        self,
        *,
        client: MedflexClient,
        medlock: MedlockReader,
        ledger: Ledger,
        clock: Clock,
        digest_key: bytes,
        holder: str,
    ) -> None:
        self._client = client
        self._medlock = medlock
        self._ledger = ledger
        self._clock = clock
        self._digest_key = digest_key
        self._holder = holder

    def share(self, most: int = MOST) -> Shared:
        """Send what partners have changed within a day and Medflex does not show yet, as it is in Medlock now.

        What was sent, is shown already, was rejected, or may not be sent need not be looked at again; the daily run
        looks at it as at any other appointment. The rest is left for the next call: of a clinic for which another run
        is writing, what turned at the last look, and what Medflex has not taken.

        Trouble in sending does not raise: it is in ``problems``.

        Raises:
            ValidationFailedError: a critical expectation failed; nothing is sent.
            MedlockUnavailableError, LedgerUnavailableError, …: nothing is lost.
        """
        result = Shared()
        changed = self._ledger.unshared(self._clock.now() - WITHIN, most)
        if not changed:
            return result
        # Before the first look at Medlock, so that a copy that is read later is taken for the newer one.
        extracted_at = self._clock.now()
        table = self._medlock.appointments_now(
            [item.clinic_id for item in changed], [item.appointment_id for item in changed]
        )
        judged_at = self._clock.now()
        clinics = self._medlock.clinics(sorted({item.clinic_id for item in changed}), judged_at)
        windows = clinic_windows(clinics[clinics["state"] == AccessState.OPEN], judged_at, judged_at, cut_to_today=True)
        rows = _inside(to_pandas(table, nullable_ids=("patient_id", "doctor_id")), windows)
        rows = rows[judge(rows, clinics).eligible]
        records = records_of(rows, clinics, self._digest_key)
        to_send = records[self._is_to_be_sent(records, rows, clinics)]
        pending = _keys(to_send)
        self._settle(changed, {_key(item) for item in changed} - pending)
        result.numbers.update(
            changed=len(changed), not_shared=len(changed) - len(records), unchanged=len(records) - len(to_send)
        )
        if pending:
            valid = validate_outgoing(
                [with_witnesses(to_send, rows, windows)],
                clinics=clinics.drop(columns=JUDGED_COLUMNS),
                now=judged_at,
                shard="partner actions",
            )
            require_valid([valid], "no appointment that partners have changed is sent before the next transfer.")
            self._send(changed, to_send, extracted_at, result)
        return result

    def _is_to_be_sent(self, records: pd.DataFrame, rows: pd.DataFrame, clinics: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Tell which records Medflex does not show, or shows by a copy that an older one could still replace.

        rows: what the records were made of, in the same order.
        """
        # Not all that their clinics have: that is as much as a transfer compares.
        known = self._ledger.known(records["clinic_id"].tolist(), records["id"].tolist())
        known = at_present_lpu(known, clinics)
        changes = plan_changes(records, known, resync=False)
        read_at = records[["clinic_id", "id"]].merge(
            known[["clinic_id", "appointment_id", "extracted_at"]],
            how="left",
            left_on=["clinic_id", "id"],
            right_on=["clinic_id", "appointment_id"],
        )["extracted_at"]
        # Moved away and back again: Medflex shows the time that it had before, and a transfer that has read the one in
        # between would send that. Only a copy that was read behind the change keeps it from doing so.
        is_read_behind = read_at.to_numpy("datetime64[us]") >= rows["updated_at"].to_numpy("datetime64[us]")
        return (changes["change"] != Change.UNCHANGED).to_numpy() | ~is_read_behind

    def _send(self, changed: list[Changed], to_send: pd.DataFrame, extracted_at: datetime, result: Shared) -> None:
        loader = ChangeLoader(
            client=self._client,
            medlock=self._medlock,
            ledger=self._ledger,
            clock=self._clock,
            holder=self._holder,
            run_key=None,
            extracted_at=extracted_at,
        )
        began = self._clock.now()
        for number, clinic_ids in enumerate(_groups(to_send)):
            if number and self._clock.now() - began > LONGEST:
                break
            records = to_send.loc[to_send["clinic_id"].isin(clinic_ids), list(LOAD_COLUMNS)]
            loaded = loader.load(clinic_ids, lambda records=records: [records])  # type: ignore[misc]
            # What was rejected is tried again by the daily transfer: in two minutes it would be rejected as well.
            settled = loader.accepted | loader.rejected
            self._settle([item for item in changed if item.clinic_id in clinic_ids], settled)
            result.problems, result.rejected_fields = loaded.problems, loaded.rejected_fields
        sent, rejected = len(loader.accepted), len(loader.rejected - loader.accepted)
        result.numbers.update(sent=sent, rejected=rejected, waiting=len(to_send) - sent - rejected)

    def _settle(self, changed: Sequence[Changed], keys: set[tuple[int, int]]) -> None:
        """Note which changes need not be looked at again."""
        if settled := [item for item in changed if _key(item) in keys]:
            self._ledger.mark_shared(settled)


def _key(item: Changed) -> tuple[int, int]:
    return item.clinic_id, item.appointment_id


def _keys(records: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(records["clinic_id"].tolist(), records["id"].tolist(), strict=True))


def _groups(records: pd.DataFrame) -> Iterator[list[int]]:
    """Yield the clinics of records, ``CLINICS_AT_ONCE`` at a time."""
    clinic_ids = sorted(records["clinic_id"].unique().tolist())
    for start in range(0, len(clinic_ids), CLINICS_AT_ONCE):
        yield clinic_ids[start : start + CLINICS_AT_ONCE]


def _inside(rows: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that start inside their clinic's window; a clinic without a window has none."""
    of_row = windows.set_index("clinic_id").reindex(rows["clinic_id"]).set_axis(rows.index)
    return rows[(of_row["starts_from"] <= rows["starts_at"]) & (rows["starts_at"] < of_row["starts_before"])]
