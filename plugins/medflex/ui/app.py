"""The application that Airflow mounts: routes, log-in on all of them, headers, errors as pages."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from medflex.errors import MedflexPipelineError, NotHeadError
from medflex.ui.pages import actions, clinics, files, quality, runs, withdrawals
from medflex.ui.security import login_url, signed_in
from medflex.ui.view import error_page

log = logging.getLogger(__name__)

# No other host is asked for anything, and no other site may show the pages in a frame or take a form of theirs.
POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)


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
        # Caught here, before the server logs it whole: its text may quote what was read.
        log.error("A page failed: %s", type(error).__name__)  # noqa: TRY400
        sentence = f"The page failed ({type(error).__name__}): the api-server's log says where."
        response = await _refusal(request, HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, sentence))
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


async def _refusal(request: Request, error: HTTPException) -> Response:
    if not _wants_page(request):
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
    if error.status_code == HTTPStatus.UNAUTHORIZED and request.method in ("GET", "HEAD"):
        return RedirectResponse(login_url(str(request.url)), HTTPStatus.TEMPORARY_REDIRECT)
    return error_page(request, error.status_code, str(error.detail))


async def _unreadable(request: Request, _: RequestValidationError) -> Response:
    # The error itself quotes what was asked for.
    return await _refusal(request, HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, "This address cannot be read."))


async def _trouble(request: Request, error: MedflexPipelineError) -> Response:
    log.warning("%s: %s", type(error).__name__, error)
    status = HTTPStatus.FORBIDDEN if isinstance(error, NotHeadError) else HTTPStatus.SERVICE_UNAVAILABLE
    return await _refusal(request, HTTPException(status, str(error)))
