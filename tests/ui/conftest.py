"""The pages as Airflow serves them: its real app with its real log-in, in process, with the plugin mounted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from sandbox.postgres import Cluster
from tests.airflow.world import World

USERS = {"admin": "ADMIN", "op": "OP", "head-1": "USER", "head-2": "USER", "viewer": "VIEWER"}


@pytest.fixture(scope="session")
def airflow_app(airflow_db: Cluster) -> Iterator[Any]:
    """Airflow's api-server application with the plugin. It needs no DAG, so none is parsed."""
    environment = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "AIRFLOW__API__BASE_URL": "http://testserver",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    from airflow.api_fastapi.app import create_app, purge_cached_app

    yield create_app(apps="core")
    purge_cached_app()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def sign_in(airflow_app: Any) -> Iterator[Callable[..., TestClient]]:
    """A function that returns a browser, signed in as one of :data:`USERS`, or as nobody."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    opened: list[TestClient] = []

    def open_as(user: str | None, **headers: str) -> TestClient:
        client = TestClient(
            airflow_app, follow_redirects=False, headers={"accept": "text/html", "accept-language": "en", **headers}
        )
        if user is not None:
            token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=USERS[user]))
            client.cookies.set("_token", token)
        opened.append(client)
        return client

    yield open_as
    for client in opened:
        client.close()


@pytest.fixture
def client(sign_in: Callable[..., TestClient]) -> TestClient:
    """A browser, signed in as a viewer."""
    return sign_in("viewer")


@pytest.fixture
def clinics(world: World, medlock_switch: str, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with two clinics and their staff: the heads ``head-1`` and ``head-2``, an administrator of the first."""
    from medflex.ui.directory import DIRECTORY

    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_SWITCH", medlock_switch)
    with psycopg.connect(world.medlock) as connection:
        connection.execute(
            """
            INSERT INTO medlock.clinic (id, lpu_id, name, timezone)
            VALUES (1, 101, 'Clinic One', 'Europe/Moscow'), (2, 102, 'Клиника Два <b>', 'Asia/Yekaterinburg');
            INSERT INTO medlock.staff (id, clinic_id, full_name, login, role)
            VALUES
                (11, 1, 'Canary Headova', 'head-1', 'head'),
                (12, 1, 'Canary Adminov', 'admin', 'administrator'),
                (21, 2, 'Canary Secondov', 'head-2', 'head');
            INSERT INTO medlock.partner (id, name, kind) VALUES (7, 'Call Robot', 'robot'), (8, 'Mailer', 'mailing');
            INSERT INTO medlock.clinic_partner (clinic_id, partner_id, enabled, scenarios)
            VALUES (1, 7, TRUE, '{visit_reminder}'), (1, 8, FALSE, NULL), (2, 8, TRUE, '{greeting}');
            INSERT INTO medlock.smart_care_scenario (clinic_id, scenario, enabled) VALUES (1, 'visit_reminder', TRUE);
            """
        )
    DIRECTORY.forget()
    return world
