"""What is handed out as it is: the pages' own style, script and icons, and Data Docs. Behind the log-in, too."""

from __future__ import annotations

import errno
import logging
import mimetypes
import re
from pathlib import Path
from typing import Annotated

from airflow.sdk import ObjectStoragePath
from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, RedirectResponse, Response

from medflex.airflow.tasks.parts import data_docs_url
from medflex.ui.security import Refusal
from medflex.ui.view import View, view_of

log = logging.getLogger(__name__)

router = APIRouter()

_STATIC = Path(__file__).parents[1] / "static"
_NAME = re.compile(r"[A-Za-z0-9-]+\.(css|js|svg)")
# What publish_data_docs writes, and nothing that lies beside it.
_DOCS = re.compile(r"index\.html|runs/(?!\.)[A-Za-z0-9.-]+/(source|outgoing|run)\.html")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# These pages have their style inside and no script at all.
DOCS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; font-src data:; form-action 'none';"
    " base-uri 'none'; frame-ancestors 'self'"
)

Reader = Annotated[View, Depends(view_of)]


@router.get("/static/{path}")
def static_file(path: str, view: Reader) -> Response:
    """One of the pages' own files."""
    file = _STATIC / path
    if not _NAME.fullmatch(path) or not file.is_file():
        raise view.not_found("error.no_file")
    return FileResponse(file, headers={"Cache-Control": "private, max-age=300"})


@router.get("/data-docs")
def data_docs_home(view: Reader) -> Response:
    """Lead to the index: its links are relative to its folder."""
    return RedirectResponse(view.url("data_docs_page", path=""))


@router.get("/data-docs/{path:path}")
def data_docs_page(path: str, view: Reader) -> Response:
    """A page of Data Docs, from wherever they are published (``MEDFLEX_DATA_DOCS_URL``)."""
    name = path or "index.html"
    if not _DOCS.fullmatch(name):
        raise view.not_found("error.no_file")
    url = data_docs_url()
    try:
        content = (ObjectStoragePath(url) / name).read_bytes()
    except Exception as error:
        if getattr(error, "errno", None) in _NOT_THERE or isinstance(error, FileNotFoundError):
            raise view.not_found("data_docs.none") from None
        # Each kind of storage has its own errors, whose texts quote addresses.
        what = type(error).__name__
        log.warning("Data Docs cannot be read from the storage of MEDFLEX_DATA_DOCS_URL: %s", what)
        raise Refusal(503, "data_docs.away", what=what) from None
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(content, media_type=kind, headers={"Content-Security-Policy": DOCS_POLICY})
