"""What went wrong is said in the reader's language, or marked as English."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from medflex.errors import SwitchTurnedError
from tests.airflow.world import World
from tests.ui.test_pages import Outline
from tests.ui.test_switch import SWITCH, form, set_switch

SignIn = Callable[..., TestClient]
RUSSIAN = {"accept-language": "ru"}


def told(page: str) -> tuple[str, str]:
    """The language and the text of what is told as an alert."""
    found = re.search(r'<p class="notice \w+" role="alert"([^>]*)>(.*?)</p>', page, re.DOTALL)
    assert found, page
    own = re.search(r'lang="(\w+)"', found[1])
    return own[1] if own else str(Outline(page).all("html")[0]["lang"]), found[2]


def is_russian(page: str) -> bool:
    language, text = told(page)
    return language == "ru" and bool(re.search("[а-яё]{4}", text))


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("POST", SWITCH, {"data": {"to": "on", "token": "x"}}, 403),
        ("POST", SWITCH, {"data": {"to": "on", "token": "x"}, "headers": {"origin": "https://evil.example"}}, 403),
        ("GET", "/medflex/runs?page=0", {}, 422),
        ("GET", "/medflex/nothing", {}, 404),
        ("PUT", SWITCH, {}, 405),
        ("GET", "/medflex/clinics/99", {}, 404),
        ("GET", "/medflex/clinics/2/switch?to=on", {}, 403),
    ],
)
def test_a_refusal_is_in_the_readers_language(
    clinics: World, sign_in: SignIn, method: str, path: str, more: dict[str, Any], status: int
) -> None:
    answer = sign_in("head-1", **RUSSIAN).request(method, path, **more)
    assert answer.status_code == status
    assert is_russian(answer.text), told(answer.text)
    english = sign_in("head-1").request(method, path, **more)
    assert told(english.text)[0] == "en"
    assert not re.search("[а-яё]", told(english.text)[1])


def test_nobody_is_told_so_in_the_readers_language(clinics: World, sign_in: SignIn) -> None:
    answer = sign_in(None, **RUSSIAN).post(SWITCH, data={"to": "on", "token": "x"})
    assert answer.status_code == 401
    assert is_russian(answer.text), told(answer.text)


def test_who_was_slower_is_told_so_in_the_readers_language(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(*_: Any, **__: Any) -> None:
        raise SwitchTurnedError("The switch was turned meanwhile.")

    monkeypatch.setattr("medflex.ui.pages.clinics.turn_switch", slower)
    head = sign_in("head-1", **RUSSIAN)
    answer = head.post(SWITCH, data=form(head, "on"))
    assert answer.status_code == 409
    assert is_russian(answer.text), told(answer.text)


def test_what_fails_inside_is_told_in_the_readers_language(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medflex.ledger.overview import LedgerOverview

    monkeypatch.setattr(LedgerOverview, "runs", lambda *_: 1 / 0)
    answer = sign_in("viewer", **RUSSIAN).get("/medflex/runs")
    assert answer.status_code == 500
    assert is_russian(answer.text), told(answer.text)
    assert "ZeroDivisionError" in answer.text


def test_a_sentence_of_the_product_is_marked_as_english(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_switch(clinics, False, datetime(2026, 1, 1, tzinfo=UTC), 11)
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.alert (kind, since, raised_at, sentence)"
            " VALUES ('medflex_away', now(), now(), 'Nobody home.')"
        )
    client = sign_in("viewer", **RUSSIAN)
    assert '<span lang="en">Nobody home.</span>' in client.get("/medflex/clinics").text
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", "postgresql://nobody:secret@127.0.0.1:1/none")
    answer = client.get("/medflex/runs")
    assert answer.status_code == 503
    assert told(answer.text)[0] == "en"


def test_a_program_is_told_in_english(clinics: World, sign_in: SignIn) -> None:
    program = sign_in("head-1", accept="application/json", **RUSSIAN)
    assert program.get("/medflex/runs?page=0").json() == {"detail": "This address cannot be read."}
    assert program.get("/medflex/clinics/99").json() == {"detail": "There is no clinic 99 in Medlock."}
