"""Each rule holds on good data, fails on data that breaks it, and adds up over chunks."""

from __future__ import annotations

import gc
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medflex.domain.reasons import Reason
from medflex.quality import gx, suites, validation
from medflex.quality.results import Severity, SuiteResult
from medflex.quality.suites import Rule
from medflex.quality.validation import Funnel
from tests.quality import frames


@dataclass
class World:
    """What a validation is given; tests break one thing in it."""

    rows: pd.DataFrame
    clinics: pd.DataFrame = field(default_factory=frames.clinics)
    windows: pd.DataFrame = field(default_factory=frames.windows)
    history: pd.DataFrame | None = field(default_factory=lambda: frames.history(100))

    def set(self, column: str, value: object, rows: slice = slice(0, 3)) -> None:
        self.rows.loc[self.rows.index[rows], column] = value

    def set_clinic(self, column: str, value: object) -> None:
        self.clinics.loc[0, column] = value

    def alone(self, suite: str, names: set[str]) -> SuiteResult:
        """Judge by the contract and these rules only: Great Expectations costs milliseconds per rule."""
        if suite == "source":
            look = validation._source_look(self.clinics, self.windows, self.history, frames.NOW)
        else:
            look = validation._outgoing_look(self.clinics, frames.NOW)
        rules = [rule for rule in look.rules if rule.part == "contract" or rule.name in names]
        return validation._validate(replace(look, rules=rules), [self.rows], "open-01")

    def source(self, chunk: int | None = None) -> SuiteResult:
        return validation.validate_source(
            chunks(self.rows, chunk), clinics=self.clinics, windows=self.windows, history=self.history, **COMMON
        )

    def outgoing(self, chunk: int | None = None) -> SuiteResult:
        return validation.validate_outgoing(chunks(self.rows, chunk), clinics=self.clinics, **COMMON)


COMMON: dict[str, Any] = {"now": frames.NOW, "shard": "open-01"}
MOST = slice(0, 190)  # of 200


def chunks(rows: pd.DataFrame, size: int | None) -> list[pd.DataFrame | None]:
    if size is None:
        return [rows]
    return [rows.iloc[at : at + size] for at in range(0, len(rows), size)]


def source_world() -> World:
    return World(frames.rows())


def outgoing_world() -> World:
    return World(frames.outgoing())


def failed(result: SuiteResult) -> set[str]:
    return {one.name for one in result.results if not one.success}


def test_an_end_in_no_calendar_stops_nothing() -> None:
    """Postgres' infinity comes as a number from which no start can be taken: a row in quarantine, as the rules say."""
    world = source_world()
    world.rows["ends_at"] = world.rows["ends_at"].where(world.rows.index > 1, pd.NaT)
    numbers = world.rows["ends_at"].astype("int64").to_numpy().copy()
    numbers[0] = np.iinfo("int64").min + 1
    world.rows["ends_at"] = pd.Series(numbers.view("datetime64[us]")).dt.tz_localize("UTC")
    assert "length_believable" not in failed(world.alone("source", {"length_believable"}))


def duplicate(world: World, id_column: str) -> None:
    world.rows.loc[2, ["clinic_id", id_column]] = world.rows.loc[0, ["clinic_id", id_column]].to_numpy()


def double_clinic(world: World) -> None:
    world.clinics = pd.concat([world.clinics, world.clinics.iloc[[0]]], ignore_index=True)


Break = Callable[[World], object]
LATER = frames.NOW + timedelta(minutes=suites.CLOCK_TOLERANCE_MINUTES, seconds=1)

SOURCE: dict[str, Break] = {
    "rows_columns_as_in_contract": lambda w: w.rows.insert(0, "last_name", "x"),
    "rows_types_as_in_contract": lambda w: setattr(w, "rows", w.rows.astype({"phone": object})),
    "clinics_columns_as_in_contract": lambda w: w.clinics.pop("lpu_id"),
    "clinics_types_as_in_contract": lambda w: setattr(w, "clinics", w.clinics.astype({"timezone": object})),
    "clinic_id_present": lambda w: (
        setattr(w, "rows", w.rows.astype({"clinic_id": "Int64"})),
        w.set("clinic_id", pd.NA),
    ),
    "appointment_id_present": lambda w: (
        setattr(w, "rows", w.rows.astype({"appointment_id": "Int64"})),
        w.set("appointment_id", pd.NA, slice(0, 1)),
    ),
    "starts_at_present": lambda w: w.set("starts_at", pd.NaT),
    "clinic_asked_for": lambda w: w.set("clinic_id", 99),
    "start_not_before_window": lambda w: w.set("starts_at", frames.STARTS_FROM - timedelta(seconds=1)),
    "start_before_window_end": lambda w: w.set("starts_at", frames.STARTS_BEFORE),
    "patient_resolved": lambda w: w.set("patient_found", False),
    "patient_mostly_resolved": lambda w: w.set("patient_found", False, MOST),
    "doctor_resolved": lambda w: w.set("doctor_found", False),
    "doctor_mostly_resolved": lambda w: w.set("doctor_found", False, MOST),
    "status_present": lambda w: w.set("status", None),
    "status_known": lambda w: w.set("status", "moved"),
    "status_mostly_known": lambda w: w.set("status", "moved", MOST),
    "entry_present": lambda w: w.set("entry", None),
    "entry_known": lambda w: w.set("entry", "fax"),
    "entry_mostly_known": lambda w: w.set("entry", "fax", MOST),
    "ends_at_present": lambda w: w.set("ends_at", pd.NaT),
    "start_before_end": lambda w: w.set("ends_at", frames.STARTS_FROM),
    "start_mostly_before_end": lambda w: w.set("ends_at", frames.STARTS_FROM, MOST),
    "length_believable": lambda w: w.set("ends_at", frames.STARTS_BEFORE),
    **{f"{flag}_present": lambda w, flag=flag: w.set(flag, pd.NA) for flag in suites.FLAGS},  # type: ignore[misc]
    "phone_present": lambda w: w.set("phone", None),
    "phone_has_digits": lambda w: w.set("phone", "позже"),
    "phone_mostly_has_digits": lambda w: w.set("phone", "позже", MOST),
    "created_in_the_past": lambda w: w.set("created_at", LATER),
    "updated_in_the_past": lambda w: w.set("updated_at", LATER),
    "appointment_unique": lambda w: duplicate(w, "appointment_id"),
    "clinic_unique": double_clinic,
    "lpu_unique": lambda w: w.clinics.__setitem__("lpu_id", pd.array([1, 1], dtype="Int64")),
    "lpu_id_present": lambda w: w.set_clinic("lpu_id", pd.NA),
    "timezone_known": lambda w: w.set_clinic("timezone", "Moscow"),
    "access_changed_in_the_past": lambda w: w.set_clinic("access_changed_at", LATER),
    "extract_not_empty": lambda w: setattr(w, "rows", frames.rows(ids=(2,))),
    "small_extract_not_empty": lambda w: (
        setattr(w, "rows", frames.rows(ids=(2,))),
        setattr(w, "history", frames.history(3)),
    ),
    "row_count_near_median": lambda w: setattr(w, "history", frames.history(201)),
}

WITHHELD: dict[str, Break] = {
    **{f"{flag}_present": lambda w, flag=flag: w.set(flag, pd.NA) for flag in suites.FLAGS},  # type: ignore[misc]
    **{f"{flag}_is_false": lambda w, flag=flag: w.set(flag, True) for flag in suites.FLAGS},  # type: ignore[misc]
}


def blank(column: str) -> Break:
    def change(world: World) -> None:
        nullable = {"integer": "Int64", "boolean": "boolean"}.get(suites.OUTGOING_COLUMNS[column])
        if nullable:
            world.rows = world.rows.astype({column: nullable})
        world.set(column, pd.NaT if column == "starts_at" else None)

    return change


OUTGOING: dict[str, Break] = {
    "records_columns_as_in_contract": lambda w: w.rows.insert(0, "birth_date", "x"),
    "records_types_as_in_contract": lambda w: setattr(w, "rows", w.rows.astype({"id": "str"})),
    "clinics_columns_as_in_contract": SOURCE["clinics_columns_as_in_contract"],
    "clinics_types_as_in_contract": SOURCE["clinics_types_as_in_contract"],
    **{f"{column}_present": blank(column) for column in suites.PAYLOAD_COLUMNS if column != "second_name"},
    "starts_at_present": blank("starts_at"),
    "clinic_asked_for": lambda w: w.set("starts_from", pd.NaT),
    "start_not_before_window": lambda w: w.set("starts_from", frames.STARTS_BEFORE),
    "start_before_window_end": lambda w: w.set("starts_before", frames.STARTS_FROM),
    "dt_start_form": lambda w: w.set("dt_start", "2026-03-10T09:30"),
    "dt_end_form": lambda w: w.set("dt_end", "2026-03-10 09:30\n"),
    "time_offset_range": lambda w: w.set("time_offset", 841),
    "dt_start_is_the_start": lambda w: w.set("time_offset", 181),
    "time_offset_of_zone": lambda w: w.set_clinic("timezone", "Asia/Omsk"),
    "status_of_contract": lambda w: w.set("status", "cancelled"),
    "entry_of_contract": lambda w: w.set("entry", "fax"),
    "partners_of_contract": lambda w: w.set("partners", ""),
    "partners_of_clinic": lambda w: w.set("partners", "3,17,18"),
    "phone_form": lambda w: w.set("mobile_phone", "+79001112233"),
    "phone_country": lambda w: w.set("mobile_phone", "7900111223"),
    "first_name_trimmed": lambda w: w.set("first_name", "Анна\u00a0"),
    "first_name_not_blank": lambda w: w.set("first_name", ""),
    "second_name_trimmed": lambda w: w.set("second_name", "Петровна  Ивановна"),
    "second_name_not_blank": lambda w: w.set("second_name", ""),
    **WITHHELD,
    "patient_found_present": blank("patient_found"),
    "patient_resolved": lambda w: w.set("patient_found", False),
    "doctor_found_present": blank("doctor_found"),
    "doctor_resolved": lambda w: w.set("doctor_found", False),
    "record_unique": lambda w: duplicate(w, "id"),
    "clinic_unique": double_clinic,
    "access_enabled_present": lambda w: w.set_clinic("access_enabled", pd.NA),
    "access_is_on": lambda w: w.set_clinic("access_enabled", False),
    "access_changed_by_role_present": lambda w: w.set_clinic("access_changed_by_role", None),
    "access_by_head": lambda w: w.set_clinic("access_changed_by_role", "administrator"),
    "access_changed_at_present": lambda w: w.set_clinic("access_changed_at", pd.NaT),
    "access_for_24_hours": lambda w: w.set_clinic("access_changed_at", frames.NOW - timedelta(hours=23, minutes=59)),
    "lpu_id_present": lambda w: w.set_clinic("lpu_id", pd.NA),
    "has_partner": lambda w: w.clinics.__setitem__("partner_ids", pd.Series([[], [3, 17]], dtype=object)),
}


def test_good_data_passes_both_suites() -> None:
    source, outgoing = source_world().source(), outgoing_world().outgoing()
    assert failed(source) == set()
    assert failed(outgoing) == set()
    assert source.rows == outgoing.rows == 200
    assert source.success
    assert outgoing.success
    for result in (source, outgoing):
        assert all(one.evaluated for one in result.results), "each rule has looked at something"


def test_every_rule_has_data_here_that_breaks_it() -> None:
    assert set(SOURCE) == {rule.name for rule in suites.source_suite()}
    assert set(OUTGOING) == {rule.name for rule in suites.outgoing_suite()}


@pytest.mark.parametrize("name", SOURCE)
def test_source_rule_fails_on_what_it_is_for(name: str) -> None:
    world = source_world()
    SOURCE[name](world)
    rule = next(rule for rule in suites.source_suite() if rule.name == name)
    check_failure(world.alone("source", {name}), rule)


@pytest.mark.parametrize("name", OUTGOING)
def test_outgoing_rule_fails_on_what_it_is_for(name: str) -> None:
    world = outgoing_world()
    OUTGOING[name](world)
    rule = next(rule for rule in suites.outgoing_suite() if rule.name == name)
    check_failure(world.alone("outgoing", {name}), rule)


def check_failure(result: SuiteResult, rule: Rule) -> None:
    one = next(one for one in result.results if one.name == rule.name)
    assert not one.success
    assert one.exception_class is None
    assert one.unexpected > 0
    assert one.severity is rule.severity
    assert (one in result.critical_failures) == (rule.severity is Severity.CRITICAL)
    assert (one in result.warnings) == (rule.severity is Severity.WARNING)
    assert result.success == (rule.severity is not Severity.CRITICAL), "only what is critical stops the shard"
    assert SuiteResult.from_json(result.to_json()) == result


EVERY_DAY = {
    *("patient_resolved", "doctor_resolved", "status_known", "entry_known", "ends_at_present", "start_before_end"),
    *("refused_personal_data_present", "refused_notifications_present", "refused_marketing_present"),
    *("is_anonymous_present", "doctor_banned_present", "phone_present", "phone_has_digits", "timezone_known"),
}


def test_r16_r17_what_clinics_do_every_day_is_a_warning_and_stops_nothing() -> None:
    world = source_world()
    for at, name in enumerate(sorted(EVERY_DAY)):  # three other rows for each
        part = World(world.rows.iloc[at * 3 : at * 3 + 3].copy(), world.clinics)
        SOURCE[name](part)
        world.rows = pd.concat([world.rows.iloc[: at * 3], part.rows, world.rows.iloc[at * 3 + 3 :]])
    result = world.source()
    assert result.success
    assert {one.name for one in result.warnings} == EVERY_DAY
    assert {one.unexpected for one in result.warnings if one.name != "timezone_known"} <= {3}


def test_a_share_is_not_judged_on_a_handful_of_rows() -> None:
    world = World(frames.rows(suites.SHARE_FLOOR_ROWS - 1), history=None)
    world.set("patient_found", False, slice(0, 40))
    assert failed(world.alone("source", {"patient_mostly_resolved"})) == set()
    world = World(frames.rows(suites.SHARE_FLOOR_ROWS), history=None)
    world.set("patient_found", False, slice(0, 40))
    assert failed(world.alone("source", {"patient_mostly_resolved"})) == {"patient_mostly_resolved"}


@pytest.mark.parametrize(("bad", "fails"), [(40, False), (41, True)])
def test_a_share_counts_to_the_row(bad: int, fails: bool) -> None:
    world = source_world()  # 80 % of 200 rows
    world.set("doctor_found", False, slice(0, bad))
    assert bool(failed(world.alone("source", {"doctor_mostly_resolved"}))) == fails


@pytest.mark.parametrize("size", [64, 199])
def test_chunks_make_no_difference_to_the_source_suite(size: int) -> None:
    world = source_world()
    broken = ["patient_mostly_resolved", "status_known", "ends_at_present", "phone_present", "is_anonymous_present"]
    for name in (*broken, "appointment_unique", "created_in_the_past", "start_not_before_window"):
        SOURCE[name](world)
    whole = world.source()
    assert len(failed(whole)) >= 8
    assert world.source(size) == whole


@pytest.mark.parametrize("at_once", [60, 150])
def test_pieces_make_no_difference_to_the_keys(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    world = source_world()
    SOURCE["appointment_unique"](world)
    whole = world.alone("source", {"appointment_unique"})
    assert failed(whole) == {"appointment_unique"}
    monkeypatch.setattr(validation, "_KEYS_AT_ONCE", at_once)
    assert world.alone("source", {"appointment_unique"}) == whole


@pytest.mark.parametrize("size", [150])
def test_chunks_make_no_difference_to_the_outgoing_suite(size: int) -> None:
    world = outgoing_world()
    for name in ("phone_form", "first_name_trimmed", "record_unique", "is_anonymous_is_false", "access_is_on"):
        OUTGOING[name](world)
    whole = world.outgoing()
    assert len(failed(whole)) >= 5
    assert world.outgoing(size) == whole


@pytest.mark.parametrize("suite", ["source", "outgoing"])
def test_rules_that_are_prepared_once_judge_as_great_expectations_does(
    monkeypatch: pytest.MonkeyPatch, suite: str
) -> None:
    world, breaking = (source_world(), SOURCE) if suite == "source" else (outgoing_world(), OUTGOING)
    for rule in suites.SUITES[suite]():
        if rule.part == "rows":
            breaking[rule.name](world)
    ours = world.source(64) if suite == "source" else world.outgoing(64)
    assert len(failed(ours)) >= 15
    asked = []
    monkeypatch.setattr(validation._Prepared, "judge", lambda self, engine: asked.append(self))
    theirs = world.source(64) if suite == "source" else world.outgoing(64)
    assert len(asked) >= 30
    assert ours == theirs


def test_a_rule_that_cannot_be_evaluated_in_a_later_chunk_leaves_the_others_of_its_columns_alone() -> None:
    between = Rule(
        "between",
        "expect_column_values_to_be_between",
        {"column": "x", "min_value": 1, "max_value": 2},
        Severity.WARNING,
        ("x",),
        "",
    )
    present = replace(
        between, name="present", expectation_type="expect_column_values_to_not_be_null", kwargs={"column": "x"}
    )
    tallies = {rule.name: validation._Tally(rule) for rule in (between, present)}
    with validation._GreatExpectations() as look:
        for values in ([1, 2, 3], ["x", None, "y"], [0, 1]):
            look.add(tallies, pd.DataFrame({"x": pd.Series(values, dtype=object)}), "rows")
    assert (tallies["between"].exception_class, tallies["between"].unexpected) == ("TypeError", 2)
    assert (tallies["present"].exception_class, tallies["present"].unexpected) == (None, 1)
    assert {tally.evaluated for tally in tallies.values()} == {8}


def test_no_frame_is_held_behind_its_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations' objects refer to each other; a shard's frames would be there until the collector comes by."""
    held: list[weakref.ref[pd.DataFrame]] = []
    really = validation._GreatExpectations._run

    def run(look: validation._GreatExpectations, frame: pd.DataFrame, *rest: Any) -> list[Any]:
        held.append(weakref.ref(frame))
        return really(look, frame, *rest)

    monkeypatch.setattr(validation._GreatExpectations, "_run", run)
    gc.collect()
    gc.disable()
    try:
        World(frames.rows(50)).source(chunk=25)
        assert len(held) > 10
        assert [frame for frame in held if frame() is not None] == []
    finally:
        gc.enable()


def test_duplicates_are_found_across_chunks() -> None:
    world = World(frames.rows(4), history=None)
    SOURCE["appointment_unique"](world)
    one = next(one for one in world.source(chunk=2).results if one.name == "appointment_unique")
    assert one.unexpected == 2


def test_duplicates_are_found_in_every_slice_and_all_rows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    really = validation._Keys.looked_at

    def looked_at(keys: validation._Keys) -> Iterator[pd.DataFrame]:
        held.append(sum(map(len, keys._parts)))
        return really(keys)

    monkeypatch.setattr(validation._Keys, "looked_at", looked_at)
    slices = [frames.rows(4, ids=(1,)), frames.rows(6, ids=(2,)), frames.rows(2, ids=(1,)).assign(clinic_id=3)]
    for rows in slices:
        rows.loc[rows.index[-1], "appointment_id"] = rows["appointment_id"].iloc[0]
    given: list[pd.DataFrame | None] = []
    for rows in slices:
        given += [*chunks(rows, 3), None]
    world = World(pd.concat(slices))
    result = validation.validate_source(
        given, clinics=world.clinics, windows=world.windows, history=None, now=frames.NOW, shard="open-01"
    )
    unique = next(one for one in result.results if one.name == "appointment_unique")
    assert (unique.evaluated, unique.unexpected) == (12, 6)
    assert result.rows == 12
    # The last None is the end's own.
    assert held == [4, 6, 2, 0]


def test_the_same_id_in_two_clinics_is_no_duplicate() -> None:
    both = [frames.rows(100, ids=(1,)), frames.rows(100, ids=(2,))]
    world = World(pd.concat(both, ignore_index=True))
    assert failed(world.source()) == set()


@pytest.mark.parametrize("column", suites.SOURCE_COLUMNS)
def test_a_column_of_another_type_is_named_and_crashes_nothing(column: str) -> None:
    world = source_world()
    world.rows = world.rows.astype({column: object})
    world.rows.loc[0, column] = "Канарейкина"
    result = world.source()
    (one,) = result.critical_failures
    assert (one.name, one.columns) == ("rows_types_as_in_contract", (column,))
    assert "Канарейкина" not in result.to_json()
    assert {one.name for one in result.results} == {
        rule.name for rule in suites.source_suite() if rule.part == "contract"
    }, "what was not looked at is not reported as passed"


@pytest.mark.parametrize("column", suites.OUTGOING_COLUMNS)
def test_a_missing_column_is_named_and_crashes_nothing(column: str) -> None:
    world = outgoing_world()
    world.rows = world.rows.drop(columns=column)
    (one,) = world.outgoing().critical_failures
    assert (one.name, one.columns) == ("records_columns_as_in_contract", (column,))


def test_a_second_column_of_the_same_name_is_a_broken_type() -> None:
    world = source_world()
    world.rows.insert(0, "phone", "x", allow_duplicates=True)
    assert "rows_types_as_in_contract" in failed(world.source())


def test_a_broken_chunk_among_good_ones_is_found() -> None:
    good, bad = frames.rows(50), frames.rows(50, first_id=51).astype({"phone": object})
    world = source_world()
    result = validation.validate_source(
        [good, bad, good], clinics=world.clinics, windows=world.windows, history=None, **COMMON
    )
    assert failed(result) == {"rows_types_as_in_contract"}
    assert result.rows == 150


def test_time_stamps_with_another_zone_are_not_utc() -> None:
    world = source_world()
    world.rows["starts_at"] = world.rows["starts_at"].dt.tz_convert(frames.ZONE)
    assert failed(world.source()) == {"rows_types_as_in_contract"}


def test_nothing_extracted_and_nothing_to_send_pass_where_nothing_was_expected() -> None:
    nothing = World(frames.rows(0), history=None)
    assert nothing.source().success
    assert validation.validate_source(
        [], clinics=nothing.clinics, windows=nothing.windows, history=None, **COMMON
    ).success
    result = World(frames.outgoing(0)).outgoing()
    assert result.success
    assert result.rows == 0


# Row counts against earlier runs


HISTORY_RULES = {rule.name for rule in suites.source_suite() if rule.part == "history"}


def test_an_empty_extract_is_fine_where_the_clinic_was_empty_before() -> None:
    history = pd.concat([frames.history(100), pd.DataFrame({"clinic_id": [1], "rows": [0]})], ignore_index=True)
    world = World(frames.rows(ids=(2,)), history=history)
    assert failed(world.alone("source", HISTORY_RULES)) == {"row_count_near_median"}, "a warning"


def test_one_earlier_run_is_enough_to_find_an_extract_empty() -> None:
    world = World(frames.rows(ids=(2,)), history=frames.history(100, runs=1))
    assert failed(world.alone("source", HISTORY_RULES)) == {"extract_not_empty"}


@pytest.mark.parametrize(
    ("rows", "median", "fails"),
    [(98, 100, True), (100, 100, False), (400, 100, False), (402, 100, True), (400, 49, False)],
)
def test_a_drop_or_jump_of_rows_is_a_warning(rows: int, median: int, fails: bool) -> None:
    world = World(frames.rows(rows), history=frames.history(median))  # half of the rows for each of two clinics
    result = world.alone("source", {"row_count_near_median"})
    assert bool(result.warnings) == fails
    assert result.success


def test_two_runs_are_too_few_for_a_median() -> None:
    world = World(frames.rows(), history=frames.history(1000, runs=suites.HISTORY_FLOOR_RUNS - 1))
    assert failed(world.alone("source", {"row_count_near_median"})) == set()


def test_a_backfill_with_a_cut_window_is_not_compared_with_full_days() -> None:
    world = World(frames.rows(ids=(2,)), history=frames.history(1000))
    world.rows["starts_at"] = pd.Timestamp(frames.STARTS_FROM).as_unit("us")
    world.rows["ends_at"] = world.rows["starts_at"] + timedelta(minutes=30)
    world.windows["starts_before"] = pd.Timestamp(frames.STARTS_FROM).as_unit("us") + timedelta(days=20)
    assert failed(world.alone("source", HISTORY_RULES)) == set()


# What a regular expression could let through


@pytest.mark.parametrize(
    ("phone", "fails"),
    [
        ("79001112233", False),
        ("77011112233", False),
        ("4930123456", False),
        ("6834000", False),
        ("79001112233\n", True),
        ("7900111223", True),
        ("790011122334", True),
        ("89001112233", False),  # country code 89 does not exist today, but the form is that of the contract
        ("09001112233", True),
        ("٧٩٠٠١١١٢٢٣٣", True),
        ("123456", True),
        ("1234567890123456", True),
    ],
)
def test_phone_form(phone: str, fails: bool) -> None:
    world = outgoing_world()
    world.set("mobile_phone", phone)
    assert bool(failed(world.alone("outgoing", {"phone_form", "phone_country"}))) == fails


NAMES = {"first_name_trimmed", "first_name_not_blank", "second_name_trimmed", "second_name_not_blank"}


@pytest.mark.parametrize(
    "name", [" Анна", "Анна ", "Анна\n", "Анна\u200b", "\ufeffАнна", "Анна\u2009\u2009Мария", "\u3000"]
)
def test_untrimmed_names_are_found(name: str) -> None:
    world = outgoing_world()
    world.set("first_name", name)
    world.set("second_name", name)
    assert failed(world.alone("outgoing", NAMES)) == {"first_name_trimmed", "second_name_trimmed"}


@pytest.mark.parametrize("name", ["Анна", "Анна Мария", "Жан-Поль", "O'Neil", "Ё"])
def test_trimmed_names_pass(name: str) -> None:
    world = outgoing_world()
    world.set("first_name", name)
    world.set("second_name", name)
    assert failed(world.alone("outgoing", NAMES)) == set()


@pytest.mark.parametrize(
    "text", ["2026-13-01 10:00", "2026-02-30 24:00", "2026-03-10 9:30", "2026-03-10 09:30:00", "soon"]
)
def test_local_time_form(text: str) -> None:
    world = outgoing_world()
    world.set("dt_start", text)
    assert failed(world.alone("outgoing", {"dt_start_form"})) == {"dt_start_form"}


@pytest.mark.parametrize("text", ["2026-02-30 10:00", "2026-03-10 09:31"])
def test_a_well_formed_time_that_is_not_the_start_is_found(text: str) -> None:
    world = outgoing_world()
    world.set("dt_start", text, slice(5, 6))
    assert failed(world.alone("outgoing", {"dt_start_form", "dt_start_is_the_start"})) == {"dt_start_is_the_start"}


# The withholding rules, stated a second time


@pytest.mark.parametrize("name", WITHHELD)
def test_r7_r8_r9_r10_r16_one_withheld_record_among_many_stops_the_shard(name: str) -> None:
    world = outgoing_world()
    WITHHELD[name](world)
    result = world.alone("outgoing", set(WITHHELD))
    assert failed(result) == {name}
    assert not result.success


def test_r1_to_r4_a_clinic_that_was_not_read_may_not_be_sent() -> None:
    world = outgoing_world()
    world.clinics = frames.clinics(ids=(2,))
    assert {"access_enabled_present", "access_by_head_present", "has_partner", "lpu_id_present"} - failed(
        world.outgoing()
    ) == {"access_by_head_present"}
    assert "time_offset_of_zone" in failed(world.outgoing())


CLINIC_RULES = {rule.name for rule in suites.outgoing_suite() if rule.part == "clinics"}


def test_r3_the_24_hours_are_full_on_the_second() -> None:
    world = outgoing_world()
    world.set_clinic("access_changed_at", frames.NOW - timedelta(hours=24))
    assert failed(world.alone("outgoing", CLINIC_RULES)) == set()
    world.set_clinic("access_changed_at", frames.NOW - timedelta(hours=24) + timedelta(microseconds=1))
    assert failed(world.alone("outgoing", CLINIC_RULES)) == {"access_for_24_hours"}


def test_closed_clinics_of_the_shard_do_not_matter_while_nothing_of_them_is_sent() -> None:
    world = outgoing_world()
    closed = frames.clinics(ids=(3,))
    closed["access_enabled"] = pd.array([False], dtype="boolean")
    closed["partner_ids"] = pd.Series([[]], dtype=object)
    world.clinics = pd.concat([world.clinics, closed], ignore_index=True)
    assert failed(world.alone("outgoing", CLINIC_RULES)) == set()


def test_partner_ids_may_come_back_from_parquet_as_arrays() -> None:
    world = outgoing_world()
    world.clinics["partner_ids"] = pd.Series([np.array([3, 17]), np.array([3, 17])], dtype=object)
    assert failed(world.alone("outgoing", CLINIC_RULES)) == set()


# Ids of failing rows


def test_the_ids_of_failing_rows_come_from_a_second_look() -> None:
    world = source_world()
    for name in ("appointment_unique", "start_before_window_end", "phone_has_digits"):
        SOURCE[name](world)
    world.set("appointment_id", 500, slice(150, 152))
    result = world.source()
    ids = validation.failing_source_ids(
        result,
        chunks(world.rows, 60),
        clinics=world.clinics,
        windows=world.windows,
        history=world.history,
        now=frames.NOW,
    )
    assert ids == {"start_before_window_end": [1, 2, 1], "appointment_unique": [1, 1]}, "warnings are not looked up"
    assert all(type(one) is int for found in ids.values() for one in found)


def test_the_ids_of_empty_clinics_are_found_and_ids_are_capped() -> None:
    world = World(frames.rows(ids=(2,)))
    ids = validation.failing_source_ids(
        world.source(),
        [world.rows],
        clinics=world.clinics,
        windows=world.windows,
        history=world.history,
        now=frames.NOW,
    )
    assert ids == {"extract_not_empty": [1]}
    world = outgoing_world()
    world.set("is_anonymous", True, slice(0, 150))
    ids = validation.failing_outgoing_ids(
        world.outgoing(), chunks(world.rows, 70), clinics=world.clinics, now=frames.NOW, cap=100
    )
    assert ids == {"is_anonymous_is_false": list(range(1, 101))}


def test_no_ids_where_the_contract_is_broken() -> None:
    world = outgoing_world()
    OUTGOING["records_types_as_in_contract"](world)
    found = validation.failing_outgoing_ids(world.outgoing(), [world.rows], clinics=world.clinics, now=frames.NOW)
    assert found == {}


# Exceptions, logs


def test_an_exception_inside_great_expectations_is_critical_and_reduced_to_its_class(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rule = Rule(
        "impossible",
        "expect_column_values_to_be_between",
        {"column": "phone", "min_value": 1, "max_value": 2},
        Severity.WARNING,
        ("phone",),
        "A comparison of text with numbers, which the contract check would have kept from being made.",
    )
    tallies = {rule.name: validation._Tally(rule)}
    frame = pd.DataFrame({"phone": pd.Series(["Канарейкина"] * 3, dtype=object)})
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught, validation._GreatExpectations() as look:
        warnings.simplefilter("always")
        look.add(tallies, frame, "rows")
    one = tallies["impossible"].result()
    assert (one.severity, one.success, one.exception_class) == (Severity.CRITICAL, False, "TypeError")
    result = SuiteResult("source", "x", 3, (one,))
    said = capfd.readouterr()
    texts = (result.to_json(), said.out, said.err, caplog.text, *map(str, caught))
    assert not any("Канарейкина" in text for text in texts)


def test_log_lines_and_warnings_of_great_expectations_are_kept_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    loud = logging.getLogger("great_expectations.some.module")
    loud.setLevel(logging.DEBUG)  # as some of its modules do
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gx.silence():
            loud.error("Канарейкина")
            warnings.warn("Канарейкина", stacklevel=1)
    assert not caught
    assert not caplog.records
    loud.error("heard again")
    assert caplog.records


@pytest.mark.parametrize(
    ("traceback", "name"),
    [
        ("Traceback:\n  File x\nValueError: could not convert string to float: 'Анна'", "ValueError"),
        ("Traceback:\npandas.errors.OutOfBoundsDatetime: Анна", "OutOfBoundsDatetime"),
        ("Traceback:\nsome.module.SmithError: Анна", "Exception"),
        ("Traceback:\nKeyError: 'Анна\nSmith: 1", "KeyError"),
        ("", "Exception"),
        (None, "Exception"),
    ],
)
def test_only_names_of_known_exceptions_are_kept(traceback: str | None, name: str) -> None:
    info = {"raised_exception": True, "exception_traceback": traceback, "exception_message": "Анна"}
    assert validation._exception_class(info) == name
    assert validation._exception_class({"('column', 'x')": info}) == name
    assert validation._exception_class({"raised_exception": False}) is None


# The run


FUNNEL = Funnel(
    extracted=1000,
    eligible=800,
    withheld=150,
    quarantined=50,
    unchanged=700,
    planned=100,
    accepted=95,
    rejected=2,
    to_retry=1,
    unknown=1,
    dropped=1,
    reasons={Reason.REFUSED_MARKETING: 150},
)


def test_a_run_that_adds_up_passes() -> None:
    assert failed(validation.validate_run(FUNNEL, [FUNNEL] * 5)) == set()
    plan = replace(FUNNEL, accepted=None, rejected=None, to_retry=None, unknown=None, dropped=None)
    assert failed(validation.validate_run(plan, [])) == set()


@pytest.mark.parametrize(
    ("column", "rules"),
    [
        ("extracted", {"extracted_conserved"}),
        ("withheld", {"extracted_conserved"}),
        ("quarantined", {"extracted_conserved"}),
        ("eligible", {"extracted_conserved", "eligible_conserved"}),
        ("unchanged", {"eligible_conserved"}),
        ("planned", {"eligible_conserved", "planned_conserved"}),
        *((column, {"planned_conserved"}) for column in ("accepted", "rejected", "to_retry", "unknown", "dropped")),
    ],
)
def test_conservation_a_single_lost_record_is_critical(column: str, rules: set[str]) -> None:
    result = validation.validate_run(replace(FUNNEL, **{column: getattr(FUNNEL, column) - 1}), [])
    assert {one.name for one in result.critical_failures} == rules


def test_one_number_that_is_missing_among_others_does_not_look_conserved() -> None:
    assert failed(validation.validate_run(replace(FUNNEL, accepted=None), [])) == {"planned_conserved"}


def test_a_sudden_share_of_any_reason_is_a_warning() -> None:
    history = [replace(FUNNEL, reasons=dict.fromkeys(Reason, rows)) for rows in (100, 110, 900)]  # median 11 %
    steady = replace(FUNNEL, reasons=dict.fromkeys(Reason, 210))
    sudden = replace(FUNNEL, reasons={**dict.fromkeys(Reason, 211), Reason.PHONE_MISSING: 110})
    assert failed(validation.validate_run(steady, history)) == set()
    result = validation.validate_run(sudden, history)
    assert {one.name for one in result.warnings} == {
        f"{reason.value}_share_steady" for reason in Reason if reason is not Reason.PHONE_MISSING
    }
    assert result.success
    assert failed(validation.validate_run(sudden, history[:2])) == set(), "two runs are no history"


# Messages


def told(overlaps: list[int | None], doubled: list[int | None]) -> pd.DataFrame:
    frame = pd.DataFrame({"clinic_id": np.arange(len(overlaps), dtype="int64")})
    return frame.assign(
        scenarios_run_twice=pd.array(overlaps, dtype="Int64"), appointments_told_twice=pd.array(doubled, dtype="Int64")
    )


MESSAGE_RULES = ("no_scenario_run_twice", "no_appointment_told_twice")


def messages_judged(messages: pd.DataFrame | None) -> dict[str, tuple[bool, int, int, int]]:
    """Whether each rule about messages holds, and how many clinics it looked at, failed and could not judge."""
    result = validation.validate_run(FUNNEL, [], messages)
    assert result.success, "a warning stops nothing"
    return {
        one.name: (one.success, one.evaluated, one.unexpected, one.missing)
        for one in result.results
        if one.name in MESSAGE_RULES
    }


def test_r15_clinics_whose_patients_get_messages_twice_are_a_warning() -> None:
    overlapping, doubled = told([0, 2, 1], [0, 0, 0]), told([0, 0, 0], [0, 0, 40])
    assert messages_judged(told([0, 0, 0], [0, 0, 0])) == dict.fromkeys(MESSAGE_RULES, (True, 3, 0, 0))
    assert messages_judged(overlapping) == dict(zip(MESSAGE_RULES, [(False, 3, 2, 0), (True, 3, 0, 0)], strict=True))
    assert messages_judged(doubled) == dict(zip(MESSAGE_RULES, [(True, 3, 0, 0), (False, 3, 1, 0)], strict=True))
    assert {one.name for one in validation.validate_run(FUNNEL, [], told([1], [1])).warnings} == set(MESSAGE_RULES)


def test_messages_that_could_not_be_looked_at_are_not_judged() -> None:
    assert messages_judged(None) == dict.fromkeys(MESSAGE_RULES, (True, 0, 0, 0))
    assert messages_judged(told([], [])) == dict.fromkeys(MESSAGE_RULES, (True, 0, 0, 0))
    assert messages_judged(told([None, None], [0, 3])) == dict(
        zip(MESSAGE_RULES, [(True, 2, 0, 2), (False, 2, 1, 0)], strict=True)
    )


# Adding up shards


def test_merging_adds_counts_and_forgives_nothing() -> None:
    good = World(frames.rows(2000), history=None).source()
    world = source_world()
    world.set("patient_found", False, MOST)
    bad = world.source()
    whole = validation.merge([good, bad, good])
    one = next(one for one in whole.results if one.name == "patient_mostly_resolved")
    assert (one.evaluated, one.unexpected, one.success) == (4200, 190, False), "diluted, and still a failure"
    assert whole.rows == 4200
    assert [one.name for one in whole.results] == [rule.name for rule in suites.source_suite()]
    with pytest.raises(ValueError, match="same suite"):
        validation.merge([good, outgoing_world().outgoing()])
