"""The pages in headless Chromium, in the real Airflow UI over a real run: each page, each kind of user, both languages
and themes. Pictures are kept in the folder that ``MEDFLEX_ARTIFACTS`` names, else in ``.cache/pages``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, Response, expect

from sandbox.browser import chromium, session
from sandbox.medflex.control import Control
from sandbox.partners import Partners, play
from sandbox.stack import PROJECT, Stack
from tests.airflow.leaks import found_canaries
from tests.e2e.pages import TRANSFER, framed_pages, own_pages
from tests.e2e.test_daily_transfer import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PICTURES = Path(os.environ.get("MEDFLEX_ARTIFACTS") or PROJECT / ".cache" / "pages")
LOOKS = [("en", "light"), ("en", "dark"), ("ru", "light"), ("ru", "dark")]
PAGES = list(own_pages("any"))
FRAMED = list(framed_pages("any"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("pages") / "stack")
    made.start(appointments=3000)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def run_id(stack: Stack) -> str:
    """A run of the daily transfer over which something happened: a withdrawal, partner actions."""
    with psycopg.connect(stack.medlock_owner()) as connection:
        connection.execute(
            "UPDATE medlock.medflex_access SET changed_at = now() - interval '2 days'"
            " WHERE enabled AND changed_at BETWEEN now() - interval '24 hours' AND now()"
        )
    run_id = stack.run_day(None)
    assert stack.follow(run_id) == "success"
    with psycopg.connect(stack.medlock_owner()) as connection:
        connection.execute(
            "UPDATE medlock.patient SET refused_marketing = TRUE, updated_at = now() WHERE clinic_id = 1"
            " AND id IN (SELECT patient_id FROM medlock.appointment WHERE clinic_id = 1 ORDER BY id LIMIT 40)"
        )
    with Control(stack.control_url) as control:
        play(control, Partners(seed=3), rate=20, seconds=1, delivered=[])
    stack.airflow().call("POST", "/dags/medflex_partner_actions/dagRuns", body={"logical_date": None})

    def happened() -> bool:
        with psycopg.connect(stack.ledger()) as connection:
            row = connection.execute(
                "SELECT EXISTS (SELECT FROM ledger.batch WHERE operation = 'withdraw' AND resolved_at IS NOT NULL)"
                " AND EXISTS (SELECT FROM ledger.partner_action WHERE answered_at IS NOT NULL)"
            ).fetchone()
        return bool(row and row[0])

    wait_for(happened, "a withdrawal and an answered action")
    return run_id


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


class Watched:
    """A page, and what went over the wire and wrong while it was looked at."""

    def __init__(self, page: Page, home: str) -> None:
        self.page, self.home = page, urlsplit(home).netloc
        self.elsewhere: list[str] = []
        self.bodies: list[tuple[str, str]] = []
        self.troubles: list[str] = []
        self._lost: list[str] = []
        self.statuses: dict[str, int] = {}
        page.on("request", lambda request: self._requested(request.url))
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.troubles.append(message.text))

    def _requested(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != self.home:
            self.elsewhere.append(url)

    def _answered(self, response: Response) -> None:
        path = urlsplit(response.url).path
        self.statuses[path] = response.status
        if path.startswith("/medflex") and response.status < 300:
            try:
                self.bodies.append((path, response.text()))
            except Error:  # of a page that asked for itself once more, in the reader's language
                self._lost.append(response.url)

    def open(self, address: str) -> Response:
        """Open an address and wait until nothing more is loaded (the page reloads once for language and zone)."""
        answer = self.page.goto(address, wait_until="networkidle")
        assert answer is not None
        while self._lost:
            url = self._lost.pop()
            self.bodies.append((urlsplit(url).path, self.page.request.get(url).text()))
        return answer


@contextmanager
def signed_in(browser: Browser, stack: Stack, user: str | None, **look: str) -> Iterator[Watched]:
    password = stack.passwords()[user] if user else ""
    with session(browser, stack.url, user, password, **look) as context:
        yield Watched(context.new_page(), stack.url)


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def serious(page: Page) -> list[str]:
    """What axe-core finds on a page that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{item['id']} ({item['impact']}): {[node['target'] for node in item['nodes']][:5]}"
        for item in found
        if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("language", "theme"), LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_each_page(stack: Stack, run_id: str, browser: Browser, name: str, language: str, theme: str) -> None:
    """In the reader's language, theme and zone; for screen readers; without other hosts, errors or a canary."""
    with signed_in(browser, stack, "viewer", language=language, theme=theme) as watched:
        watched.open(own_pages(run_id)[name])
        page = watched.page
        picture(page, f"{name}-{language}-{theme}")
        assert page.locator("html").get_attribute("lang") == language
        assert page.locator("html").get_attribute("data-theme") == theme
        assert page.locator("body").get_attribute("data-zone") == "Europe/Moscow"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 29, 45)"  # as Airflow's own
        assert dark == (theme == "dark")
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        assert not serious(page)
        assert not watched.elsewhere
        assert name == "nothing" or not watched.troubles
        assert not found_canaries([*watched.bodies, ("page", page.content())])
        if name == "nothing":
            assert watched.statuses[urlsplit(own_pages(run_id)[name]).path] == 404


@pytest.mark.parametrize("name", FRAMED)
def test_each_place_in_airflow(stack: Stack, run_id: str, browser: Browser, name: str) -> None:
    """Inside Airflow's frame, as dark and as Russian as Airflow itself."""
    with signed_in(browser, stack, "viewer", language="ru", theme="dark") as watched:
        watched.open(framed_pages(run_id)[name])
        frame = watched.page.frame_locator("iframe")
        expect(frame.locator("h1")).to_be_visible(timeout=20_000)
        expect(frame.locator("html")).to_have_attribute("lang", "ru")
        expect(frame.locator("html")).to_have_attribute("data-theme", "dark")
        expect(frame.locator("html")).to_have_class(re.compile("framed"))
        picture(watched.page, f"airflow-{name}")
        assert not watched.elsewhere
        assert not found_canaries(watched.bodies)


def test_a_change_of_theme_in_airflow_is_followed_at_once(stack: Stack, run_id: str, browser: Browser) -> None:
    with signed_in(browser, stack, "viewer", theme="light") as watched:
        watched.open("/plugin/medflex")
        html = watched.page.frame_locator("iframe").locator("html")
        expect(html).to_have_attribute("data-theme", "light")
        watched.page.evaluate("localStorage.setItem('theme', 'dark')")
        expect(html).to_have_attribute("data-theme", "dark")


def test_links_lead_out_of_the_frame_into_airflow(stack: Stack, run_id: str, browser: Browser) -> None:
    with signed_in(browser, stack, "viewer") as watched:
        watched.open(framed_pages(run_id)["of-a-run"])
        link = watched.page.frame_locator("iframe").locator("a[data-airflow]").first
        expect(link).to_be_visible(timeout=20_000)
        link.click()
        watched.page.wait_for_function("!location.pathname.includes('/plugin/')", timeout=20_000)
        assert f"/dags/{TRANSFER}" in watched.page.url


def test_buttons_on_task_instances_lead_to_report_and_batches(stack: Stack, run_id: str, browser: Browser) -> None:
    airflow = stack.airflow()
    path = f"/dags/{TRANSFER}/dagRuns/{run_id}/taskInstances/"
    for task, button in (("shard.validate", "Quality report"), ("shard.load", "Batches")):
        links = airflow.call("GET", f"{path}{task}/links", map_index=0)["extra_links"]
        assert {name for name, address in links.items() if address} == {button}
        with signed_in(browser, stack, "viewer") as watched:
            watched.open(links[button])
            expect(watched.page.frame_locator("iframe").locator("h1")).to_be_visible(timeout=20_000)
    for task in ("shard.extract", "shard.withhold"):
        links = airflow.call("GET", f"{path}{task}/links", map_index=0)["extra_links"]
        assert not [address for address in links.values() if address]


def test_data_docs_are_behind_the_login(stack: Stack, run_id: str, browser: Browser) -> None:
    with signed_in(browser, stack, "viewer") as watched:
        watched.open("/medflex/data-docs/")
        watched.page.locator("a[href^='runs/']").first.click()
        watched.page.wait_for_load_state("networkidle")
        assert "/medflex/data-docs/runs/" in watched.page.url
        picture(watched.page, "data-docs")
        assert not watched.troubles
        assert not watched.elsewhere
        assert not found_canaries(watched.bodies)


def test_logged_out_everything_leads_to_the_login(stack: Stack, run_id: str, browser: Browser) -> None:
    with signed_in(browser, stack, None) as watched:
        for address in [*own_pages(run_id).values(), "/medflex/data-docs/", "/medflex/clinics/1/switch?to=on"]:
            watched.open(address)
            assert "/auth/login" in watched.page.url, address
        picture(watched.page, "logged-out")


def test_the_head_alone_turns_the_switch(stack: Stack, run_id: str, browser: Browser) -> None:
    """Off and on again by keyboard; the head of another clinic, an Airflow admin and a viewer are not even asked."""
    with ExitStack() as sessions:
        head = sessions.enter_context(signed_in(browser, stack, "head-1", language="ru")).page
        head.goto("/medflex/clinics/1")
        for user in ("head-6", "admin", "viewer"):
            other = sessions.enter_context(signed_in(browser, stack, user)).page
            other.goto("/medflex/clinics/1", wait_until="networkidle")
            assert other.locator("a[href*='/switch']").count() == 0
            refused = other.goto("/medflex/clinics/1/switch?to=off")
            assert refused is not None
            assert refused.status == 403
            picture(other, f"switch-refused-{user}")
            # Also with the form that the head would send.
            status = other.evaluate(
                "async () => (await fetch('/medflex/clinics/1/switch', {method: 'POST',"
                " body: new URLSearchParams({to: 'off', token: 'x'})})).status"
            )
            assert status == 403
        assert _switch(stack) is True

        for to, word in (("off", "Доступ выключен"), ("on", "Доступ включён")):
            head.goto("/medflex/clinics/1", wait_until="networkidle")
            head.locator(f"a[href*='to={to}']").press("Enter")
            head.wait_for_load_state("networkidle")
            picture(head, f"switch-{to}")
            assert not serious(head)
            head.locator("button[type=submit]").press("Enter")
            head.wait_for_load_state("networkidle")
            expect(head.locator("[role=status]").first).to_contain_text(word)
            assert _switch(stack) is (to == "on")
        picture(head, "switch-turned")
    events = stack.airflow().call("GET", "/eventLogs", event="medflex_switch_off")["event_logs"]
    assert [event["owner"] for event in events] == ["head-1"]


def test_another_site_cannot_turn_the_switch(stack: Stack, run_id: str, browser: Browser) -> None:
    """A page of another origin sends the head's browser, with its cookie, to the switch."""
    with signed_in(browser, stack, "head-1") as watched:
        page = watched.page
        page.goto("/medflex/clinics/1", wait_until="networkidle")
        before = _switch(stack)
        evil = "http://localhost:1/"
        page.route(f"{evil}**", lambda route: route.fulfill(body="<p>evil</p>", content_type="text/html"))
        page.goto(evil)
        with page.expect_response(lambda answer: "/switch" in answer.url) as sent:
            page.evaluate(
                f"""() => {{
                  const form = document.createElement('form');
                  form.method = 'post'; form.action = {json.dumps(stack.url + "/medflex/clinics/1/switch")};
                  for (const [name, value] of [['to', 'off'], ['token', 'x']]) {{
                    const field = document.createElement('input'); field.name = name; field.value = value;
                    form.append(field);
                  }}
                  document.body.append(form); form.submit();
                }}"""
            )
        assert sent.value.status in (401, 403)
        assert _switch(stack) is before


def test_every_address_refuses_who_is_not_signed_in(stack: Stack, run_id: str) -> None:
    for address in [*own_pages(run_id).values(), "/medflex/static/medflex.js", "/medflex/data-docs/index.html"]:
        answer = requests.get(f"{stack.url}{address}", allow_redirects=False, timeout=30)
        assert answer.status_code == 401, address
    assert requests.post(f"{stack.url}/medflex/clinics/1/switch", data={"to": "on"}, timeout=30).status_code == 401


def _switch(stack: Stack) -> Any:
    with psycopg.connect(stack.medlock_owner()) as connection:
        row = connection.execute("SELECT enabled FROM medlock.medflex_access WHERE clinic_id = 1").fetchone()
    return row[0] if row else None
