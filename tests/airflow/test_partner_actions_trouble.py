"""Partner actions when something else is broken: Medflex, Medlock, the ledger, or what they say."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import psycopg
import pytest

from medflex.airflow import acting
from medflex.airflow.hooks import medflex as medflex_hook
from medflex.airflow.hooks import medlock_actions
from medflex.airflow.hooks.medlock_actions import ActionTransaction, MedlockActions
from medflex.domain.partner_actions import Action
from medflex.errors import (
    ActionsUnreadableError,
    ActionsWaitError,
    AnswerContradictedError,
    LedgerUnavailableError,
    MedflexContractError,
    MedflexPipelineError,
    MedflexRefusedError,
    MedflexUnavailableError,
    MedlockRefusedError,
    MedlockSchemaError,
    MedlockUnavailableError,
)
from medflex.ledger.store import Ledger
from sandbox.medflex.control import Match
from sandbox.postgres import Cluster
from tests.airflow.acting import (
    PERSONAL,
    answer,
    apply,
    appointments,
    at,
    decisions,
    found,
    journal,
    read,
    row,
    send,
    wish,
)
from tests.airflow.test_medflex_client import reply, serving
from tests.airflow.test_partner_actions_concurrency import HISTORY, Meddling, effects, ruled, run
from tests.airflow.world import World

GET, POST = Match(method="GET", path_prefix="/actions/"), Match(method="POST", path_prefix="/actions/")
BROKEN: dict[str, dict[str, Any]] = {
    "timeout_before_effect": {"seconds": 2},
    "timeout_after_effect": {"seconds": 2},
    "reset_before_effect": {},
    "reset_after_effect": {},
    "status": {"status": 503},
    "rate_limited": {"retry_after": 0},
}
NONSENSE = ("truncated", "wrong_type", "missing_data", "missing_items", "empty")
FAST = {"timeout": 0.3, "attempts": 2, "backoff": 0.01}
"""Where nothing comes through, however long one waits."""
STEADY = {**FAST, "timeout": 5.0}
"""Where something has to come through, also on a busy machine."""


@pytest.fixture
def clinics(world: World) -> Iterator[World]:
    """Sixteen small clinics, all sent; every change of an appointment is noted."""
    found(world, 16)
    send(world)
    world.edit(HISTORY)
    yield world
    world.control.clear_faults()


def sentence(error: BaseException, *words: str) -> str:
    """Hold that an error is for the person on call: one sentence with these words, and nobody's data."""
    text = str(error)
    assert isinstance(error, MedflexPipelineError), repr(error)
    assert text.endswith(".")
    assert "\n" not in text
    assert text.count(". ") == 0, text
    assert not any(word in text for word in (*PERSONAL, "DETAIL", "Traceback"))
    for word in words:
        assert word in text, text
    return text


def confirm(world: World, *clinic_ids: int) -> list[str]:
    """Let partners confirm the appointments of some clinics; return the actions' ids."""
    return world.control.add_actions(wish(clinic, "confirm") for clinic in clinic_ids)


def cursor(world: World) -> Any:
    return world.read_ledger("SELECT value FROM ledger.watch WHERE name = 'partner_actions'")


# Medflex, while actions are read


def test_what_passes_by_while_actions_are_read_is_no_trouble(clinics: World) -> None:
    for number, (kind, settings) in enumerate(BROKEN.items(), start=1):
        ids = confirm(clinics, number)
        clinics.control.add_fault(kind, match=GET, times=1, **settings)
        # Shorter than the faults' own seconds.
        assert (read(clinics, **{**STEADY, "timeout": 1.5}).new, read(clinics).new) == (1, 0), kind
        clinics.control.clear_faults()
        apply(clinics)
        assert ruled(clinics)[ids[0]] == "done"


def test_a_medflex_that_stays_broken_is_told_in_one_sentence_and_nothing_is_lost(clinics: World) -> None:
    ids = confirm(clinics, 1, 2, 3)
    broken = [*BROKEN.items(), *(("malformed_body", {"form": form}) for form in NONSENSE), ("status", {"status": 500})]
    for kind, settings in broken:
        clinics.control.add_fault(kind, match=GET, **settings)
        with pytest.raises(MedflexUnavailableError) as caught:
            read(clinics, **FAST)
        sentence(caught.value, "Medflex")
        assert (decisions(clinics), cursor(clinics)) == ([], []), kind
        clinics.control.clear_faults()
    clinics.control.add_fault("unauthorized", match=GET)
    with pytest.raises(MedflexRefusedError) as refused:
        read(clinics)
    sentence(refused.value, "token")
    clinics.control.clear_faults()
    run(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")


def test_that_reading_came_to_its_end_is_noted_and_only_that(clinics: World) -> None:
    def noted() -> Any:
        return clinics.read_ledger("SELECT looked_at FROM ledger.watch WHERE name = 'actions_read'")[0][0]

    # No list for our token: it is expected from the first time that it is tried.
    clinics.control.add_fault("status", match=GET, status=404)
    with pytest.raises(MedflexContractError):
        read(clinics)
    tried = noted()
    with pytest.raises(MedflexContractError):
        read(clinics)
    assert noted() == tried
    clinics.control.clear_faults()
    read(clinics)
    ended = noted()
    assert ended > tried
    # An entry that cannot be read holds up all behind it.
    clinics.control.add_fault("malformed_body", match=GET, form="item_without_id")
    confirm(clinics, 1)
    assert read(clinics).problem is not None
    assert noted() == ended


def test_pages_that_were_read_stay_and_reading_goes_on_behind_them(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medflex_hook, "ACTION_PAGE_SIZE", 2)
    ids = confirm(clinics, 1, 2, 3, 4, 5)
    for form, kept in (("truncated", 2), ("missing_data", 4)):
        clinics.control.add_fault("malformed_body", match=GET, skip=1, form=form)
        with pytest.raises(MedflexUnavailableError):
            read(clinics, **STEADY)
        clinics.control.clear_faults()
        assert [str(id_) for id_, *_ in decisions(clinics)] == ids[:kept]
    last = read(clinics)
    assert (last.entries, last.new, last.pages) == (1, 1, 1)
    assert [str(id_) for id_, *_ in decisions(clinics)] == ids
    assert set(clinics.read_ledger("SELECT deliveries FROM ledger.partner_action")) == {(1,)}


# What Medflex lists


def test_behind_an_entry_without_an_id_nothing_is_lost(clinics: World) -> None:
    """It cannot be answered, so somebody has to look; what is before it is worked off."""
    expected: dict[str, str] = {}
    nameless = (None, 7, "x", [], {}, {"id": None}, {"id": 5}, {"id": "x"}, {"id": [1]})
    for clinic, entry in enumerate(nameless, start=1):
        (before,) = confirm(clinics, clinic)
        clinics.control.add_actions([entry], unchecked=True)
        confirm(clinics, 16)
        for _ in range(2):
            seen = read(clinics)
            assert isinstance(seen.problem, ActionsUnreadableError), entry
            sentence(seen.problem, "Entry 2")
        assert apply(clinics).problems == answer(clinics).problems == []
        expected[before] = "done"
        assert ruled(clinics) == expected
        # Medflex loses it, and the action behind it.
        clinics.control.forget_actions()
    (last,) = confirm(clinics, 16)
    run(clinics)
    assert ruled(clinics) == expected | {last: "done"}
    assert effects(clinics) == {clinic * 100 + 1: 1 for clinic in (*range(1, len(nameless) + 1), 16)}


def test_what_is_before_an_entry_without_an_id_is_answered_once(clinics: World) -> None:
    ids = confirm(clinics, 1, 2)
    clinics.control.add_actions([{}], unchecked=True)
    for told in ({"taken": 2}, {}, {}):
        assert read(clinics).problem is not None
        apply(clinics)
        assert answer(clinics).answers == told
    assert clinics.read_ledger("SELECT deliveries, answer FROM ledger.partner_action") == [(1, "taken")] * 2
    # Behind it they may be delivered again because an answer was lost.
    clinics.control.forget_actions()
    for id_ in ids:
        clinics.control.add_actions([wish(1, "confirm", id=id_)])
    assert read(clinics).problem is None
    assert clinics.read_ledger("SELECT deliveries, answer FROM ledger.partner_action") == [(2, None)] * 2


def test_a_list_that_heals_is_read_on(clinics: World) -> None:
    ids = confirm(clinics, 1, 2)
    clinics.control.add_fault("malformed_body", match=GET, form="item_without_id")
    assert isinstance(read(clinics).problem, ActionsUnreadableError)
    assert (decisions(clinics), cursor(clinics)) == ([], [])
    clinics.control.clear_faults()
    run(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")


def test_an_entry_that_cannot_be_read_is_answered_with_400_and_nothing_of_it_is_kept(clinics: World) -> None:
    odd = wish(1, "confirm", partner_id="Евлампия", base_version={"phone": "9951234567"}, note="Порфирьевна")
    (other,) = confirm(clinics, 2)
    clinics.control.add_actions([odd], unchecked=True)
    run(clinics)
    assert ruled(clinics) == {other: "done", odd["id"]: "malformed"}
    assert clinics.control.results()[odd["id"]]["status_code"] == 400
    kept = str(clinics.read_ledger("SELECT a::text FROM ledger.partner_action AS a")) + str(journal(clinics))
    assert not any(word in kept for word in PERSONAL)


def test_a_value_that_nobody_can_read_is_a_matter_of_its_own_action(clinics: World) -> None:
    odd, other = wish(1, "confirm", base_version="?"), wish(2, "confirm", note="?")
    page = {"links": {"next": None}, "count": 3, "cursor": "c", "data": [odd, other, wish(3, "confirm")]}
    with serving(reply(200, orjson.dumps(page).replace(b'"?"', b'"\\ud800\xff"'))) as server:
        assert read(clinics, base_url=server.url).new == 3
    apply(clinics)
    assert list(ruled(clinics).values()) == ["malformed", "done", "done"]


def test_an_action_that_is_delivered_again_is_answered_again_and_not_done_again(clinics: World) -> None:
    ids = confirm(clinics, 1, 2)
    clinics.control.repeat_action(ids[0])
    assert read(clinics).new == 2
    run(clinics)
    clinics.edit("UPDATE medlock.appointment SET status = 'unconfirmed'")
    before, kept = appointments(clinics), journal(clinics)
    for id_ in (ids[1], ids[0], ids[1]):
        clinics.control.repeat_action(id_)
    clinics.control.forget_request_log()
    run(clinics)
    assert (appointments(clinics), journal(clinics)) == (before, kept)
    assert clinics.control.counters()["answerAction"]["replies"] == {"204": 2}
    times = clinics.read_ledger("SELECT action_id::text, deliveries, answer FROM ledger.partner_action ORDER BY seq")
    assert times == [(ids[0], 3, "taken"), (ids[1], 3, "taken")]


def test_under_one_id_the_first_delivery_counts(clinics: World) -> None:
    first, second = wish(1, "confirm"), wish(2, "cancel")
    clinics.control.add_actions([first, second | {"id": first["id"]}], unchecked=True)
    run(clinics)
    clinics.control.add_actions([second | {"id": first["id"].upper()}], unchecked=True)
    run(clinics)
    assert ruled(clinics) == {first["id"]: "done"}
    assert effects(clinics) == {101: 1}


@pytest.mark.parametrize("keep", [True, False])
def test_a_cursor_that_points_nowhere_is_told_once_and_the_queue_is_read_anew(
    clinics: World, caplog: pytest.LogCaptureFixture, keep: bool
) -> None:
    ids = confirm(clinics, 1, 2)
    run(clinics)
    clinics.edit("UPDATE medlock.appointment SET status = 'unconfirmed'")
    before, kept = appointments(clinics), journal(clinics)
    clinics.control.forget_actions(keep=keep)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert read(clinics).new == 0
        assert read(clinics).new == 0
    assert [record.levelname for record in caplog.records if "from the beginning" in record.message] == ["WARNING"]
    assert apply(clinics).rulings == {}
    assert answer(clinics).answers == ({"taken": 2} if keep else {})
    assert (appointments(clinics), journal(clinics)) == (before, kept)
    later = confirm(clinics, 3)
    run(clinics)
    assert ruled(clinics) == dict.fromkeys([*ids, *later], "done")


def test_a_single_404_does_not_have_the_queue_read_anew(clinics: World, caplog: pytest.LogCaptureFixture) -> None:
    confirm(clinics, 1, 2)
    run(clinics)
    later = confirm(clinics, 3)
    clinics.control.add_fault("status", status=404, match=GET, times=1)
    assert (read(clinics).entries, read(clinics).entries) == (1, 0)
    assert "from the beginning" not in caplog.text
    apply(clinics)
    assert answer(clinics).answers == {"taken": 1}
    assert ruled(clinics)[later[0]] == "done"


# Medflex, while it is answered


def test_answers_are_repeated_until_medflex_has_them(clinics: World) -> None:
    for number, (kind, settings) in enumerate(BROKEN.items(), start=1):
        ids = confirm(clinics, number)
        read(clinics)
        apply(clinics)
        clinics.control.add_fault(kind, match=POST, **settings)
        problems = answer(clinics, **FAST).problems
        assert [type(problem) for problem in problems] == [MedflexUnavailableError], kind
        sentence(problems[0], "Medflex")
        clinics.control.clear_faults()
        assert clinics.read_ledger("SELECT count(*) FROM ledger.partner_action WHERE answer IS NULL") == [(1,)]
        assert answer(clinics).answers == {"taken": 1}, kind
        assert answer(clinics).answers == {}
        assert clinics.control.results()[ids[0]] == {"status_code": 204, "detail": ""}
    assert effects(clinics) == {number * 100 + 1: 1 for number in range(1, len(BROKEN) + 1)}


def test_answers_that_medflex_cannot_take_do_not_hold_up_the_others_for_ever(clinics: World) -> None:
    for first, status, parallel in ((1, 500, 1), (8, 400, 4)):
        ids = confirm(clinics, *range(first, first + 7))
        read(clinics)
        apply(clinics)
        # The oldest ones: whoever begins with them in each run comes to them first.
        for id_ in ids[:3]:
            match = Match(method="POST", path_prefix=f"/actions/{id_}/result/")
            clinics.control.add_fault("status", status=status, match=match)
        for _ in range(3):
            for problem in answer(clinics, parallel=parallel, **STEADY).problems:
                sentence(problem)
        assert set(ids[3:]) <= set(clinics.control.results()), status
        clinics.control.clear_faults()
        answer(clinics)
        assert set(ids) <= set(clinics.control.results())
    assert answer(clinics).answers == {}


def test_a_token_that_is_refused_is_told_once_and_not_tried_for_every_answer(clinics: World) -> None:
    confirm(clinics, *range(1, 9))
    read(clinics)
    apply(clinics)
    clinics.control.add_fault("unauthorized", match=POST)
    clinics.control.forget_request_log()
    problems = answer(clinics).problems
    assert [type(problem) for problem in problems] == [MedflexRefusedError]
    sentence(problems[0], "token")
    assert clinics.control.counters()["answerAction"]["requests"] <= 4
    clinics.control.clear_faults()
    assert answer(clinics).answers == {"taken": 8}


def test_another_answer_at_medflex_is_told_once(clinics: World) -> None:
    ids = confirm(clinics, 1, 2)
    read(clinics)
    apply(clinics)
    with clinics.parts() as (*_, client):
        client.answer(decisions(clinics)[0][0], 404, "somebody else")
    answered = answer(clinics)
    assert answered.answers == {"contradicted": 1, "taken": 1}
    assert [type(problem) for problem in answered.problems] == [AnswerContradictedError]
    sentence(answered.problems[0], "1 partner action")
    again = answer(clinics)
    assert (again.answers, again.problems) == ({}, [])
    states = clinics.read_ledger("SELECT action_id::text, answer FROM ledger.partner_action ORDER BY seq")
    assert states == [(ids[0], "contradicted"), (ids[1], "taken")]
    assert row(clinics, 101)[0] == "confirmed"


def test_actions_that_medflex_has_forgotten_are_not_answered_for_ever(clinics: World) -> None:
    confirm(clinics, 1)
    read(clinics)
    apply(clinics)
    clinics.control.forget_actions()
    first, second = answer(clinics), answer(clinics)
    assert (first.answers, first.problems) == ({"unknown_action": 1}, [])
    assert (second.answers, second.problems) == ({}, [])


def test_a_gateway_behind_which_there_is_no_medflex_ends_no_answer(clinics: World) -> None:
    ids = confirm(clinics, 1, 2, 3)
    read(clinics)
    apply(clinics)
    clinics.control.add_fault("status", status=404)
    answered = answer(clinics)
    assert answered.answers == {}
    (problem,) = answered.problems
    sentence(problem, "404")
    clinics.control.clear_faults()
    assert clinics.read_ledger("SELECT DISTINCT answer FROM ledger.partner_action") == [(None,)]
    # It is back between one request and the next.
    clinics.control.add_fault("status", status=404, match=POST, times=1)
    assert answer(clinics).answers == {"taken": 3}
    assert {clinics.control.results()[id_]["status_code"] for id_ in ids} == {204}


@pytest.mark.parametrize("parallel", [1, 4])
def test_answers_that_medflex_never_takes_let_the_others_through_however_many_they_are(
    clinics: World, parallel: int
) -> None:
    stuck = clinics.control.add_actions(wish(1, "notification") for _ in range(45))
    ids = confirm(clinics, 2, 3)
    read(clinics)
    apply(clinics)
    for id_ in stuck:
        match = Match(method="POST", path_prefix=f"/actions/{id_}/result/")
        clinics.control.add_fault("status", status=500, match=match)
    for _ in range(3):
        answer(clinics, parallel=parallel, **{**STEADY, "attempts": 1})
    assert set(ids) <= set(clinics.control.results())
    clinics.control.clear_faults()
    assert answer(clinics).answers == {"taken": 45}
    assert clinics.read_ledger("SELECT value FROM ledger.watch WHERE name = 'answers_halted'") == [({"seq": 0},)]


# Medlock and ledger


@pytest.fixture
def break_off(postgres: Cluster) -> Callable[[str], None]:
    """A function that ends all connections to a database, by its URI, but those of this test."""

    def end(uri: str) -> None:
        with postgres.connect() as connection:
            connection.execute(
                b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [uri.rsplit("/", 1)[1]]
            )

    return end


def test_a_medlock_that_is_lost_half_way_leaves_what_was_decided_and_no_half_action(
    clinics: World, break_off: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = confirm(clinics, 1, 2, 3, 4)
    read(clinics)
    original = ActionTransaction.journal

    def journal_and_lose(self: ActionTransaction, *arguments: Any) -> Any:
        entry = original(self, *arguments)
        if str(arguments[0].action_id) == ids[2]:
            break_off(clinics.medlock)
        return entry

    # Behind the change and the journal, before the commit.
    with monkeypatch.context() as patch:
        patch.setattr(ActionTransaction, "journal", journal_and_lose)
        with pytest.raises(MedlockUnavailableError) as caught:
            apply(clinics)
    sentence(caught.value, "Medlock")
    assert list(ruled(clinics).values()) == ["done", "done", None, None]
    assert row(clinics, 301)[0] == "unconfirmed"
    # And between two transactions.
    with pytest.raises(MedlockUnavailableError):
        apply(clinics, medlock=Meddling(clinics.medlock_actions, lambda: None, lambda: break_off(clinics.medlock)))
    assert list(ruled(clinics).values()) == ["done", "done", "done", None]
    run(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")
    assert effects(clinics) == {101: 1, 201: 1, 301: 1, 401: 1}


def test_a_ledger_that_is_lost_half_way_is_told_by_the_journal(
    clinics: World, break_off: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = confirm(clinics, 1, 2)

    def lose(name: str, step: Callable[[], Any]) -> None:
        """Lose the ledger right before a call; a ledger that can connect anew need not fail."""
        original, lost = getattr(Ledger, name), []

        def call(self: Ledger, *arguments: Any, **more: Any) -> Any:
            if not lost:
                lost.append(name)
                break_off(clinics.ledger)
            return original(self, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, name, call)
            try:
                step()
            except LedgerUnavailableError as error:
                sentence(error, "ledger")
        assert lost

    lose("store_actions", lambda: read(clinics))
    read(clinics)
    lose("save_decided", lambda: apply(clinics))
    apply(clinics)
    lose("save_answered", lambda: answer(clinics))
    answer(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")
    assert effects(clinics) == {101: 1, 201: 1}
    assert set(clinics.control.results()) == set(ids)
    assert clinics.read_ledger("SELECT DISTINCT answer FROM ledger.partner_action") == [("taken",)]


def without_password(uri: str) -> str:
    user, _, place = uri.removeprefix("postgresql://").partition("@")
    return f"postgresql://{user.split(':')[0]}:wrong@{place}"


def test_a_connection_that_is_wrong_is_named(clinics: World) -> None:
    confirm(clinics, 1)
    read(clinics)
    host, _, database = clinics.medlock_actions.rpartition("/")
    wrong = {
        without_password(clinics.medlock_actions): MedlockRefusedError,
        f"{host}/no_such_database": MedlockRefusedError,
        f"{host.rsplit(':', 1)[0]}:1/{database}": MedlockUnavailableError,
    }
    for conninfo, type_ in wrong.items():
        with pytest.raises(type_) as caught:
            apply(clinics, medlock=MedlockActions(conninfo))
        sentence(caught.value, "medlock_actions")
        assert "medlock_db" not in str(caught.value)
    run(clinics)
    assert effects(clinics) == {101: 1}


CLOSED = [
    (
        "REVOKE UPDATE (status) ON medlock.appointment FROM medlock_actions",
        "GRANT UPDATE (status) ON medlock.appointment TO medlock_actions",
        MedlockRefusedError,
        "medlock_actions",
    ),
    (
        "REVOKE INSERT ON medlock.partner_action FROM medlock_actions",
        "GRANT INSERT ON medlock.partner_action TO medlock_actions",
        MedlockRefusedError,
        "medlock_actions",
    ),
    (
        "ALTER TABLE medlock.partner_action RENAME TO elsewhere",
        "ALTER TABLE medlock.elsewhere RENAME TO partner_action",
        MedlockSchemaError,
        "partner_action",
    ),
    (
        "ALTER TABLE medlock.partner_action RENAME COLUMN reason TO why",
        "ALTER TABLE medlock.partner_action RENAME COLUMN why TO reason",
        MedlockSchemaError,
        "reason",
    ),
]


def test_a_medlock_that_does_not_let_partners_act_is_named_and_loses_nothing(clinics: World) -> None:
    ids = confirm(clinics, 1, 2)
    before = appointments(clinics)
    read(clinics)
    for taken, given, type_, word in CLOSED:
        clinics.edit(taken)
        with pytest.raises(type_) as caught:
            apply(clinics)
        sentence(caught.value, word)
        clinics.edit(given)
        assert appointments(clinics) == before
        assert [reason for *_, reason in decisions(clinics)] == [None, None]
        assert answer(clinics).answers == {}
    run(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")


def test_a_medlock_that_may_only_be_read_says_so(clinics: World) -> None:
    (id_,) = confirm(clinics, 1)
    read(clinics)
    name = clinics.medlock.rsplit("/", 1)[1]
    clinics.edit(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(MedflexPipelineError) as caught:
        apply(clinics)
    sentence(caught.value, "medlock_actions")
    with psycopg.connect(
        clinics.medlock, autocommit=True, options="-c default_transaction_read_only=off"
    ) as connection:
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    run(clinics)
    assert ruled(clinics) == {id_: "done"}


# What this clinic's system makes of a change


MIS = "CREATE FUNCTION medlock.mis() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.id = {{a}} THEN {}; END IF;"
BEFORE = (
    " RETURN new; END $$; CREATE TRIGGER mis BEFORE UPDATE ON medlock.appointment FOR EACH ROW"
    " EXECUTE FUNCTION medlock.mis()"
)
AT_COMMIT = (
    " RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER mis AFTER UPDATE ON medlock.appointment"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION medlock.mis()"
)
DROP = "DROP FUNCTION medlock.mis CASCADE"
REFUSING = {
    "a check": (
        "ALTER TABLE medlock.appointment ADD CONSTRAINT mis CHECK (id <> {a} OR status <> 'confirmed')",
        "ALTER TABLE medlock.appointment DROP CONSTRAINT mis",
    ),
    "a trigger that quotes the row": (MIS.format("RAISE EXCEPTION 'Евлампия 9951234567'") + BEFORE, DROP),
    "a trigger with a code of its own": (MIS.format("RAISE EXCEPTION 'no' USING ERRCODE = 'MD001'") + BEFORE, DROP),
    "a unique index": (
        "INSERT INTO medlock.appointment (id, status, doctor_id) VALUES (1, 'confirmed', {d});"
        "CREATE UNIQUE INDEX mis ON medlock.appointment (doctor_id) WHERE status = 'confirmed' AND doctor_id = {d}",
        "DROP INDEX medlock.mis",
    ),
    "a constraint at the commit": (MIS.format("RAISE unique_violation") + AT_COMMIT, DROP),
    "a trigger that swallows it": (MIS.format("RETURN NULL") + BEFORE, DROP),
    "a trigger that leaves it as it is": (MIS.format("RETURN old") + BEFORE, DROP),
}
CODES = {
    f"a trigger that raises {code}": (MIS.format(f"RAISE EXCEPTION 'no' USING ERRCODE = '{code}'") + BEFORE, DROP)
    for code in ("42501", "55000", "57014", "54000", "42703", "53400")
}
"""Elsewhere they speak of the whole server."""
PERMISSIONS = {
    "a trigger that may not": (MIS.format("PERFORM FROM medlock.history") + BEFORE, DROP),
    "a trigger that is wrong": (MIS.format("new.nothing = 1") + BEFORE, DROP),
    "row security": (
        "ALTER TABLE medlock.appointment ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY r ON medlock.appointment FOR SELECT USING (true);"
        "CREATE POLICY w ON medlock.appointment FOR UPDATE USING (true) WITH CHECK (id <> {a} OR status = 'lost')",
        "ALTER TABLE medlock.appointment DISABLE ROW LEVEL SECURITY;"
        "DROP POLICY r ON medlock.appointment; DROP POLICY w ON medlock.appointment",
    ),
}


@pytest.mark.parametrize("refusing", [REFUSING, CODES, PERMISSIONS], ids=["rules", "codes", "permissions"])
def test_what_the_clinics_system_refuses_waits_and_holds_up_nobody_else(
    clinics: World, caplog: pytest.LogCaptureFixture, refusing: dict[str, tuple[str, str]]
) -> None:
    expected: Counter[int] = Counter()
    for number, (name, (refuse, permit)) in enumerate(refusing.items()):
        one, two = number * 2 + 1, number * 2 + 2
        a = one * 100 + 1
        ids = [
            *confirm(clinics, one, two),
            *clinics.control.add_actions([wish(one, "cancel"), wish(16, "notification")]),
        ]
        read(clinics)
        clinics.edit(refuse.format(a=a, d=one * 10 + 1))
        before = appointments(clinics)[a]
        applied = apply(clinics)
        assert [type(problem) for problem in applied.problems] == [ActionsWaitError], name
        sentence(applied.problems[0], "Medlock")
        assert [ruled(clinics)[id_] for id_ in ids] == [None, "done", None, "recorded"], name
        assert appointments(clinics)[a] == before, name
        assert applied.waiting == 2
        clinics.edit(permit)
        run(clinics)
        assert [ruled(clinics)[id_] for id_ in ids] == ["done", "done", "done", "recorded"], name
        expected += Counter({a: 2, two * 100 + 1: 1})
        assert effects(clinics) == expected, name
    assert not any(word in caplog.text for word in PERSONAL)


@pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
def test_a_constraint_against_double_bookings_is_a_slot_that_is_taken(clinics: World, deferred: str) -> None:
    """To our eyes the slot of a cancelled appointment is free; the last word is Medlock's."""
    clinics.edit(f"ALTER TABLE medlock.appointment ADD CONSTRAINT mis UNIQUE (doctor_id, starts_at){deferred}")
    taken = wish(1, "reschedule", dt_start=at("15:00"), dt_end=at("15:30"))
    free = wish(2, "reschedule")
    clinics.control.add_actions([taken, free])
    before = appointments(clinics)[101]
    run(clinics)
    assert ruled(clinics) == {taken["id"]: "slot_taken", free["id"]: "done"}
    assert appointments(clinics)[101] == before


def test_a_move_that_ends_elsewhere_than_was_asked_for_is_not_told_as_done(clinics: World) -> None:
    clinics.edit(MIS.format("new.ends_at = new.ends_at + interval '5 minutes'").format(a=101) + BEFORE)
    move, cancel = wish(1, "reschedule"), wish(2, "cancel")
    clinics.control.add_actions([move, cancel])
    read(clinics)
    before = appointments(clinics)[101]
    assert [type(problem) for problem in apply(clinics).problems] == [ActionsWaitError]
    assert ruled(clinics) == {move["id"]: None, cancel["id"]: "done"}
    assert appointments(clinics)[101] == before


def test_a_query_of_another_mis_that_gives_nothing_back_is_told(
    clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = medlock_actions.query
    monkeypatch.setattr(medlock_actions, "query", lambda name: query(name).partition("RETURNING appointment.")[0])
    confirm(clinics, 1)
    read(clinics)
    (problem,) = apply(clinics).problems
    sentence(problem, "include/sql/medlock/actions")
    assert row(clinics, 101)[0] == "unconfirmed"


# Values that hardly anybody can read


UNREADABLE = [
    sql.replace("?", f"'{value}'")
    for sql in (
        "UPDATE medlock.appointment SET starts_at = ? WHERE id = {c} * 100 + 1",
        "UPDATE medlock.appointment SET updated_at = ? WHERE id = {c} * 100 + 1",
        "UPDATE medlock.medflex_access SET changed_at = ? WHERE clinic_id = {c}",
    )
    for value in ("infinity", "-infinity", "20226-11-01", "0044-03-15 BC")
]
CALENDARS_ENDS = ("0001-01-01 00:00+02:30:17", "0001-01-01 00:00+00", "9999-12-31 12:00+00", "9999-12-31 23:59:59.9+00")


def test_a_time_that_cannot_be_read_is_a_matter_of_its_own_appointment(clinics: World) -> None:
    for clinic, sql in enumerate(UNREADABLE, start=1):
        clinics.edit(sql.format(c=clinic))
    confirm(clinics, *range(1, len(UNREADABLE) + 1))
    healthy = confirm(clinics, 14, 15)
    run(clinics)
    assert [ruled(clinics)[id_] for id_ in healthy] == ["done", "done"]
    assert None not in ruled(clinics).values()
    # Nobody knows when these begin.
    assert not {clinic * 100 + 1 for clinic in range(1, 5)} & set(effects(clinics))


def test_the_databases_own_zones_do_not_matter(clinics: World) -> None:
    for number, zone in enumerate(("America/New_York", "Asia/Kamchatka")):
        for uri in (clinics.ledger, clinics.medlock):
            with psycopg.connect(uri) as connection:
                connection.execute(f"ALTER DATABASE {uri.rsplit('/', 1)[1]} SET timezone = '{zone}'".encode())
        times = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
        odd = [wish(1, "confirm", created_at=time) for time in times]
        ids = clinics.control.add_actions(odd, unchecked=True)
        ids += clinics.control.add_actions([wish(number + 2, "reschedule"), wish(number + 5, "confirm")])
        run(clinics)
        assert [ruled(clinics)[id_] for id_ in ids] == ["malformed", "malformed", "done", "done"]


@pytest.mark.parametrize(
    ("zone", "servers"),
    [
        ("Europe/Moscow", "Europe/Moscow"),
        ("America/New_York", "Europe/Moscow"),
        ("Europe/Moscow", "America/New_York"),
        ("Europe/Moscow", "UTC"),
    ],
)
def test_the_calendars_ends_are_a_matter_of_their_own_appointment(clinics: World, zone: str, servers: str) -> None:
    """Where another zone leads out of the calendar; such a start is what some systems write for none."""
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(f"ALTER DATABASE {clinics.medlock.rsplit('/', 1)[1]} SET timezone = '{servers}'".encode())
    clinics.edit(f"UPDATE medlock.clinic SET timezone = '{zone}' WHERE id < 13")
    places = [(column, time) for column in ("starts_at", "ends_at", "updated_at") for time in CALENDARS_ENDS]
    for clinic, (column, time) in enumerate(places, start=1):
        clinics.edit(f"UPDATE medlock.appointment SET {column} = '{time}' WHERE id = {clinic}01")
    clinics.control.add_actions(
        wish(clinic, type_) for clinic in range(1, len(places) + 1) for type_ in ("reschedule", "notification")
    )
    (healthy,) = confirm(clinics, 14)
    run(clinics)
    assert ruled(clinics)[healthy] == "done"
    assert None not in ruled(clinics).values()


STAMPS = (
    "UPDATE medlock.appointment SET created_at = {0}, updated_at = {0} WHERE id = {1}01;"
    "UPDATE medlock.patient SET updated_at = {0} WHERE id = {1}1;"
    "UPDATE medlock.doctor SET updated_at = {0} WHERE id = {1}1"
)


@pytest.mark.parametrize("stamp", ["NULL", "'infinity'"])
def test_rows_without_any_stamp_are_acted_upon_also_one_alone(clinics: World, stamp: str) -> None:
    """In a wave of its own a column has no value of which its type could be told."""
    ids = []
    for clinic, type_ in enumerate(("confirm", "cancel", "reschedule"), start=1):
        clinics.edit(STAMPS.format(stamp, clinic))
        ids += clinics.control.add_actions([wish(clinic, type_)])
        run(clinics)
    assert ruled(clinics) == dict.fromkeys(ids, "done")
    digests = dict(clinics.read_ledger("SELECT action_id::text, digest_after FROM ledger.partner_action"))
    assert None not in digests.values()


def test_what_nobody_foresaw_in_one_appointment_holds_up_no_other(
    clinics: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where many are prepared together, nor where one is judged anew behind its lock."""
    original = acting.new_times

    def failing(action: Action, *more: Any) -> Any:
        if action.appointment_id in (301, 501):
            raise OverflowError("Евлампия 9951234567")
        return original(action, *more)

    ids = clinics.control.add_actions(
        [*(wish(clinic, "reschedule") for clinic in range(1, 8)), wish(3, "confirm"), wish(3, "notification")]
    )
    read(clinics)
    with monkeypatch.context() as patch:
        patch.setattr(acting, "new_times", failing)
        applied = apply(clinics)
        (problem,) = applied.problems
        assert isinstance(problem, ActionsWaitError)
        sentence(problem, "OverflowError", "acting.py, line")
        assert [ruled(clinics)[id_] for id_ in ids] == ["done"] * 2 + [None, "done", None] + ["done"] * 2 + [None] * 2
        assert applied.waiting == 4
    run(clinics)
    assert Counter(ruled(clinics).values()) == {"done": 8, "recorded": 1}
    # And behind the lock, since the clinic was quicker.
    (late, other) = clinics.control.add_actions([wish(8, "reschedule"), wish(9, "confirm")])
    read(clinics)

    def touch() -> None:
        clinics.edit("UPDATE medlock.appointment SET updated_at = now() - interval '9 days' WHERE id = 801")
        monkeypatch.setattr(acting, "new_times", lambda *_: [][0])

    applied = apply(clinics, medlock=Meddling(clinics.medlock_actions, touch))
    assert [type(problem) for problem in applied.problems] == [ActionsWaitError]
    assert (ruled(clinics)[late], ruled(clinics)[other]) == (None, "done")
    assert not any(word in caplog.text for word in PERSONAL)
