"""The application that Airflow mounts: routes, log-in on all of them, headers, errors as pages."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from medflex.errors import MedflexPipelineError, NotHeadError
from medflex.ui.pages import actions, clinics, files, quality, runs, withdrawals
from medflex.ui.security import Refusal, login_url, signed_in
from medflex.ui.view import error_page

log = logging.getLogger(__name__)

# No other host is asked for anything, and no other site may show the pages in a frame or take a form of theirs.
POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
FRAMES_LOGGED = 8
"""So many calls of an error are logged."""
_KEYS = {401: "error.not_signed_in", 404: "error.no_page", 405: "error.no_method"}
"""What is refused before a page of ours is asked, by its status."""


def build() -> FastAPI:
    """Return the application, each route of which asks for a log-in with leave to read the daily transfer's runs."""
    app = FastAPI(title="Medflex", dependencies=[Depends(signed_in)], docs_url=None, redoc_url=None, openapi_url=None)
    for page in (clinics, runs, withdrawals, actions, quality, files):
        app.include_router(page.router)
    app.middleware("http")(_headers)
    app.exception_handler(HTTPException)(_refusal)
    app.exception_handler(RequestValidationError)(_unreadable)
    app.exception_handler(MedflexPipelineError)(_trouble)
    return app


async def _headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    try:
        response = await call_next(request)
    except Exception as error:
        # Caught here, before the server logs it whole: its text may quote what was read, the address what was typed.
        path, what = getattr(request.scope.get("route"), "path", "no route"), type(error).__name__
        log.error("A page failed: %s %s: %s at %s", request.method, path, what, _where(error))  # noqa: TRY400
        response = await _refusal(request, Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "error.failed", what=what))
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def _where(error: Exception) -> str:
    """The innermost calls of an error, the innermost first."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-FRAMES_LOGGED:])
    return " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _refusal(request: Request, error: HTTPException) -> Response:
    if not _wants_page(request):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
    if error.status_code == HTTPStatus.UNAUTHORIZED and request.method in ("GET", "HEAD"):
        return RedirectResponse(login_url(str(request.url)), HTTPStatus.TEMPORARY_REDIRECT)
    if not isinstance(error, Refusal) and error.status_code in _KEYS:
        error = Refusal(error.status_code, _KEYS[error.status_code])
    return error_page(request, error)


async def _unreadable(request: Request, _: RequestValidationError) -> Response:
    # The error itself quotes what was asked for.
    return await _refusal(request, Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "error.unreadable"))


async def _trouble(request: Request, error: MedflexPipelineError) -> Response:
    log.warning("%s: %s", type(error).__name__, error)
    if isinstance(error, NotHeadError):
        return await _refusal(request, Refusal(HTTPStatus.FORBIDDEN, "switch.not_head"))
    return await _refusal(request, HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)))
