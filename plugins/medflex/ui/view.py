"""What each page has at hand: the reader, the reader's language and zone, the databases, and the template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlencode

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException as AnyHTTPException

from medflex.airflow import connections
from medflex.airflow.hooks.medlock import Medlock
from medflex.clock import Clock, SystemClock
from medflex.ledger.overview import TIMEOUT_SECONDS, LedgerOverview
from medflex.ui.i18n import LANGUAGES, Speech, accepted, known_language
from medflex.ui.security import Refusal, signed_in

LANGUAGE_COOKIE, ZONE_COOKIE = "medflex_language", "medflex_zone"
"""Set by static/medflex.js to what the reader has chosen in Airflow."""
SECTIONS = (
    ("clinics_page", "nav.clinics"),
    ("runs_page", "nav.runs"),
    ("withdrawals_page", "nav.withdrawals"),
    ("actions_page", "nav.actions"),
    ("quality_page", "nav.quality"),
    ("data_docs_page", "nav.data_docs"),
)
CLOCK: Clock = SystemClock()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


class View:
    """One request's page in the making."""

    def __init__(self, request: Request, user: BaseUser | None) -> None:
        self.request = request
        self._user = user
        self.speech = Speech(
            known_language(request.cookies.get(LANGUAGE_COOKIE), *accepted(request.headers.get("accept-language", ""))),
            unquote(request.cookies.get(ZONE_COOKIE, "")),  # its slash is written as %2F
        )

    @property
    def user(self) -> BaseUser:
        """Who reads the page; a page about an error may have nobody."""
        if self._user is None:
            raise HTTPException(401, "Not authenticated")
        return self._user

    @property
    def now(self) -> datetime:
        """The present, by the same clock for a whole page."""
        if not hasattr(self, "_now"):
            self._now = CLOCK.now()
        return self._now

    # -- data --------------------------------------------------------------------------------------------------------

    @contextmanager
    def overview(self) -> Iterator[LedgerOverview]:
        """Yield read access to the ledger."""
        with LedgerOverview(connections.postgres_conninfo(connections.LEDGER)) as ledger:
            yield ledger

    @contextmanager
    def medlock(self) -> Iterator[Medlock]:
        """Yield read access to Medlock; of its tables the pages read clinics, staff ids and partners only.

        A page that waits holds one of the threads on which the api-server hears the heartbeats of tasks, too.
        """
        conninfo = connections.postgres_conninfo(connections.MEDLOCK)
        with Medlock(conninfo, timeout_seconds=TIMEOUT_SECONDS) as medlock:
            yield medlock

    # -- addresses ---------------------------------------------------------------------------------------------------

    def url(self, page: str, /, query: dict[str, Any] | None = None, **parts: Any) -> str:
        """Return the address of a page by its handler's name, below wherever Airflow is mounted.

        What belongs into its path is taken from ``parts``, all else goes into the query string; ``None`` is left out.
        """
        for route in self.request.app.router.routes:
            if getattr(route, "name", None) == page:
                inside = {name: str(parts.pop(name)) for name in route.param_convertors}
                asked = {name: value for name, value in {**parts, **(query or {})}.items() if value is not None}
                path = self.request.scope.get("root_path", "") + str(route.url_path_for(page, **inside))
                return f"{path}?{urlencode(asked)}" if asked else path
        raise KeyError(f"There is no page {page}.")

    def airflow_link(self, path: str) -> str:
        """Return the address of one of Airflow's own pages, given below Airflow's root without a leading slash."""
        root = str(self.request.scope.get("app_root_path", ""))
        return f"{root}/{path.lstrip('/')}"

    # -- answers -----------------------------------------------------------------------------------------------------

    def page(self, template: str, /, status_code: int = 200, **context: Any) -> HTMLResponse:
        """Return a template as a page. In it: ``t``, ``number``, ``percent``, ``moment``, ``duration``, ``reason``,
        ``url``, ``airflow_link``, ``now``, ``view``.
        """
        text = (
            _environment()
            .get_template(template)
            .render(
                view=self,
                t=self.speech.text,
                number=self.speech.number,
                percent=self.speech.percent,
                moment=self.speech.moment,
                duration=self.speech.duration,
                reason=self.reason,
                url=self.url,
                airflow_link=self.airflow_link,
                language=self.speech.language,
                languages=LANGUAGES,
                zone=self.speech.zone_name,
                now=self.now,
                sections=SECTIONS,
                **context,
            )
        )
        return HTMLResponse(text, status_code)

    def reason(self, code: str) -> Markup:
        """Return what a reason code means; of one that has no text the code itself."""
        key = f"reason.{code}"
        return self.speech.text(key) if self.speech.has(key) else Markup("{}").format(code)

    def not_found(self, key: str, /, **values: Any) -> HTTPException:
        """Return the 404 that says so in the reader's language; to be raised."""
        return Refusal(404, key, **values)


def view_of(request: Request, user: Annotated[BaseUser, Depends(signed_in)]) -> View:
    """Return the view of a request (a dependency of every page)."""
    return View(request, user)


def error_page(request: Request, error: AnyHTTPException) -> HTMLResponse:
    """Return an error as a page; what has no text in the reader's language is marked as English."""
    view = View(request, None)
    told = view.speech.text(error.key, **error.values) if isinstance(error, Refusal) else None
    return view.page(
        "error.html",
        error.status_code,
        code=error.status_code,
        sentence=told or str(error.detail),
        is_english=told is None,
    )
