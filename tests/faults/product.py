"""The product's runs, put together as its tasks do, without Airflow and without staging."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pandas as pd

from medflex.airflow.loading import LOAD_COLUMNS, Loader
from medflex.airflow.sharing import at_present_lpu, records_of
from medflex.airflow.withdrawing import Withdrawer
from medflex.arrow import to_pandas
from medflex.domain.access import AccessState
from medflex.domain.changes import Change, plan_changes
from medflex.domain.eligibility import judge
from medflex.domain.window import clinic_windows
from medflex.errors import MedflexPipelineError, MedlockSlowError
from tests.faults.machine import Process

DIGEST_KEY = b"a digest key for tests only"


def transfer(process: Process, holder: str, *, resync: bool = False) -> str:
    """Extract, withhold, plan and load all open clinics, like medflex_transfer."""
    medlock, ledger, clock = process.medlock, process.ledger, process.clock
    extracted_at = clock.now()
    clinics = medlock.clinics(None, extracted_at)
    windows = clinic_windows(clinics[clinics["state"] == AccessState.OPEN], extracted_at, extracted_at, True)
    if not len(windows):
        return "nothing is open"
    with medlock.stream_appointments(windows) as batches:
        frames = [to_pandas(batch, nullable_ids=("patient_id", "doctor_id")) for batch in batches]
    clinic_ids = windows["clinic_id"].tolist()
    # Without rows it loads nothing, like the task: the clinics' leases are taken all the same, and what a crash has
    # left open there is closed.
    planned = pd.DataFrame(columns=list(LOAD_COLUMNS))
    if frames:
        # The query promises no order; this one makes a schedule replay.
        rows = pd.concat(frames).sort_values(["clinic_id", "appointment_id"], ignore_index=True)
        clinics = medlock.clinics(clinic_ids, clock.now())
        records = records_of(rows[judge(rows, clinics).eligible], clinics, DIGEST_KEY)
        known = at_present_lpu(ledger.known(clinic_ids), clinics)
        changes = plan_changes(records, known, resync=resync)
        planned = records.loc[(changes["change"] != Change.UNCHANGED).to_numpy(), list(LOAD_COLUMNS)]
    result = Loader(
        client=process.client,
        medlock=medlock,
        ledger=ledger,
        clock=clock,
        holder=f"transfer/{holder}",
        run_key=None,
        extracted_at=extracted_at,
        resync=resync,
    ).load(clinic_ids, lambda: [planned] if len(planned) else [])
    numbers = result.frame(clinic_ids)
    totals = {name: int(numbers[name].sum()) for name in ("accepted", "rejected", "to_retry", "unknown", "dropped")}
    if sum(totals.values()) != len(planned):
        raise AssertionError(f"{len(planned)} records were planned, and {totals} became of them")
    return _told({name: number for name, number in totals.items() if number}, result.problems)


def sweep(process: Process, holder: str) -> str:
    """Withdraw what may no longer be shared of everything in the ledger, like the daily run's own lane."""
    clinic_ids = sorted(process.ledger.clinics_with_records())
    if not clinic_ids:
        return "nothing is there"
    result = _withdrawer(process, holder).sweep(clinic_ids)
    return _told(_totals(result), result.problems)


def quick(process: Process, holder: str) -> str:
    """Withdraw what has been revoked since the last look, like medflex_withdraw, and go on with what it says is due,
    like medflex_sweep.
    """
    looked = _withdrawer(process, holder, OneClinicAtATime).quick()
    told = _told(_totals(looked), looked.problems)
    if not looked.sweep_is_due:
        return told
    swept = _withdrawer(process, f"sweep/{holder}", OneClinicAtATime).sweep_further()
    return f"{told} · {_told(_totals(swept), swept.problems)}"


class OneClinicAtATime(Withdrawer):
    """As where everything is large: a sweep consists of several pieces, clinics that permit less are left to the next
    look, and most looks do not go far back.
    """

    live_rows = many_live_rows = 1
    sweep_time = narrowed_time = timedelta(0)

    def _of_changed(self, *args: Any) -> tuple[pd.DataFrame, dict[str, Any], MedlockSlowError | None]:
        found, watch, slow = super()._of_changed(*args)
        return found, {name: {"seconds": 60.0} for name in watch}, slow


def daily(process: Process, holder: str) -> str:
    """First withdraw, then send."""
    withdrawn = sweep(process, holder)
    return f"{withdrawn} · {transfer(process, holder)}"


def resync(process: Process, holder: str) -> str:
    """The same, sending also what has not changed."""
    withdrawn = sweep(process, holder)
    return f"{withdrawn} · {transfer(process, holder, resync=True)}"


def reconcile(process: Process, holder: str) -> str:
    """Compare what Medflex shows with what it should show, and repair it."""
    from medflex.airflow.reconciling import Reconciler

    # As its DAG does: also clinics of which nothing is left, where a late write may have brought something back.
    clinics = process.medlock.clinics(None, process.clock.now())
    clinic_ids = sorted({*process.ledger.clinics_with_records(), *clinics["clinic_id"].tolist()})
    if not clinic_ids:
        return "nothing is there"
    result = Reconciler(
        client=process.client,
        medlock=process.medlock,
        ledger=process.ledger,
        clock=process.clock,
        holder=f"reconcile/{holder}",
        run_key=None,
        digest_key=DIGEST_KEY,
    ).reconcile(clinic_ids, repair=True)
    return _told(_totals(result), result.problems)


RUNS: dict[str, Callable[[Process, str], str]] = {
    "transfer": transfer,
    "sweep": sweep,
    "quick": quick,
    "daily": daily,
    "resync": resync,
    "reconcile": reconcile,
}


def guarded(kind: str, holder: str) -> Callable[[Process], str]:
    """A run that ends like its task: an error of the product's own is told, any other one is a bug."""

    def body(process: Process) -> str:
        try:
            return RUNS[kind](process, holder)
        except MedflexPipelineError as error:
            return f"{type(error).__name__}: {error}"

    return body


def _withdrawer(process: Process, holder: str, kind: type[Withdrawer] = Withdrawer) -> Withdrawer:
    return kind(
        client=process.client,
        medlock=process.medlock,
        ledger=process.ledger,
        clock=process.clock,
        holder=f"withdraw/{holder}",
        run_key=None,
    )


def _totals(result: Any) -> dict[str, int]:
    totals: dict[str, int] = {}
    for numbers in result.numbers.values():
        for name, number in numbers.items():
            totals[name] = totals.get(name, 0) + int(number)
    return {name: number for name, number in sorted(totals.items()) if number}


def _told(totals: dict[str, int], problems: list[MedflexPipelineError]) -> str:
    told = ", ".join(f"{name} {number}" for name, number in totals.items()) or "nothing to do"
    return (
        f"{told}; problems: {', '.join(sorted(type(problem).__name__ for problem in problems))}" if problems else told
    )
