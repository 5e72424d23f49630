"""Alerts are raised once and cleared once, and what has one cause is one alert."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflex.domain.alerts import (
    BUSY,
    CALM,
    CAUSES,
    GRACE,
    TITLES,
    AlertKind,
    Clear,
    Facts,
    Failure,
    Keep,
    Limits,
    Open,
    Raise,
    RaiseAnew,
    judge,
)

START = datetime(2026, 11, 23, 1, tzinfo=UTC)
LIMITS = Limits()
HEALTHY: dict[str, Any] = {"complete_at": START - timedelta(hours=1), "first_run_at": START - timedelta(days=9)}


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def at(number: float) -> datetime:
    """Return the instant so many minutes after the start."""
    return START + minutes(number)


STATES = {Raise: "raised", RaiseAnew: "raised anew", Clear: "cleared"}


class Book:
    """What the ledger keeps between two rounds, and what was told: (minute, kind, state)."""

    def __init__(self) -> None:
        self.standing: dict[AlertKind, Open] = {}
        self.cause_over_at: datetime | None = None
        self.told: list[tuple[float, AlertKind, str]] = []
        self.sentences: list[str] = []

    def round(self, minute: float, limits: Limits = LIMITS, **facts: Any) -> list[tuple[AlertKind, str]]:
        """Judge once; return what is to be told."""
        now = at(minute)
        given = {**HEALTHY, "looked_at": now, "good_since": START, **facts}
        if given.get("failing_since") is not None:
            given = {"failed_at": now, "failure": Failure.AWAY, **given, "good_since": None}
        told = []
        for change in judge(Facts(as_of=now, **given), self.standing, self.cause_over_at, limits):
            if isinstance(change, Raise):
                assert change.kind not in self.standing
                self.standing[change.kind] = Open(
                    change.kind, change.since, now, change.sentence, None, dict(change.held_up), dict(change.facts)
                )
            elif isinstance(change, RaiseAnew):
                self.standing[change.kind] = replace(
                    self.standing[change.kind], sentence=change.sentence, facts=dict(change.facts)
                )
            elif isinstance(change, Clear):
                del self.standing[change.kind]
                if change.kind in CAUSES:
                    self.cause_over_at = now
            else:
                self.standing[change.kind] = replace(
                    self.standing[change.kind],
                    calm_since=change.calm_since,
                    held_up=change.held_up,
                    facts=dict(change.facts),
                )
            if not isinstance(change, Keep):
                told.append((change.kind, STATES[type(change)]))
                self.sentences.append(change.sentence)
        self.told += [(minute, *item) for item in told]
        return told


LATE = {"revoked": 12, "late_records": 12, "late_clinics": 1, "revoked_since": at(-20)}
WRONG: dict[AlertKind, dict[str, Any]] = {
    AlertKind.MEDFLEX_AWAY: {"failing_since": at(-10), "revoked": 1},
    AlertKind.TOKEN_REFUSED: {"failing_since": at(0), "failure": Failure.REFUSED},
    AlertKind.LATE_WITHDRAWALS: LATE,
    AlertKind.WITHDRAWALS_STOPPED: {"looked_at": at(-16)},
    AlertKind.WATCH_SILENT: {"woken_at": at(-181)},
    AlertKind.SWEEP_STOPPED: {"sweep_stands_since": at(-61)},
    AlertKind.ACTIONS_WAITING: {"undecided": 3, "undecided_since": at(-31)},
    AlertKind.ACTIONS_UNREAD: {"actions_read_at": at(-31)},
    AlertKind.DAILY_RUN_MISSED: {"complete_at": START - timedelta(hours=27, minutes=1)},
    AlertKind.CRITICAL_VALIDATION: {"critical_clinics": 2, "critical_since": at(-5)},
    AlertKind.HELD_ABSENCES: {"questions": 1, "held_records": 30, "held_since": at(-1)},
    AlertKind.CONSERVATION_BROKEN: {"broken_runs": 1, "broken_since": at(-1)},
    AlertKind.RECORDS_REJECTED: {"rejected": 101, "judged": 1000, "rejecting_at": at(-70)},
    AlertKind.STAGING_LEFT: {"staging_removed_at": START - timedelta(hours=36, minutes=1)},
}


def test_nothing_is_told_where_nothing_is_wrong() -> None:
    book = Book()
    for minute in range(0, 60, 2):
        book.round(minute)
    # Nor in a ledger in which nothing has happened yet.
    book.round(60, looked_at=None, complete_at=None, first_run_at=None, good_since=None)
    assert book.told == []


@pytest.mark.parametrize("kind", AlertKind)
def test_each_kind_is_raised_once_and_cleared_once(kind: AlertKind) -> None:
    book = Book()
    for minute in range(0, 10, 2):
        book.round(minute, **WRONG[kind])
    for minute in range(10, 40, 2):
        book.round(minute, good_since=at(9.5))
    assert book.told == [(0, kind, "raised"), (16, kind, "cleared")]
    assert set(WRONG) == set(AlertKind) == set(TITLES)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (AlertKind.MEDFLEX_AWAY, {"failing_since": at(-9.9), "revoked": 1}),
        (AlertKind.MEDFLEX_AWAY, {"failing_since": at(-29.9)}),
        # Nobody has tried since: it may be there again.
        (AlertKind.MEDFLEX_AWAY, {"failing_since": at(-90), "failed_at": at(-85), "revoked": 1}),
        (AlertKind.LATE_WITHDRAWALS, {"revoked": 5, "revoked_since": at(-14)}),
        (AlertKind.LATE_WITHDRAWALS, {"cut_short_since": at(-15)}),
        (AlertKind.WITHDRAWALS_STOPPED, {"looked_at": at(-15)}),
        (AlertKind.WATCH_SILENT, {"looked_at": at(0), "woken_at": at(-180)}),
        # Nobody looks any more, so nobody could be woken.
        (AlertKind.WATCH_SILENT, {"looked_at": at(-14), "woken_at": at(-193)}),
        (AlertKind.SWEEP_STOPPED, {"sweep_stands_since": at(-60)}),
        (AlertKind.ACTIONS_WAITING, {"undecided": 3, "undecided_since": at(-30)}),
        (AlertKind.ACTIONS_WAITING, {"unanswered": 3, "unanswered_since": at(-30)}),
        (AlertKind.ACTIONS_UNREAD, {"actions_read_at": at(-30)}),
        (AlertKind.STAGING_LEFT, {"staging_removed_at": START - timedelta(hours=36)}),
        (AlertKind.RECORDS_REJECTED, {"rejected": 100, "judged": 100, "rejecting_at": at(-70)}),
        (AlertKind.RECORDS_REJECTED, {"rejected": 200, "judged": 2000, "rejecting_at": at(-70)}),
        # What is rejected day by day; so many more; such a part more.
        (
            AlertKind.RECORDS_REJECTED,
            {"rejected": 150, "rejected_before": 150, "judged": 1150, "rejecting_at": at(-70)},
        ),
        (AlertKind.RECORDS_REJECTED, {"rejected": 250, "rejected_before": 150, "judged": 350, "rejecting_at": at(-9)}),
        (
            AlertKind.RECORDS_REJECTED,
            {"rejected": 270, "rejected_before": 150, "judged": 1350, "rejecting_at": at(-70)},
        ),
        (AlertKind.DAILY_RUN_MISSED, {"complete_at": START - timedelta(hours=27)}),
        (AlertKind.DAILY_RUN_MISSED, {"complete_at": None, "first_run_at": START - timedelta(hours=3)}),
    ],
)
def test_what_does_not_matter_yet_is_not_told(kind: AlertKind, facts: dict[str, Any]) -> None:
    assert Book().round(0, **facts) == [], kind


@pytest.mark.parametrize(
    "facts",
    [
        {"failing_since": at(-10), "revoked": 1},
        {"failing_since": at(-10), "unanswered": 1, "unanswered_since": at(-11)},
        {"failing_since": at(-10), "hurt_run_until": at(-30)},
        {"failing_since": at(-30)},
        # What must not wait has waited for too long: whatever else would be waited for.
        {"failing_since": at(-1), **LATE},
        {"failing_since": at(-1), "unanswered": 1, "unanswered_since": at(-31)},
        {"failing_since": at(-1), "actions_read_at": at(-31)},
        {"failing_since": at(-1), "complete_at": START - timedelta(hours=28)},
    ],
)
def test_that_medflex_is_away_begins_to_matter(facts: dict[str, Any]) -> None:
    assert Book().round(0, **facts) == [(AlertKind.MEDFLEX_AWAY, "raised")]


@pytest.mark.parametrize("failure", Failure)
def test_an_outage_of_an_hour_is_two_messages_whatever_waits_for_it(failure: Failure) -> None:
    book = Book()
    for minute in range(0, 62, 2):
        late = minute > 15
        book.round(
            minute,
            failing_since=at(0),
            failure=failure,
            revoked=7,
            revoked_since=at(0),
            late_records=7 * late,
            late_clinics=int(late),
            unanswered=3,
            unanswered_since=at(1),
            actions_read_at=at(-1),
            hurt_run_until=at(20) if minute > 20 else None,
            complete_at=START - timedelta(hours=26, minutes=30),
        )
    assert len(book.told) == 1
    for minute in range(62, 120, 2):
        # What waited is made up for some minutes later; the daily run is nobody's yet.
        waits = minute < 70
        book.round(
            minute,
            good_since=at(61),
            revoked=7 * waits,
            revoked_since=at(0),
            late_records=7 * waits,
            late_clinics=1,
            unanswered=3 * waits,
            unanswered_since=at(1),
            hurt_run_until=at(20),
            complete_at=START - timedelta(hours=26, minutes=30),
        )
    kind = AlertKind.MEDFLEX_AWAY if failure is Failure.AWAY else AlertKind.TOKEN_REFUSED
    assert book.told == [(10 if failure is Failure.AWAY else 0, kind, "raised"), (66, kind, "cleared")]
    assert "after 1 h 01 min" in book.sentences[1]
    assert "It held up: 7 withdrawals, 3 answers to partners, 1 daily transfer." in book.sentences[1]
    assert "Still waiting: 7 withdrawals, 3 answers to partners;" in book.sentences[1]


def test_what_still_holds_some_time_after_its_cause_is_told_in_its_own_right() -> None:
    book = Book()
    book.round(0, failing_since=at(-20), **LATE)
    daily = {"complete_at": START - timedelta(hours=30)}
    for minute in range(2, 300, 2):
        book.round(minute, good_since=at(1), **LATE, **daily)
    over = 6
    grace = GRACE.total_seconds() / 60
    assert book.told == [
        (0, AlertKind.MEDFLEX_AWAY, "raised"),
        (over, AlertKind.MEDFLEX_AWAY, "cleared"),
        (over + grace + 1, AlertKind.LATE_WITHDRAWALS, "raised"),
        (over + 180, AlertKind.DAILY_RUN_MISSED, "raised"),
    ]


def test_what_partners_ask_for_may_be_read_behind_an_outage_in_the_next_slot() -> None:
    hourly = Limits(reading=timedelta(minutes=90))
    book = Book()
    book.round(0, hourly, failing_since=at(-30), actions_read_at=at(-89))
    for minute in range(2, 200, 2):
        book.round(minute, hourly, good_since=at(1), actions_read_at=at(-89))
    assert book.told == [
        (0, AlertKind.MEDFLEX_AWAY, "raised"),
        (6, AlertKind.MEDFLEX_AWAY, "cleared"),
        (6 + 76, AlertKind.ACTIONS_UNREAD, "raised"),
    ]


def test_what_medflex_is_not_to_blame_for_is_told_while_it_is_away() -> None:
    book = Book()
    others = [
        AlertKind.WITHDRAWALS_STOPPED,
        AlertKind.WATCH_SILENT,
        AlertKind.SWEEP_STOPPED,
        AlertKind.ACTIONS_WAITING,
        AlertKind.CRITICAL_VALIDATION,
        AlertKind.HELD_ABSENCES,
        AlertKind.CONSERVATION_BROKEN,
        AlertKind.RECORDS_REJECTED,
        AlertKind.STAGING_LEFT,
    ]
    facts = {name: value for kind in others for name, value in WRONG[kind].items()}
    # A task that waits for Medflex cannot look meanwhile; beyond its time-out it is another matter.
    facts["looked_at"] = at(-16) - BUSY
    facts["woken_at"] = facts["looked_at"] - minutes(181)
    told = book.round(0, failing_since=at(-11), revoked=1, unanswered=1, unanswered_since=at(-40), **facts)
    assert told == [(AlertKind.MEDFLEX_AWAY, "raised"), *((kind, "raised") for kind in others)]


def test_there_is_one_cause_at_a_time() -> None:
    book = Book()
    book.round(0, failing_since=at(-11), revoked=1)
    book.round(2, failing_since=at(-11), revoked=1, failure=Failure.REFUSED)
    book.round(4, failing_since=at(-11), revoked=1)
    assert [item[1:] for item in book.told] == [(AlertKind.MEDFLEX_AWAY, "raised")]


def test_a_medflex_that_comes_and_goes_is_one_outage() -> None:
    book = Book()
    book.round(0, failing_since=at(-11), revoked=1)
    for minute in range(2, 60, 4):
        book.round(minute, good_since=at(minute))
        book.round(minute + 2, failing_since=at(minute + 1), revoked=1)
    assert len(book.told) == 1
    for minute in range(62, 70, 2):
        book.round(minute, good_since=at(61))
    assert [item[2] for item in book.told] == ["raised", "cleared"]


@pytest.mark.parametrize("kind", [kind for kind in AlertKind if kind not in CAUSES])
def test_what_comes_and_goes_is_one_alert(kind: AlertKind) -> None:
    book = Book()
    for minute in range(0, 60, 4):
        book.round(minute, **WRONG[kind])
        book.round(minute + 2)
    assert len(book.told) == 1


def test_a_missed_deadline_of_airflow_is_told_also_where_the_clock_would_not_say_so_yet() -> None:
    book = Book()
    assert book.round(0, missed_at=at(-1), failed_run_at=at(-180)) == [(AlertKind.DAILY_RUN_MISSED, "raised")]
    assert "The one of 2026-11-22 22:00 UTC has failed." in book.sentences[0]


def test_a_look_that_medflex_holds_up_is_no_alert_of_its_own() -> None:
    book = Book()
    book.round(0, failing_since=at(-11), revoked=1)
    for minute in range(2, 40, 2):
        # The task hangs for 20 minutes each time, and Medflex is back in the middle of one.
        is_away = minute < 30
        book.round(
            minute,
            looked_at=at(minute - 20),
            **({"failing_since": at(-11), "revoked": 1} if is_away else {"good_since": at(29)}),
        )
    assert [item[1:] for item in book.told] == [
        (AlertKind.MEDFLEX_AWAY, "raised"),
        (AlertKind.MEDFLEX_AWAY, "cleared"),
    ]
    # Long after it, nobody looking is told after 15 minutes again.
    book.round(60, looked_at=at(44))
    assert book.told[2][1:] == (AlertKind.WITHDRAWALS_STOPPED, "raised")


def test_a_daily_run_that_an_outage_has_ended_is_told_in_that_alert_only_until_the_next_one_is_missing() -> None:
    book = Book()
    hour = 60
    # It began two hours ago, failed in the middle of the outage, and nobody triggers another one.
    run = {"complete_at": at(-26 * hour), "failed_run_at": at(-2 * hour), "undone_shards": 4, "shards": 9}
    for minute in range(0, 30 * hour, 10):
        is_away = minute < hour
        began = at(-2 * hour) + timedelta(hours=24 if minute >= 22 * hour else 0)
        book.round(
            minute,
            **run,
            last_run_at=began,
            # The rest goes on for some time behind the end of the outage.
            hurt_run_until=at(min(minute, 90)),
            **({"failing_since": at(0)} if is_away else {"good_since": at(hour), "told_run_at": at(-2 * hour)}),
            missed_at=at(hour) if minute >= hour else None,
        )
    assert book.told == [
        (10, AlertKind.MEDFLEX_AWAY, "raised"),
        (hour + 10, AlertKind.MEDFLEX_AWAY, "cleared"),
        (25 * hour + 10, AlertKind.DAILY_RUN_MISSED, "raised"),
    ]
    assert "1 daily transfer" in book.sentences[1]


def test_a_clinic_in_trouble_does_not_hide_that_others_fail_too() -> None:
    book = Book()
    hour = 60
    stuck = {"complete_at": at(-28 * hour), "shards": 400}

    def day(number: int, **facts: Any) -> None:
        start = number * 24 * hour
        for minute in range(start, start + 24 * hour, 30):
            book.round(minute, **{**stuck, "last_run_at": at(start), **facts})

    day(0, undone_shards=1)
    day(1, undone_shards=1)
    assert [item[2] for item in book.told] == ["raised"]
    day(2, undone_shards=400)
    day(3, undone_shards=400)
    assert [item[2] for item in book.told] == ["raised", "raised anew"]
    # It is mended but for that clinic; then no run begins at all.
    day(4, undone_shards=1)
    day(5, undone_shards=1, last_run_at=at(4 * 24 * hour))
    assert book.told[2:] == [((5 * 24 + 3) * hour + 30, AlertKind.DAILY_RUN_MISSED, "raised anew")]
    day(6, undone_shards=1, last_run_at=at(4 * 24 * hour))
    day(7, complete_at=at(7 * 24 * hour))
    assert [item[2] for item in book.told] == ["raised", "raised anew", "raised anew", "cleared"]
    said = ("1 of 400 shards were not", "400 of 400 shards were not", "None has begun since 2026-11-27 01:00 UTC.")
    assert all(part in sentence for part, sentence in zip(said, book.sentences, strict=False))


def test_what_an_outage_adds_to_a_missing_run_is_told_behind_it_if_it_is_still_so() -> None:
    book = Book()
    stuck = {"complete_at": START - timedelta(hours=28), "shards": 9}
    book.round(0, undone_shards=1, **stuck)
    for minute in range(2, 30, 2):
        book.round(minute, undone_shards=9, failing_since=at(1), hurt_run_until=at(1), **stuck)
    for minute in range(30, 300, 2):
        book.round(minute, undone_shards=9, good_since=at(30), **stuck)
    assert [item[1:] for item in book.told] == [
        (AlertKind.DAILY_RUN_MISSED, "raised"),
        (AlertKind.MEDFLEX_AWAY, "raised"),
        (AlertKind.MEDFLEX_AWAY, "cleared"),
        (AlertKind.DAILY_RUN_MISSED, "raised anew"),
    ]


@pytest.mark.parametrize("first_fails", [True, False])
def test_what_fails_in_one_operation_only_is_one_alert(first_fails: bool) -> None:
    """Withdrawing fails for some minutes of each five, and reading goes well in between."""
    book = Book()
    for number, minute in enumerate(range(0, 120, 2)):
        late = {"revoked": 9, "revoked_since": at(-20), "late_records": 9, "late_clinics": 1}
        fails = (number % 2 == 0) is first_fails
        book.round(minute, **late, **({"failing_since": at(minute - 1)} if fails else {"good_since": at(minute - 1)}))
    assert len(book.told) == 1


def test_what_nobody_has_tried_for_long_is_not_known_to_be_away() -> None:
    book = Book()
    # The last request of yesterday failed; today medflex_withdraw is paused.
    assert book.round(0, failing_since=at(-1400), failed_at=at(-1390), **LATE) == [
        (AlertKind.LATE_WITHDRAWALS, "raised")
    ]


def test_a_token_that_is_refused_for_long_behind_an_outage_is_told_and_one_that_is_so_within_it_is_not() -> None:
    book = Book()
    book.round(0, failing_since=at(-11), revoked=1)
    for minute in range(2, 10, 2):
        book.round(minute, failing_since=at(-11), revoked=1, failure=Failure.REFUSED)
    book.round(10, failing_since=at(-11), revoked=1)
    assert len(book.told) == 1
    for minute in range(12, 40, 2):
        book.round(minute, failing_since=at(-11), revoked=1, failure=Failure.REFUSED)
    # And back: that is the same one until Medflex answers.
    book.round(40, failing_since=at(-11), revoked=1)
    book.round(46, good_since=at(40.5))
    assert book.told == [
        (0, AlertKind.MEDFLEX_AWAY, "raised"),
        (22, AlertKind.MEDFLEX_AWAY, "cleared"),
        (22, AlertKind.TOKEN_REFUSED, "raised"),
        (46, AlertKind.TOKEN_REFUSED, "cleared"),
    ]
    assert book.sentences[1] == "Medflex answers again since 2026-11-23 01:12 UTC, and refuses us."


@pytest.mark.parametrize("fields", [(), ("client.mobile_phone", "times")])
def test_what_is_rejected_is_told_by_numbers_and_fields(fields: tuple[str, ...]) -> None:
    book = Book()
    book.round(0, rejected=101, judged=1000, rejecting_at=at(-70), rejected_fields=fields)
    named = ", most of all for client.mobile_phone, times" if fields else ""
    said = (
        f"Medflex has rejected 101 of 1000 records of the transfer of 2026-11-22 23:50 UTC, 0 in the one before{named};"
    )
    assert book.sentences[0].startswith(said)


def test_what_is_rejected_newly_is_told_and_is_over_when_it_is_mended_not_when_nothing_more_comes() -> None:
    book = Book()
    days = [
        # What is rejected day by day, then what a new rule rejects; nothing is mended, whatever else has changed.
        {"rejected": 150, "rejected_before": 150, "judged": 1150},
        {"rejected": 400, "rejected_before": 150, "judged": 1400},
        {"rejected": 400, "rejected_before": 400, "judged": 1400},
        {"rejected": 400, "rejected_before": 400, "judged": 90000},
        # An outage has left most clinics out.
        {"rejected": 5, "rejected_before": 5, "judged": 20, "is_rejecting_run_complete": False},
        {"rejected": 251, "rejected_before": 400, "judged": 1400},
        {"rejected": 250, "rejected_before": 251, "judged": 1400},
        {"rejected": 250, "rejected_before": 250, "judged": 1400},
    ]
    for number, day in enumerate(days):
        for minute in range(0, 20, 2):
            book.round(100 * number + minute, **day, rejecting_at=at(100 * number - 1))
    kind = AlertKind.RECORDS_REJECTED
    assert book.told == [(100, kind, "raised"), (606, kind, "cleared")]


MOMENTS = st.sampled_from([None, -2000.0, -100.0, -31.0, -16.0, -6.0, -1.0])


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rounds two minutes apart; what is known in each is drawn freely, times as minutes before the round."""
    one = st.fixed_dictionaries(
        {
            "failing": MOMENTS,
            "failed": MOMENTS,
            "failure": st.sampled_from(Failure),
            "revoked": st.integers(0, 2),
            "late": st.booleans(),
            "looked": MOMENTS,
            "complete": MOMENTS,
            "last": MOMENTS,
            "undone": st.integers(0, 9),
            "told_run": MOMENTS,
            "missed": MOMENTS,
            "critical": MOMENTS,
            "broken": MOMENTS,
            "rejecting": MOMENTS,
            "held": MOMENTS,
            "undecided": MOMENTS,
            "unanswered": MOMENTS,
            "read": MOMENTS,
            "woken": MOMENTS,
            "removed": MOMENTS.map(lambda moment: moment and 2 * moment),
        }
    )
    # Each state lasts for some rounds, or nothing would ever be over.
    return [
        state
        for state, rounds in draw(st.lists(st.tuples(one, st.integers(1, 12)), max_size=12))
        for _ in range(rounds)
    ]


def ago(now: datetime, drawn: float | None) -> datetime | None:
    return None if drawn is None else now + minutes(drawn)


@given(histories())
def test_whatever_happens_each_kind_is_raised_and_cleared_in_turn(history: list[dict[str, Any]]) -> None:
    book = Book()
    for number, item in enumerate(history):
        now = at(2 * number)
        failing = ago(now, item["failing"])
        failed = ago(now, item["failed"])
        before = set(book.standing)
        book.round(
            2 * number,
            failing_since=failing,
            **({"failed_at": max(failed or failing, failing), "failure": item["failure"]} if failing else {}),
            good_since=ago(now, item["looked"]),
            revoked=item["revoked"],
            revoked_since=at(-20),
            late_records=item["revoked"] * item["late"],
            late_clinics=1,
            looked_at=ago(now, item["looked"]),
            woken_at=ago(now, item["woken"]),
            complete_at=ago(now, item["complete"]),
            last_run_at=ago(now, item["last"]),
            shards=9,
            undone_shards=item["undone"],
            told_run_at=ago(now, item["told_run"]),
            missed_at=ago(now, item["missed"]),
            critical_clinics=item["critical"] is not None,
            critical_since=ago(now, item["critical"]),
            broken_runs=item["broken"] is not None,
            broken_since=ago(now, item["broken"]),
            rejected=500 * (item["rejecting"] is not None),
            judged=500,
            rejecting_at=ago(now, item["rejecting"]),
            questions=item["held"] is not None,
            held_records=3,
            held_since=ago(now, item["held"]),
            undecided=item["undecided"] is not None,
            undecided_since=ago(now, item["undecided"]),
            unanswered=item["unanswered"] is not None,
            unanswered_since=ago(now, item["unanswered"]),
            actions_read_at=ago(now, item["read"]),
            staging_removed_at=ago(now, item["removed"]),
        )
        # What has one cause is one alert.
        assert len(set(CAUSES) & set(book.standing)) <= 1
        if set(CAUSES) & before & set(book.standing):
            consequences = {AlertKind.LATE_WITHDRAWALS, AlertKind.ACTIONS_UNREAD, AlertKind.DAILY_RUN_MISSED}
            assert not consequences & (set(book.standing) - before)
    for kind in AlertKind:
        told = [state for _, told_kind, state in book.told if told_kind is kind]
        # Only the missing daily run can become worse, and only while it stands.
        assert kind is AlertKind.DAILY_RUN_MISSED or "raised anew" not in told
        assert ("raised anew", "cleared") not in zip(told[1:], told[:-1], strict=True)
        turns = [state for state in told if state != "raised anew"]
        assert turns == (["raised", "cleared"] * len(turns))[: len(turns)]
    # Whatever stood is over in the end, once all is well.
    last = 2 * len(history)
    for minute in range(last, last + int(CALM.total_seconds() / 60) + 4, 2):
        book.round(minute, good_since=at(last))
    assert book.standing == {}
