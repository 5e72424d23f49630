"""What somebody might try, and what might go wrong at the worst moment: the switch, addresses, odd data, other DAGs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from medflex.domain.access import AccessState
from medflex.domain.packing import Shard
from medflex.ledger.store import Decision, Ledger
from medflex.ui.directory import DIRECTORY, Directory
from medflex.ui.i18n import Speech
from tests.airflow.world import World
from tests.ledger.times import Time
from tests.ui import story
from tests.ui.test_pages import Outline
from tests.ui.test_switch import SWITCH, form, set_switch, stands

SignIn = Callable[..., TestClient]
NOWHERE = "postgresql://nobody:secret@127.0.0.1:1/none"
EVIL = "<img src=x onerror=alert(1)>\"'{{7*7}}"


@pytest.fixture
def named(sign_in: SignIn) -> Callable[[str], TestClient]:
    """A function that returns a browser of a user with any name."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    def open_as(name: str) -> TestClient:
        client = sign_in(None)
        user = SimpleAuthManagerUser(username=name, role="ADMIN")
        client.cookies.set("_token", get_auth_manager().generate_jwt(user))
        return client

    return open_as


# -- who may turn the switch (R2)


@pytest.mark.parametrize(
    "name",
    ["Head-1", "HEAD-1", "head-1 ", " head-1", "head-1\t", "head-1\u200b", "hе\u0430d-1", "head‐1", "head-1' OR '1'='1",
     "head_1", "head-%", "", "%", "NULL", "11"],
)  # fmt: skip
def test_r2_a_name_that_only_looks_like_the_heads_turns_nothing(
    clinics: World, named: Callable[[str], TestClient], sign_in: SignIn, name: str
) -> None:
    data = form(sign_in("head-1"), "on")
    other = named(name)
    assert other.post(SWITCH, data=data).status_code in (401, 403)
    assert other.get(SWITCH, params={"to": "on"}).status_code in (307, 401, 403)
    assert stands(clinics) is None


def test_r2_staff_without_login_role_or_clinic_are_nobody(
    clinics: World, named: Callable[[str], TestClient], medlock_switch: str
) -> None:
    from medflex.airflow.hooks.medlock_switch import turn_switch
    from medflex.errors import NotHeadError

    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(
            "INSERT INTO medlock.staff (id, clinic_id, full_name, login, role) VALUES (31, 1, 'x', NULL, 'head'),"
            " (32, NULL, 'x', 'nowhere', 'head'), (33, 1, 'x', 'roleless', NULL), (34, 1, 'x', 'Headly', 'Head'),"
            " (35, 1, 'x', 'trailing', 'head ')"
        )
    for name in ("None", "nowhere", "roleless", "Headly", "trailing"):
        assert named(name).get(SWITCH, params={"to": "on"}).status_code == 403, name
        with pytest.raises(NotHeadError):
            turn_switch(medlock_switch, clinic_id=1, login=name, enabled=True, seen_enabled=None, seen_changed_at=None)
    assert stands(clinics) is None


def test_a_program_with_a_bearer_token_needs_a_form_of_its_own(clinics: World, sign_in: SignIn) -> None:
    """It sends neither Origin nor Sec-Fetch-Site."""
    head = sign_in("head-1")
    token = head.cookies["_token"]
    program = sign_in(None, authorization=f"Bearer {token}")
    for data in ({"to": "on", "token": "x"}, {"to": "on"}, form(sign_in("head-2"), "on", "/medflex/clinics/2/switch")):
        assert program.post(SWITCH, data=data).status_code in (403, 422)
    assert program.post(SWITCH, json=form(program, "on")).status_code == 422
    assert stands(clinics) is None
    assert program.post(SWITCH, data=form(program, "on")).status_code == 303


def test_a_form_is_used_up_by_turning(clinics: World, sign_in: SignIn) -> None:
    """Also where the switch stands on or off as it did: it was turned since."""
    head = sign_in("head-1")
    first = form(head, "on")
    assert head.post(SWITCH, data=first).status_code == 303
    off = form(head, "off")
    assert head.post(SWITCH, data=off).status_code == 303
    assert head.post(SWITCH, data=first).status_code == 403
    again = form(head, "on")
    assert head.post(SWITCH, data=again).status_code == 303
    assert head.post(SWITCH, data=off).status_code == 403
    assert head.post(SWITCH, data=again).status_code == 409
    assert (stands(clinics) or ())[0] is True


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_no_other_method_turns_it(clinics: World, sign_in: SignIn, method: str) -> None:
    head = sign_in("head-1")
    data = form(head, "on")
    assert head.request(method, SWITCH, data=data, params=data).status_code == 405
    assert stands(clinics) is None


@pytest.mark.parametrize(
    ("base_url", "origin"),
    [
        ("https://Airflow.Example.com/airflow", "https://airflow.example.com"),
        ("https://airflow.example.com:443", "https://airflow.example.com"),
        ("http://airflow.example.com:80/", "http://airflow.example.com"),
        ("https://airflow.example.com:8443/x", "https://airflow.example.com:8443"),
    ],
)
def test_behind_a_reverse_proxy_the_head_is_let_in(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, base_url: str, origin: str
) -> None:
    """The api-server speaks http there, the browser https, with the name that base_url says."""
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    head = sign_in("head-1")
    data = form(head, "on")
    for wrong in ("https://evil.example", origin + ".evil.example", origin + ":1", "https://[", "null"):
        assert head.post(SWITCH, data=data, headers={"origin": wrong}).status_code == 403, wrong
    assert head.post(SWITCH, data=data, headers={"origin": origin}).status_code == 303


def test_what_the_browser_itself_calls_the_same_site_is_let_in(clinics: World, sign_in: SignIn) -> None:
    """Where a proxy changes Host and base_url is not set, nothing else can tell."""
    head = sign_in("head-1")
    headers = {"origin": "https://airflow.example.com", "sec-fetch-site": "same-origin"}
    assert head.post(SWITCH, data=form(head, "on"), headers=headers).status_code == 303


def test_a_form_counts_in_each_process_also_where_tokens_are_signed_with_a_key_pair(
    airflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    from medflex.ui.security import check_form_token, form_token

    user = SimpleAuthManagerUser(username="head-1", role="USER")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH", "key.pem")
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "shared")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "made up by one process")
    token = form_token(user, to="on")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "made up by another")
    check_form_token(token, user, to="on")
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY", "of somebody else")
    with pytest.raises(HTTPException):
        check_form_token(token, user, to="on")


# -- the switch in bad moments


@pytest.fixture
def no_ledger(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", NOWHERE)


def test_r1_it_is_turned_off_while_the_ledger_is_away(
    clinics: World, sign_in: SignIn, no_ledger: Callable[[], None]
) -> None:
    """Who wants to stop the sharing must not wait for our own database: neither question nor answer needs it."""
    set_switch(clinics, True, datetime.now(UTC) - timedelta(days=3), 11)
    no_ledger()
    head = sign_in("head-1")
    answer = head.post(SWITCH, data=form(head, "off"))
    assert answer.status_code == 303
    assert (stands(clinics) or ())[0] is False
    page = head.get(answer.headers["location"])
    assert page.status_code == 200
    assert "Access is off" in page.text
    assert "ledger&#39;s database does not answer" in page.text


def test_it_is_turned_also_where_the_audit_log_is_away(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page must not say that it failed: the switch is turned by then."""
    from sqlalchemy.exc import OperationalError

    from medflex.ui.pages import clinics as pages

    def away() -> None:
        raise OperationalError("INSERT Canary", {}, Exception("Canary"))

    monkeypatch.setattr(pages, "create_session", away)
    head = sign_in("head-1")
    assert head.post(SWITCH, data=form(head, "on")).status_code == 303
    assert (stands(clinics) or ())[0] is True
    assert "audit log" in caplog.text
    assert "Canary" not in caplog.text


def test_on_without_a_time_stamp_can_be_turned_off(clinics: World, sign_in: SignIn) -> None:
    set_switch(clinics, True, None, 11)
    head = sign_in("head-1")
    assert f"{SWITCH}?to=off" in head.get("/medflex/clinics/1").text
    assert head.post(SWITCH, data=form(head, "off")).status_code == 303
    assert (stands(clinics) or ())[0] is False


def test_medlock_that_is_slow_holds_no_page_up(
    clinics: World, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of Airflow's api-server has forty threads, the heartbeats of tasks among them."""
    from medflex.ui import view

    monkeypatch.setattr(view, "TIMEOUT_SECONDS", 1)
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute("LOCK TABLE medlock.clinic IN ACCESS EXCLUSIVE MODE")
        answer = sign_in("head-1").get("/medflex/clinics/1")
    assert answer.status_code == 503
    assert "kept a query waiting for too long" in answer.text


def test_no_page_leaves_a_connection_behind(clinics: World, sign_in: SignIn) -> None:
    head = sign_in("head-1")
    for path in ("/medflex/clinics", "/medflex/clinics/1", "/medflex/clinics/9", f"{SWITCH}?to=on", f"{SWITCH}?to=x"):
        DIRECTORY.forget()
        head.get(path)
    head.post(SWITCH, data=form(head, "on"))
    for conninfo in (clinics.medlock, clinics.ledger):
        with psycopg.connect(conninfo, autocommit=True) as connection:
            waited = 0
            while True:  # a backend takes a moment to leave
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND application_name = 'medflex'"
                ).fetchone()
                if row == (0,) or waited > 50:
                    break
                waited += 1
                threading.Event().wait(0.02)
        assert row == (0,)


# -- the list that is kept


def test_a_list_that_runs_out_while_it_is_looked_at_is_read_anew() -> None:
    from cachetools import TTLCache

    directory = Directory()
    times = iter(range(0, 1000, 2))
    directory._kept = TTLCache(1, 5, timer=lambda: next(times))
    for _ in range(20):
        assert directory.clinics(list) == []


def test_one_slow_read_of_all_clinics_does_not_queue_up_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    from medflex.errors import MedlockUnavailableError
    from medflex.ui import directory as module

    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    directory, started, over = Directory(), threading.Event(), threading.Event()

    def slow() -> list[Any]:
        started.set()
        over.wait(10)
        return []

    reader = threading.Thread(target=directory.clinics, args=(slow,))
    reader.start()
    assert started.wait(10)
    with pytest.raises(MedlockUnavailableError):
        directory.clinics(list)
    over.set()
    reader.join(10)
    assert directory.clinics(pytest.fail) == []


# -- odd data


@pytest.mark.parametrize(
    "stamp", ["infinity", "-infinity", "9999-12-31 23:59:59.999999+00", "20000-01-01+00", "0044-03-15+00 BC"]
)
def test_r16_a_switch_since_the_end_of_time_counts_as_off_and_bothers_nobody_else(
    clinics: World, sign_in: SignIn, stamp: str
) -> None:
    """What a program cannot hold in one row would keep all clinics from being read, those that withdraw as well."""
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(
            "INSERT INTO medlock.medflex_access VALUES (1, TRUE, %s, 11), (2, TRUE, now() - interval '9 days', 21)",
            [stamp],
        )
    head = sign_in("head-1")
    head.cookies.set("medflex_zone", "Asia%2FKamchatka")
    DIRECTORY.forget()
    page = head.get("/medflex/clinics").text
    assert "counts as off" in page.split("Clinic One")[1].split("</tr>")[0]
    assert "open" in page.split("Клиника Два")[1].split("</tr>")[0]
    assert "it is not known since when" in head.get("/medflex/clinics/1").text
    assert head.post(SWITCH, data=form(head, "off")).status_code == 303
    assert (stands(clinics) or ())[0] is False


@pytest.mark.parametrize("zone", ["Asia/Kamchatka", "America/Adak"])
def test_a_time_outside_the_readers_calendar_is_shown(zone: str) -> None:
    for instant in (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        speech = Speech("en", zone)
        assert str(instant.day) in speech.moment(instant)
        assert str(instant.day) in speech.day(instant)


def test_an_alert_of_another_release_is_shown(clinics: World, sign_in: SignIn) -> None:
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.alert (kind, since, raised_at, sentence) VALUES ('news', now(), now(), 'Something.')"
        )
    assert "<strong>news</strong>" in sign_in("viewer").get("/medflex/clinics").text


@pytest.mark.parametrize(
    "zone",
    ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "America", "%00", "zone.tab", "x" * 5000, "%FF", "Europe", ".",
     "tzdata", "%ED%A0%80", "CON", "Europe%2FMoscow%0d%0aSet-Cookie:x=1", "posix", "leapseconds", "<script>",
     "__init__%2Fx", "__init__/x"],
)  # fmt: skip
def test_a_made_up_zone_or_language_counts_as_none(clinics: World, sign_in: SignIn, zone: str) -> None:
    client = sign_in("viewer", cookie_free="1")
    client.cookies.set("medflex_zone", zone)
    client.cookies.set("medflex_language", zone)
    answer = client.get("/medflex/clinics", headers={"accept-language": f"{zone};q=nan, de;q=x, *;q=-1"})
    assert answer.status_code == 200
    assert 'data-zone="UTC"' in answer.text
    assert "set-cookie" not in answer.headers


def test_nothing_that_is_stored_is_taken_for_markup(clinics: World, sign_in: SignIn) -> None:
    with psycopg.connect(clinics.medlock) as connection:
        connection.execute(
            f"""
            UPDATE medlock.clinic SET name = $e${EVIL}$e$, timezone = $e${EVIL}$e$;
            UPDATE medlock.partner SET name = $e${EVIL}$e$, kind = $e${EVIL}$e$;
            UPDATE medlock.staff SET role = $e${EVIL}$e$ WHERE id = 12;
            UPDATE medlock.smart_care_scenario SET scenario = $e${EVIL}$e$;
            UPDATE medlock.clinic_partner SET scenarios = ARRAY[$e${EVIL}$e$];
            INSERT INTO medlock.medflex_access VALUES (1, TRUE, now(), 12);
            """
        )
    clock = Time()
    clock.now = now = datetime.now(UTC)
    with Ledger(clinics.ledger, now=clock) as ledger:
        run = story.tell(ledger, clinics.ledger, now, lambda moment: setattr(clock, "now", moment))
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            f"""
            UPDATE ledger.run SET run_id = $e${EVIL}$e$, problems = ARRAY[$e${EVIL}$e$] WHERE run_key = {run.run_key};
            UPDATE ledger.run_shard SET label = $e${EVIL}$e$, problem = $e${EVIL}$e$, withdraw_problem = $e${EVIL}$e$,
                skipped_because = $e${EVIL}$e$;
            UPDATE ledger.run_decision SET reasons = ARRAY[$e${EVIL}$e$] WHERE decision = 'quarantined';
            UPDATE ledger.run_reason SET reason = $e${EVIL}$e$ WHERE decision = 'quarantined';
            UPDATE ledger.run_expectation SET name = name || $e${EVIL}$e$, exception_class = $e${EVIL}$e$;
            UPDATE ledger.record SET rejected_fields = ARRAY[$e${EVIL}$e$] WHERE state = 'rejected';
            UPDATE ledger.revocation SET reason = $e${EVIL}$e$;
            UPDATE ledger.hold SET reasons = ARRAY[$e${EVIL}$e$, $e${EVIL}$e$],
                asked_in = $e${EVIL}$e$, asked_at = now();
            UPDATE ledger.batch SET reasons = ARRAY[$e${EVIL}$e$, $e${EVIL}$e$] WHERE operation = 'withdraw';
            UPDATE ledger.partner_action SET type = $e${EVIL}$e$ WHERE type IS NOT NULL;
            UPDATE ledger.partner_action SET reason = $e${EVIL}$e$ WHERE reason IS NOT NULL;
            UPDATE ledger.run_clinic SET closed_reason = $e${EVIL}$e$ WHERE access_state = 'closed';
            INSERT INTO ledger.alert (kind, since, raised_at, sentence)
            VALUES ('medflex_away', now(), now(), $e${EVIL}$e$);
            INSERT INTO ledger.switch_event (clinic_id, enabled, changed_at, role, via, seen_at)
            VALUES (1, TRUE, now(), $e${EVIL}$e$, 'medlock', now());
            """
        )
    DIRECTORY.forget()
    client = sign_in("head-1")
    paths: list[tuple[str, dict[str, str]]] = [
        ("clinics", {"q": EVIL}), ("clinics", {}), ("clinics/1", {}), ("clinics/1/switch", {"to": "on"}), ("runs", {}),
        ("runs/view", {"dag_id": "medflex_transfer", "run_id": EVIL}), ("withdrawals", {}), ("actions", {}),
        ("runs/view", {"dag_id": "medflex_transfer", "run_id": EVIL, "shard": "0", "task_id": EVIL}), ("quality", {}),
        ("runs", {"dag_id": EVIL}), ("runs/view", {"dag_id": EVIL, "run_id": EVIL}), ("data-docs/" + EVIL, {}),
        ("static/" + EVIL, {}), ("clinics/" + EVIL, {}), ("clinics/1/switch", {"to": EVIL}),
    ]  # fmt: skip
    shown = 0
    for language in ("en", "ru"):
        for path, asked in paths:
            answer = client.get(f"/medflex/{path}", params=asked, headers={"accept-language": language})
            assert answer.status_code < 500, (path, re.sub(r"<[^>]+>|\s+", " ", answer.text)[-400:])
            for tag, attributes in Outline(answer.text).tags:
                assert tag != "img", path
                assert not {"onerror", "src=x"} & attributes.keys(), path
            assert "{{7*7}}" in answer.text or "&lt;img" not in answer.text, path
            shown += answer.text.count("&lt;img")
    assert shown > 30


# -- DAGs that are none of ours, or have nothing in the ledger


@pytest.mark.parametrize("dag_id", ["another", "medflex_alerts", "medflex_housekeeping", "x" * 250, "a b/ü&<c>"])
@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_tab_of_another_dag_says_that_it_has_nothing(
    clinics: World, sign_in: SignIn, dag_id: str, language: str
) -> None:
    """Airflow shows our tab on every DAG, run and task instance."""
    client = sign_in("viewer", **{"accept-language": language})
    for path, asked in (
        ("runs", {}),
        ("runs/view", {"run_id": "manual__1"}),
        ("runs/view", {"run_id": "manual__1", "task_id": "load", "map_index": "-1"}),
    ):
        answer = client.get(f"/medflex/{path}", params={"dag_id": dag_id, **asked})
        assert answer.status_code == 200
        said = {"en": "writes nothing into the ledger", "ru": "ничего не пишет в журнал"}[language]
        assert said in answer.text
        assert 'href="/medflex/runs"' in answer.text


# -- below a path prefix


@pytest.fixture
def prefixed(clinics: World) -> Iterator[TestClient]:
    """The pages in an Airflow that is mounted below /airflow."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user

    from medflex.ui.app import build

    app = build()
    app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="head-1", role="ADMIN")
    outer = FastAPI(root_path="/airflow")
    outer.mount("/medflex", app)
    with TestClient(outer, follow_redirects=False, headers={"accept": "text/html"}) as client:
        yield client


def test_below_a_prefix_every_address_has_it(prefixed: TestClient, airflow_app: Any) -> None:
    prefix = "/airflow"
    for path in ("clinics", "clinics/1", "clinics/1/switch?to=on", "runs", "quality", "nothing"):
        page = prefixed.get(f"{prefix}/medflex/{path}").text
        found = re.findall(r'(?:href|src|action)="([^"]+)"', page)
        assert len(found) > 10
        assert {address for address in found if not address.startswith(("/airflow/", "#"))} == set(), path
        assert 'data-root="/airflow/medflex"' in page
    assert prefixed.get(f"{prefix}/medflex/").headers["location"] == "/airflow/medflex/clinics"
    assert prefixed.get(f"{prefix}/medflex/static/medflex.js").status_code == 200
    answer = prefixed.post(f"{prefix}/medflex/clinics/1/switch", data=form(prefixed, "on", f"{prefix}{SWITCH}"))
    assert answer.headers["location"] == "/airflow/medflex/clinics/1?turned=on"


# -- numbers


def test_a_reason_under_two_decisions_counts_with_both(clinics: World, sign_in: SignIn) -> None:
    """A record that is withheld may lack a phone as well, beside those that are quarantined for it alone."""
    now = datetime.now(UTC)
    with Ledger(clinics.ledger) as ledger:
        run = story.begin(ledger, "r", now - timedelta(minutes=1))
        story.numbers(ledger, run)
        ledger.save_decisions(
            run.run_key, "withhold", [1],
            [
                Decision(1, "withheld", ("refused_marketing", "phone_missing"), list(range(1, 11))),
                Decision(1, "quarantined", ("phone_missing",), [21, 22]),
            ],
        )  # fmt: skip
    page = sign_in("viewer").get("/medflex/clinics/1").text
    why = page.split('id="why"')[1].split("</section>")[0]
    assert "no phone number.: 12" in re.sub(r"<[^>]+>", " ", why)


def test_reasons_by_day_are_by_the_readers_day(clinics: World, sign_in: SignIn) -> None:
    """Two runs of one day there, which are of two days in UTC: the newer one counts."""
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=3)
    clock = Time()
    with Ledger(clinics.ledger, now=clock) as ledger:
        for number, hours in ((3, 11), (5, 13)):  # 23:00 and 01:00 UTC, 02:00 and 04:00 of one day in Moscow
            clock.now = noon + timedelta(hours=hours)
            run = story.begin(ledger, f"r{number}", clock.now, started_at=clock.now)
            story.numbers(ledger, run)
            ledger.save_decisions(
                run.run_key, "withhold", [1],
                [Decision(1, "withheld", ("refused_marketing",), list(range(1, number + 1)))],
            )  # fmt: skip
    for zone, days in (("Europe%2FMoscow", [5]), ("UTC", [3, 5])):
        client = sign_in("viewer")
        client.cookies.set("medflex_zone", zone)
        page = client.get("/medflex/clinics/1").text
        why = page.split('id="why"')[1].split("</section>")[0]
        assert [int(found) for found in re.findall(r"<td[^>]*>(\d+)</td>", why)] == days


def test_a_clinic_that_left_medlock_is_shown_from_the_ledger(clinics: World, sign_in: SignIn) -> None:
    """Its records still have to be withdrawn, and the other pages lead to it."""
    clock = Time()
    clock.now = now = datetime.now(UTC)
    with Ledger(clinics.ledger, now=clock) as ledger:
        story.tell(ledger, clinics.ledger, now, lambda moment: setattr(clock, "now", moment))
    client = sign_in("head-1")
    answer = client.get("/medflex/clinics/3")  # the story has three clinics, Medlock two
    assert answer.status_code == 200
    assert "disappeared from Medlock" in answer.text
    assert "waits for its withdrawal" in answer.text
    assert "/switch" not in answer.text
    assert client.get("/medflex/clinics/3/switch?to=on").status_code == 404
    assert client.get("/medflex/clinics/4").status_code == 404


def test_the_last_run_of_a_clinic_is_the_newest_that_was_about_it(clinics: World) -> None:
    """After a run over all clinics there was one over the first alone, then a plan, and one is running."""
    from medflex.ledger.overview import LedgerOverview

    now = datetime.now(UTC)
    lone = {"clinic_ids": [1], "shards": [Shard("open-000", (1,), AccessState.OPEN)]}
    lone["clinics"] = [{"clinic_id": 1, "lpu_id": 101, "access_state": "open", "closed_reason": None, "opens_at": None}]
    with Ledger(clinics.ledger) as ledger, LedgerOverview(clinics.ledger) as overview:
        for name, hours, more, settled in (
            ("narrow-before", 9, lone, True), ("whole", 8, {}, True), ("narrow", 7, lone, True),
        ):  # fmt: skip
            run = story.begin(ledger, name, now - timedelta(hours=hours), **more)
            story.numbers(ledger, run)
            if settled:
                ledger.settle_run(run.run_key, [])
        found = overview.last_runs()
        assert {key: one.run_id for key, one in found.items()} == {1: "narrow", 2: "whole", 3: "whole", 9: "whole"}
        assert found[1].held_back_share == (10 + 2) / 100
        assert found[2].held_back_share == 0
        assert found[9].held_back_share is None  # closed: nothing was read of it
        assert overview.last_runs(2).keys() == {2}
    with Ledger(clinics.ledger) as ledger, LedgerOverview(clinics.ledger) as overview:
        story.begin(ledger, "running", now - timedelta(hours=1))
        found = overview.last_runs()
        assert {(one.run_id, one.outcome, one.held_back_share) for one in found.values()} == {
            ("running", "running", None)
        }


def test_a_withdrawal_over_midnight_counts_for_the_day_on_which_it_was_done(clinics: World) -> None:
    from medflex.ledger.overview import LedgerOverview

    midnight = datetime(2026, 5, 2, tzinfo=UTC)
    with psycopg.connect(clinics.ledger) as connection:
        for done in (midnight - timedelta(seconds=5), midnight + timedelta(seconds=5)):
            connection.execute(
                "INSERT INTO ledger.batch (clinic_id, lpu_id, operation, appointment_ids, versions, reasons,"
                " revoked_at, epoch, outcome, looked_at, created_at, resolved_at) VALUES (1, 101, 'withdraw', '{5}',"
                " '{1}', '{doctor_banned}', ARRAY[%(at)s::timestamptz], 1, 'acknowledged', %(at)s, %(at)s, %(done)s)",
                {"at": midnight - timedelta(seconds=20), "done": done},
            )
    with LedgerOverview(clinics.ledger) as ledger:
        times = ledger.withdraw_times([midnight])
    assert times.total.records == 1
    assert times.by_day[0].longest == 25
