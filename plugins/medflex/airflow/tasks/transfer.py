"""What the tasks of ``medflex_transfer`` do. Between them go shard numbers and counts, never a row."""

from __future__ import annotations

import functools
import itertools
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException

from medflex.airflow import connections
from medflex.airflow.environment import whole_number
from medflex.airflow.schedule import is_of_today, next_slot, resolve_anchor
from medflex.airflow.tasks.parts import (
    access_rows,
    clinic_ids_of,
    data_docs_url,
    logged,
    note_withdrawals,
    open_ledger,
    open_medflex,
    open_medlock,
    parameters_of,
    run_of,
    speaking,
    start_run,
    told,
)
from medflex.clock import SystemClock
from medflex.errors import (
    BadParameterError,
    ConservationError,
    RunIncompleteError,
    ValidationFailedError,
)

if TYPE_CHECKING:
    import numpy as np

    from medflex.ledger.store import Decision

log = logging.getLogger(__name__)

CLOCK = SystemClock()
MODES = ("transfer", "plan", "resync")
TARGET_ROWS = 1_100_000
"""Rows per shard that are aimed at: so many that task start-up does not count, so few that a retry is cheap."""
MOST_TARGET_ROWS = 10_000_000
"""What ``MEDFLEX_SHARD_ROWS`` may ask for at most."""
HAND_OVER = timedelta(minutes=10)
"""A clinic that opens less than this before the next scheduled run is left to it, or its sending would delay that."""
SLICE_ROWS = 110_000
"""Rows per slice that are aimed at. A clinic's rows are all in one, and what tasks hold of clinics they hold of one."""
PART_ROWS = 50_000
"""Rows per staged part: what a task holds in memory at a time."""
GATHERED_ROWS = 8_000
"""Rows of a slice that are gathered before they are compressed, as they come in no order."""
ENCODED_ROWS = PART_ROWS // 5
"""Records that are made ready to be sent at a time: their texts take several times as much memory as they do."""
KEPT_FOR = timedelta(days=1)
"""Rows that were read longer ago are not sent, in a run that was paused in between: appointments may have been moved or
cancelled since, which the last look does not compare."""
_NAMED_TASKS = 10
"""So many failed tasks are named in one sentence."""
VALIDATED_ROWS = 2 * PART_ROWS
"""Rows per batch of Great Expectations, about: each costs a fixed part of a second, and larger ones more memory."""

# -- plan_shards -----------------------------------------------------------------------------------------------------


@speaking
def plan_shards() -> list[dict[str, Any]]:
    """Decide which clinics this run works on and pack them into shards; write the run down in the ledger.

    Returns one ``{"shard", "label"}`` per shard.
    """
    import pandas as pd

    from medflex.domain.access import AccessState
    from medflex.domain.packing import pack_shards
    from medflex.domain.window import clinic_windows

    context = _unsettled(get_current_context())
    mode, clinic_ids, _ = _parameters(context)
    target_rows = shard_rows()
    anchor = resolve_anchor(context)
    now = CLOCK.now()
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger())
        medlock = stack.enter_context(open_medlock())
        ledger.check_schema()
        connections.digest_key()
        clinics = medlock.clinics(clinic_ids, now)
        _all_found(clinic_ids, clinics["clinic_id"].tolist())
        with_records = set(ledger.clinics_with_records())
        # Clinics that Medlock knows no more, and Medflex still does: there may be something to withdraw.
        gone = sorted(with_records - set(clinics["clinic_id"])) if clinic_ids is None else []

        open_or_waiting = clinics["state"] != AccessState.CLOSED
        history = ledger.row_history(clinics["clinic_id"].tolist(), runs=1).set_index("clinic_id")["extracted"]
        unseen = clinics[open_or_waiting & ~clinics["clinic_id"].isin(history.index)]
        counted = medlock.appointment_counts(clinic_windows(unseen, anchor, now, False)) if len(unseen) else {}
        packed = pd.DataFrame(
            {
                "clinic_id": clinics["clinic_id"],
                "expected_rows": clinics["clinic_id"].map(history).fillna(clinics["clinic_id"].map(counted)).fillna(0),
                "kind": clinics["state"],
                "opens_at": clinics["opens_at"],
            }
        )
        # A closed clinic of which Medflex shows nothing needs no task: its line in the ledger says why it is closed.
        packed = packed[open_or_waiting | packed["clinic_id"].isin(with_records)]
        lost = pd.DataFrame({"clinic_id": gone, "expected_rows": 0, "kind": AccessState.CLOSED})
        shards = pack_shards(pd.concat([packed, lost]) if gone else packed, target_rows)
        # A run that was deleted in Airflow and is made again under its name begins with nothing.
        _staging(context).remove()
        run = start_run(
            context,
            ledger,
            clinics,
            gone,
            mode=mode,
            anchor=anchor,
            clinic_ids=clinic_ids,
            started_at=now,
            is_of_today=is_of_today(anchor, now),
            shards=shards,
            expected_rows=packed.set_index("clinic_id")["expected_rows"].round().astype("int64").to_dict(),
        )
    states = clinics["state"].value_counts().to_dict()
    log.info(
        "Run %s, day of %s, mode %s: %d clinics (%d open, %d waiting, %d closed) in %d shards.",
        run.run_id,
        anchor.isoformat(),
        mode,
        len(clinics),
        states.get(AccessState.OPEN, 0),
        states.get(AccessState.WAITING, 0),
        states.get(AccessState.CLOSED, 0),
        len(shards),
    )
    for reason, number in clinics["closed_reason"].dropna().value_counts().items():
        log.info("Closed clinics, %s: %d.", reason, number)
    return [{"shard": index, "label": shard.label} for index, shard in enumerate(shards)]


def shard_rows() -> int:
    """Return the rows per shard that are aimed at (``MEDFLEX_SHARD_ROWS``, default ``TARGET_ROWS``)."""
    return whole_number("MEDFLEX_SHARD_ROWS", TARGET_ROWS, most=MOST_TARGET_ROWS, unit="rows")


def _parameters(context: Context) -> tuple[str, list[int] | None, bool]:
    """Return mode, clinic ids, and whether the clinics' numbers of rows are taken as they are.

    An unknown name or an unusable value is refused before anything happens.
    """
    params = parameters_of(context, {"mode": "transfer, plan or resync", "clinic_ids": "", "accept_row_counts": ""})
    mode = params.get("mode", "transfer")
    if mode not in MODES:
        raise BadParameterError("The parameter mode has an unknown value: use transfer, plan or resync.")
    accept = params.get("accept_row_counts")
    if accept is not None and not isinstance(accept, bool):
        raise BadParameterError("The parameter accept_row_counts must be true, false or empty.")
    clinic_ids = clinic_ids_of(params)
    if accept is None:
        # A person who names the clinics of a run has looked at them.
        accept = clinic_ids is not None
    return mode, clinic_ids, accept


def _all_found(clinic_ids: list[int] | None, found: Sequence[int]) -> None:
    missing = sorted(set(clinic_ids or ()) - set(found))
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        raise BadParameterError(f"Medlock has no clinic with the id {shown}: correct the parameter clinic_ids.")


# -- withdraw_revoked ------------------------------------------------------------------------------------------------


@speaking
def withdraw_revoked(shard: Mapping[str, Any]) -> dict[str, int]:
    """Withdraw everything of the shard's clinics that Medflex shows and that may no longer be shared (R12).

    It waits for nothing: not for the gate, not for a validation, not for another run's sending. In mode ``plan`` it
    only tells what would be withdrawn. Returns the numbers of revoked, withdrawn, held … records.
    """
    from medflex.airflow.withdrawing import Withdrawer

    context = _labelled(shard)
    number = shard["shard"]
    with open_ledger() as ledger, open_medlock() as medlock:
        run = run_of(ledger, context)
        clinic_ids = ledger.shard(run.run_key, number).clinic_ids
        withdrawer = Withdrawer(
            client=open_medflex(ledger),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            holder=f"{run.dag_id}/{run.run_id}/{number}/withdraw",
            run_key=run.run_key,
        )
        is_plan = run.mode == "plan"
        result = withdrawer.preview(clinic_ids) if is_plan else withdrawer.sweep(clinic_ids)
        if is_plan:
            # What would become of them is not known before it is tried.
            ledger.save_numbers(run.run_key, result.frame(clinic_ids)[["clinic_id", "revoked", "held"]])
            ledger.save_decisions(run.run_key, "revoke", clinic_ids, result.decisions())
        else:
            if result.superseded:
                result.drop_left()
            note_withdrawals(result, ledger, run, clinic_ids)
        if result.superseded:
            # How far the shard has come is for the attempt to say that goes on with it.
            raise result.problems[-1]
        problem = " ".join(map(str, result.problems)) or None
        ledger.set_withdraw_stage(run.run_key, number, "found" if is_plan else "withdrawn", problem)
        return told(result, context, ledger)


# -- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlook:
    """What the gate sees: open, or to be looked at again, or (neither) to be skipped; and why, in one sentence."""

    is_open: bool
    wait_until: datetime | None
    now: datetime
    sentence: str


@speaking
def look_at_gate(context: Context, shard_number: int) -> Outlook:
    """Look at the switches of a shard's clinics as they are now (R1-R3)."""
    from medflex.domain.access import AccessState, ClosedReason

    now = CLOCK.now()
    _unsettled(context)
    with open_ledger() as ledger, open_medlock() as medlock:
        run = run_of(ledger, context)
        shard = ledger.shard(run.run_key, shard_number)
        clinics = medlock.clinics(shard.clinic_ids, now)
        ledger.save_numbers(run.run_key, _access_frame(clinics, shard.clinic_ids))
        states = clinics["state"]
        if (states == AccessState.OPEN).any():
            return Outlook(True, None, now, f"{int((states == AccessState.OPEN).sum())} of {len(clinics)} clinics.")
        waiting = clinics[states == AccessState.WAITING]
        wait_until, sentence = None, ""
        if len(waiting):
            opens_at = waiting["opens_at"].min().to_pydatetime()
            takes_over = next_slot(run.started_at)
            first = (
                f"the 24 hours of {_named(waiting['clinic_id'].tolist())} are over at {opens_at:%Y-%m-%d %H:%M:%S} UTC"
            )
            if run.mode == "plan":
                sentence = f"{first}; a run in plan mode does not wait."
            elif run.run_type == "backfill":
                sentence = f"{first}; a backfill does not wait, the daily run sends it."
            elif max(opens_at, now) >= takes_over - HAND_OVER:
                sentence = f"{first}; the run of {takes_over:%Y-%m-%d %H:%M} UTC takes it over."
            elif _another_run_is_queued(context):
                sentence = (
                    f"{first}; another run is queued, so this one gives way: what that one does not send, the next"
                    " daily run does."
                )
            else:
                return Outlook(False, opens_at, now, f"{first}.")
        else:
            reasons = clinics["closed_reason"].value_counts()
            parts = [f"{number} × {ClosedReason(reason).description}" for reason, number in reasons.items()]
            gone = len(shard.clinic_ids) - len(clinics)
            parts += [f"{gone} × The clinic is gone from Medlock."] if gone else []
            sentence = "Not switched on: " + " ".join(parts)
        ledger.forget_report(run.run_key)
        ledger.set_stage(run.run_key, shard_number, "skipped", because=sentence)
        return Outlook(False, wait_until, now, sentence)


def _another_run_is_queued(context: Context) -> bool:
    """With one run at a time, a run that waits for hours would hold up whoever triggers the next one by hand."""
    task_instance = context["ti"]
    return task_instance.get_dr_count(dag_id=context["dag_run"].dag_id, states=["queued"]) > 0


def _access_frame(clinics: Any, clinic_ids: Sequence[int]) -> Any:
    import pandas as pd

    from medflex.domain.access import AccessState, ClosedReason

    frame = pd.DataFrame(
        list(access_rows(clinics)), columns=["clinic_id", "lpu_id", "access_state", "closed_reason", "opens_at"]
    )
    frame = frame.drop(columns="lpu_id")
    found = set(frame["clinic_id"])
    gone = [clinic_id for clinic_id in clinic_ids if clinic_id not in found]
    lost = pd.DataFrame(
        {"clinic_id": gone, "access_state": AccessState.CLOSED.value, "closed_reason": ClosedReason.CLINIC_GONE.value}
    )
    frame = pd.concat([frame, lost]) if gone else frame
    frame["opens_at"] = pd.to_datetime(frame["opens_at"], utc=True)
    return frame.reset_index(drop=True)


def _named(clinic_ids: Sequence[int]) -> str:
    return f"clinic {clinic_ids[0]}" if len(clinic_ids) == 1 else f"{len(clinic_ids)} clinics"


# -- extract ---------------------------------------------------------------------------------------------------------


@speaking
def extract(shard: Mapping[str, Any]) -> int:
    """Read the shard's appointments inside their windows from Medlock into staging; return their number.

    Only clinics that are open now are read at all.
    """
    from medflex.airflow.staging import part_of
    from medflex.arrow import grouped
    from medflex.domain.access import AccessState
    from medflex.domain.packing import slice_clinics
    from medflex.domain.window import clinic_windows

    context = _unsettled(_labelled(shard))
    number = shard["shard"]
    now = CLOCK.now()
    with open_ledger() as ledger, open_medlock() as medlock:
        run = _run_of_shard(ledger, context)
        clinic_ids = ledger.shard(run.run_key, number).clinic_ids
        clinics = medlock.clinics(clinic_ids, now)
        staging = _staging(context)
        staging.clear(number, "extract")
        # What may be sent today bounds what an older day sends; a plan of it only reports, so it sees the day whole.
        # The plan of today is cut like the run that it foretells.
        windows = clinic_windows(
            clinics[clinics["state"] == AccessState.OPEN],
            anchor=run.anchor,
            now=now,
            cut_to_today=run.mode != "plan" or is_of_today(run.anchor, now),
        )
        found: Counter[int] = Counter()
        asked = windows[windows["starts_from"] < windows["starts_before"]]
        if len(windows) and not len(asked):
            log.warning("The window of this day lies wholly outside of what may be sent today: nothing to do.")
        if len(asked):
            # Missing in a run that an older version has planned.
            expected = ledger.run_clinics(run.run_key, number).reindex(columns=["clinic_id", "expected_rows"])
            expected = expected.astype("Int64")
            slices = slice_clinics(asked[["clinic_id"]].merge(expected, how="left", on="clinic_id"), SLICE_ROWS)
            parts, rows = Counter[int](), Counter[int]()
            with (
                _of_asked_clinics(),
                medlock.stream_appointments(asked) as batches,
                staging.writing(number, "extract") as write,
            ):
                for slice_, table in grouped(batches, GATHERED_ROWS, "clinic_id", slices):
                    rows[slice_] += table.num_rows
                    is_full = rows[slice_] >= PART_ROWS
                    write(part_of(slice_, parts[slice_]), table, is_full)
                    if is_full:
                        parts[slice_] += 1
                        rows[slice_] = 0
                    for seen in table["clinic_id"].value_counts().to_pylist():
                        found[seen["values"]] += seen["counts"]
        numbers = _access_frame(clinics, clinic_ids)
        # A clinic that was not asked has no number: zero would say that it is empty.
        numbers["extracted"] = numbers["clinic_id"].map({key: found[key] for key in asked["clinic_id"]}).astype("Int64")
        numbers = numbers.merge(
            windows.rename(columns={"starts_from": "window_from", "starts_before": "window_before"}),
            how="left",
            on="clinic_id",
        )
        ledger.save_numbers(run.run_key, numbers)
        ledger.set_extracted_at(run.run_key, number, now)
        ledger.set_stage(run.run_key, number, "extracted")
    total = found.total()
    log.info("Extracted %d appointments of %d clinics.", total, len(asked))
    return total


@contextmanager
def _of_asked_clinics() -> Iterator[None]:
    from medflex.arrow import UngroupedError
    from medflex.errors import MedlockSchemaError

    try:
        yield
    except UngroupedError:
        raise MedlockSchemaError(
            "The query include/sql/medlock/appointments.sql returns rows of clinics that were not asked for, or without"
            " a clinic_id: let it return those in the windows of medflex.windows only (docs/data-contract.md)."
        ) from None


# -- withhold --------------------------------------------------------------------------------------------------------


@speaking
def withhold(shard: Mapping[str, Any]) -> dict[str, int]:
    """Judge each staged row by the rules; stage the payload of what may be sent, note why the rest may not.

    Returns the numbers of eligible, withheld and quarantined records.
    """
    import pandas as pd
    import pyarrow as pa

    from medflex.airflow.sharing import JUDGED_COLUMNS, records_of
    from medflex.domain.eligibility import ALL_RULES, as_read, judge
    from medflex.domain.phone import normalise_phones
    from medflex.domain.status import map_status

    context = _unsettled(_labelled(shard))
    number = shard["shard"]
    key = connections.digest_key()
    with open_ledger() as ledger, open_medlock() as medlock:
        run = _run_of_shard(ledger, context)
        shard_row = ledger.shard(run.run_key, number)
        clinic_ids, extracted_at = shard_row.clinic_ids, shard_row.extracted_at
        if extracted_at is None:
            raise RunIncompleteError(
                "This shard has not been extracted since the run was planned: clear it from extract on."
            )
        # Read anew: a clinic that was closed since the extract has all its records withheld.
        judged_at = CLOCK.now()
        clinics = medlock.clinics(clinic_ids, judged_at)
        staging = _staging(context)
        staging.clear(number, "eligible")
        snapshot = pa.Table.from_pandas(clinics.drop(columns=JUDGED_COLUMNS), preserve_index=False)
        # What is judged here is as old as its extract; another one may follow before it is sent.
        instants = {"judged_at": judged_at, "extracted_at": extracted_at}
        snapshot = snapshot.replace_schema_metadata({name: at.isoformat() for name, at in instants.items()})
        staging.write(number, "clinics", 0, snapshot)
        counts = pd.DataFrame(
            0,
            index=pd.Index(clinic_ids, name="clinic_id"),
            columns=["eligible", "withheld", "quarantined", "unknown_statuses"],
        )
        decisions: list[Decision] = []
        with staging.writing(number, "eligible") as write:
            for parts in staging.slices(number, "extract"):
                held = _Held()
                for part in parts:
                    rows = to_frame(staging.read(number, "extract", part))
                    # Once for the rules and for the record: reading phones is a third of what a row costs here.
                    phones = normalise_phones(rows["phone"])
                    verdict = judge(rows, clinics, {**ALL_RULES, **as_read(phones)})
                    payload = records_of(rows[verdict.eligible], clinics, key, phones[0][verdict.eligible])
                    write(part, pa.Table.from_pandas(payload, preserve_index=False))
                    held.add(rows, verdict)
                    flags = pd.DataFrame(
                        {
                            "clinic_id": rows["clinic_id"],
                            "eligible": verdict.eligible,
                            "withheld": verdict.withheld,
                            "quarantined": verdict.quarantined,
                            "unknown_statuses": map_status(rows["status"])[1] & verdict.eligible,
                        }
                    )
                    counts = counts.add(flags.groupby("clinic_id").sum(), fill_value=0).astype("int64")
                    del rows, phones, verdict, payload, flags  # Before the next part is read.
                # Of a slice, only the ids are left.
                decisions += held.decisions()
        _all_staged(int(counts[["eligible", "withheld", "quarantined"]].sum().sum()), ledger, run, number)
        ledger.save_decisions(run.run_key, "withhold", clinic_ids, decisions)
        ledger.save_numbers(run.run_key, counts.reset_index())
        ledger.set_stage(run.run_key, number, "withheld")
    totals = logged({str(name): int(value) for name, value in counts.sum().items()})
    if totals["unknown_statuses"]:
        log.warning("%d records have a status without mapping; they are sent as undefined.", totals["unknown_statuses"])
    by_reason: Counter[str] = Counter()
    for decision in decisions:
        by_reason.update(dict.fromkeys(decision.reasons, len(decision.appointment_ids)))
    for reason, records in sorted(by_reason.items()):
        log.info("Not sent, %s: %d.", reason, records)
    return totals


def _all_staged(judged: int, ledger: Any, run: Any, number: int) -> None:
    extracted = int(ledger.run_clinics(run.run_key, number)["extracted"].fillna(0).sum())
    if judged != extracted:
        raise RunIncompleteError(
            f"{extracted} appointments were extracted, but {judged} are staged (the run has ended, or"
            " MEDFLEX_STAGING_URL is not the same on all workers): clear this shard from extract on."
        )


class _Held:
    """Gathers which records are not sent and why, part by part."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: list[tuple[np.ndarray[Any, Any], ...]] = []

    def add(self, rows: Any, verdict: Any) -> None:
        """Take up a part's withheld and quarantined rows."""
        import numpy as np

        held = ~verdict.eligible
        self._names = list(verdict.reasons.columns)
        reasons = verdict.reasons.to_numpy(dtype=bool)[held]
        # One bit per reason: rows with the same reasons have the same number. The lowest bit: withheld.
        codes = reasons @ (2 << np.arange(len(self._names))) + verdict.withheld[held]
        ids = (rows[name].to_numpy("int64")[held] for name in ("clinic_id", "appointment_id"))
        self._parts.append((*ids, codes))

    def decisions(self) -> Iterator[Decision]:
        """Yield the records of each clinic that share exactly the same reasons."""
        import numpy as np

        from medflex.ledger.store import Decision

        if not sum(len(ids) for ids, *_ in self._parts):
            return
        clinics, ids, codes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.lexsort((ids, codes, clinics))
        clinics, ids, codes = clinics[order], ids[order], codes[order]
        starts = np.flatnonzero(np.r_[True, (clinics[1:] != clinics[:-1]) | (codes[1:] != codes[:-1])])
        for start, records in zip(starts.tolist(), np.split(ids, starts[1:]), strict=True):
            code = int(codes[start])
            which = tuple(name for bit, name in enumerate(self._names, start=1) if code >> bit & 1)
            yield Decision(int(clinics[start]), "withheld" if code & 1 else "quarantined", which, records)


# -- validate --------------------------------------------------------------------------------------------------------


@speaking
def validate(shard: Mapping[str, Any]) -> dict[str, int]:
    """Judge the staged data with Great Expectations; a critical failure ends this shard's sending, and only this one's.

    Returns how many expectations passed, warned and failed.
    """
    import pyarrow as pa

    from medflex.airflow import metrics
    from medflex.airflow.sharing import require_valid
    from medflex.quality.validation import validate_outgoing, validate_source

    context = _unsettled(_labelled(shard))
    number = shard["shard"]
    with open_ledger() as ledger:
        run = _run_of_shard(ledger, context)
        clinic_ids = ledger.shard(run.run_key, number).clinic_ids
        staging = _staging(context)
        staging.clear(number, "validated")
        # As the rules saw them: a switch that turns between two tasks is the last look's business, not a broken rule.
        snapshot = staging.read(number, "clinics", 0)
        judged_at = _noted(snapshot, "judged_at")
        clinics = _clinics_frame(snapshot)
        windows = _saved_windows(ledger, run.run_key, number)
        history = None
        # Taken as they are, numbers of rows are no longer doubted: so a clinic that is rightly empty is let through,
        # and is the measure from then on.
        _, _, accepted = _parameters(context)
        if is_of_today(run.anchor, run.started_at) and not accepted:
            history = ledger.row_history(clinic_ids, before_run_key=run.run_key).rename(columns={"extracted": "rows"})
        results = [
            validate_source(
                _source_chunks(staging, number),
                clinics=clinics,
                windows=windows,
                history=history,
                now=judged_at,
                shard=str(shard["label"]),
            ),
            validate_outgoing(
                _outgoing_chunks(staging, number, windows), clinics=clinics, now=judged_at, shard=str(shard["label"])
            ),
        ]
        metrics.validated(results)
        for result in results:
            ledger.save_validation(run.run_key, number, result.suite, _as_json(result))
        try:
            warned = require_valid(results, "nothing of this shard is sent; see the quality report of the run.")
        except ValidationFailedError as error:
            failed = sum(len(item.critical_failures) for item in results)
            ledger.set_problem(run.run_key, number, str(error), critical=failed)
            raise
        passed = sum(item.success for result in results for item in result.results)
        # Beside the rows and not only as this task's success, which anybody can mark: see _require_validated.
        noted = {"judged_at": judged_at.isoformat()}
        staging.write(number, "validated", 0, pa.table({"passed": [passed]}).replace_schema_metadata(noted))
        ledger.set_stage(run.run_key, number, "validated")
    return {"passed": passed, "warned": warned, "failed": 0}


def _noted(table: Any, name: str) -> datetime:
    """Return ``judged_at`` or ``extracted_at`` of the rows that a staged table is about, as withhold noted them."""
    noted = (table.schema.metadata or {}).get(name.encode())
    if noted is None:
        raise RunIncompleteError(
            "What is staged of this shard comes from another version of the product: clear it from extract on."
        )
    return datetime.fromisoformat(noted.decode())


def _clinics_frame(table: Any) -> Any:
    """Turn staged CLINICS back into the pandas types of the contract."""
    from medflex.arrow import to_pandas

    frame = to_pandas(table.replace_schema_metadata(), nullable_ids=("lpu_id",))
    frame["access_changed_at"] = frame["access_changed_at"].astype("datetime64[us, UTC]")
    frame["partner_ids"] = [[int(item) for item in ids] for ids in frame["partner_ids"]]
    return frame


def _as_json(result: Any) -> dict[str, Any]:
    import json

    loaded: dict[str, Any] = json.loads(result.to_json())
    return loaded


def _saved_windows(ledger: Any, run_key: int, number: int) -> Any:
    """Return the windows as the extract used them: ``clinic_id``, ``starts_from``, ``starts_before``."""
    import pandas as pd

    clinics = ledger.run_clinics(run_key, number)
    clinics = clinics[clinics["window_from"].notna()]
    return pd.DataFrame(
        {
            "clinic_id": clinics["clinic_id"].astype("int64"),
            "starts_from": pd.to_datetime(clinics["window_from"], utc=True).astype("datetime64[us, UTC]"),
            "starts_before": pd.to_datetime(clinics["window_before"], utc=True).astype("datetime64[us, UTC]"),
        }
    ).reset_index(drop=True)


def _source_chunks(staging: Any, number: int) -> Iterator[Any]:
    """The rows, and ``None`` behind those of a slice."""
    from medflex.airflow.hooks.medlock import APPOINTMENT_COLUMNS

    columns = [name for name in APPOINTMENT_COLUMNS if name not in ("first_name", "patronymic")]
    for slice_ in staging.slices(number, "extract"):
        for parts in _batches(slice_):
            yield to_frame(_read(staging, number, "extract", parts, columns))
        yield None


def _outgoing_chunks(staging: Any, number: int, windows: Any) -> Iterator[Any]:
    """The payload beside what the source says about the same appointments, read a second time and joined by id; and
    ``None`` behind the records of a slice.
    """
    from medflex.airflow.sharing import SOURCE_WITNESSES, with_witnesses
    from medflex.domain.payload import PAYLOAD_COLUMNS

    witnesses = ["clinic_id", "appointment_id", *SOURCE_WITNESSES]
    for slice_ in staging.slices(number, "eligible"):
        for parts in _batches(slice_):
            records = to_frame(_read(staging, number, "eligible", parts, list(PAYLOAD_COLUMNS)))
            source = to_frame(_read(staging, number, "extract", parts, witnesses))
            joined = with_witnesses(records, source, windows)
            del records, source
            yield joined
            del joined
        yield None


def to_frame(table: Any) -> Any:
    """Turn a staged table into the pandas types of the contract."""
    from medflex.arrow import to_pandas

    return to_pandas(table, nullable_ids=("patient_id", "doctor_id") if "appointment_id" in table.column_names else ())


def _batches(parts: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut a slice's parts into batches of about ``VALIDATED_ROWS``, as equal as may be."""
    number = max(1, round(len(parts) * PART_ROWS / VALIDATED_ROWS))
    ends = [len(parts) * end // number for end in range(number + 1)]
    for start, end in itertools.pairwise(ends):
        yield parts[start:end]


def _read(staging: Any, number: int, kind: str, parts: Sequence[int], columns: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.concat_tables([staging.read(number, kind, part, columns) for part in parts])


# -- plan_changes ----------------------------------------------------------------------------------------------------


@speaking
def plan_changes(shard: Mapping[str, Any]) -> dict[str, int]:
    """Compare the eligible records with what Medflex acknowledged; stage which ones have to be sent.

    Returns the numbers of new, changed, again (tried before without success) and unchanged records.
    """
    import pandas as pd
    import pyarrow as pa

    from medflex.airflow.sharing import at_present_lpu
    from medflex.domain.changes import Change, Known

    context = _unsettled(_labelled(shard))
    number = shard["shard"]
    with open_ledger() as ledger:
        run = _run_of_shard(ledger, context)
        clinic_ids = ledger.shard(run.run_key, number).clinic_ids
        staging = _staging(context)
        staging.clear(number, "plan")
        snapshot = staging.read(number, "clinics", 0)
        _require_validated(staging, number, snapshot)
        clinics = _clinics_frame(snapshot)
        counts = pd.DataFrame(0, pd.Index(clinic_ids, name="clinic_id"), [change.value for change in Change])
        for parts in staging.slices(number, "eligible"):
            tables = [staging.read(number, "eligible", part, ["clinic_id", "id", "digest"]) for part in parts]
            of_slice = sorted({key for table in tables for key in table["clinic_id"].unique().to_pylist()})
            known = at_present_lpu(ledger.known(of_slice), clinics)
            if run.mode == "plan":
                # A run that is not only a plan has withdrawn these by now.
                revoked = ledger.revoked_ids(run.run_key, of_slice)
                keys = pd.MultiIndex.from_frame(known[["clinic_id", "appointment_id"]])
                known.loc[keys.isin(pd.MultiIndex.from_frame(revoked)), "state"] = "withdrawn"
            to_compare = Known(known)
            for part, table in zip(parts, tables, strict=True):
                changes = to_compare.compare(to_frame(table), resync=run.mode == "resync")
                planned = (changes["change"] != Change.UNCHANGED).to_numpy()
                noted = {"judged_at": _noted(snapshot, "judged_at").isoformat()}
                staging.write(number, "plan", part, pa.table({"planned": planned}).replace_schema_metadata(noted))
                seen = pd.crosstab(changes["clinic_id"], changes["change"].astype("str"))
                counts = counts.add(seen, fill_value=0)
        counts = counts.astype("int64").rename(columns={Change.RETRY.value: "again"})
        counts = counts[["new", "changed", "again", "unchanged"]]
        counts["planned"] = counts["new"] + counts["changed"] + counts["again"]
        ledger.save_numbers(run.run_key, counts.reset_index())
        ledger.set_stage(run.run_key, number, "compared")
    return logged({str(name): int(value) for name, value in counts.sum().items()})


# -- load ------------------------------------------------------------------------------------------------------------


@speaking
def load(shard: Mapping[str, Any]) -> dict[str, int]:
    """Send the planned records to Medflex. Returns the numbers of accepted, rejected … records.

    A transient trouble fails the task after everything that could be sent was sent; the next attempt, or the next run,
    goes on with the rest.
    """
    from medflex.airflow.loading import LOAD_COLUMNS, Loader

    context = _unsettled(_labelled(shard))
    number = shard["shard"]
    with open_ledger() as ledger, open_medlock() as medlock:
        run = _run_of_shard(ledger, context)
        if run.mode == "plan":
            raise AirflowSkipException("Mode plan: nothing is sent; the plan's numbers are in the funnel of this run.")
        shard_row = ledger.shard(run.run_key, number)
        clinic_ids = shard_row.clinic_ids
        staging = _staging(context)
        try:
            extracted_at = _ready_since(staging, number)
        except RunIncompleteError as error:
            if shard_row.stage == "loaded":
                # What an earlier attempt met with is not what stops this one.
                ledger.set_problem(run.run_key, number, str(error))
            raise

        def planned() -> Iterator[Any]:
            for parts in staging.slices(number, "plan"):
                for part in parts:
                    mask = staging.read(number, "plan", part)["planned"].combine_chunks()
                    if not mask.true_count:
                        continue
                    records = staging.read(number, "eligible", part, LOAD_COLUMNS).filter(mask)
                    for start in range(0, records.num_rows, ENCODED_ROWS):
                        yield to_frame(records.slice(start, ENCODED_ROWS))
                    del records  # Before the next part is read.
                yield None

        loader = Loader(
            client=open_medflex(ledger),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            holder=f"{run.dag_id}/{run.run_id}/{number}",
            run_key=run.run_key,
            extracted_at=extracted_at,
            resync=run.mode == "resync",
        )
        result = loader.load(clinic_ids, planned)
        if result.superseded:
            # What became of the shard is for the attempt to say that goes on with it, or has ended by now.
            raise result.problems[-1]
        numbers = result.frame(clinic_ids)
        ledger.save_numbers(run.run_key, numbers)
        ledger.save_decisions(run.run_key, "last_look", clinic_ids, result.decisions())
        totals = logged({str(name): int(value) for name, value in numbers.drop(columns="clinic_id").sum().items()})
        for field_name, count in result.rejected_fields.most_common():
            log.warning("Rejected by Medflex for the field %s: %d.", field_name, count)
        # Numbers are complete even where the task fails, so that they can be settled. In one step with what is wrong: a
        # task that was killed in between would look as if nothing were.
        ledger.set_stage(run.run_key, number, "loaded", problem=" ".join(map(str, result.problems)) or None)
        if result.problems:
            # As long as anything may pass, another attempt brings over what that concerns.
            raise max(result.problems, key=lambda error: error.transient)
    return totals


def _ready_since(staging: Any, number: int) -> datetime:
    """Return when the rows of a shard that are to be sent were read from Medlock.

    Raises:
        RunIncompleteError: they are gone, are not those that were planned and validated last, or are too old.
    """
    snapshot = staging.read(number, "clinics", 0)
    _same_judgement(staging, number, snapshot)
    _require_validated(staging, number, snapshot)
    extracted_at = _noted(snapshot, "extracted_at")
    if CLOCK.now() - extracted_at > KEPT_FOR:
        raise RunIncompleteError(
            "The rows of this shard were read from Medlock more than a day ago: clear it from extract on."
        )
    return extracted_at


def _same_judgement(staging: Any, number: int, snapshot: Any) -> None:
    """Raise :class:`RunIncompleteError` where the plan is about other rows than those that withhold has staged last."""
    for part in staging.parts(number, "plan")[:1]:
        if _noted(staging.read(number, "plan", part), "judged_at") != _noted(snapshot, "judged_at"):
            raise RunIncompleteError(
                "The rows of this shard were judged anew after its plan was made: clear it from extract on."
            )


def _require_validated(staging: Any, number: int, snapshot: Any) -> None:
    """Raise :class:`RunIncompleteError` unless the rows that withhold has staged last have passed validation.

    In Airflow a task is successful, too, that somebody has marked so, and one that was cleared may have passed with
    other rows.
    """
    parts = staging.parts(number, "validated")
    if not parts or _noted(staging.read(number, "validated", parts[0]), "judged_at") != _noted(snapshot, "judged_at"):
        raise RunIncompleteError(
            "The rows of this shard, as they were judged last, have not passed validation: clear it from extract on;"
            " to mark a task as successful sends nothing."
        )


# -- the end of the run ----------------------------------------------------------------------------------------------


@speaking
def publish_quality_report() -> str:
    """Build the run's Data Docs, once, from all shards' reduced results; return where they lie.

    Before that it looks for messages that patients get twice (R15), which the run's page and its report tell.
    """
    context = get_current_context()
    with open_ledger() as ledger:
        return _publish_report(ledger, run_of(ledger, context))


def _publish_report(ledger: Any, run: Any) -> str:
    import orjson

    from medflex.airflow import metrics
    from medflex.airflow.messages import look_for_double_messages
    from medflex.ledger.sums import RUN_SUITE_SHARD
    from medflex.quality.report import RunInfo, publish_data_docs
    from medflex.quality.results import SuiteResult
    from medflex.quality.validation import validate_run

    ledger.set_report(run.run_key, None)
    results = [SuiteResult.from_json(orjson.dumps(item)) for item in ledger.validations(run.run_key)]
    funnel, history = _quality_funnels(ledger, run)
    messages = look_for_double_messages(ledger, run, CLOCK.now(), open_medlock)
    clinic_ids = ledger.run_clinics(run.run_key)["clinic_id"].tolist()
    judged = validate_run(funnel, history, messages.by_clinic(clinic_ids))
    ledger.save_validation(run.run_key, RUN_SUITE_SHARD, judged.suite, _as_json(judged))
    results.append(judged)
    metrics.validated(results[-1:])
    info = RunInfo(run_id=run.run_id, day=run.anchor.date(), mode=run.mode, started_at=run.started_at)
    publish = functools.partial(publish_data_docs, funnel=funnel, messages=messages)
    location = _publish(results, info, data_docs_url(), publish)
    ledger.set_report(run.run_key, location)
    log.info("Quality report: %s", location)
    return location


@speaking
def settle_run() -> dict[str, int]:
    """Check the conservation equations, write the run's outcome down, and fail if a shard did not come through.

    Where only failed tasks of the run were cleared, the report and the removal of what is staged were not: then it sees
    to both itself.

    Returns the run's funnel; the same numbers go out with the asset event.
    """
    from medflex.airflow.assets import APPOINTMENTS
    from medflex.domain.funnel import Funnel

    context = get_current_context()
    with open_ledger() as ledger:
        run = run_of(ledger, context)
        clinics = ledger.run_clinics(run.run_key)
        problems: list[str] = []
        broken = _broken(ledger, run, clinics)
        for shard in ledger.shards(run.run_key):
            problems += _unfinished(shard, run.mode)
        problems += _left_out(context, ledger, run)
        if not problems and (failed := _failed_tasks(context)):
            # What the ledger has of these is from an earlier pass of the run: it was cleared, and they did not come to
            # where they write anything down.
            problems.append(f"Tasks have failed: {', '.join(failed)}. See their logs, then clear them.")
        funnel = Funnel.of(clinics)
        _settle(ledger, run, clinics, funnel, [*broken, *problems], broken=len(broken))
    if funnel.held:
        log.warning(
            "%d records whose rows have vanished are held; medflex_release asks a person about them.", funnel.held
        )
    numbers = {name: int(value) for name, value in vars(funnel).items()}
    log.info("Funnel: %s", ", ".join(f"{name} {value}" for name, value in numbers.items()))
    context["outlet_events"][APPOINTMENTS].extra = dict(numbers)
    if broken:
        raise ConservationError(f"The numbers of this run do not add up: {'; '.join(broken)}.")
    if problems:
        raise RunIncompleteError(f"{len(problems)} problems in this run: {' '.join(problems)}")
    return numbers


def _left_out(context: Context, ledger: Any, run: Any) -> Iterator[str]:
    """Do what a run lacks of which only failed tasks were cleared, as the tasks for it had not failed; yield what did
    not succeed at the last attempt. The run is settled all the same.
    """
    others = _task_states(context, "publish_quality_report", "remove_staging")
    wanted: list[tuple[str, Callable[[], object]]] = []
    if others.get("remove_staging") in _ENDED:
        wanted.append(("what is staged could not be removed, clear remove_staging", _staging(context).remove))
    if ledger.report(run.run_key) is None and others.get("publish_quality_report") == "success":
        report = functools.partial(_publish_report, ledger, run)
        wanted.append(("its report could not be published anew, clear publish_quality_report with Downstream", report))
    elif ledger.report(run.run_key) is None:
        yield "The quality report was not published, see the log of publish_quality_report."
    for what, do in wanted:
        try:
            do()
        except Exception as error:
            task_instance = context["ti"]
            if task_instance.try_number <= task_instance.max_tries:
                raise  # It may pass, and another attempt comes.
            # Its type only: the text may quote what was read.
            log.warning("%s: %s", type(error).__name__, what)
            yield f"A shard was begun anew behind the end of the run, and {what}."


def _broken(ledger: Any, run: Any, clinics: Any) -> list[str]:
    """Return the conservation equations that do not hold, one sentence each."""
    from medflex.domain.funnel import Funnel

    return [
        f"Shard {shard.label}: {violation}"
        for shard in ledger.shards(run.run_key)
        for violation in _violations(shard, Funnel.of(clinics[clinics["shard"] == shard.shard]))
    ]


def _settle(ledger: Any, run: Any, clinics: Any, funnel: Any, problems: list[str], *, broken: int = 0) -> None:
    from medflex.airflow import metrics

    ledger.settle_run(run.run_key, problems, broken=broken)
    states = clinics["access_state"].value_counts().to_dict()
    metrics.run_settled(ledger, run, funnel=vars(funnel), states=states, problems=problems)


def _failed_tasks(context: Context) -> list[str]:
    """Return which tasks before this one have failed in this pass of the run, those first that did by themselves."""
    states = _task_states(context)
    found = [
        name
        for wanted in ("failed", "upstream_failed")
        for name, state in sorted(states.items())
        if state == wanted and (name in ("plan_shards", "publish_quality_report") or name.startswith("shard."))
    ]
    return [*found[:_NAMED_TASKS], f"and {len(found) - _NAMED_TASKS} more"] if len(found) > _NAMED_TASKS else found


def _unfinished(shard: Any, mode: str) -> Iterator[str]:
    """Yield what of a shard did not come to its end, one sentence each for its records and its withdrawals."""
    is_plan = mode == "plan"
    if shard.stage != "skipped" and (shard.problem or shard.stage != ("compared" if is_plan else "loaded")):
        what = shard.problem or f"it came no further than '{shard.stage}', see the log of its failed task."
        yield f"Shard {shard.label}: {what}"
    if shard.withdraw_problem or shard.withdraw_stage != ("found" if is_plan else "withdrawn"):
        what = shard.withdraw_problem or "its withdrawals did not come to their end, see the log."
        yield f"Shard {shard.label}, withdrawals: {what}"


def _violations(shard: Any, funnel: Any) -> list[str]:
    """Return the conservation equations that do not hold, of those that must at the stages that a shard has reached."""
    violations: list[str] = []
    if shard.withdraw_stage == "withdrawn":
        violations += funnel.withdrawal_violations()
    if shard.stage in ("withheld", "validated", "compared", "loaded"):
        compared = shard.stage in ("compared", "loaded")
        violations += funnel.violations(compared=compared, loaded=shard.stage == "loaded")
    return violations


@speaking
def remove_staging() -> None:
    """Remove what the run staged, names and phones included; runs after failures as well.

    A run that somebody has marked before its end, as failed or as successful, comes here, too, and nowhere else any
    more: so it says in the ledger what became of it.
    """
    from medflex.domain.funnel import Funnel

    context = get_current_context()
    _staging(context).remove()
    dag_run, state = context["dag_run"], _task_states(context, "settle_run").get("settle_run")
    if state not in ("skipped", "success"):
        return
    ended = "It was ended by hand before all was done; what is left is sent and withdrawn by the next runs."
    with open_ledger() as ledger:
        # An earlier pass of the run may have been settled: one that was skipped is over all the same.
        if state == "success" and not ledger.is_unsettled(dag_run.dag_id, dag_run.run_id):
            return
        # Ended before it was planned, it is not written down.
        with suppress(RunIncompleteError):
            run = run_of(ledger, context)
            clinics = ledger.run_clinics(run.run_key)
            broken = _broken(ledger, run, clinics)
            _settle(ledger, run, clinics, Funnel.of(clinics), [*broken, ended], broken=len(broken))
    if state == "skipped":
        # With nothing but skipped tasks and a removal that succeeded, Airflow would show it as successful.
        raise RunIncompleteError(ended)
    log.warning(ended)


def _publish(results: Any, info: Any, url: str, publish: Callable[..., Path]) -> str:
    """Build the pages in place where Data Docs are a folder; else in a folder of our own, then copied over."""
    from airflow.sdk import ObjectStoragePath

    target = ObjectStoragePath(url)
    if target.protocol in ("file", "local", ""):
        folder = Path(target.path)
        folder.mkdir(parents=True, exist_ok=True)
        return f"file://{publish(results, info, folder)}"
    with tempfile.TemporaryDirectory(prefix="medflex-docs-") as folder_name:
        folder = Path(folder_name)
        if target.exists():
            target.fs.get(target.path + "/", str(folder) + "/", recursive=True)
        index = publish(results, info, folder)
        target.fs.put(str(folder) + "/", target.path + "/", recursive=True)
        return str(target / str(index.relative_to(folder)))


def _quality_funnels(ledger: Any, run: Any) -> tuple[Any, list[Any]]:
    from medflex.domain.funnel import Funnel
    from medflex.quality import validation

    numbers = Funnel.of(ledger.run_clinics(run.run_key))
    stages = {shard.stage for shard in ledger.shards(run.run_key)}
    sent = stages <= {"loaded", "skipped"} and run.mode != "plan"
    reasons: dict[str, int] = {}
    held = ledger.reasons(run.run_key)
    for row in held[held["stage"] == "withhold"].itertuples(index=False):
        for reason in row.reasons:
            reasons[reason] = reasons.get(reason, 0) + int(row.records)
    given = {
        name: getattr(numbers, name)
        for name in ("extracted", "eligible", "withheld", "quarantined", "unchanged", "planned")
    }
    if sent:
        given |= {name: getattr(numbers, name) for name in ("accepted", "rejected", "to_retry", "unknown", "dropped")}
    history = []
    for _, earlier in ledger.reason_history(run.run_key).groupby("run_key"):
        history.append(
            validation.Funnel(
                extracted=int(earlier["extracted"].iloc[0]),
                eligible=0,
                withheld=0,
                quarantined=0,
                unchanged=0,
                planned=0,
                reasons=dict(zip(earlier["reason"], earlier["records"].astype(int), strict=True)),
            )
        )
    return validation.Funnel(**given, reasons=reasons), history


# -- what tasks share ------------------------------------------------------------------------------------------------


_ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
"""States of Airflow in which a task stays until it is cleared."""


def _task_states(context: Context, *task_ids: str) -> dict[str, str | None]:
    """Return the states of these tasks in this run, or of all; a mapped one has its index behind it."""
    run = context["dag_run"]
    of_runs = context["ti"].get_task_states(
        dag_id=run.dag_id, run_ids=[run.run_id], task_ids=list(task_ids) if task_ids else None
    )
    return dict(of_runs.get(run.run_id, {}))


def _unsettled(context: Context) -> Context:
    """Return the context of a task that changes what the ledger says of its run, or what is staged.

    Raises:
        RunIncompleteError: nobody would settle the run or remove what is staged behind it.
    """
    if _task_states(context, "settle_run").get("settle_run") in _ENDED:
        raise RunIncompleteError(
            "This run has been settled, and this task was cleared without those behind it: clear it once more with"
            " Downstream and without Only Failed, or all of the run."
        )
    return context


def _run_of_shard(ledger: Any, context: Context) -> Any:
    """Return the run, of which a report that was published before this task is out of date."""
    run = run_of(ledger, context)
    ledger.forget_report(run.run_key)
    return run


def _staging(context: Context) -> Any:
    from medflex.airflow.staging import Staging

    run, task_instance = context["dag_run"], context["ti"]
    return Staging(run.dag_id, run.run_id, task_instance.try_number, functools.partial(_is_running, context))


def _is_running(context: Context) -> bool:
    """Whether this very task instance is at work, as Airflow sees it: somebody may have marked it, or its run."""
    task_instance = context["ti"]
    index = task_instance.map_index
    name = task_instance.task_id if index is None or index < 0 else f"{task_instance.task_id}_{index}"
    return _task_states(context, task_instance.task_id).get(name) == "running"


def _labelled(shard: Mapping[str, Any]) -> Context:
    """Put the shard's label where ``map_index_template`` finds it; return the context."""
    context = get_current_context()
    context["shard_label"] = shard["label"]  # type: ignore[typeddict-unknown-key]
    return context
