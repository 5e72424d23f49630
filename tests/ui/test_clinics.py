"""The pages *Clinics* and *One clinic*."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import pytest
from fastapi.testclient import TestClient

from medflex.ledger.store import BatchOutcome, Decision, Ledger
from medflex.ui.directory import DIRECTORY, SORTS, Clinic, chosen
from tests.airflow.world import World
from tests.ui import story
from tests.ui.test_pages import section, words
from tests.ui.test_switch import set_switch

SignIn = Callable[..., TestClient]


def clinic(number: int, **known: object) -> Clinic:
    values: dict[str, object] = {
        "clinic_id": number, "lpu_id": 100 + number, "name": f"Clinic {number}", "timezone": "UTC", "enabled": None,
        "changed_at": None, "changed_by": None, "role": None, "state": "closed", "closed_reason": "never_configured",
        "opens_at": None, "partners": (), "overlaps": (), "last_run": None,
    }  # fmt: skip
    return Clinic(**{**values, **known})  # type: ignore[arg-type]


SOME = [
    clinic(1, name="beta", state="open", closed_reason=None, partners=((7, "Robot", ""),), overlaps=("greeting",)),
    clinic(2, name="Альфа", state="waiting", closed_reason=None, opens_at=datetime(2026, 1, 2, tzinfo=UTC)),
    clinic(3, name="Alpha", closed_reason="not_switched_by_head", enabled=True),
    clinic(12, name="gamma"),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [3, 1, 12, 2]),
        ({"text": "ALP"}, [3]),
        ({"text": "альфа"}, [2]),
        ({"text": "12"}, [12]),
        ({"text": "112"}, [12]),
        ({"text": "1"}, [1]),
        ({"text": "nothing"}, []),
        ({"state": "open"}, [1]),
        ({"state": "attention"}, [3, 2]),
        ({"overlap": True}, [1]),
        ({"sort": "id", "descending": True}, [12, 3, 2, 1]),
        ({"sort": "opens"}, [2, 1, 3, 12]),
        ({"sort": "opens", "descending": True}, [2, 1, 3, 12]),
    ],
)
def test_search_filter_and_sort(asked: dict[str, object], expected: list[int]) -> None:
    assert [found.clinic_id for found in chosen(SOME, **asked)] == expected  # type: ignore[arg-type]


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    names = ["№ 10", "№ 2", "№ 2а", "10", "№ 02", "", f"№ {'9' * 5000}"]
    clinics = [SOME[0]._replace(name=name, clinic_id=number) for number, name in enumerate(names)]
    assert [found.clinic_id for found in chosen(clinics, sort="name")] == [5, 3, 1, 4, 2, 0, 6]


@pytest.mark.parametrize("sort", SORTS)
def test_each_order_keeps_every_clinic(sort: str) -> None:
    for descending in (False, True):
        assert {found.clinic_id for found in chosen(SOME, sort=sort, descending=descending)} == {1, 2, 3, 12}


def test_the_list_shows_switch_partners_and_overlap(client: TestClient, clinics: World) -> None:
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(
            "INSERT INTO medlock.medflex_access VALUES (1, TRUE, now() - interval '3 hours', 11),"
            " (2, TRUE, now() - interval '9 days', 12)"
        )
    DIRECTORY.forget()
    page = client.get("/medflex/clinics").text
    one, two = page.split("Clinic One")[1].split("</tr>")[0], page.split("Клиника Два")[1].split("</tr>")[0]
    assert "waiting" in one
    assert re.search(r"in 20 h 59 min|in 21 h", one)
    assert "Call Robot" in one
    assert "Mailer" not in one
    assert "visit reminder" in one
    assert "head of the clinic, staff no. 11" in re.sub(r"\s+", " ", one)
    assert "counts as off" in two  # turned on by somebody of another clinic (R2)
    assert "<b>" not in two.split("</a>")[0]
    assert "1–2 of 2 clinics found" in page


def test_what_is_wrong_right_now_stands_on_top(client: TestClient, clinics: World) -> None:
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.alert (kind, since, raised_at, sentence) VALUES"
            " ('medflex_away', '2026-05-01 12:00+00', '2026-05-01 12:10+00', 'Nobody home <b>.')"
        )
    page = client.get("/medflex/clinics").text
    assert "Medflex does not answer" in page
    assert "1 May 2026, 12:00" in page
    assert "Nobody home &lt;b&gt;." in page
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute("UPDATE ledger.alert SET cleared_at = now(), over_sentence = 'Over.'")
    assert "Nobody home" not in client.get("/medflex/clinics").text


def test_no_name_of_staff_is_on_a_page(sign_in: SignIn, clinics: World) -> None:
    for user in ("viewer", "head-1"):
        for path in ("/medflex/clinics", "/medflex/clinics/1", "/medflex/clinics/1/switch?to=on"):
            assert "Canary" not in sign_in(user).get(path).text


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_reader_s_language(sign_in: SignIn, clinics: World, language: str) -> None:
    wishes = {"en": "Clinics", "ru": "Клиники"}
    for headers in ({"accept-language": f"{language}-XX,de;q=0.9"}, {"cookie": f"medflex_language={language}"}):
        client = sign_in("viewer", **{"accept-language": "de", **headers})
        if "cookie" in headers:
            client.cookies.set("medflex_language", language)
            del client.headers["cookie"]
        page = client.get("/medflex/clinics").text
        assert f'<html lang="{language}">' in page
        assert f"<h1>{wishes[language]}</h1>" in page


def test_times_are_in_the_reader_s_zone(sign_in: SignIn, clinics: World) -> None:
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute("INSERT INTO medlock.medflex_access VALUES (1, TRUE, '2026-05-01 12:00+00', 11)")
    client = sign_in("viewer")
    client.cookies.set("medflex_zone", "Asia%2FYekaterinburg")  # as the script writes it
    page = client.get("/medflex/clinics/1").text
    assert "1 May 2026, 17:00" in page
    assert "Asia/Yekaterinburg" in page
    client.cookies.set("medflex_zone", "No/Where")
    assert "1 May 2026, 12:00" in client.get("/medflex/clinics/1").text


@pytest.mark.parametrize("path", ["/99", "/0", "/-1", f"/{2**63}", f"/{10**30}"])
def test_a_clinic_that_is_not_there(client: TestClient, clinics: World, path: str) -> None:
    answer = client.get(f"/medflex/clinics{path}")
    assert answer.status_code == 404
    assert "There is no clinic" in answer.text


@pytest.mark.parametrize("query", ["page=0", "sort=name;drop", "state=none", "order=up", "page=x", f"q={'x' * 201}"])
def test_an_address_that_cannot_be_read(client: TestClient, clinics: World, query: str) -> None:
    answer = client.get(f"/medflex/clinics?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[2] not in answer.text or query.startswith("page")


def test_a_page_behind_the_last_shows_the_last(client: TestClient, clinics: World) -> None:
    assert "Clinic One" in client.get("/medflex/clinics?page=70").text


def test_a_clinic_s_runs_reasons_and_records_to_mend(client: TestClient, clinics: World) -> None:
    started = datetime.now(UTC) - timedelta(hours=5)
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            """
            INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, started_at, settled_at, outcome)
            VALUES ('medflex_transfer', 'scheduled__one', 'scheduled', 'transfer', %(at)s, %(at)s, %(at)s, 'succeeded');
            """,
            {"at": started},
        )
        connection.execute(
            """
            INSERT INTO ledger.run_clinic (run_key, clinic_id, shard, access_state, extracted, withheld, quarantined,
                eligible, unchanged, planned, accepted, rejected)
            SELECT run_key, 1, 3, 'open', 100, 30, 10, 60, 50, 10, 9, 1 FROM ledger.run;
            INSERT INTO ledger.run_decision (run_key, clinic_id, stage, decision, reasons, appointment_ids)
            SELECT run_key, 1, 'withhold', 'withheld', ARRAY['refused_marketing'],
                array(SELECT generate_series(1, 30))
            FROM ledger.run
            UNION ALL
            SELECT run_key, 1, 'withhold', 'quarantined', '{phone_missing}', array(SELECT generate_series(501, 510))
            FROM ledger.run;
            INSERT INTO ledger.record
                (clinic_id, appointment_id, lpu_id, version, state, rejected_fields, changed_at)
            VALUES (1, 777, 101, 1, 'rejected', '{dt_start}', now());
            INSERT INTO ledger.revocation (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at, found_at)
            VALUES (1, 42, 101, 'refused_marketing', FALSE, now(), now());
            """
        )
    DIRECTORY.forget()
    page = client.get("/medflex/clinics/1").text
    assert "30.0 %" in page
    assert "10.0 %" in page
    assert "501, 502" in page
    assert "Enter the patient&#39;s phone in Medlock." in page or "Enter the patient's phone in Medlock." in page
    assert "777" in page
    assert "dt_start" in page
    assert "waits for its withdrawal" in page
    assert "run_id=scheduled__one" in page
    assert "40.0 %" in client.get("/medflex/clinics").text


def test_what_partners_can_see_is_told_by_the_ledger_s_rule(clinics: World, sign_in: SignIn) -> None:
    """Of a record whose update was rejected the older version is still shown, and is withdrawn with all others."""
    set_switch(clinics, True, datetime.now(UTC) - timedelta(days=3), 11)
    with Ledger(clinics.ledger) as ledger:
        run = story.begin(ledger, "day", datetime.now(UTC))
        about: dict[str, Any] = {
            "run_key": run.run_key, "clinic_id": 1, "lpu_id": 101, "holder": "test",
            "epoch": ledger.acquire([1], "test")[1], "operation": "send", "appointment_ids": [41, 42],
        }  # fmt: skip
        for version, rejected in ((1, {}), (2, {42: ("mobile_phone",)})):
            sent = ledger.record_intent(versions=[version] * 2, digests=[version] * 2, **about)
            ledger.resolve(sent.batch_id, BatchOutcome("acknowledged", 200, rejected=rejected))
        assert ledger.live_counts([1]) == {1: 2}
    head = sign_in("head-1")
    assert "At Medflex now 2 records" in words(head.get("/medflex/clinics/1").text)
    assert "2 records that partners see or may see now" in head.get("/medflex/clinics/1/switch?to=off").text


@pytest.mark.parametrize(
    ("mode", "run_type", "is_of_today"),
    [("plan", "manual", False), ("transfer", "backfill", False), ("plan", "manual", None), ("resync", "manual", None)],
)
def test_a_run_of_an_older_day_replaces_no_figures_of_today(
    client: TestClient, clinics: World, mode: str, run_type: str, is_of_today: bool | None
) -> None:
    """Its window is another one. ``None``: it is from before the ledger noted which day a run is of."""
    now = datetime.now(UTC)

    def follow(run_id: str, at: datetime, held: list[int], reason: str, **more: Any) -> None:
        with Ledger(clinics.ledger) as ledger:
            run = story.begin(ledger, run_id, at, **more)
            numbers = {"extracted": 100, "withheld": 0, "quarantined": len(held), "eligible": 100 - len(held)}
            ledger.save_numbers(run.run_key, pd.DataFrame([{"clinic_id": 1, **numbers}]))
            ledger.save_decisions(run.run_key, "withhold", [1], [Decision(1, "quarantined", (reason,), held)])
            ledger.settle_run(run.run_key, [])

    follow("day", now - timedelta(hours=5), [201, 202], "phone_missing")
    older = {"mode": mode, "run_type": run_type, "anchor": now - timedelta(days=100), "is_of_today": is_of_today}
    follow("older", now - timedelta(hours=4), [901, 902, 903], "name_missing", **older)
    DIRECTORY.forget()
    line = client.get("/medflex/clinics").text.split("Clinic One")[1].split("</tr>")[0]
    assert "run_id=day" in line
    assert "2.0 %" in line
    page = client.get("/medflex/clinics/1").text
    assert "201, 202" in section(page, "mend")
    assert "901" not in page
    assert "name_missing" not in section(page, "why")
    assert "first name" not in section(page, "why").lower()
    assert "of another day" in section(page, "funnel")
    with Ledger(clinics.ledger) as ledger:
        quick = story.begin(ledger, "quick", now, is_of_today=True)
        story.numbers(ledger, quick)
    DIRECTORY.forget()
    assert "run_id=quick" in client.get("/medflex/clinics").text


def test_the_list_needs_no_ledger(clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """By it a head comes to the clinic's page, and to the switch."""
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", "postgresql://nobody:secret@127.0.0.1:1/none")
    DIRECTORY.forget()
    head = sign_in("head-1")
    for _ in range(2):  # the second time from what is kept
        answer = head.get("/medflex/clinics")
        assert answer.status_code == 200
        assert 'href="/medflex/clinics/1"' in answer.text
        assert "ledger&#39;s database does not answer" in answer.text
        assert "secret" not in answer.text


def test_every_turn_of_a_switch_is_counted(client: TestClient, clinics: World) -> None:
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.switch_event (clinic_id, enabled, changed_at, role, via, seen_at)"
            " SELECT 1, n %% 2 = 0, now() - n * interval '1 day', 'head', 'medlock', now()"
            " FROM generate_series(1, %s) AS n",
            [25],
        )
    page = client.get("/medflex/clinics/1").text
    assert "History: 25 turns" in page
    assert "20 of 25" in page


def test_modes_of_runs_are_in_the_readers_language(clinics: World, sign_in: SignIn) -> None:
    with Ledger(clinics.ledger) as ledger:
        story.begin(ledger, "again", datetime.now(UTC), mode="resync")
    page = sign_in("viewer", **{"accept-language": "ru"}).get("/medflex/clinics/1").text
    assert "полная повторная отправка" in section(page, "funnel")
    assert "resync" not in section(page, "funnel")
