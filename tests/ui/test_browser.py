"""The pages in headless Chromium: what only a browser can tell. Those in Airflow's frame are in tests/e2e."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, BrowserContext

from medflex.ledger.store import Ledger
from sandbox.browser import chromium
from tests.airflow.world import World
from tests.ledger.times import Time
from tests.ui import story
from tests.ui.test_switch import set_switch

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SignIn = Callable[..., TestClient]
Open = Callable[..., BrowserContext]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def address(airflow_app: Any) -> Iterator[str]:
    """Where a server of Airflow's app listens, in this process."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(airflow_app, log_level="error", lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    listening.close()


@pytest.fixture
def opened(browser: Browser, address: str, sign_in: SignIn) -> Iterator[Open]:
    """A function that returns a browser's context, signed in as a head."""
    contexts: list[BrowserContext] = []

    def open_with(language: str = "en", width: int = 1200, **stored: str) -> BrowserContext:
        made = browser.new_context(base_url=address, locale=language, viewport={"width": width, "height": 800})
        contexts.append(made)
        made.add_cookies([{"name": "_token", "value": sign_in("head-1").cookies["_token"], "url": address}])
        for key, value in stored.items():
            made.add_init_script(f"localStorage.setItem('{key}', '{value}')")
        return made

    yield open_with
    for context in contexts:
        context.close()


@pytest.fixture
def told(clinics: World) -> World:
    """Two days of a ledger, and a clinic whose switch was turned often, with an overlap of scenarios."""
    clock = Time()
    clock.now = now = datetime.now(UTC)
    with Ledger(clinics.ledger, now=clock) as ledger:
        story.tell(ledger, clinics.ledger, now, lambda moment: setattr(clock, "now", moment))
    set_switch(clinics, True, now - timedelta(days=3), 11)
    with psycopg.connect(clinics.ledger) as connection:
        connection.execute(
            "INSERT INTO ledger.switch_event (clinic_id, enabled, changed_at, role, via, seen_at)"
            " SELECT 1, TRUE, now() - n * interval '1 day', 'head', 'medlock', now() FROM generate_series(1, 3) AS n"
        )
    return clinics


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("width", [320, 390])
def test_a_clinic_fits_a_phone(told: World, opened: Open, language: str, width: int) -> None:
    page = opened(language, width).new_page()
    page.goto("/medflex/clinics/1", wait_until="networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("chosen", "browsers", "shown"), [("de", "ru", "en"), ("ru", "en", "ru"), ("pt-BR", "ru", "en"), ("", "ru", "ru")]
)
def test_a_third_language_of_airflows_is_english(
    told: World, opened: Open, chosen: str, browsers: str, shown: str
) -> None:
    """Also after another one was chosen, which the cookie still says."""
    context = opened(browsers, **({"i18nextLng": chosen} if chosen else {}))
    page = context.new_page()
    page.goto("/medflex/clinics", wait_until="networkidle")
    page.wait_for_function("language => document.documentElement.lang === language", arg=shown, timeout=10_000)


@pytest.mark.parametrize("path", ["/medflex/clinics", "/medflex/clinics/1"])
def test_nothing_that_axe_finds(told: World, opened: Open, path: str) -> None:
    page = opened().new_page()
    page.goto(path, wait_until="networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["target"]) for one in found] == []
