"""What must hold, as data. Nothing here imports Great Expectations; ``validation`` turns rules into its expectations.

Every argument is a fixed constant of this file: one computed from the data would show up in results and Data Docs. For
the same reason no aggregate that echoes values (most common value, distinct values) is used.

Severity follows one question. What clinics' data does every day (a missing flag, a junk phone, a status that nobody has
heard of, a doctor of another clinic) is a *warning*: rules R16 and R17 already keep such a record from being sent. What
only a broken query, a changed source or a bug of ours can do is *critical* and stops the shard's sending. Between the
two stand the ``…_mostly_…`` rules: the same daily fault in so many rows that the column can no longer be what the
contract says it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medflex.domain.reasons import Reason
from medflex.quality.results import Severity

#: Which frame a rule looks at: the rows (chunk by chunk), the keys of all rows of some clinics, the clinics, their row
#: counts beside their earlier runs, the run's numbers, the messages of its clinics; ``contract`` is checked before any
#: frame reaches Great Expectations.
Part = Literal["contract", "rows", "keys", "clinics", "history", "run", "messages"]

#: Shares are not judged on fewer rows: one odd row among five says nothing about a column.
SHARE_FLOOR_ROWS = 50
#: A clinic below this median may run out of appointments by itself; the ledger's guard on absence has the same floor.
EMPTY_FLOOR_ROWS = 10
#: Runs that a clinic (or a reason) must have behind it before its numbers are compared with their median.
HISTORY_FLOOR_RUNS = 3
#: How far ahead of our clock a time stamp of Medlock may be before it counts as coming from the future.
CLOCK_TOLERANCE_MINUTES = 5

STATUSES = ("unconfirmed", "confirmed", "arrived", "completed", "cancelled", "no_show")
SENT_STATUSES = ("relevant", "confirmed", "arrived", "canceled", "failure", "undefined")
ENTRIES = ("direct", "online")
FLAGS = ("refused_personal_data", "refused_notifications", "refused_marketing", "is_anonymous", "doctor_banned")

#: Kinds of columns: ``integer``, ``boolean`` (both may be nullable), ``text`` (pandas' ``str``), ``utc`` (time stamps
#: with the zone UTC), ``list`` (anything that holds a list of ids; not shown to Great Expectations).
Kind = Literal["integer", "boolean", "text", "utc", "list"]

#: Names are not read for the source suite: nothing is checked about them there.
SOURCE_COLUMNS: Mapping[str, Kind] = {
    "clinic_id": "integer",
    "appointment_id": "integer",
    "patient_id": "integer",
    "doctor_id": "integer",
    "starts_at": "utc",
    "ends_at": "utc",
    "status": "text",
    "entry": "text",
    "is_anonymous": "boolean",
    "phone": "text",
    "refused_personal_data": "boolean",
    "refused_notifications": "boolean",
    "refused_marketing": "boolean",
    "doctor_banned": "boolean",
    "patient_found": "boolean",
    "doctor_found": "boolean",
    "created_at": "utc",
    "updated_at": "utc",
}
PAYLOAD_COLUMNS: Mapping[str, Kind] = {
    "clinic_id": "integer",
    "id": "integer",
    "doctor_id": "integer",
    "dt_start": "text",
    "dt_end": "text",
    "time_offset": "integer",
    "status": "text",
    "mis_status": "text",
    "entry": "text",
    "partners": "text",
    "first_name": "text",
    "second_name": "text",
    "mobile_phone": "text",
    "digest": "integer",
}
#: What the source says about the same appointments, joined again by id after the filter.
WITNESS_COLUMNS: Mapping[str, Kind] = {
    "starts_at": "utc",
    "starts_from": "utc",
    "starts_before": "utc",
    "refused_personal_data": "boolean",
    "refused_notifications": "boolean",
    "refused_marketing": "boolean",
    "is_anonymous": "boolean",
    "doctor_banned": "boolean",
    "patient_found": "boolean",
    "doctor_found": "boolean",
}
OUTGOING_COLUMNS: Mapping[str, Kind] = {**PAYLOAD_COLUMNS, **WITNESS_COLUMNS}
CLINIC_COLUMNS: Mapping[str, Kind] = {
    "clinic_id": "integer",
    "lpu_id": "integer",
    "timezone": "text",
    "access_enabled": "boolean",
    "access_changed_at": "utc",
    "access_changed_by_role": "text",
    "partner_ids": "list",
}

# White space as Unicode sees it, zero-width characters included. Spelt out, because `\s` depends on the regex engine,
# and above U+00FF as the characters themselves: RE2 knows no `\u`, so that pandas would match row by row in Python.
_SPACE = r"[\t-\r\x1c- \x85\xa0" + "\u1680\u180e\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]"
_BADLY_TRIMMED = rf"^{_SPACE}|{_SPACE}\Z|{_SPACE}{{2}}"
_LOCAL_TIME = r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]) (?:[01]\d|2[0-3]):[0-5]\d\Z"
_PHONE = r"^[0-9]{7,15}\Z"
# A number of country code 7 has ten digits after it; no country code begins with 0.
_PHONE_COUNTRY = r"^(?:7[0-9]{10}|[1-689][0-9]*)\Z"
_PARTNERS = r"^[1-9][0-9]*(?:,[1-9][0-9]*)*\Z"
# Seven to fifteen digits with anything a person may type between them.
_PHONE_AS_TYPED = r"^[^0-9]*(?:[0-9][^0-9]*){7,20}\Z"


@dataclass(frozen=True)
class Rule:
    """One expectation: its Great Expectations type, fixed arguments, and what its failure does."""

    name: str
    expectation_type: str
    kwargs: Mapping[str, Any]
    severity: Severity
    columns: tuple[str, ...]
    description: str
    part: Part = "rows"
    #: Below this many judged rows the rule holds whatever it counts.
    judged_from: int = field(default=0)

    @property
    def bounds(self) -> dict[str, Any]:
        """The arguments without the column names and without defaults that only steer Great Expectations."""
        names = ("column", "column_A", "column_B", "column_list", "ignore_row_if")
        return {key: value for key, value in self.kwargs.items() if key not in names}


def _contract(frame: str, columns: Mapping[str, Kind]) -> list[Rule]:
    return [
        Rule(
            f"{frame}_columns_as_in_contract",
            "expect_table_columns_to_match_set",
            {"column_set": list(columns), "exact_match": True},
            Severity.CRITICAL,
            tuple(columns),
            f"The {frame} have exactly the contract's columns: no surname, birth date or free text, none missing.",
            "contract",
        ),
        Rule(
            f"{frame}_types_as_in_contract",
            # Checked by ourselves before Great Expectations sees the frame; the type is the nearest it has.
            "expect_table_columns_to_match_set",
            {"column_set": [f"{name} {kind}" for name, kind in columns.items()], "exact_match": True},
            Severity.CRITICAL,
            tuple(columns),
            f"Each column of the {frame} has the contract's type.",
            "contract",
        ),
    ]


def _present(column: str, severity: Severity, description: str, part: Part = "rows", name: str | None = None) -> Rule:
    return Rule(
        name or f"{column}_present",
        "expect_column_values_to_not_be_null",
        {"column": column},
        severity,
        (column,),
        description,
        part,
    )


def _in_set(
    name: str,
    column: str,
    values: tuple[Any, ...],
    severity: Severity,
    description: str,
    part: Part = "rows",
    mostly: float | None = None,
) -> Rule:
    kwargs: dict[str, Any] = {"column": column, "value_set": list(values)}
    if mostly is not None:
        kwargs["mostly"] = mostly
    floor = 0 if mostly is None else SHARE_FLOOR_ROWS
    return Rule(name, "expect_column_values_to_be_in_set", kwargs, severity, (column,), description, part, floor)


def _regex(
    name: str,
    column: str,
    regex: str,
    severity: Severity,
    description: str,
    match: bool = True,
    mostly: float | None = None,
) -> Rule:
    kwargs: dict[str, Any] = {"column": column, "regex": regex}
    if mostly is not None:
        kwargs["mostly"] = mostly
    expectation = "expect_column_values_to_match_regex" if match else "expect_column_values_to_not_match_regex"
    floor = 0 if mostly is None else SHARE_FLOOR_ROWS
    return Rule(name, expectation, kwargs, severity, (column,), description, judged_from=floor)


def _between(
    name: str,
    column: str,
    low: float | None,
    high: float | None,
    severity: Severity,
    description: str,
    part: Part = "rows",
) -> Rule:
    bounds = {key: value for key, value in (("min_value", low), ("max_value", high)) if value is not None}
    return Rule(
        name,
        "expect_column_values_to_be_between",
        {"column": column, **bounds},
        severity,
        (column,),
        description,
        part,
    )


def _after(
    name: str,
    later: str,
    earlier: str,
    severity: Severity,
    description: str,
    or_equal: bool = False,
    part: Part = "rows",
    mostly: float | None = None,
) -> Rule:
    kwargs: dict[str, Any] = {
        "column_A": later,
        "column_B": earlier,
        "or_equal": or_equal,
        "ignore_row_if": "either_value_is_missing",
    }
    if mostly is not None:
        kwargs["mostly"] = mostly
    return Rule(
        name,
        "expect_column_pair_values_a_to_be_greater_than_b",
        kwargs,
        severity,
        (later, earlier),
        description,
        part,
        0 if mostly is None else SHARE_FLOOR_ROWS,
    )


def _window(severity: Severity) -> list[Rule]:
    return [
        _present("starts_at", severity, "Each appointment has a start."),
        _present(
            "starts_from", severity, "Each row belongs to a clinic whose window was asked for.", name="clinic_asked_for"
        ),
        _after(
            "start_not_before_window",
            "starts_at",
            "starts_from",
            severity,
            "No appointment starts before its clinic's window (R6: 00:00 of day D−45, local).",
            or_equal=True,
        ),
        _after(
            "start_before_window_end",
            "starts_before",
            "starts_at",
            severity,
            "Each appointment starts before the end of its clinic's window (R6: 00:00 of day D+31, local).",
        ),
    ]


def _unique(name: str, columns: tuple[str, ...], description: str) -> Rule:
    return Rule(
        name,
        "expect_compound_columns_to_be_unique",
        {"column_list": list(columns)},
        Severity.CRITICAL,
        columns,
        description,
        "keys",
    )


def source_suite() -> list[Rule]:
    """What the extract must be: the contract of include/sql/medlock, and how far the clinics' data may stray."""
    critical, warning = Severity.CRITICAL, Severity.WARNING
    rules = [
        *_contract("rows", SOURCE_COLUMNS),
        *_contract("clinics", CLINIC_COLUMNS),
        _present("clinic_id", critical, "Each row has its clinic."),
        _present("appointment_id", critical, "Each row has its appointment."),
        *_window(critical),
    ]
    for found, what in (("patient_found", "patient"), ("doctor_found", "doctor")):
        rules += [
            _in_set(
                f"{what}_resolved",
                found,
                (True,),
                warning,
                f"The {what} exists and belongs to the same clinic; otherwise quarantined (R17).",
            ),
            _in_set(
                f"{what}_mostly_resolved",
                found,
                (True,),
                critical,
                f"At least 80 % of the rows find their {what}; fewer mean a broken join or key.",
                mostly=0.8,
            ),
        ]
    rules += [
        _present("status", warning, "Each appointment has a status."),
        _in_set("status_known", "status", STATUSES, warning, "The status is known; otherwise sent as 'undefined'."),
        _in_set(
            "status_mostly_known",
            "status",
            STATUSES,
            critical,
            "At least half of the statuses are known; fewer mean that Medlock's words have changed.",
            mostly=0.5,
        ),
        _present("entry", warning, "Each appointment has an entry channel; otherwise quarantined (R17)."),
        _in_set("entry_known", "entry", ENTRIES, warning, "The entry channel is known; otherwise quarantined (R17)."),
        _in_set(
            "entry_mostly_known",
            "entry",
            ENTRIES,
            critical,
            "At least half of the entry channels are known; fewer mean that Medlock's words have changed.",
            mostly=0.5,
        ),
        _present("ends_at", warning, "Each appointment has an end; otherwise quarantined (R17)."),
        _after(
            "start_before_end",
            "ends_at",
            "starts_at",
            warning,
            "The end comes after the start; otherwise quarantined (R17).",
        ),
        _after(
            "start_mostly_before_end",
            "ends_at",
            "starts_at",
            critical,
            "At least 80 % of the ends come after the start; fewer mean that the columns are not what they say.",
            mostly=0.8,
        ),
        _between(
            "length_believable", "length_minutes", None, 720, warning, "No appointment lasts more than twelve hours."
        ),
    ]
    rules += [_present(flag, warning, "The flag is known; a missing one counts as a refusal (R16).") for flag in FLAGS]
    rules += [
        _present("phone", warning, "The patient has a phone; otherwise quarantined (R17)."),
        _regex(
            "phone_has_digits",
            "phone",
            _PHONE_AS_TYPED,
            warning,
            "The phone has enough digits to be one; otherwise quarantined (R17).",
        ),
        _regex(
            "phone_mostly_has_digits",
            "phone",
            _PHONE_AS_TYPED,
            critical,
            "At least half of the phones have enough digits; fewer mean that the column holds something else.",
            mostly=0.5,
        ),
        _after(
            "created_in_the_past",
            "clock_limit",
            "created_at",
            warning,
            f"No row was created later than now (with {CLOCK_TOLERANCE_MINUTES} minutes of tolerance).",
            or_equal=True,
        ),
        _after(
            "updated_in_the_past",
            "clock_limit",
            "updated_at",
            warning,
            f"No row was changed later than now (with {CLOCK_TOLERANCE_MINUTES} minutes of tolerance).",
            or_equal=True,
        ),
        _unique("appointment_unique", ("clinic_id", "appointment_id"), "Each appointment of a clinic comes once."),
        _unique_clinic("clinic_unique", "clinic_id", "Each clinic comes once."),
        _unique_clinic("lpu_unique", "lpu_id", "No two clinics share one Medflex id; their patients would be mixed."),
        _present("lpu_id", warning, "The clinic has its Medflex id; without it nothing can be sent.", "clinics"),
        _in_set(
            "timezone_known",
            "timezone_known",
            (True,),
            warning,
            "The clinic's zone is in the tz database; otherwise all of its rows are quarantined (R17).",
            "clinics",
        ),
        _after(
            "access_changed_in_the_past",
            "clock_limit",
            "access_changed_at",
            warning,
            "No access switch was turned in the future; such a switch counts as off.",
            or_equal=True,
            part="clinics",
        ),
        _between(
            "extract_not_empty",
            "rows_if_never_empty",
            1,
            None,
            critical,
            f"A clinic that always had rows (median {EMPTY_FLOOR_ROWS} or more) has some today.",
            "history",
        ),
        _between(
            "small_extract_not_empty",
            "rows_if_small_and_never_empty",
            1,
            None,
            warning,
            f"A clinic that always had a few rows (median below {EMPTY_FLOOR_ROWS}) has some today.",
            "history",
        ),
        _between(
            "row_count_near_median",
            "rows_to_median",
            0.5,
            2.0,
            warning,
            f"A clinic's rows are between half and twice the median of its last runs (from {HISTORY_FLOOR_RUNS} runs "
            f"and a median of {SHARE_FLOOR_ROWS} rows on).",
            "history",
        ),
    ]
    return rules


def _unique_clinic(name: str, column: str, description: str) -> Rule:
    return Rule(
        name,
        "expect_column_values_to_be_unique",
        {"column": column},
        Severity.CRITICAL,
        (column,),
        description,
        "clinics",
    )


def outgoing_suite() -> list[Rule]:
    """What would be sent. All critical: a failure here is a bug of ours, whatever the clinics' data looks like.

    The withholding rules are stated a second time, over flags joined again from the source, and share no code with
    ``medflex.domain.eligibility``.
    """
    critical = Severity.CRITICAL
    rules = [
        *_contract("records", OUTGOING_COLUMNS),
        *_contract("clinics", CLINIC_COLUMNS),
    ]
    rules += [
        _present(column, critical, "The contract requires this field.")
        for column in PAYLOAD_COLUMNS
        if column != "second_name"
    ]
    rules += [
        *_window(critical),
        _regex("dt_start_form", "dt_start", _LOCAL_TIME, critical, "Local time as YYYY-MM-DD hh:mm, without zone."),
        _regex("dt_end_form", "dt_end", _LOCAL_TIME, critical, "Local time as YYYY-MM-DD hh:mm, without zone."),
        _between(
            "time_offset_range", "time_offset", -720, 840, critical, "Minutes east of UTC, within what zones can have."
        ),
        Rule(
            "dt_start_is_the_start",
            "expect_column_pair_values_to_be_equal",
            {"column_A": "dt_start_utc", "column_B": "starts_at_minute", "ignore_row_if": "neither"},
            critical,
            ("dt_start", "time_offset", "starts_at"),
            "dt_start and time_offset together say the same minute as the source.",
        ),
        Rule(
            "time_offset_of_zone",
            "expect_column_pair_values_to_be_equal",
            {"column_A": "time_offset", "column_B": "zone_offset", "ignore_row_if": "neither"},
            critical,
            ("time_offset", "starts_at"),
            "time_offset is that of the clinic's zone at the start; a clinic without a known zone sends nothing (R17).",
        ),
        _in_set("status_of_contract", "status", SENT_STATUSES, critical, "The status is one of the contract's six."),
        _in_set("entry_of_contract", "entry", ENTRIES, critical, "The entry channel is one of the contract's two."),
        _regex(
            "partners_of_contract", "partners", _PARTNERS, critical, "At least one partner, ids joined by commas (R4)."
        ),
        Rule(
            "partners_of_clinic",
            "expect_column_pair_values_to_be_equal",
            {"column_A": "partners", "column_B": "clinic_partners", "ignore_row_if": "neither"},
            critical,
            ("partners", "clinic_id"),
            "The partners are exactly those whose integration the clinic has enabled, in ascending order (R4).",
        ),
        _regex("phone_form", "mobile_phone", _PHONE, critical, "Digits only, 7 to 15 of them."),
        _regex(
            "phone_country",
            "mobile_phone",
            _PHONE_COUNTRY,
            critical,
            "With country code; eleven digits where that is 7.",
        ),
        _regex("first_name_trimmed", "first_name", _BADLY_TRIMMED, critical, "White space is folded.", match=False),
        _regex("first_name_not_blank", "first_name", r"^\Z", critical, "The first name is not empty.", match=False),
        _regex("second_name_trimmed", "second_name", _BADLY_TRIMMED, critical, "White space is folded.", match=False),
        _regex("second_name_not_blank", "second_name", r"^\Z", critical, "Absent is null, not empty.", match=False),
    ]
    for flag, rule in zip(FLAGS, ("R7", "R8", "R8", "R9", "R10"), strict=True):
        rules += [
            _present(flag, critical, "No record leaves on an unknown flag (R16)."),
            _in_set(f"{flag}_is_false", flag, (False,), critical, f"No record leaves that {rule} withholds."),
        ]
    for found, what in (("patient_found", "patient"), ("doctor_found", "doctor")):
        rules += [
            _present(found, critical, f"The source was asked whether the {what} exists."),
            _in_set(f"{what}_resolved", found, (True,), critical, f"No record leaves without its {what} (R17)."),
        ]
    rules += [
        _unique("record_unique", ("clinic_id", "id"), "Each record of a clinic comes once."),
        _unique_clinic("clinic_unique", "clinic_id", "Each clinic comes once."),
        _present("access_enabled", critical, "The access switch is known (R1, R16).", "clinics"),
        _in_set("access_is_on", "access_enabled", (True,), critical, "The access switch is on (R1).", "clinics"),
        _present("access_changed_by_role", critical, "It is known who turned the switch (R2, R16).", "clinics"),
        _in_set(
            "access_by_head",
            "access_changed_by_role",
            ("head",),
            critical,
            "The switch was turned by the head of the clinic (R2).",
            "clinics",
        ),
        _present("access_changed_at", critical, "It is known when the switch was turned (R3, R16).", "clinics"),
        _after(
            "access_for_24_hours",
            "a_day_ago",
            "access_changed_at",
            critical,
            "The switch has been on for 24 hours (R3).",
            or_equal=True,
            part="clinics",
        ),
        _present("lpu_id", critical, "The clinic has its Medflex id.", "clinics"),
        _in_set(
            "has_partner", "has_partner", (True,), critical, "The clinic has a partner to send to (R4).", "clinics"
        ),
    ]
    return rules


#: The numbers of a run: each pair says that the left column equals the sum of the right ones.
EQUATIONS: Mapping[str, tuple[str, ...]] = {
    "extracted": ("eligible", "withheld", "quarantined"),
    "eligible": ("unchanged", "planned"),
    "planned": ("accepted", "rejected", "to_retry", "unknown", "dropped"),
}


def run_suite() -> list[Rule]:
    """The run as a whole: conservation, each reason's share of the rows beside the last runs, double messages."""
    rules = [
        _in_set(
            f"{total}_conserved",
            f"{total}_gap",
            (0,),
            Severity.CRITICAL,
            f"{total} = {' + '.join(parts)}".replace("_", " ") + ".",
            "run",
        )
        for total, parts in EQUATIONS.items()
    ]
    rules += [
        _between(
            f"{reason.value}_share_steady",
            f"{reason.value}_share_change",
            -10.0,
            10.0,
            Severity.WARNING,
            f"The share of rows held back for {reason.value} is within ten percentage points of the median of the last "
            f"runs (from {HISTORY_FLOOR_RUNS} runs and {SHARE_FLOOR_ROWS} rows on).",
            "run",
        )
        for reason in Reason
    ]
    rules += [
        _in_set(
            "no_scenario_run_twice",
            "scenarios_run_twice",
            (0,),
            Severity.WARNING,
            "No clinic's Smart Care runs a scenario that one of its partners runs as well (R15, by configuration).",
            "messages",
        ),
        _in_set(
            "no_appointment_told_twice",
            "appointments_told_twice",
            (0,),
            Severity.WARNING,
            "No appointment of a clinic got two messages of one scenario (R15, by record).",
            "messages",
        ),
    ]
    return rules


SUITES = {"source": source_suite, "outgoing": outgoing_suite, "run": run_suite}
