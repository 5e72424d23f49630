"""A headless Chromium, signed in to the stack's Airflow: for the pages' tests and pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

WIDTH, HEIGHT = 1440, 900
ZONE = "Europe/Moscow"
"""What people have chosen in Airflow, if they have not chosen another one."""
# Nothing of the browser's own asks other hosts, which in a closed network would hold pages up.
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip


class BrowserError(RuntimeError):
    """There is no browser, or it could not sign in; one sentence that says what to do."""


def find_chromium() -> str:
    """Return the path of Chromium: of ``CHROMIUM``, else of the first one on PATH. Raises ``BrowserError``."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    raise BrowserError("No Chromium was found: install the package chromium, or name its path in CHROMIUM.")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(_ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def session(
    browser: Browser,
    url: str,
    user: str | None,
    password: str = "",
    *,
    theme: str = "light",
    language: str = "en",
    zone: str = ZONE,
) -> Iterator[BrowserContext]:
    """Yield a session of its own with Airflow at ``url``, signed in as ``user`` (``None``: not signed in).

    Theme, language and zone are what this person has chosen in Airflow, which keeps them in the browser.
    """
    context = browser.new_context(
        base_url=url, viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce", locale="en-US"
    )
    if user is not None:
        answer = requests.post(f"{url}/auth/token", json={"username": user, "password": password}, timeout=30)
        if answer.status_code != 201:
            raise BrowserError(f"Airflow does not let {user} in: it answered {answer.status_code}.")
        context.add_cookies([{"name": "_token", "value": answer.json()["access_token"], "url": url}])
    chosen = {"theme": theme, "i18nextLng": language, "timezone": f'"{zone}"'}
    # Only where nothing is chosen yet: a page that changes a choice must find it again. An empty page has no storage.
    script = f"""
      try {{
        for (const [key, value] of Object.entries({json.dumps(chosen)})) {{
          localStorage.getItem(key) ?? localStorage.setItem(key, value);
        }}
      }} catch {{ }}
    """
    context.add_init_script(script)
    yield context
    context.close()
