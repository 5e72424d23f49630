"""Rows of Medlock as nobody would expect them: what one of them is must not decide about the others, nor be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.test_withdrawing import REFUSE, of_patients, shown_ids, some, withdraw
from tests.airflow.world import World

LARGEST = "294276-12-31 23:59:59.999999+00"
"""The largest instant that Postgres has."""


@pytest.fixture
def sent(filled_world: World) -> World:
    """600 appointments of three open clinics, of which all that may be are at Medflex; a look has been made."""
    assert not load(filled_world, planned(filled_world)).problems
    withdraw(filled_world)
    return filled_world


def later() -> FakeClock:
    return FakeClock(datetime.now(UTC) + timedelta(minutes=15))


# A no, behind rows that have moved


def banned_elsewhere(world: World) -> tuple[set[int], str]:
    """The doctor with the most appointments is another clinic's, and banned."""
    shown = list(shown_ids(world))
    ((doctor, ids),) = world.read(
        "SELECT doctor_id, array_agg(id) FROM medlock.appointment WHERE id = ANY(%s) AND clinic_id = 1 GROUP BY 1"
        " ORDER BY count(*) DESC LIMIT 1",
        [shown],
    )
    world.edit(
        "UPDATE medlock.doctor SET clinic_id = 2, medflex_banned = true, updated_at = now() WHERE id = %s", [doctor]
    )
    return set(ids), "doctor_banned"


def anonymous_elsewhere(world: World) -> tuple[set[int], str]:
    """Appointments are another clinic's, and anonymous."""
    ids = some(world, 30)
    world.edit(
        "UPDATE medlock.appointment SET clinic_id = 2, is_anonymous = true, updated_at = now() WHERE id = ANY(%s)",
        [ids],
    )
    return set(ids), "anonymous_appointment"


def banned_before_they_moved(world: World) -> tuple[set[int], str]:
    """Appointments are another clinic's, and their doctors banned."""
    ids = some(world, 30)
    world.edit("UPDATE medlock.appointment SET clinic_id = 2, updated_at = now() WHERE id = ANY(%s)", [ids])
    world.edit(
        "UPDATE medlock.doctor SET medflex_banned = true, updated_at = now()"
        " WHERE id IN (SELECT doctor_id FROM medlock.appointment WHERE id = ANY(%s))",
        [ids],
    )
    return set(ids), "doctor_banned"


@pytest.mark.parametrize("lane", [[1, 2, 3], None], ids=["sweep", "quick"])
@pytest.mark.parametrize("turn", [banned_elsewhere, anonymous_elsewhere, banned_before_they_moved])
def test_a_no_is_obeyed_wherever_its_row_is_at_any_volume(
    sent: World, turn: Callable[[World], tuple[set[int], str]], lane: list[int] | None
) -> None:
    """R9, R10: more than vanish without a question, and nobody is asked."""
    ids, reason = turn(sent)
    assert len(ids) > 10
    result = withdraw(sent, lane, clock=later())
    assert not ids & shown_ids(sent)
    assert ids <= {int(item) for (_, code), found in result.revoked.items() if code == reason for item in found}
    assert result.total("held") == 0


def test_what_was_moved_far_back_is_withdrawn(sent: World) -> None:
    """R6, R12: partners would go on calling about a visit that is not to be."""
    ids = some(sent, 1)
    sent.edit(
        "UPDATE medlock.appointment SET starts_at = '2000-01-01 10:00+00', ends_at = '2000-01-01 11:00+00',"
        " updated_at = now() WHERE id = ANY(%s)",
        [ids],
    )
    withdraw(sent, clock=later())
    assert not set(ids) & shown_ids(sent)


# Instants that no calendar has


@pytest.mark.parametrize("starts", ["infinity", LARGEST, "290000-01-01"])
def test_an_appointment_that_is_not_to_begin_in_any_calendar_is_withdrawn(sent: World, starts: str) -> None:
    ids = some(sent, 1)
    sent.edit(f"UPDATE medlock.appointment SET starts_at = '{starts}', updated_at = now() WHERE id = ANY(%s)", [ids])
    result = withdraw(sent, [1, 2, 3], clock=later())
    assert [code for _, code in result.revoked] == ["moved_out_of_window"]
    assert not set(ids) & shown_ids(sent)


@pytest.mark.parametrize("starts", ["infinity", "-infinity", LARGEST, "4713-01-01 BC"])
def test_an_instant_of_one_appointment_keeps_no_other_one_from_being_sent(filled_world: World, starts: str) -> None:
    prepared = planned(filled_world)
    one = int(prepared["id"].iloc[0])
    filled_world.edit(f"UPDATE medlock.appointment SET starts_at = '{starts}' WHERE id = %s", [one])
    result = load(filled_world, prepared)
    assert not result.problems
    assert shown_ids(filled_world) == set(prepared["id"]) - {one}


@pytest.mark.parametrize("table", ["patient", "doctor", "appointment"])
def test_one_row_with_the_largest_stamp_keeps_no_refusal_from_being_found(sent: World, table: str) -> None:
    sent.edit(f"UPDATE medlock.{table} SET updated_at = '{LARGEST}' WHERE id = (SELECT min(id) FROM medlock.{table})")
    ids = some(sent, 1)
    refused = of_patients(sent, ids)
    sent.edit(REFUSE.format("refused_marketing", "true"), [ids])
    withdraw(sent, clock=later())
    assert not refused & shown_ids(sent)


# What was erased before it left

ERASED: Mapping[str, str] = {
    "a dash": "phone = '-'",
    "a word": "phone = 'нет'",
    "a tab": "phone = E'\\t'",
    "a space that does not break": "phone = U&'\\00A0'",
    "a space without width": "phone = U&'\\200B'",
    "a name of a line's end": "first_name = E'\\n'",
    "a name of a space that does not break": "first_name = U&'\\00A0'",
    "a name of a filler": "first_name = U&'\\3164'",
}


@pytest.mark.parametrize("how", ERASED)
def test_what_was_erased_between_the_extract_and_the_last_look_does_not_leave(filled_world: World, how: str) -> None:
    prepared = planned(filled_world)
    one = int(prepared["id"].iloc[0])
    ((patient,),) = filled_world.read("SELECT patient_id FROM medlock.appointment WHERE id = %s", [one])
    filled_world.edit(f"UPDATE medlock.patient SET {ERASED[how]} WHERE id = %s", [patient])
    load(filled_world, prepared)
    assert shown_ids(filled_world) == set(prepared.loc[prepared["patient_id"] != patient, "id"])


@pytest.mark.parametrize(
    "kept",
    [
        "phone = '８９００１１１２２３３'",
        "phone = '+7 (900) 111-22-33'",
        "first_name = '-'",
        "first_name = 'Ё'",
        "first_name = '刘'",
    ],
)
def test_what_is_there_is_not_taken_for_erased(filled_world: World, kept: str) -> None:
    prepared = planned(filled_world)
    filled_world.edit(f"UPDATE medlock.patient SET {kept}")
    assert not load(filled_world, prepared).problems
    assert shown_ids(filled_world) == set(prepared["id"])


# Numbers that Medflex does not have


def test_a_number_that_medflex_does_not_have_is_as_good_as_none(filled_world: World) -> None:
    """R4, R17: a partner, an appointment and a clinic, of which the others are sent."""
    filled_world.edit("INSERT INTO medlock.partner (id, name, kind) VALUES (0, 'x', 'mailing')")
    filled_world.edit(
        "INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled) SELECT id, 0, true FROM medlock.clinic"
    )
    (other,) = planned(filled_world)["id"].tail(1)
    filled_world.edit("UPDATE medlock.appointment SET id = -4 WHERE id = %s", [int(other)])
    filled_world.edit("UPDATE medlock.clinic SET lpu_id = -2 WHERE id = 2")
    prepared = planned(filled_world)
    assert not load(filled_world, prepared).problems
    assert min(shown_ids(filled_world)) > 0
    assert shown_ids(filled_world) == set(prepared["id"])
    assert 2 not in set(prepared["clinic_id"])
    assert all(0 not in record["partners"] for record in filled_world.shown().values())
