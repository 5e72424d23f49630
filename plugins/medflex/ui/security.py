"""Who may see the pages and who may turn a switch. The only module that touches Airflow's internal security code.

Airflow protects nothing of a mounted app, so every route has :func:`signed_in` by the app itself (``medflex.ui.app``).
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from medflex.ui.i18n import LANGUAGES, Speech
from medflex.ui.mount import DAG_ID

FORM_SECONDS = 15 * 60
"""So long may somebody think about a form before it has to be opened again."""


class Refusal(HTTPException):
    """A refusal with a text in each language (``locales``): programs are told it in English, by ``detail``."""

    def __init__(self, status_code: int, key: str, /, **values: Any) -> None:
        super().__init__(status_code, Speech(LANGUAGES[0]).text(key, **values).unescape())
        self.key, self.values = key, values


def signed_in(request: Request, user: Annotated[BaseUser, Depends(get_user)]) -> BaseUser:
    """Return the user; 401 without a log-in, 403 for one who may not read the runs of the daily transfer."""
    require_dag(user, DAG_ID)
    return user


def require_dag(user: BaseUser, dag_id: str) -> None:
    """Raise 403 unless the user may read the runs of a DAG."""
    allowed = get_auth_manager().is_authorized_dag(
        method="GET", access_entity=DagAccessEntity.RUN, details=DagDetails(id=dag_id), user=user
    )
    if not allowed:
        raise Refusal(403, "error.not_allowed")


def login_url(next_url: str) -> str:
    """Return the address of Airflow's log-in, which leads back to ``next_url``."""
    return str(get_auth_manager().get_url_login(next_url=next_url))


def require_same_site(request: Request) -> None:
    """Raise 403 for a request that a page of another site has made the browser send.

    Browsers say where a request comes from: ``Sec-Fetch-Site`` on secure origins, ``Origin`` with each POST. One that
    says neither is no browser's; it still needs the form's signed token.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        # The browser has compared for itself, and knows no proxy between that could have changed a name or a scheme.
        is_ours = site == "same-origin"
    else:
        known = {_origin(str(request.url)), _origin(str(conf.get("api", "base_url", fallback="")))} - {None}
        is_ours = origin is None or _origin(origin) in known
    if not is_ours:
        raise Refusal(403, "error.other_site")


def _origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host in small letters and port, which stands for itself where it is not said."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname and port else None


def form_token(user: BaseUser, **what: Any) -> str:
    """Return what a form carries to show that this user opened it, for exactly this."""
    return _serializer().dumps({"user": user.get_id(), **what})


def check_form_token(token: str, user: BaseUser, **what: Any) -> None:
    """Raise 403 unless ``token`` is this user's, for exactly this, and not too old."""
    try:
        said = _serializer().loads(token, max_age=FORM_SECONDS)
    except BadSignature:
        said = None
    if said != {"user": user.get_id(), **what}:
        raise Refusal(403, "error.old_form")


def _serializer() -> URLSafeTimedSerializer:
    """Signed with a secret that all api-servers of this Airflow share, and all processes of each.

    Where tokens are signed with a key pair, each process has made up a ``jwt_secret`` of its own.
    """
    with_keys = conf.get("api_auth", "jwt_private_key_path", fallback="")
    secret = conf.get("api", "secret_key") if with_keys else conf.get("api_auth", "jwt_secret")
    return URLSafeTimedSerializer(secret, salt="medflex-form")
