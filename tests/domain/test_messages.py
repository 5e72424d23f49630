"""Messages that patients get twice (R15): what counts as twice, under which name, and that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import product

import pandas as pd
import pytest

from medflex.domain.messages import (
    KEPT_IDS,
    KEPT_SCENARIOS,
    OTHER,
    DoubledMessages,
    MessageLook,
    MessageWarning,
    Twice,
    overlap_warnings,
    shown_scenario,
)

SINCE = datetime(2026, 10, 8, 12, tzinfo=UTC)
CANARY = "Канарейкина +7 999 000-11-22"
Row = tuple[int, int, str, int, Sequence[int]]


def notifications(*rows: Row) -> pd.DataFrame:
    columns = ["clinic_id", "appointment_id", "scenario", "messages", "partner_ids"]
    return pd.DataFrame(list(rows), columns=columns)


def smart_care(*rows: tuple[int, int, str, int]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=["clinic_id", "appointment_id", "scenario", "messages"])
    return frame.astype({"clinic_id": "int64", "appointment_id": "int64", "scenario": "str", "messages": "int64"})


def doubled(rows: Iterable[Row], sent: Iterable[tuple[int, int, str, int]] = ()) -> list[MessageWarning]:
    messages = DoubledMessages()
    messages.add(notifications(*rows), smart_care(*sent))
    return messages.warnings()


@pytest.mark.parametrize(("of_partners", "of_smart_care"), list(product((1, 2, 3), (0, 1, 2))))
def test_r15_two_messages_of_one_scenario_are_doubled_whoever_sent_them(of_partners: int, of_smart_care: int) -> None:
    partners = tuple(range(17, 17 + of_partners))
    found = doubled(
        [(1, 100, "visit_reminder", of_partners, partners)],
        [(1, 100, "visit_reminder", of_smart_care)] if of_smart_care else [],
    )
    if of_partners + of_smart_care >= 2:
        assert found == [MessageWarning(1, Twice.DOUBLED, "visit_reminder", partners, 1, (100,))]
    else:
        assert found == []


def test_r15_two_messages_of_the_same_partner_are_doubled() -> None:
    (found,) = doubled([(1, 100, "visit_reminder", 2, [17])])
    assert (found.partner_ids, found.appointments) == ((17,), 1)


@pytest.mark.parametrize(
    "other",
    [(2, 100, "visit_reminder", 5), (1, 101, "visit_reminder", 5), (1, 100, "visit_details", 5)],
    ids=["another clinic", "another appointment", "another scenario"],
)
def test_messages_about_something_else_are_not_the_same_message(other: tuple[int, int, str, int]) -> None:
    assert doubled([(1, 100, "visit_reminder", 1, [17])], [other]) == []


def test_what_was_found_in_parts_is_added_up_by_clinic_and_scenario() -> None:
    messages = DoubledMessages()
    messages.add(notifications((1, 101, "greeting", 2, [20]), (1, 100, "greeting", 2, [17])), smart_care())
    messages.add(notifications((1, 102, "greeting", 1, [9])), smart_care((1, 102, "greeting", 1)))
    messages.add(notifications((2, 102, "greeting", 1, [9])), smart_care())
    assert messages.warnings() == [MessageWarning(1, Twice.DOUBLED, "greeting", (9, 17, 20), 3, (100, 101, 102))]


def test_ids_beyond_what_a_float_can_hold_are_exact() -> None:
    huge = 2**53 + 1
    (found,) = doubled([(huge, huge + 2, "greeting", 1, [huge])], [(huge, huge + 2, "greeting", 1)])
    assert (found.clinic_id, found.appointment_ids, found.partner_ids) == (huge, (huge + 2,), (huge,))


def test_the_number_is_true_where_only_the_first_ids_are_kept() -> None:
    (found,) = doubled([(1, number, "greeting", 2, [17]) for number in range(KEPT_IDS + 7)])
    assert found.appointments == KEPT_IDS + 7
    assert found.appointment_ids == tuple(range(KEPT_IDS))


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "visit_reminder", "x9", "a" * 64])
def test_a_name_of_the_right_form_is_shown(name: str) -> None:
    assert shown_scenario(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "9x", "_x", "Visit", "a b", "a" * 65, "visit_reminder\n", "напоминание", "<b>", CANARY]
)
def test_what_has_not_the_form_of_a_name_is_other(name: str) -> None:
    assert shown_scenario(name) == OTHER


def test_different_unreadable_names_are_different_scenarios_under_one_word() -> None:
    assert doubled([(1, 100, CANARY, 1, [17]), (1, 100, "9x", 1, [18])]) == [], "two scenarios, a message of each"
    (found,) = doubled([(1, 100, CANARY, 2, [17]), (1, 100, "9x", 2, [18]), (1, 101, "9x", 2, [18])])
    assert found == MessageWarning(1, Twice.DOUBLED, OTHER, (17, 18), 2, (100, 101))
    assert CANARY not in repr(found)


def test_who_invents_a_name_for_each_message_fills_nothing() -> None:
    found = doubled([(clinic, number, f"x{number}", 2, [17]) for clinic in (1, 2) for number in range(300)])
    for clinic in (1, 2):
        mine = [item for item in found if item.clinic_id == clinic]
        assert len(mine) == KEPT_SCENARIOS + 1
        assert sum(item.appointments for item in mine) == 300
        assert mine[-1].scenario == OTHER


# -- by configuration --------------------------------------------------------------------------------------------------


def test_r15_overlaps_by_configuration() -> None:
    frame = pd.DataFrame(
        [(1, "visit_reminder", [20, 17]), (1, CANARY, [17]), (1, "9x", [20]), (2, None, [20, 5])],
        columns=["clinic_id", "scenario", "partner_ids"],
    )
    assert overlap_warnings(frame) == [
        MessageWarning(1, Twice.OVERLAP, "visit_reminder", (17, 20)),
        MessageWarning(1, Twice.OVERLAP, OTHER, (17, 20)),
        MessageWarning(2, Twice.UNKNOWN, "", (5, 20)),
    ]
    assert overlap_warnings(frame.iloc[:0]) == []


# -- by clinic ---------------------------------------------------------------------------------------------------------

WARNINGS = (
    MessageWarning(1, Twice.OVERLAP, "visit_reminder", (17,)),
    MessageWarning(1, Twice.OVERLAP, "greeting", (17,)),
    MessageWarning(1, Twice.DOUBLED, "greeting", (17,), 2000, (5, 6)),
    MessageWarning(1, Twice.DOUBLED, "visit_reminder", (17,), 1, (5,)),
    MessageWarning(2, Twice.UNKNOWN, "", (17,)),
    MessageWarning(9, Twice.OVERLAP, "greeting", (17,)),
)


def test_each_clinic_of_the_run_has_its_numbers_also_where_nothing_was_found() -> None:
    frame = MessageLook(SINCE, WARNINGS).by_clinic([3, 2, 1, 1])
    assert frame["clinic_id"].tolist() == [1, 2, 3]
    assert frame["scenarios_run_twice"].tolist() == [2, 0, 0], "what is not known is no overlap"
    assert frame["appointments_told_twice"].tolist() == [2001, 0, 0]


def test_what_could_not_be_judged_is_missing_and_not_zero() -> None:
    frame = MessageLook(SINCE, (), "Medlock is away.", None).by_clinic([1])
    assert frame["scenarios_run_twice"].tolist() == [pd.NA]
    assert frame["appointments_told_twice"].tolist() == [0]
    frame = MessageLook(SINCE, (), None, "Medlock is away.").by_clinic([1])
    assert frame["scenarios_run_twice"].tolist() == [0]
    assert frame["appointments_told_twice"].tolist() == [pd.NA]
    assert MessageLook(SINCE, ()).by_clinic([]).empty


def test_each_kind_says_what_it_is() -> None:
    for kind in Twice:
        assert kind.description.endswith(".")
