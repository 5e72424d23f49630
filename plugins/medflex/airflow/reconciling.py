"""Reconciliation: what Medflex shows, what the ledger believes and what may be shared are made the same."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from medflex.airflow.withdrawing import Withdrawer, WithdrawResult
from medflex.airflow.writing import LeaseHolder, MedlockReader, WriteResult
from medflex.arrow import to_pandas
from medflex.domain.access import AccessState
from medflex.domain.drift import Believed, Drift, Shown, contract_digest, judge_drift
from medflex.domain.eligibility import judge
from medflex.domain.payload import build_payload, to_records
from medflex.domain.window import clinic_windows
from medflex.errors import LeaseLostError, MedflexContractError, MedflexPipelineError

RESENT = (Drift.MISSING, Drift.OLDER, Drift.NEWER, Drift.EXTRA)
"""After these the next transfer may have something to send."""


class ExtractReader(MedlockReader, Protocol):
    """What reconciliation reads of Medlock."""

    def stream_appointments(self, windows: pd.DataFrame) -> contextlib.AbstractContextManager[Iterator[pa.RecordBatch]]:
        """Yield the appointments in these windows as Arrow record batches."""
        ...


@dataclass
class ReconcileResult(WriteResult):
    """What was found and done.

    findings: (clinic, lpu_id, kind) → appointment ids. compared: how many records Medflex showed. withdrawals: what
    became of what had to be withdrawn; ``None`` if nothing was repaired.
    """

    findings: dict[tuple[int, int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    compared: int = 0
    withdrawals: WithdrawResult | None = None

    def total(self, kind: str) -> int:
        """Return how many records were found to differ in this way."""
        return sum(len(ids) for (_, _, found), ids in self.findings.items() if found == kind)


@dataclass
class _Expected:
    """What Medflex must show of a clinic at its present lpu_id: id → digest, and what the ledger notes of each."""

    lpu_id: int | None
    partner_ids: list[int]
    digests: dict[int, str]
    noted: dict[int, tuple[int, int]]
    read_at: datetime


class Reconciler(LeaseHolder):
    """Compares clinic by clinic under its lease, corrects the ledger, then withdraws what has to be.

    What is missing or renewed is not sent from here: the ledger is made to say that it has to be, and the next transfer
    sends it, behind its rules, validation and last look.

    Args:
        digest_key: the key of the ledger's digests.
        holder: see :class:`LeaseHolder`.
    """

    purpose = "reconcile"

    def __init__(self, *, digest_key: bytes, medlock: ExtractReader, **holder: Any) -> None:
        super().__init__(medlock=medlock, **holder)
        self._extract = medlock
        self._arguments = {"medlock": medlock, **holder}
        self._digest_key = digest_key
        self._result = ReconcileResult()
        self._shown: dict[tuple[int, int], int] = {}

    @property
    def _written(self) -> WriteResult:
        return self._result

    def reconcile(self, clinic_ids: Sequence[int], repair: bool = True) -> ReconcileResult:
        """Compare what partners can see of these clinics with what they should see, and repair the difference.

        Args:
            repair: ``False``: only tell; nothing is written, in the ledger or at Medflex.

        Trouble does not raise: it is in ``result.problems``, after everything that could be compared was.
        """
        if not repair:
            for clinic_id in clinic_ids:
                if self._halted:
                    break
                with self._told(clinic_id):
                    self._compare(clinic_id)
            return self._result
        withdrawer = Withdrawer(**{**self._arguments, "holder": f"{self._holder}/withdraw"})
        # Before anything is compared: an attempt that was killed while it withdrew still holds its clinics.
        withdrawer.begin()
        self._under_leases(clinic_ids)
        self._result.withdrawals = withdrawer.sweep(clinic_ids)
        self._result.problems += self._result.withdrawals.problems
        return self._result

    def _write_held(self) -> None:
        for clinic_id in sorted(self._epochs):
            if self._halted:
                return
            try:
                with self._told(clinic_id):
                    self._require_lease(clinic_id)
                    self._compare(clinic_id, repair=True)
            except LeaseLostError:
                # A withdrawal came in between: this clinic is compared once more behind it.
                self._taken_over.add(clinic_id)

    @contextlib.contextmanager
    def _told(self, clinic_id: int) -> Iterator[None]:
        try:
            yield
        except LeaseLostError:
            raise
        except MedflexPipelineError as error:
            self._failed(error, clinic_id)

    def _give_up(self, clinic_ids: Sequence[int]) -> None:
        """Nothing to count: what was not compared has no findings."""

    def _forget(self, clinic_id: int) -> None:
        """Nothing: what was found has been corrected, and is not found again."""

    # -- one clinic -------------------------------------------------------------------------------------------------

    def _compare(self, clinic_id: int, repair: bool = False) -> None:
        # The ledger first, Medflex last: what is sent meanwhile is sent by nobody, since the clinic is ours.
        records = self._ledger.records(clinic_id)
        expected = self._expected(clinic_id)
        lpu_ids = sorted({*records["lpu_id"].tolist(), *([expected.lpu_id] if expected.lpu_id is not None else [])})
        for lpu_id in lpu_ids:
            here = records[records["lpu_id"] == lpu_id]
            believed = {
                int(id_): Believed(int(version), state, None if pd.isna(acked) else int(acked), bool(is_open))
                for id_, version, state, acked, is_open in zip(
                    *(here[name] for name in ("appointment_id", "version", "state", "acked_version", "is_open")),
                    strict=True,
                )
            }
            self._keep_leases()
            try:
                shown = self._listing(lpu_id)
            except MedflexContractError as error:
                # An old lpu_id that the token sees no more must not keep the present one from being compared, and is
                # no problem once everything there is withdrawn.
                if lpu_id == expected.lpu_id or (here["state"] != "withdrawn").any():
                    self._problem(error)
                continue
            digests = expected.digests if lpu_id == expected.lpu_id else {}
            drifts: dict[int, Drift] = {}
            ids = {*shown, *believed}
            if lpu_id != expected.lpu_id and self._belongs_to_another(clinic_id, lpu_id):
                # What is shown there is that clinic's, and compared with it.
                ids = {id_ for id_, item in believed.items() if item.state != "withdrawn"}
            for id_ in ids:
                drift = judge_drift(shown.get(id_), believed.get(id_), digests.get(id_))
                if drift is not None:
                    drifts[id_] = drift
            if repair and drifts:
                corrections = self._corrections(drifts, shown, believed, expected)
                self._ledger.correct_records(
                    corrections,
                    clinic_id=clinic_id,
                    lpu_id=lpu_id,
                    holder=self._holder,
                    epoch=self._epochs[clinic_id],
                    partner_ids=expected.partner_ids,
                    extracted_at=None,
                )
            # Behind the correction: a clinic that was taken over meanwhile is compared once more.
            self._shown[clinic_id, lpu_id] = len(shown)
            self._result.compared = sum(self._shown.values())
            for id_, drift in drifts.items():
                self._result.findings[clinic_id, lpu_id, drift.value].append(id_)

    def _belongs_to_another(self, clinic_id: int, lpu_id: int) -> bool:
        """Tell whether a clinic's old lpu_id is another clinic's now."""
        clinics = self._medlock.clinics(None, self._clock.now())
        return bool(((clinics["lpu_id"] == lpu_id) & (clinics["clinic_id"] != clinic_id)).fillna(False).any())

    def _expected(self, clinic_id: int) -> _Expected:
        """Judge the clinic's window as a transfer would, now."""
        now = self._clock.now()
        clinics = self._medlock.clinics([clinic_id], now)
        lpu_ids = [int(item) for item in clinics["lpu_id"].dropna()]
        expected = _Expected(lpu_ids[0] if lpu_ids else None, [], {}, {}, now)
        if not len(clinics) or clinics["state"].iloc[0] != AccessState.OPEN:
            return expected
        expected.partner_ids = [int(item) for item in clinics["partner_ids"].iloc[0]]
        with self._extract.stream_appointments(clinic_windows(clinics, now, now, cut_to_today=False)) as batches:
            for batch in batches:
                rows = to_pandas(batch, ("patient_id", "doctor_id"))
                eligible = rows[judge(rows, clinics).eligible]
                payload = build_payload(eligible, clinics, self._digest_key)
                patients = eligible["patient_id"].astype("int64").tolist()
                for record, digest, patient_id in zip(
                    to_records(payload, [0] * len(payload)), payload["digest"].tolist(), patients, strict=True
                ):
                    expected.digests[record["id"]] = contract_digest(record)
                    expected.noted[record["id"]] = (digest, patient_id)
        return expected

    def _listing(self, lpu_id: int) -> dict[int, Shown]:
        """Read all pages of what partners can see, from the start again after a failure."""
        return self._repeat(
            lambda: {item["id"]: Shown(item["version"], str(item.get("digest"))) for item in self._visible(lpu_id)}
        )

    def _corrections(
        self, drifts: dict[int, Drift], shown: dict[int, Shown], believed: dict[int, Believed], expected: _Expected
    ) -> pd.DataFrame:
        """What the ledger has to say, so that withdrawal and transfer do what is to be done."""
        rows = []
        for id_, drift in drifts.items():
            version = max(shown[id_].version if id_ in shown else 0, believed[id_].version if id_ in believed else 0)
            row: dict[str, Any] = {"appointment_id": id_, "version": version}
            if drift is Drift.LEDGER_BEHIND:
                digest, patient_id = expected.noted[id_]
                row |= {"state": "sent", "acked_version": shown[id_].version, "acked_digest": digest}
                row |= {"patient_id": patient_id}
            elif drift is Drift.MISSING:
                row |= {"state": "sending"}
            else:
                # Whose data it shows nobody can tell, or whether it only was not listed: a withdrawal is begun, and one
                # that is begun is always finished.
                row |= {"state": "withdrawing"}
            rows.append(row)
        columns = ["appointment_id", "version", "state", "acked_version", "acked_digest", "patient_id"]
        return pd.DataFrame(rows, columns=columns, dtype=object)
