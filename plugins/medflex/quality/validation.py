"""Look at a shard's rows with Great Expectations, in memory bounded by the chunk.

Each chunk is judged by all row rules, those about the same columns as one batch of only these columns; counts are added
up over the chunks. Keys are looked at when no more of their clinics come, clinics and row counts last. A result is made
from a whitelist of counts, so no value of the data, no argument and no exception text of Great Expectations leaves this
module.

``import great_expectations`` happens in the first call.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from medflex.domain.reasons import Reason
from medflex.domain.window import utc_instants, zone_or_none
from medflex.quality import suites
from medflex.quality.gx import import_great_expectations, silence
from medflex.quality.results import ExpectationResult, Severity, SuiteResult
from medflex.quality.suites import EQUATIONS, Kind, Rule

_COUNTS_ONLY = {"result_format": "BASIC", "partial_unexpected_count": 0, "exclude_unexpected_values": True}
#: Keys that are looked at at once for those that come twice: finding them takes as much memory again as they do.
_KEYS_AT_ONCE = 500_000
#: The rolling window of R6 spans 76 local days; a shorter one (a backfill cut to today) is not compared with full ones.
_FULL_WINDOW = timedelta(days=75)


@dataclass(frozen=True)
class Funnel:
    """The numbers of one run. The last five are ``None`` where nothing was to be sent (``plan``)."""

    extracted: int
    eligible: int
    withheld: int
    quarantined: int
    unchanged: int
    planned: int
    accepted: int | None = None
    rejected: int | None = None
    to_retry: int | None = None
    unknown: int | None = None
    dropped: int | None = None
    #: Rows under every reason that holds; a row with two reasons counts under both.
    reasons: Mapping[str, int] = field(default_factory=dict)


def validate_source(
    chunks: Iterable[pd.DataFrame | None],
    *,
    clinics: pd.DataFrame,
    windows: pd.DataFrame,
    history: pd.DataFrame | None,
    now: datetime,
    shard: str,
) -> SuiteResult:
    """Judge what came out of Medlock.

    ``chunks``: ROWS without ``first_name`` and ``patronymic``, about 100,000 rows each, and ``None`` where no clinic
    comes again that has come so far: until then all keys are held. ``clinics``: CLINICS of the shard, one row each.
    ``windows``: ``clinic_id, starts_from, starts_before`` (UTC) as the extract used them. ``history``: ``clinic_id,
    rows``, one row per clinic and earlier run, or ``None``. ``now``: the clock at which the rules were judged, aware.
    Raises nothing for bad data: a wrong column or type is a critical result that names the column.
    """
    return _validate(_source_look(clinics, windows, history, now), chunks, shard)


def validate_outgoing(
    chunks: Iterable[pd.DataFrame | None], *, clinics: pd.DataFrame, now: datetime, shard: str
) -> SuiteResult:
    """Judge what would be sent.

    ``chunks``, with ``None`` as for :func:`validate_source`: PAYLOAD joined by id with what the source says about the
    same appointments (columns ``suites.WITNESS_COLUMNS``: ``starts_at``, the window's ``starts_from`` and
    ``starts_before``, the five flags, ``patient_found``, ``doctor_found``). ``clinics``: CLINICS. ``now``: the clock at
    which the rules were judged.
    """
    return _validate(_outgoing_look(clinics, now), chunks, shard)


def failing_source_ids(
    result: SuiteResult,
    chunks: Iterable[pd.DataFrame | None],
    *,
    clinics: pd.DataFrame,
    windows: pd.DataFrame,
    history: pd.DataFrame | None,
    now: datetime,
    cap: int = 100,
) -> dict[str, list[int]]:
    """Return up to ``cap`` ids per failed critical rule of ``result``, by a second look at the same data.

    Appointment ids for rules about rows, clinic ids for rules about clinics and their row counts. The ids stay in
    memory: nothing of this look is stored or rendered.
    """
    return _failing_ids(_source_look(clinics, windows, history, now), result, chunks, cap)


def failing_outgoing_ids(
    result: SuiteResult, chunks: Iterable[pd.DataFrame | None], *, clinics: pd.DataFrame, now: datetime, cap: int = 100
) -> dict[str, list[int]]:
    """The same as :func:`failing_source_ids` for :func:`validate_outgoing`."""
    return _failing_ids(_outgoing_look(clinics, now), result, chunks, cap)


def validate_run(funnel: Funnel, history: Sequence[Funnel], messages: pd.DataFrame | None = None) -> SuiteResult:
    """Judge a whole run: conservation, each reason's share beside the median of earlier runs, double messages (R15).

    ``messages``: ``clinic_id``, ``scenarios_run_twice``, ``appointments_told_twice`` (numbers, missing where they could
    not be judged), one row per clinic; ``None`` where nobody has looked. What is missing is not judged.
    """
    numbers: dict[str, float | None] = {}
    for total, parts in EQUATIONS.items():
        values = [getattr(funnel, name) for name in parts]
        # All five missing: nothing was to be sent. One missing among numbers: a bug, which must not look conserved.
        if all(value is None for value in values):
            numbers[f"{total}_gap"] = None
        else:
            numbers[f"{total}_gap"] = float(getattr(funnel, total) - sum(value or 0 for value in values))
    earlier = [run for run in history if run.extracted >= suites.SHARE_FLOOR_ROWS]
    comparable = len(earlier) >= suites.HISTORY_FLOOR_RUNS and funnel.extracted >= suites.SHARE_FLOOR_ROWS
    for reason in Reason:
        change = None
        if comparable:
            shares = [100.0 * run.reasons.get(reason, 0) / run.extracted for run in earlier]
            change = 100.0 * funnel.reasons.get(reason, 0) / funnel.extracted - median(shares)
        numbers[f"{reason.value}_share_change"] = change
    frame = pd.DataFrame({name: pd.Series([value], dtype="float64") for name, value in numbers.items()})
    tallies = _tallies(suites.run_suite())
    with _GreatExpectations() as look:
        look.add(tallies, frame, "run")
        if messages is not None:
            look.add(tallies, messages, "messages")
    return SuiteResult("run", "all", 1, tuple(tally.result() for tally in tallies.values()))


# --- One look: rules, and how the frames are made that they see -------------------------------------------------


@dataclass(frozen=True)
class _Look:
    suite: str
    rules: list[Rule]
    frame: str
    columns: Mapping[str, Kind]
    id_column: str
    clinics: pd.DataFrame
    #: Adds what the row rules need beside the contract's columns; the chunk itself is left as it is.
    prepare: Callable[[pd.DataFrame], pd.DataFrame]
    #: The frame of the clinics rules, given the rows per clinic that were seen.
    clinic_frame: Callable[[pd.Series], pd.DataFrame]
    history_frame: Callable[[pd.Series], pd.DataFrame] | None = None


def _source_look(clinics: pd.DataFrame, windows: pd.DataFrame, history: pd.DataFrame | None, now: datetime) -> _Look:
    limit = pd.Timestamp(now).tz_convert("UTC") + timedelta(minutes=suites.CLOCK_TOLERANCE_MINUTES)
    starts_from = windows.set_index("clinic_id")["starts_from"]
    starts_before = windows.set_index("clinic_id")["starts_before"]

    def prepare(chunk: pd.DataFrame) -> pd.DataFrame:
        return chunk.assign(
            starts_from=chunk["clinic_id"].map(starts_from),
            starts_before=chunk["clinic_id"].map(starts_before),
            length_minutes=_minutes(chunk["starts_at"], chunk["ends_at"]),
            clock_limit=limit,
        )

    def clinic_frame(_: pd.Series) -> pd.DataFrame:
        known = [isinstance(name, str) and zone_or_none(name) is not None for name in clinics["timezone"]]
        return clinics.assign(timezone_known=np.array(known, dtype=bool), clock_limit=limit)

    def history_frame(rows: pd.Series) -> pd.DataFrame:
        full = starts_before - starts_from >= _FULL_WINDOW
        asked_for = full.index[full]
        if history is None or history.empty:
            grouped = pd.DataFrame({"runs": 0, "smallest": 0, "median": 0.0}, index=asked_for)
        else:
            by_clinic = history.groupby("clinic_id")["rows"]
            grouped = pd.DataFrame(
                {"runs": by_clinic.count(), "smallest": by_clinic.min(), "median": by_clinic.median()}
            )
            grouped = grouped.reindex(asked_for).fillna(0)
        today = rows.reindex(asked_for).fillna(0).astype("float64")
        never_empty = (grouped["runs"] > 0) & (grouped["smallest"] > 0)
        big = grouped["median"] >= suites.EMPTY_FLOOR_ROWS
        comparable = (grouped["runs"] >= suites.HISTORY_FLOOR_RUNS) & (grouped["median"] >= suites.SHARE_FLOOR_ROWS)
        return pd.DataFrame(
            {
                "clinic_id": asked_for,
                "rows_if_never_empty": today.where(never_empty & big).to_numpy(),
                "rows_if_small_and_never_empty": today.where(never_empty & ~big).to_numpy(),
                "rows_to_median": (today / grouped["median"]).where(comparable).to_numpy(),
            }
        )

    return _Look(
        "source",
        suites.source_suite(),
        "rows",
        suites.SOURCE_COLUMNS,
        "appointment_id",
        clinics,
        prepare,
        clinic_frame,
        history_frame,
    )


def _outgoing_look(clinics: pd.DataFrame, now: datetime) -> _Look:
    a_day_ago = pd.Timestamp(now).tz_convert("UTC") - timedelta(hours=24)
    by_clinic = clinics.drop_duplicates("clinic_id").set_index("clinic_id")
    # An array after Parquet, a list before; anything else is no partner.
    partners = {
        int(clinic): [int(one) for one in ids] if isinstance(ids, list | tuple | np.ndarray) else []
        for clinic, ids in zip(by_clinic.index, by_clinic["partner_ids"], strict=True)
    }
    partner_text = pd.Series({clinic: ",".join(map(str, sorted(ids))) for clinic, ids in partners.items()}, dtype="str")

    def prepare(chunk: pd.DataFrame) -> pd.DataFrame:
        local = _parsed(chunk["dt_start"])
        offset = pd.to_timedelta(chunk["time_offset"].astype("float64"), unit="min")
        zones = chunk["clinic_id"].map(by_clinic["timezone"])
        minutes = chunk["time_offset"]
        return chunk.assign(
            # Numbers of another size are compared one by one, in Python.
            time_offset=minutes.astype("int64") if isinstance(minutes.dtype, np.dtype) else minutes,
            dt_start_utc=((local - offset).astype("datetime64[us]")),
            starts_at_minute=chunk["starts_at"].dt.tz_localize(None).dt.floor("min").astype("datetime64[us]"),
            zone_offset=_offsets(chunk["starts_at"], zones),
            clinic_partners=chunk["clinic_id"].map(partner_text),
        )

    def clinic_frame(rows: pd.Series) -> pd.DataFrame:
        seen = clinics[clinics["clinic_id"].isin(rows.index)]
        unknown = pd.DataFrame({"clinic_id": rows.index.difference(pd.Index(seen["clinic_id"]))})
        frame = pd.concat([seen, unknown.astype({"clinic_id": seen["clinic_id"].dtype})], ignore_index=True)
        frame = frame.astype({name: seen[name].dtype for name in ("access_enabled", "access_changed_at", "lpu_id")})
        has_partner = [bool(partners.get(int(clinic))) for clinic in frame["clinic_id"]]
        return frame.assign(has_partner=np.array(has_partner, dtype=bool), a_day_ago=a_day_ago)

    return _Look(
        "outgoing",
        suites.outgoing_suite(),
        "records",
        suites.OUTGOING_COLUMNS,
        "id",
        clinics,
        prepare,
        clinic_frame,
    )


def _parsed(texts: pd.Series) -> pd.Series:
    """Local times as time stamps without zone, missing where unreadable. Works on distinct texts: they repeat a lot."""
    codes, distinct = pd.factorize(texts, use_na_sentinel=False)
    values = pd.to_datetime(pd.Series(distinct), format="%Y-%m-%d %H:%M", errors="coerce")
    return pd.Series(values.to_numpy()[codes], index=texts.index)


def _minutes(starts_at: pd.Series, ends_at: pd.Series) -> np.ndarray[Any, Any]:
    """Minutes from start to end, missing where one of them is. In floats: one that is not to end in any calendar
    (``infinity``, say) comes from Postgres as a number from which no other can be taken.
    """
    starts, ends = (utc_instants(column) for column in (starts_at, ends_at))
    minutes = (ends.astype("int64").astype("float64") - starts.astype("int64").astype("float64")) / 60e6
    return np.where(np.isnat(starts) | np.isnat(ends), np.nan, minutes)


def _offsets(starts: pd.Series, zones: pd.Series) -> pd.Series:
    """Minutes east of UTC at each start by the clinic's zone; missing where the zone is unknown."""
    offsets = pd.Series(np.nan, index=starts.index, dtype="float64")
    for name, rows in starts.groupby(zones, dropna=True):
        if zone_or_none(str(name)) is not None:
            local = rows.dt.tz_convert(str(name)).dt.tz_localize(None)
            offsets.loc[rows.index] = (local - rows.dt.tz_localize(None)).dt.total_seconds() / 60
    return offsets


# --- Adding up --------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Counts of one rule over all frames it saw."""

    rule: Rule
    evaluated: int = 0
    unexpected: int = 0
    missing: int = 0
    exception_class: str | None = None
    #: For the contract rules: which columns are wrong.
    columns: tuple[str, ...] | None = None
    ids: list[int] = field(default_factory=list)

    def result(self) -> ExpectationResult:
        judged = self.evaluated - self.missing
        share = self.unexpected / judged if judged else 0.0
        allowed = 1.0 - float(self.rule.kwargs.get("mostly", 1.0))
        # Counts are compared, not floats: 1 - 0.8 is a little more or less than 0.2.
        holds = self.unexpected <= round(allowed * judged, 6) or judged < self.rule.judged_from
        return ExpectationResult(
            name=self.rule.name,
            expectation_type=self.rule.expectation_type,
            columns=self.rule.columns if self.columns is None else self.columns,
            # A rule that could not be evaluated says nothing about the data: that is our fault, and never harmless.
            severity=self.rule.severity if self.exception_class is None else Severity.CRITICAL,
            success=holds and self.exception_class is None,
            evaluated=self.evaluated,
            unexpected=self.unexpected,
            unexpected_percent=round(100.0 * share, 4),
            missing=self.missing,
            exception_class=self.exception_class,
            bounds=self.rule.bounds,
        )


def _tallies(rules: Iterable[Rule]) -> dict[str, _Tally]:
    return {rule.name: _Tally(rule) for rule in rules}


def _validate(look: _Look, chunks: Iterable[pd.DataFrame | None], shard: str) -> SuiteResult:
    rules, seen = look.rules, 0
    tallies = _tallies(rules)
    looked_at = {"contract"}
    keys = _Keys(look)
    sound = _check_contract(tallies, "clinics", look.clinics, suites.CLINIC_COLUMNS)
    with _GreatExpectations() as expectations:
        for chunk in chain(chunks, [None]):
            if chunk is None:
                for frame in keys.looked_at():
                    expectations.add(tallies, frame, "keys")
                continue
            seen += len(chunk)
            if not _check_contract(tallies, look.frame, chunk, look.columns):
                sound = False
            if sound:
                keys.add(chunk)
                expectations.add(tallies, look.prepare(chunk), "rows")
            del chunk  # Before the next one is read.
        if sound:
            looked_at |= {"rows", "keys", "clinics", "history"}
            for part, frame in _closing_frames(look, keys.rows()):
                expectations.add(tallies, frame, part)
    results = tuple(tally.result() for tally in tallies.values() if tally.rule.part in looked_at)
    return SuiteResult(look.suite, shard, seen, results)


class _Keys:
    """The keys of the rows of clinics of which more may come, and how many rows each clinic has had."""

    def __init__(self, look: _Look) -> None:
        self._look = look
        self._parts: list[pd.DataFrame] = []
        self._counts: list[pd.Series] = []

    def add(self, chunk: pd.DataFrame) -> None:
        """Take up a chunk's keys."""
        keys = chunk[["clinic_id", self._look.id_column]]
        self._parts.append(keys.astype("Int64" if keys.isna().any(axis=None) else "int64"))
        self._counts.append(self._parts[-1]["clinic_id"].value_counts())

    def looked_at(self) -> Iterator[pd.DataFrame]:
        """Yield all keys in pieces, and let go of them: what comes twice is in one piece."""
        column = self._look.id_column
        pieces = -(-sum(map(len, self._parts)) // _KEYS_AT_ONCE)
        for number in range(pieces):
            # What comes twice has one id, and so falls into the same piece.
            mine = (part[part[column].to_numpy("int64", na_value=0) % pieces == number] for part in self._parts)
            yield pd.concat(mine, ignore_index=True)
        self._parts.clear()

    def rows(self) -> pd.Series:
        """Return the number of rows by clinic."""
        return pd.concat(self._counts or [pd.Series(dtype="int64")]).groupby(level=0).sum()


def _closing_frames(look: _Look, rows: pd.Series) -> Iterator[tuple[suites.Part, pd.DataFrame]]:
    """The frames that are looked at after the last chunk."""
    yield "clinics", look.clinic_frame(rows)
    if look.history_frame is not None:
        yield "history", look.history_frame(rows)


def _failing_ids(
    look: _Look, result: SuiteResult, chunks: Iterable[pd.DataFrame | None], cap: int
) -> dict[str, list[int]]:
    failed = {one.name for one in result.critical_failures if one.exception_class is None}
    tallies = _tallies(rule for rule in look.rules if rule.name in failed and rule.part != "contract")
    contract = _tallies(rule for rule in look.rules if rule.part == "contract")
    if not tallies or not _check_contract(contract, "clinics", look.clinics, suites.CLINIC_COLUMNS):
        return {}
    keys = _Keys(look)
    with _GreatExpectations() as expectations:
        for chunk in chunks:
            if chunk is None:
                continue
            if not _check_contract(contract, look.frame, chunk, look.columns):
                return {}
            keys.add(chunk)
            wanted = {name: tally for name, tally in tallies.items() if len(tally.ids) < cap}
            expectations.add(wanted, look.prepare(chunk), "rows", look.id_column, cap)
        for frame in keys.looked_at():
            expectations.add(tallies, frame, "keys", look.id_column, cap)
        for part, frame in _closing_frames(look, keys.rows()):
            expectations.add(tallies, frame, part, "clinic_id", cap)
    return {name: tally.ids for name, tally in tallies.items()}


# --- The contract, before Great Expectations sees a frame --------------------------------------------------------


def _check_contract(tallies: dict[str, _Tally], name: str, frame: pd.DataFrame, contract: Mapping[str, Kind]) -> bool:
    columns, types = tallies[f"{name}_columns_as_in_contract"], tallies[f"{name}_types_as_in_contract"]
    strange = [column for column in contract if column not in frame.columns]
    strange += [str(column) for column in frame.columns if column not in contract]
    wrong = [
        column
        for column, kind in contract.items()
        # A frame without rows, and a column without values, has whatever type its reader guessed.
        if column in frame.columns and len(frame) and not _is_kind(frame[column], kind)
    ]
    for tally, bad in ((columns, strange), (types, wrong)):
        tally.evaluated = max(tally.evaluated, len(contract))
        found = sorted({*(tally.columns or ()), *bad})
        tally.columns, tally.unexpected = tuple(found), len(found)
    return not strange and not wrong


def _is_kind(values: pd.Series | pd.DataFrame, kind: Kind) -> bool:
    if isinstance(values, pd.DataFrame):  # the same column name twice
        return False
    dtype = values.dtype
    if kind == "integer":
        return isinstance(dtype, np.dtype | pd.Int64Dtype) and pd.api.types.is_integer_dtype(dtype)
    if kind == "boolean":
        return dtype == np.dtype(bool) or isinstance(dtype, pd.BooleanDtype)
    if kind == "text":
        return isinstance(dtype, pd.StringDtype)
    if kind == "utc":
        return isinstance(dtype, pd.DatetimeTZDtype) and str(dtype.tz) == "UTC"
    return dtype == np.dtype(object)


# --- Great Expectations -----------------------------------------------------------------------------------------


class _GreatExpectations:
    """An in-memory Great Expectations that writes nothing, draws nothing, and whose texts are thrown away."""

    def __enter__(self) -> _GreatExpectations:
        self._prepared: dict[tuple[str, ...], _Prepared] = {}
        gx = import_great_expectations()
        with silence():
            self._context = gx.get_context(mode="ephemeral")
            self._context.variables.progress_bars = {"globally": False}
        return self

    def __exit__(self, *_: object) -> None:
        del self._context

    def add(
        self,
        tallies: dict[str, _Tally],
        frame: pd.DataFrame,
        part: suites.Part,
        id_column: str | None = None,
        cap: int = 0,
    ) -> None:
        """Judge ``frame`` by the rules of ``part`` and add the counts (and, with ``id_column``, ids) to ``tallies``."""
        mine = {name: tally for name, tally in tallies.items() if tally.rule.part == part}
        if frame.empty:
            return
        result_format: dict[str, Any] = dict(_COUNTS_ONLY)
        if id_column is not None:
            result_format |= {"result_format": "COMPLETE", "unexpected_index_column_names": [id_column]}
        # For each rule Great Expectations copies the rows that have a value, with all columns of its frame.
        groups: dict[tuple[str, ...], dict[str, _Tally]] = {}
        for name, tally in mine.items():
            groups.setdefault(tuple(sorted({*_columns_seen(tally.rule)})), {})[name] = tally
        for columns, group in groups.items():
            needed = [*columns] if id_column in (None, *columns) else [*columns, id_column]
            with silence():
                try:
                    results = self._run(frame[needed].reset_index(drop=True), group, result_format)
                except Exception as error:  # whatever Great Expectations raises, its text may quote a value
                    for tally in group.values():
                        tally.exception_class = tally.exception_class or type(error).__name__
                    continue
            for one in results:
                tally = group.pop(one.expectation_config.meta["rule"])
                _add_counts(tally, one, len(frame))
                if id_column is not None:
                    _add_ids(tally, one, id_column, cap)
            for tally in group.values():  # an expectation that came back without a result
                tally.exception_class = tally.exception_class or "MissingResult"

    def _run(self, frame: pd.DataFrame, tallies: Mapping[str, _Tally], result_format: dict[str, Any]) -> list[Any]:
        from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine

        # An engine that is given its frame, not a data source: that would make a hash of all values of each batch.
        given: dict[str, pd.DataFrame] = {"frame": frame}
        engine = PandasExecutionEngine(batch_data_dict=given)
        try:
            return self._judged(engine, tallies, result_format)
        finally:
            # An engine is part of a circle: until Python's collector comes by, it would hold its frame.
            given.clear()
            engine.batch_manager.batch_data_cache.clear()

    def _judged(self, engine: Any, tallies: Mapping[str, _Tally], result_format: dict[str, Any]) -> list[Any]:
        from great_expectations.validator.validator import Validator

        if result_format == _COUNTS_ONLY:
            names = tuple(tallies)
            if names not in self._prepared:
                self._prepared[names] = _Prepared([tally.rule for tally in tallies.values()], engine)
            results = self._prepared[names].judge(engine)
            if results is not None:
                return results
        rules = [to_expectation(tally.rule).configuration for tally in tallies.values()]
        validator = Validator(engine, data_context=self._context)
        return list(validator.graph_validate(rules, _runtime(result_format)))


class _Prepared:
    """What Great Expectations works out about rules before it looks at a frame: the same for each batch, and for a
    batch of 100,000 rows most of what these rules cost.

    ``graph_validate`` makes it anew for each batch, and judges where anything goes wrong: it knows which rule it was.
    """

    def __init__(self, rules: Sequence[Rule], engine: Any) -> None:
        from great_expectations.validator.metrics_calculator import MetricsCalculator

        self._expectations = [to_expectation(rule) for rule in rules]
        self._needs = [one.get_validation_dependencies(engine, _runtime(_COUNTS_ONLY)) for one in self._expectations]
        self._edges = (
            MetricsCalculator(execution_engine=engine, show_progress_bars=False)
            .build_metric_dependency_graph(
                [metric for needs in self._needs for metric in needs.get_metric_configurations()],
                _runtime(_COUNTS_ONLY),
            )
            .edges
        )

    def judge(self, engine: Any) -> list[Any] | None:
        """Return each rule's result, or ``None`` where one of them cannot be evaluated."""
        from great_expectations.core.expectation_validation_result import ExpectationValidationResult
        from great_expectations.validator.validation_graph import ValidationGraph

        graph = ValidationGraph(execution_engine=engine, edges=list(self._edges))
        metrics, aborted = graph.resolve(_runtime(_COUNTS_ONLY), show_progress_bars=False)
        if aborted:
            return None
        results = []
        for expectation, needs in zip(self._expectations, self._needs, strict=True):
            found = {name: metrics.get(metric.id) for name, metric in needs.metric_configurations.items()}
            # What each expectation defines, and ``metrics_validate`` calls when it has worked out its needs once more.
            said = expectation._validate(found, {"result_format": needs.result_format}, engine)
            results.append(ExpectationValidationResult(**said, expectation_config=expectation.configuration))
        return results


def _runtime(result_format: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as Great Expectations wants them; made anew, since it writes into them."""
    return {"result_format": dict(result_format)}


def to_expectation(rule: Rule) -> Any:
    """Return the rule as an object of Great Expectations."""
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(rule.expectation_type)(
        severity=FailureSeverity(rule.severity.value),
        description=rule.description,
        meta={"rule": rule.name},
        **rule.kwargs,
    )


def _columns_seen(rule: Rule) -> list[str]:
    names = [rule.kwargs[key] for key in ("column", "column_A", "column_B") if key in rule.kwargs]
    return names + list(rule.kwargs.get("column_list", ()))


def _add_counts(tally: _Tally, one: Any, rows: int) -> None:
    raised = _exception_class(one.exception_info)
    tally.exception_class = tally.exception_class or raised
    if raised is None:
        tally.evaluated += int(one.result.get("element_count") or 0)
        tally.unexpected += int(one.result.get("unexpected_count") or 0)
        tally.missing += int(one.result.get("missing_count") or 0)
    else:
        tally.evaluated += rows


def _add_ids(tally: _Tally, one: Any, id_column: str, cap: int) -> None:
    for entry in one.result.get("unexpected_index_list") or ():
        found = entry[id_column]
        ids = pd.Series(found if isinstance(found, list) else [found], dtype="object").dropna()
        tally.ids += [int(value) for value in ids[: max(cap - len(tally.ids), 0)]]


def _exception_class(info: Any) -> str | None:
    """Reduce Great Expectations' ``exception_info`` to a class name, or ``None`` when nothing was raised.

    The class stands only in the traceback's text, beside the message that may quote a value. So a word counts as the
    class only when such an exception exists.
    """
    if not info:
        return None
    entries = [info] if "raised_exception" in info else list(info.values())
    raised = [entry for entry in entries if entry.get("raised_exception")]
    if not raised:
        return None
    for entry in raised:
        for line in reversed(str(entry.get("exception_traceback") or "").splitlines()):
            word = re.match(r"([A-Za-z_][\w.]*)", line)
            name = word.group(1).rsplit(".", 1)[-1] if word else ""
            for module in (builtins, pd.errors):
                kind = getattr(module, name, None) if name else None
                if isinstance(kind, type) and issubclass(kind, BaseException):
                    return name
    return "Exception"


def merge(results: Sequence[SuiteResult]) -> SuiteResult:
    """Add up the same suite's results of several shards into one, labelled ``all``. The sums are judged anew."""
    if len({one.suite for one in results}) != 1:
        raise ValueError("merge() needs at least one result, all of the same suite")
    rules = {rule.name: rule for rule in suites.SUITES[results[0].suite]()}
    merged: dict[str, ExpectationResult] = {}
    for result in results:
        for one in result.results:
            before = merged.get(one.name)
            if before is None:
                merged[one.name] = one
                continue
            tally = _Tally(
                rules[one.name],
                before.evaluated + one.evaluated,
                before.unexpected + one.unexpected,
                before.missing + one.missing,
                before.exception_class or one.exception_class,
                tuple(sorted({*before.columns, *one.columns})),
            )
            # A failure in one shard stays a failure in the sum, also when the other shards dilute its share.
            success = before.success and one.success
            merged[one.name] = replace(tally.result(), success=success)
    order = [merged[name] for name in rules if name in merged]
    return SuiteResult(results[0].suite, "all", sum(one.rows for one in results), tuple(order))
