"""Every route behind the log-in: the whole route table is walked, so that a new route cannot be forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from medflex.ui.app import build
from medflex.ui.mount import PREFIX, VIEWS
from tests.airflow.world import World

SignIn = Callable[..., TestClient]
FORM = {"to": "on", "token": "none"}


def routes() -> Iterator[tuple[str, str]]:
    """Each method and address of the app, with something that fits put into its path."""
    for route in build().routes:
        assert isinstance(route, APIRoute), f"{route} is no route with dependencies"
        path = re.sub(r"\{(\w+)(:path)?\}", "1", route.path)
        for method in sorted(route.methods):
            yield method, f"{PREFIX}{path}"


ROUTES = sorted(set(routes()))


def test_the_route_table_is_the_whole_app() -> None:
    assert {(method, path) for method, path in ROUTES if method != "GET"} == {("POST", f"{PREFIX}/clinics/1/switch")}
    assert len(ROUTES) >= 12


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_login_there_is_nothing(sign_in: SignIn, method: str, path: str) -> None:
    data = FORM if method == "POST" else None
    program = sign_in(None, accept="application/json").request(method, path, data=data)
    assert program.status_code == 401
    assert program.json() == {"detail": "Not authenticated"}
    browser = sign_in(None).request(method, path, data=data)
    if method == "GET":
        assert browser.status_code == 307
        assert browser.headers["location"].startswith("/auth/login?next=")
    else:
        assert browser.status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_made_up_token_opens_nothing(sign_in: SignIn, method: str, path: str) -> None:
    client = sign_in(None)
    client.cookies.set("_token", "made.up.token")
    assert client.request(method, path, data=FORM if method == "POST" else None).status_code == 403


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_user_without_a_role_sees_nothing(airflow_app: Any, sign_in: SignIn, method: str, path: str) -> None:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    client = sign_in(None)
    client.cookies.set("_token", get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="nobody", role=None)))
    assert client.request(method, path, data=FORM if method == "POST" else None).status_code == 403


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] != "GET"])
@pytest.mark.parametrize("user", ["viewer", "op", "admin"])
def test_a_write_by_somebody_else_is_refused(
    clinics: World, sign_in: SignIn, user: str, method: str, path: str
) -> None:
    assert sign_in(user).request(method, path, data=FORM).status_code == 403


def test_pages_of_the_views_exist(sign_in: SignIn, clinics: World) -> None:
    """What Airflow's tabs show is a route, whatever ids Airflow puts in; a run that nobody knows is a 404 page."""
    client = sign_in("viewer")
    for view in VIEWS:
        address = view["href"].format(DAG_ID="medflex_transfer", RUN_ID="manual__1", TASK_ID="shard.load", MAP_INDEX=0)
        answer = client.get(f"/{address}")
        assert answer.status_code == (404 if "run_id" in address else 200), address
        assert "<h1>" in answer.text
        for icon in (view["icon"], view["icon_dark_mode"]):
            assert client.get(f"/{icon}").headers["content-type"].startswith("image/svg")


def test_headers_keep_other_sites_out(client: TestClient, clinics: World) -> None:
    for path in ("/clinics", "/static/medflex.css", "/nothing"):
        headers = client.get(f"{PREFIX}{path}").headers
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["x-content-type-options"] == "nosniff"
        assert "no-store" in headers["cache-control"] or path.startswith("/static")


def test_what_goes_wrong_inside_tells_no_more_than_its_type(
    client: TestClient, clinics: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from medflex.ledger.overview import LedgerOverview

    def fail(*_: Any) -> None:
        raise RuntimeError("Canary Secret +79001112233")

    monkeypatch.setattr(LedgerOverview, "last_runs", fail)
    answer = client.get(f"{PREFIX}/clinics")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.text
    assert "Canary" not in answer.text + caplog.text


def test_the_log_says_where_a_page_failed(
    client: TestClient, clinics: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By route, file, line and function: an address may have what somebody typed, a message what was read."""
    from medflex.ledger.overview import LedgerOverview

    def fail(*_: Any) -> None:
        raise RuntimeError("Canary Secret +79001112233")

    monkeypatch.setattr(LedgerOverview, "clinic_runs", fail)
    assert client.get(f"{PREFIX}/clinics/1?turned=off&q=Canary").status_code == 500
    (said,) = [record for record in caplog.records if record.name == "medflex.ui.app"]
    assert "GET /clinics/{clinic_id}" in said.getMessage()
    assert re.search(r"test_routes\.py:\d+ fail\b", said.getMessage())
    assert re.search(r"clinics\.py:\d+ _history\b", said.getMessage())
    assert "Canary" not in said.getMessage()
    assert "raise RuntimeError" not in caplog.text
    assert said.exc_info is None


def test_a_database_that_is_away_gets_a_sentence(
    client: TestClient, clinics: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for conn_id, path in (("MEDFLEX_LEDGER", "runs"), ("MEDLOCK_DB", "clinics")):
        with monkeypatch.context() as patch:
            patch.setenv(f"AIRFLOW_CONN_{conn_id}", "postgresql://nobody:secret@127.0.0.1:1/none")
            answer = client.get(f"{PREFIX}/{path}")
        assert answer.status_code == 503
        assert "does not answer" in answer.text
        assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["../app.py", "..%2fapp.py", "x.txt", "%2e%2e/security.py", "charts.css/../../app.py"])
def test_only_the_pages_own_files_are_handed_out(client: TestClient, path: str) -> None:
    assert client.get(f"{PREFIX}/static/{path}").status_code == 404


@pytest.mark.parametrize(
    "path", ["../secret.html", "runs/../../secret.html", "runs/%2e%2e/%2e%2e/secret.html", "runs/.hidden/run.html",
             "runs/a/run.json", "secret.html", "//etc/passwd", "runs/a/../../../secret.html"],
)  # fmt: skip
def test_only_data_docs_are_handed_out(client: TestClient, clinics: World, path: str) -> None:
    for folder in (clinics.data_docs, clinics.folder):
        folder.mkdir(exist_ok=True)
        (folder / "secret.html").write_text("secret")
    for run in ("a", ".hidden"):
        (clinics.data_docs / "runs" / run).mkdir(parents=True, exist_ok=True)
        (clinics.data_docs / "runs" / run / "run.json").write_text("secret")
        (clinics.data_docs / "runs" / run / "run.html").write_text("secret" if run == ".hidden" else "<p>report</p>")
    assert client.get(f"{PREFIX}/data-docs/runs/a/run.html").text == "<p>report</p>"
    answer = client.get(f"{PREFIX}/data-docs/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_report_of_an_impossible_name_is_not_there(client: TestClient, clinics: World) -> None:
    runs = clinics.data_docs / "runs"
    (runs / "loop").mkdir(parents=True)
    (runs / "loop" / "run.html").symlink_to("run.html")
    for name in ("a" * 300, "loop"):
        assert client.get(f"{PREFIX}/data-docs/runs/{name}/run.html").status_code == 404


@pytest.mark.parametrize("url", ["nonsense://Canary/x", "s3://Canary/x"])
def test_a_storage_that_cannot_be_used_gets_a_sentence(
    client: TestClient, clinics: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", url)
    _is_refused(client, caplog)


@pytest.mark.parametrize("error", [PermissionError(13, "Canary"), RuntimeError("Canary"), OSError(5, "Canary")])
def test_a_storage_that_refuses_gets_a_sentence(
    client: TestClient,
    clinics: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def refuse(_: object) -> bytes:
        raise error

    monkeypatch.setattr(ObjectStoragePath, "read_bytes", refuse)
    _is_refused(client, caplog)
    answer = client.get(f"{PREFIX}/data-docs/", headers={"accept-language": "ru"})
    assert "Хранилище" in answer.text


def _is_refused(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.get(f"{PREFIX}/data-docs/")
    assert answer.status_code == 503
    assert "MEDFLEX_DATA_DOCS_URL" in answer.text
    assert "Canary" not in answer.text + caplog.text


def test_data_docs_may_run_no_script(client: TestClient, clinics: World) -> None:
    clinics.data_docs.mkdir()
    (clinics.data_docs / "index.html").write_text("<h1>Data Docs</h1>")
    answer = client.get(f"{PREFIX}/data-docs/")
    assert answer.text == "<h1>Data Docs</h1>"
    assert "script-src" not in answer.headers["content-security-policy"]
    assert client.get(f"{PREFIX}/data-docs").headers["location"] == f"{PREFIX}/data-docs/"
