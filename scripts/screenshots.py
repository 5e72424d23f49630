"""Take the pictures of README and docs from the running demo: ``make screenshots``.

They show the demo's made-up clinics in docs/images/; each picture is of the size of a small laptop's screen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

import psycopg

from sandbox.browser import ZONE, BrowserError, chromium, session
from sandbox.stack import DAG_ID, Stack

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
# A page that learns from the browser that another zone was chosen is loaded anew. Data Docs know of no zone.
SHOWN = f'body:is(:not([data-zone]), [data-zone="{ZONE}"])'
PICTURES = {
    # name: user, language, theme, address; {run} is the newest transfer that sent something
    "clinics": ("viewer", "en", "light", "/plugin/medflex"),
    "clinic-ru-dark": ("head-1", "ru", "dark", "/plugin/medflex/medflex/clinics/1"),
    "switch": ("head-1", "en", "light", "/plugin/medflex/medflex/clinics/1/switch?to=off"),
    "run": ("viewer", "en", "light", f"/dags/{DAG_ID}/runs/{{run}}/plugin/medflex-run"),
    "withdrawals": ("viewer", "en", "light", "/plugin/medflex/medflex/withdrawals"),
    "actions": ("viewer", "en", "light", "/plugin/medflex/medflex/actions"),
    "quality": ("viewer", "en", "dark", "/plugin/medflex/medflex/quality"),
    "data-docs": ("viewer", "en", "light", "/plugin/medflex/medflex/data-docs/"),
}


def main() -> int:
    """Take all pictures; return the exit code."""
    stack = Stack()
    if not stack.is_running():
        print("The demo does not run: start it with `make demo`.", file=sys.stderr)
        return 1
    with psycopg.connect(stack.ledger()) as connection:
        row = connection.execute(
            "SELECT run.run_id FROM ledger.run AS run INNER JOIN ledger.run_clinic USING (run_key)"
            " WHERE dag_id = %s GROUP BY run.run_key HAVING sum(accepted) > 0 ORDER BY run.started_at DESC LIMIT 1",
            [DAG_ID],
        ).fetchone()
    if row is None:
        print("No run has sent anything yet: make one with `sandbox/ctl run`.", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    try:
        with chromium() as browser:
            for name, (user, language, theme, address) in PICTURES.items():
                password = stack.passwords()[user]
                with session(browser, stack.url, user, password, language=language, theme=theme) as context:
                    page = context.new_page()
                    page.set_viewport_size(SIZE)  # type: ignore[arg-type]
                    page.goto(address.format(run=quote(row[0], safe="")), wait_until="networkidle")
                    page.frame_locator("iframe").locator(f"{SHOWN} h1").wait_for()
                    page.screenshot(path=IMAGES / f"{name}.png")
                print(f"docs/images/{name}.png")
    except BrowserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
