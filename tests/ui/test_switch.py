"""R1, R2, R3: the access switch on the page can be turned by the head of that clinic, and by nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from tests.airflow.world import World

SignIn = Callable[..., TestClient]
SWITCH = "/medflex/clinics/1/switch"


def stands(world: World, clinic_id: int = 1) -> tuple[Any, ...] | None:
    """How Medlock has the switch: on, since when, by whom."""
    with psycopg.connect(world.medlock) as connection:
        return connection.execute(
            "SELECT enabled, changed_at, changed_by FROM medlock.medflex_access WHERE clinic_id = %s", [clinic_id]
        ).fetchone()


def set_switch(world: World, enabled: bool | None, changed_at: datetime | None, changed_by: int | None) -> None:
    with psycopg.connect(world.medlock) as connection:
        connection.execute(
            "INSERT INTO medlock.medflex_access VALUES (1, %(on)s, %(at)s, %(by)s) ON CONFLICT (clinic_id) DO UPDATE"
            " SET enabled = %(on)s, changed_at = %(at)s, changed_by = %(by)s",
            {"on": enabled, "at": changed_at, "by": changed_by},
        )


def form(client: TestClient, to: str, path: str = SWITCH) -> dict[str, str]:
    """What the confirmation page would send."""
    page = client.get(path, params={"to": to})
    assert page.status_code == 200, page.text
    found = re.search(r'name="token" value="([^"]+)"', page.text)
    assert found, "the page has no form"
    return {"to": to, "token": found[1]}


def test_r2_the_head_turns_it_on_and_off(clinics: World, sign_in: SignIn) -> None:
    head = sign_in("head-1")
    answer = head.post(SWITCH, data=form(head, "on"), headers={"origin": "http://testserver"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/medflex/clinics/1?turned=on"
    enabled, changed_at, changed_by = stands(clinics) or ()
    assert (enabled, changed_by) == (True, 11)
    assert abs(datetime.now(UTC) - changed_at) < timedelta(minutes=1)
    page = head.get("/medflex/clinics/1?turned=on").text
    assert "Access is on" in page
    assert "waiting" in page  # R3: the 24 hours have begun

    answer = head.post(SWITCH, data=form(head, "off"))
    assert answer.status_code == 303
    assert (stands(clinics) or ())[0::2] == (False, 11)
    assert "Access is off" in head.get("/medflex/clinics/1?turned=off").text


def test_the_page_says_what_goes_to_whom_and_from_when(clinics: World, sign_in: SignIn) -> None:
    page = sign_in("head-1").get(SWITCH, params={"to": "on"}).text
    assert "first name, patronymic and phone" in page
    assert "Call Robot" in page
    assert "Mailer" not in page  # its link is off
    said = re.search(r'<time datetime="([^"]+)"', page)
    assert said
    assert abs(datetime.fromisoformat(said[1]) - datetime.now(UTC) - timedelta(hours=24)) < timedelta(minutes=1)


@pytest.mark.parametrize("user", ["head-2", "admin", "op", "viewer"])
def test_r2_nobody_else_turns_it(clinics: World, sign_in: SignIn, user: str) -> None:
    """Not the head of another clinic, not an Airflow admin who is staff there, not a viewer; not with a head's form."""
    head, other = sign_in("head-1"), sign_in(user)
    assert other.get(SWITCH, params={"to": "on"}).status_code == 403
    assert "only the head" in other.get("/medflex/clinics/1").text.lower()
    assert f"{SWITCH}?to=" not in other.get("/medflex/clinics/1").text
    for data in ({"to": "on", "token": "x"}, form(head, "on")):
        assert other.post(SWITCH, data=data).status_code == 403
    assert stands(clinics) is None


def test_r2_who_is_no_longer_the_head_cannot_use_the_form(clinics: World, sign_in: SignIn) -> None:
    head = sign_in("head-1")
    data = form(head, "on")
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute("UPDATE medlock.staff SET role = 'doctor' WHERE id = 11")
    assert head.post(SWITCH, data=data).status_code == 403
    assert stands(clinics) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://testserver.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://testserver", "sec-fetch-site": "cross-site"},
    ],
)
def test_another_site_cannot_turn_it(clinics: World, sign_in: SignIn, headers: dict[str, str]) -> None:
    head = sign_in("head-1")
    assert head.post(SWITCH, data=form(head, "on"), headers=headers).status_code == 403
    assert stands(clinics) is None


def test_a_form_counts_for_one_user_clinic_and_direction(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, second = sign_in("head-1"), sign_in("head-2")
    token = form(head, "on")["token"]
    assert head.post(SWITCH, data={"to": "on"}).status_code == 422
    for bad in ("", "x", token + "x", token[:-1], form(second, "on", "/medflex/clinics/2/switch")["token"]):
        assert head.post(SWITCH, data={"to": "on", "token": bad}).status_code in (403, 422)
    set_switch(clinics, True, datetime(2026, 1, 1, tzinfo=UTC), 12)  # counts as off, so both ways are open
    assert head.post(SWITCH, data={"to": "off", "token": token}).status_code == 403
    assert (stands(clinics) or ())[0] is True


def test_an_old_form_is_refused(clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from medflex.ui import security

    head = sign_in("head-1")
    data = form(head, "on")
    monkeypatch.setattr(security, "FORM_SECONDS", -1)
    assert head.post(SWITCH, data=data).status_code == 403
    assert stands(clinics) is None


def test_who_looked_at_an_older_state_does_not_turn_it(clinics: World, sign_in: SignIn) -> None:
    """Somebody in Medlock was quicker: the head looks again before deciding."""
    head = sign_in("head-1")
    data = form(head, "on")
    set_switch(clinics, True, datetime(2026, 1, 1, tzinfo=UTC), 12)
    assert head.post(SWITCH, data=data).status_code == 403
    assert stands(clinics) == (True, datetime(2026, 1, 1, tzinfo=UTC), 12)


def test_two_at_once_turn_it_once(clinics: World, medlock_switch: str) -> None:
    from medflex.airflow.hooks.medlock_switch import turn_switch
    from medflex.errors import NotHeadError, SwitchTurnedError

    seen = {"clinic_id": 1, "enabled": True, "seen_enabled": None, "seen_changed_at": None}
    turned = turn_switch(medlock_switch, login="head-1", **seen)
    assert turned.staff_id == 11
    with pytest.raises(SwitchTurnedError):
        turn_switch(medlock_switch, login="head-1", **seen)
    assert (stands(clinics) or ())[1] == turned.changed_at
    for login in ("HEAD-1", "head-1 ", "", "head-2", "admin", "' OR 1=1 --"):
        with pytest.raises(NotHeadError):
            turn_switch(medlock_switch, login=login, **seen)


def test_a_standby_turns_nothing_and_says_what_it_is(clinics: World, medlock_switch: str) -> None:
    from medflex.airflow.hooks.medlock_switch import turn_switch
    from medflex.errors import MedlockRefusedError

    read_only = psycopg.conninfo.make_conninfo(medlock_switch, options="-c default_transaction_read_only=on")
    before = stands(clinics)
    with pytest.raises(
        MedlockRefusedError, match=r"takes no writes \(SQLSTATE 25006\).* medlock_switch at the primary"
    ):
        turn_switch(read_only, login="head-1", clinic_id=1, enabled=True, seen_enabled=None, seen_changed_at=None)
    assert stands(clinics) == before


def test_r3_on_again_does_not_start_the_24_hours_anew(clinics: World, sign_in: SignIn) -> None:
    head = sign_in("head-1")
    since = datetime.now(UTC) - timedelta(hours=30)
    set_switch(clinics, False, since, 11)
    data = form(head, "on")
    set_switch(clinics, True, since, 11)
    answer = head.post(SWITCH, data=data)
    assert answer.status_code == 409
    assert "start the 24 hours anew" in answer.text
    assert stands(clinics) == (True, since, 11)
    assert 'name="token"' not in head.get(SWITCH, params={"to": "on"}).text


def test_r2_the_head_can_turn_on_what_somebody_else_turned_on(clinics: World, sign_in: SignIn) -> None:
    head = sign_in("head-1")
    set_switch(clinics, True, datetime(2026, 1, 1, tzinfo=UTC), 12)
    assert "counts as off" in head.get("/medflex/clinics/1").text
    assert head.post(SWITCH, data=form(head, "on")).status_code == 303
    enabled, changed_at, changed_by = stands(clinics) or ()
    assert (enabled, changed_by) == (True, 11)
    assert changed_at > datetime.now(UTC) - timedelta(minutes=1)


def test_a_turn_is_recorded(clinics: World, sign_in: SignIn) -> None:
    """In the ledger, and in Airflow's audit log with the user who did it."""
    from airflow.models.log import Log
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        before = {row.id for row in session.scalars(select(Log))}
    head = sign_in("head-1")
    head.post(SWITCH, data=form(head, "on"))
    with psycopg.connect(clinics.ledger) as connection:
        events = connection.execute(
            "SELECT clinic_id, enabled, changed_at, role, via FROM ledger.switch_event"
        ).fetchall()
    assert events == [(1, True, (stands(clinics) or ())[1], "head", "page")]
    with create_session() as session:
        new = [row for row in session.scalars(select(Log)) if row.id not in before]
        assert [(row.event, row.owner) for row in new] == [("medflex_switch_on", "head-1")]
    assert "on this page" in head.get("/medflex/clinics/1").text


def test_it_is_turned_also_where_the_ledger_is_away(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Turning off must not wait for a note. The next run notes it."""
    from medflex.airflow.tasks.parts import switches_of
    from medflex.errors import LedgerUnavailableError
    from medflex.ledger.store import Ledger

    def away(*_: Any, **__: Any) -> int:
        raise LedgerUnavailableError("The ledger's database does not answer.")

    head = sign_in("head-1")
    set_switch(clinics, True, datetime.now(UTC) - timedelta(days=3), 11)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "note_switches", away)
        assert head.post(SWITCH, data=form(head, "off")).status_code == 303
    assert (stands(clinics) or ())[0] is False
    assert "not noted in the ledger" in caplog.text
    from medflex.airflow.hooks.medlock import Medlock

    with Medlock(clinics.medlock_app) as medlock, Ledger(clinics.ledger) as ledger:
        seen = medlock.clinics(None, datetime.now(UTC))
        assert ledger.note_switches(switches_of(seen)) == 1
        assert ledger.note_switches(switches_of(seen)) == 0  # the same turn is one event


def test_the_note_holds_the_page_up_no_longer_than_any_read(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch is turned by then, and whoever turned it waits for the answer."""
    from medflex.ledger.store import Ledger

    asked: list[Any] = []

    def note(ledger: Ledger, *_: Any, **__: Any) -> int:
        with ledger._statement() as cursor:
            asked.append(cursor.execute("SHOW statement_timeout").fetchone()["statement_timeout"])
        return 1

    monkeypatch.setattr(Ledger, "note_switches", note)
    head = sign_in("head-1")
    assert head.post(SWITCH, data=form(head, "on")).status_code == 303
    assert asked == ["10s"]


def test_a_note_that_takes_too_long_is_given_up(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from medflex.ui.pages import clinics as pages

    monkeypatch.setattr(pages, "TIMEOUT_SECONDS", 1, raising=False)
    head = sign_in("head-1")
    data = form(head, "on")
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute("LOCK TABLE ledger.switch_event IN ACCESS EXCLUSIVE MODE")
        assert head.post(SWITCH, data=data).status_code == 303
    assert (stands(clinics) or ())[0] is True
    assert "not noted in the ledger" in caplog.text


class Slow:
    """The clock of an api-server that is behind Medlock's."""

    def __init__(self, behind: timedelta) -> None:
        self.behind = behind

    def now(self) -> datetime:
        return datetime.now(UTC) - self.behind

    def sleep(self, seconds: float) -> None:
        raise AssertionError


def test_r3_a_clock_that_is_behind_medlocks_shows_what_was_just_turned_on_as_waiting(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medflex.ui import view

    monkeypatch.setattr(view, "CLOCK", Slow(timedelta(seconds=20)))
    head = sign_in("head-1")
    answer = head.post(SWITCH, data=form(head, "on"))
    page = head.get(answer.headers["location"]).text
    assert "Access is on" in page
    assert "waiting" in page
    assert "in the future" not in page
    assert "waiting" in head.get("/medflex/clinics").text.split("Clinic One")[1].split("</tr>")[0]
    assert head.get(SWITCH, params={"to": "on"}).text.count('name="token"') == 0  # the 24 hours would begin anew


@pytest.mark.parametrize(
    ("seconds_ahead", "changed_by", "said"),
    [(40, 12, "was not turned on by the head"), (40, 99, "by nobody known"), (90, 11, "since a time in the future")],
)
def test_r2_a_stamp_ahead_is_no_way_around_the_other_rules(
    clinics: World, sign_in: SignIn, seconds_ahead: int, changed_by: int, said: str
) -> None:
    set_switch(clinics, True, datetime.now(UTC) + timedelta(seconds=seconds_ahead), changed_by)
    page = sign_in("viewer").get("/medflex/clinics/1").text
    assert said in page
    assert "counts as off" in page


def test_what_was_turned_is_told_to_who_turned_it_right_after_it(clinics: World, sign_in: SignIn) -> None:
    """The address can be passed on, and opened again much later."""
    head, path = sign_in("head-1"), "/medflex/clinics/1?turned=off"
    assert "Access is off. What" not in head.get(path).text  # it was never on
    set_switch(clinics, False, datetime.now(UTC), 11)
    assert "Access is off. What" in head.get(path).text
    assert "Access is off. What" not in sign_in("viewer").get(path).text
    assert "Access is on. The" not in head.get("/medflex/clinics/1?turned=on").text
    set_switch(clinics, False, datetime.now(UTC) - timedelta(hours=1), 11)
    assert "Access is off. What" not in head.get(path).text


def test_without_its_connection_it_says_where_to_turn(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = sign_in("head-1")
    data = form(head, "on")
    monkeypatch.delenv("AIRFLOW_CONN_MEDLOCK_SWITCH")
    answer = head.post(SWITCH, data=data)
    assert answer.status_code == 503
    assert "medlock_switch does not exist" in answer.text


def test_the_log_in_can_write_nothing_but_switches(clinics: World, medlock_switch: str) -> None:
    forbidden = (
        "SELECT * FROM medlock.patient",
        "SELECT * FROM medlock.appointment",
        "UPDATE medlock.staff SET role = 'head'",
        "DELETE FROM medlock.medflex_access",
        "INSERT INTO medlock.clinic_partner VALUES (1, 9, TRUE, NULL)",
    )
    for statement in forbidden:
        with psycopg.connect(medlock_switch) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
