"""R13, R14: what can be read of an action, which of its times exist, and what is decided about it, row by row."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.partner_actions import (
    FINISHED,
    KEPT_DAYS,
    LIVE,
    LONG_TRANSACTION,
    Action,
    ActionType,
    Appraisal,
    Made,
    Ruling,
    Slot,
    Standing,
    Version,
    is_from_the_future,
    is_too_old,
    new_times,
    read_action,
    rule,
    rule_time,
)
from medflex.domain.status import MEDFLEX_STATUS

ID = "8d0f6c1e-5c3b-4d6b-9a51-0f6f3d2c7b11"
NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FIELDS: dict[str, Any] = {
    "id": ID,
    "lpu_id": 1,
    "appointment_id": 2,
    "partner_id": 3,
    "type": "confirm",
    "base_version": 4,
    "dt_start": None,
    "dt_end": None,
    "scenario": None,
    "created_at": "2026-11-23T08:00:00Z",
}
TIMES = {"type": "reschedule", "dt_start": "2026-12-01 10:00", "dt_end": "2026-12-01 10:30"}


def action(**fields: Any) -> Action:
    """Return an action that can be read."""
    made = read_action(FIELDS | fields)
    assert made is not None
    return made


# What can be read


def test_an_action_is_read_as_it_is() -> None:
    assert action() == Action(
        action_id=UUID(ID),
        lpu_id=1,
        appointment_id=2,
        partner_id=3,
        type=ActionType.CONFIRM,
        base_version=4,
        dt_start=None,
        dt_end=None,
        scenario=None,
        created_at=datetime(2026, 11, 23, 8, tzinfo=UTC),
    )
    assert action(**TIMES).malformed == action(type="notification", scenario="greeting").malformed == ()
    assert action(created_at="2026-11-23T11:00:00.123456+03:00").created_at == datetime(
        2026, 11, 23, 8, 0, 0, 123456, tzinfo=UTC
    )
    assert action(id=ID.upper()).action_id == UUID(ID)


@pytest.mark.parametrize(
    "entry", [None, 1, "text", [], [FIELDS], {}, FIELDS | {"id": None}, FIELDS | {"id": 7}], ids=repr
)
def test_what_has_no_id_is_no_action(entry: Any) -> None:
    assert read_action(entry) is None


@pytest.mark.parametrize(
    "id_",
    [
        "",
        "x" * 36,
        ID[:-1],
        ID + " ",
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        "urn:" + ID.replace("-", ""),
        ID.replace("-", "") + "----",
        "8d0f6c1e_5c3b-4d6b-9a51-0f6f3d2c7b1111"[:36],
        "٨d0f6c1e-5c3b-4d6b-9a51-0f6f3d2c7b11",
    ],
)
def test_an_id_in_any_other_form_is_none(id_: str) -> None:
    """It would be answered under another name, and two of them could mean one action."""
    assert read_action(FIELDS | {"id": id_}) is None


@pytest.mark.parametrize("name", ["lpu_id", "appointment_id", "partner_id", "base_version"])
@pytest.mark.parametrize("value", [None, 0, -1, 2**63, 1.0, "1", True, [], {}, float("nan")], ids=repr)
def test_a_number_has_to_be_one(name: str, value: Any) -> None:
    read = action(**{name: value})
    assert read.malformed == (name,)
    assert getattr(read, name) is None
    assert action(**{name: 2**63 - 1}).malformed == ()


@pytest.mark.parametrize("value", [None, "Confirm", "confirm ", "delete", 1, [], {}, ["confirm"]], ids=repr)
def test_a_type_has_to_be_known(value: Any) -> None:
    assert action(type=value).malformed == ("type",)


@pytest.mark.parametrize(
    "value",
    [
        None, 0, "", "now", "2026-11-23", "2026-11-23T08:00:00", "2026-02-30T08:00:00Z", "2026-11-23T25:00:00Z",
        "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", [],
    ],
    ids=repr,
)  # fmt: skip
def test_a_moment_has_to_be_one_that_every_database_can_keep(value: Any) -> None:
    assert action(created_at=value).malformed == ("created_at",)


@pytest.mark.parametrize(
    ("start", "end", "malformed"),
    [
        ("2026-12-01 10:00", "2026-12-01 10:00", ("dt_end",)),
        ("2026-12-01 10:00", "2026-12-01 09:59", ("dt_end",)),
        ("2026-12-01 10:00", "2026-11-30 23:00", ("dt_end",)),
        (None, "2026-12-01 10:00", ("dt_start",)),
        (None, None, ("dt_end", "dt_start")),
        ("2026-12-01T10:00", "2026-12-01 10:30", ("dt_start",)),
        ("2026-12-1 10:00", "2026-12-01 10:30", ("dt_start",)),
        ("2026-12-01 9:00", "2026-12-01 10:30", ("dt_start",)),
        ("2026-12-01 10:00:00", "2026-12-01 10:30", ("dt_start",)),
        ("2026-12-01 24:00", "2026-12-02 10:30", ("dt_start",)),
        ("2027-02-29 10:00", "2027-03-01 10:30", ("dt_start",)),
        ("2028-02-29 10:00", "2028-03-01 10:30", ()),
        ("0000-12-01 10:00", "2026-12-01 10:30", ("dt_start",)),
        ("0001-01-01 00:00", "2026-12-01 10:30", ("dt_start",)),
        ("2026-12-01 10:00", "9999-12-31 23:59", ("dt_end",)),
        ("2026-12-01 10:00\n", "2026-12-01 10:30", ("dt_start",)),
        ("２026-12-01 10:00", "2026-12-01 10:30", ("dt_start",)),
        (1_700_000_000, "2026-12-01 10:30", ("dt_start",)),
    ],
)
def test_a_reschedule_has_two_times_in_their_order(start: Any, end: Any, malformed: tuple[str, ...]) -> None:
    assert action(type="reschedule", dt_start=start, dt_end=end).malformed == malformed


@pytest.mark.parametrize(
    "scenario",
    [
        None,
        "",
        "Greeting",
        "приветствие",
        "a b",
        "a-b",
        "1a",
        "_a",
        "a" * 65,
        "a\n",
        "a\x00",
        5,
        ["a"],
        "evlampiya_79951234567",
        "a12345",
    ],
    ids=repr,
)
def test_a_notification_has_a_scenario_and_no_text(scenario: Any) -> None:
    read = action(type="notification", scenario=scenario)
    assert (read.malformed, read.scenario) == (("scenario",), None)
    for good in ("a" * 64, "survey_2026", "a1234_5678"):
        assert action(type="notification", scenario=good).malformed == ()


def test_what_another_type_needs_is_not_looked_at_and_not_kept() -> None:
    read = action(dt_start="now", dt_end="2026-12-01 10:00", scenario="Call Anna, 9001112233", note="Anna")
    assert (read.malformed, read.dt_start, read.dt_end, read.scenario) == ((), None, None, None)
    assert "Anna" not in repr(read)
    assert "9001112233" not in repr(read)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(list(FIELDS.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(FIELDS)), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "more"]), JSON).map(lambda odd: FIELDS | odd) | JSON)
def test_whatever_medflex_lists_is_an_action_or_none(entry: Any) -> None:
    read = read_action(entry)
    if read is None:
        return
    needed = {"lpu_id", "appointment_id", "partner_id", "base_version", "type", "created_at"}
    needed |= {"dt_start", "dt_end"} if read.type is ActionType.RESCHEDULE else set()
    needed |= {"scenario"} if read.type is ActionType.NOTIFICATION else set()
    missing = {name for name in needed if getattr(read, name) is None}
    assert missing <= set(read.malformed) <= needed
    for name in ("lpu_id", "appointment_id", "partner_id", "base_version"):
        assert getattr(read, name) is None or 1 <= getattr(read, name) < 2**63
    if not read.malformed:
        new_times(read, ZoneInfo("Europe/Berlin"), NOW)


# Which times there are


def instants(text: str, zone: ZoneInfo) -> list[datetime]:
    """Return all instants at which clocks show a time, by asking each quarter of an hour around it."""
    local = datetime.fromisoformat(text)
    first = local.replace(tzinfo=UTC) - timedelta(hours=28)
    # Offsets are whole minutes in our time, and quarters of an hour since 1972 in all zones that clinics have.
    moments = (first + timedelta(minutes=minutes) for minutes in range(0, 56 * 60, 5))
    return [moment for moment in moments if moment.astimezone(zone).replace(tzinfo=None) == local]


@pytest.mark.parametrize(
    ("zone", "time", "there"),
    [
        ("Europe/Berlin", "2027-03-28 01:55", 1),
        ("Europe/Berlin", "2027-03-28 02:00", 0),
        ("Europe/Berlin", "2027-03-28 02:55", 0),
        ("Europe/Berlin", "2027-03-28 03:00", 1),
        ("Europe/Berlin", "2027-10-31 01:55", 1),
        ("Europe/Berlin", "2027-10-31 02:00", 2),
        ("Europe/Berlin", "2027-10-31 02:55", 2),
        ("Europe/Berlin", "2027-10-31 03:00", 1),
        ("America/New_York", "2027-03-14 02:30", 0),
        ("America/New_York", "2027-11-07 01:30", 2),
        # Half an hour only; and a clock that was put forward by a whole day.
        ("Australia/Lord_Howe", "2027-04-04 01:45", 2),
        ("Australia/Lord_Howe", "2027-04-04 01:25", 1),
        ("Australia/Lord_Howe", "2027-10-03 02:15", 0),
        ("Pacific/Apia", "2011-12-30 12:00", 0),
        ("Pacific/Apia", "2011-12-31 12:00", 1),
        # Midnight that does not exist.
        ("Africa/Cairo", "2027-04-30 00:30", 0),
        ("Europe/Moscow", "2014-10-26 01:30", 2),
        ("Europe/Moscow", "2027-03-28 02:30", 1),
    ],
)
def test_a_time_that_clocks_skip_or_show_twice_is_none(zone: str, time: str, there: int) -> None:
    known = instants(time, ZoneInfo(zone))
    assert len(known) == there
    local = datetime.fromisoformat(time)
    before = datetime(2011, 1, 1, tzinfo=UTC)
    # As a start, and as an end: the other one lies two days and a half away.
    for day in (timedelta(hours=60), -timedelta(hours=60)):
        times = sorted([local, local + day])
        texts = [f"{moment:%Y-%m-%d %H:%M}" for moment in times]
        made = new_times(action(type="reschedule", dt_start=texts[0], dt_end=texts[1]), ZoneInfo(zone), before)
        assert (made is not None) == (there == 1)
        assert made is None or known[0] in made


# Names that tell of no place, and zones whose offsets are no whole minutes nowadays, are not among those of clinics.
ZONES = st.sampled_from(sorted(available_timezones() - {"localtime", "posixrules", "Factory"})).map(ZoneInfo)


@given(
    ZONES,
    st.integers(0, 18 * 365 * 24 * 12),
    st.integers(1, 600),
)
def test_a_time_is_the_one_instant_at_which_clocks_show_it(zone: ZoneInfo, since: int, minutes: int) -> None:
    first = datetime(2020, 1, 1, tzinfo=UTC)
    start = first + timedelta(minutes=since * 5)
    times = [f"{time:%Y-%m-%d %H:%M}" for time in (start, start + timedelta(minutes=minutes * 5))]
    known = [instants(time, zone) for time in times]
    asked = action(type="reschedule", dt_start=times[0], dt_end=times[1])
    made = new_times(asked, zone, first - timedelta(days=9))
    alone = [found[0] for found in known if len(found) == 1]
    assert made == (tuple(alone) if len(alone) == 2 and alone[0] < alone[1] else None)


def test_a_new_time_lies_ahead() -> None:
    zone = ZoneInfo("Europe/Moscow")
    start = datetime(2026, 12, 1, 7, tzinfo=UTC)
    made = start, start + timedelta(minutes=30)
    assert new_times(action(**TIMES), zone, start - SECOND) == made
    assert new_times(action(**TIMES), zone, start) is None
    assert new_times(action(**TIMES), zone, start + SECOND) is None
    assert new_times(action(), zone, NOW) is None


# How old an action may be


def test_what_may_have_been_forgotten_is_too_old_and_what_would_be_forgotten_too_early_is_from_the_future() -> None:
    asked = action(created_at=NOW.isoformat())
    assert not is_too_old(asked, NOW + timedelta(days=KEPT_DAYS) - SECOND)
    assert is_too_old(asked, NOW + timedelta(days=KEPT_DAYS))
    assert not is_from_the_future(asked, NOW - timedelta(days=1) + SECOND)
    assert is_from_the_future(asked, NOW - timedelta(days=1))
    assert not is_too_old(replace(asked, created_at=None), NOW)
    assert not is_from_the_future(replace(asked, created_at=None), NOW)


# What is decided


def test_each_status_that_medflex_knows_is_to_come_or_over() -> None:
    assert frozenset(MEDFLEX_STATUS) == FINISHED | LIVE
    assert not FINISHED & LIVE


READ_AT = NOW - timedelta(days=1)
SHOWN = Version(4, 1000, READ_AT)
TO_COME = Appraisal(
    exists=True,
    revoked=False,
    linked_partners=frozenset({3, 8}),
    status="unconfirmed",
    starts_at=NOW + timedelta(days=1),
    ends_at=NOW + timedelta(days=1, minutes=30),
    changed_at=READ_AT - timedelta(days=5),
    doctor_id=1,
    patient_id=1,
    digest=1000,
    timezone="Europe/Moscow",
)
STANDING = Standing(frozenset({3, 8}), (SHOWN,))
OF_TYPE = {
    ActionType.CONFIRM: action(),
    ActionType.CANCEL: action(type="cancel"),
    ActionType.RESCHEDULE: action(**TIMES),
    ActionType.NOTIFICATION: action(type="notification", scenario="greeting"),
}
SAME = action(type="reschedule", dt_start="2026-11-24 12:00", dt_end="2026-11-24 12:30")
STATUSES = (*sorted(FINISHED | LIVE), "lost", "Confirmed", "", None)


def told(asked: Action, standing: Standing | None, there: Appraisal) -> Ruling:
    """The table of docs/partner-actions.md once more, from top to bottom, as a slow and obvious reading of it."""
    kind, changes = asked.type, asked.type is not ActionType.NOTIFICATION
    to_come = there.status in ("unconfirmed", "confirmed")
    already = {
        ActionType.CONFIRM: there.status == "confirmed",
        ActionType.CANCEL: there.status == "cancelled",
        ActionType.RESCHEDULE: asked.dt_start == "2026-11-24 12:00"
        and to_come
        and there.starts_at == TO_COME.starts_at,
        ActionType.NOTIFICATION: False,
    }
    table = [
        (Ruling.UNKNOWN_APPOINTMENT, not there.exists),
        (Ruling.NOT_SHARED, standing is None),
        (Ruling.OTHER_PARTNER, standing is not None and asked.partner_id not in standing.partner_ids),
        (Ruling.PARTNER_CLOSED, asked.partner_id not in there.linked_partners),
        (Ruling.REVOKED, there.revoked),
        (Ruling.RECORDED, not changes),
        (Ruling.ALREADY_SO, kind is not None and already[kind]),
        (Ruling.FINISHED, there.status in ("arrived", "completed", "cancelled", "no_show")),
        (Ruling.PAST, there.starts_at is None or there.starts_at <= NOW),
        (Ruling.STATUS_UNKNOWN, not to_come),
        (Ruling.VERSION_UNKNOWN, asked.base_version != 4),
        (Ruling.CHANGED, there.digest != 1000 and (there.changed_at or NOW) >= READ_AT - timedelta(hours=1)),
        (Ruling.DONE, True),
    ]
    return next(ruling for ruling, holds in table if holds)


@pytest.mark.parametrize("asked", [*OF_TYPE.values(), SAME], ids=[*OF_TYPE, "the same times"])
def test_of_all_rows_that_hold_the_first_one_counts(asked: Action) -> None:
    seen = set()
    for exists, standing, partner, linked, revoked, status, starts, base, digest, changed in itertools.product(
        (True, False),
        (None, STANDING),
        (3, 17),
        (frozenset({8}), frozenset({3, 17})),
        (False, True),
        STATUSES,
        (None, NOW, NOW + SECOND, TO_COME.starts_at),
        (3, 4, 5),
        (1000, 1001, None),
        (None, READ_AT - LONG_TRANSACTION, READ_AT - LONG_TRANSACTION - SECOND),
    ):
        there = replace(
            TO_COME,
            exists=exists,
            linked_partners=linked,
            revoked=revoked,
            status=status,
            starts_at=starts,
            digest=digest,
            changed_at=changed,
        )
        one = replace(asked, partner_id=partner, base_version=base)
        ruling = rule(one, standing, there, NOW)
        assert ruling is told(one, standing, there), (one, standing, there)
        seen.add(ruling)
    expected = {
        Ruling.UNKNOWN_APPOINTMENT, Ruling.NOT_SHARED, Ruling.OTHER_PARTNER, Ruling.PARTNER_CLOSED, Ruling.REVOKED,
    }  # fmt: skip
    if asked.type is ActionType.NOTIFICATION:
        assert seen == expected | {Ruling.RECORDED}
    else:
        later = {
            Ruling.FINISHED,
            Ruling.PAST,
            Ruling.STATUS_UNKNOWN,
            Ruling.VERSION_UNKNOWN,
            Ruling.CHANGED,
            Ruling.DONE,
        }
        assert seen == expected | later | ({Ruling.ALREADY_SO} if asked.dt_start != TIMES["dt_start"] else set())


@pytest.mark.parametrize(
    ("version", "ruling"),
    [
        (Version(4, None, READ_AT), Ruling.CHANGED),
        (Version(4, None, None), Ruling.CHANGED),
        (Version(4, 1000, None), Ruling.DONE),
        (Version(4, 999, None), Ruling.CHANGED),
        (Version(4, None, NOW), Ruling.DONE),
        (Version(5, 1000, READ_AT), Ruling.VERSION_UNKNOWN),
    ],
)
def test_what_is_not_known_of_a_version_is_doubt_and_doubt_refuses(version: Version, ruling: Ruling) -> None:
    there = replace(TO_COME, changed_at=READ_AT)
    assert rule(action(), replace(STANDING, versions=(version,)), there, NOW) is ruling


def test_of_two_copies_that_may_be_shown_under_one_version_either_counts() -> None:
    there = replace(TO_COME, changed_at=NOW)
    two = replace(STANDING, versions=(Version(4, 999, READ_AT), SHOWN))
    assert rule(action(), two, there, NOW) is Ruling.DONE
    assert rule(action(), replace(two, versions=two.versions[:1]), there, NOW) is Ruling.CHANGED


MADE = Made(base_version=4, digest=2000, decided_at=NOW - timedelta(minutes=5))


@pytest.mark.parametrize(
    ("own", "digest", "base", "versions", "ruling"),
    [
        ((MADE,), 2000, 4, (SHOWN,), Ruling.DONE),
        # The clinic went on from there.
        ((MADE,), 2001, 4, (SHOWN,), Ruling.CHANGED),
        # Back to what was shown: nothing has changed.
        ((MADE,), 1000, 4, (SHOWN,), Ruling.DONE),
        # On versions that Medflex shows nothing of.
        ((MADE,), 2000, 77, (SHOWN,), Ruling.VERSION_UNKNOWN),
        ((MADE,), 2000, 3, (SHOWN,), Ruling.VERSION_UNKNOWN),
        # On the version that shows it, or that was read before he made it; not on one that told him otherwise since.
        ((MADE,), 2000, 5, (Version(5, 2000, NOW),), Ruling.DONE),
        ((MADE,), 2000, 5, (Version(5, 1500, NOW - timedelta(minutes=10)),), Ruling.DONE),
        ((MADE,), 2000, 5, (Version(5, 1500, NOW - timedelta(minutes=1)),), Ruling.CHANGED),
        ((MADE,), 2000, 5, (Version(5, 1500, None),), Ruling.CHANGED),
        # Medflex shows the newer version already; he acted before he saw it.
        ((MADE,), 2000, 4, (Version(5, 2000, NOW),), Ruling.DONE),
        ((), 2000, 4, (SHOWN,), Ruling.CHANGED),
        ((replace(MADE, digest=1999), MADE), 2000, 4, (SHOWN,), Ruling.DONE),
    ],
)
def test_a_partner_goes_on_from_what_it_made(
    own: tuple[Made, ...], digest: int, base: int, versions: tuple[Version, ...], ruling: Ruling
) -> None:
    standing = Standing(frozenset({3}), versions, own)
    there = replace(TO_COME, digest=digest, changed_at=NOW - timedelta(minutes=5))
    assert rule(action(type="cancel", base_version=base), standing, there, NOW) is ruling


@pytest.mark.parametrize(
    ("zone", "seconds", "ruling"),
    [
        ("Europe/Moscow", 59, Ruling.ALREADY_SO),
        ("Europe/Moscow", 60, Ruling.DONE),
        ("Europe/Samara", 0, Ruling.DONE),
        (None, 0, Ruling.DONE),
    ],
)
def test_the_same_time_is_that_on_the_clinics_wall(zone: str | None, seconds: int, ruling: Ruling) -> None:
    assert TO_COME.starts_at is not None
    there = replace(TO_COME, timezone=zone, starts_at=TO_COME.starts_at + timedelta(seconds=seconds))
    assert rule(SAME, STANDING, there, NOW) is ruling


@pytest.mark.parametrize("slot", list(itertools.product((False, True), repeat=3)), ids=repr)
def test_a_new_time_is_looked_at_for_hours_then_doctor_then_patient(slot: tuple[bool, bool, bool]) -> None:
    in_schedule, doctor_busy, patient_busy = slot
    expected = Ruling.PATIENT_BUSY if patient_busy else Ruling.DONE
    expected = Ruling.SLOT_TAKEN if doctor_busy else expected
    assert rule_time(Slot(*slot)) is (expected if in_schedule else Ruling.OUTSIDE_SCHEDULE)
