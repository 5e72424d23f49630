"""Airflow's connections as what the drivers want. Nothing here reads a connection, or imports a driver, before a task
asks for it: the files of all DAGs are parsed again and again.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from medflex.errors import ConfigurationError

MEDLOCK = "medlock_db"
LEDGER = "medflex_ledger"
MEDLOCK_ACTIONS = "medlock_actions"
MEDLOCK_SWITCH = "medlock_switch"
MEDFLEX = "medflex_api"
ALERTS = "medflex_alerts"

# What of a connection's extra libpq understands; anything else there belongs to other tools.
_LIBPQ_EXTRAS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options", "application_name", "target_session_attrs")


def connection(conn_id: str) -> Connection:
    """Return an Airflow connection; raise :class:`ConfigurationError` when there is none."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConfigurationError(
            f"The Airflow connection {conn_id} does not exist: define it under Admin → Connections or as the"
            f" environment variable AIRFLOW_CONN_{conn_id.upper()}."
        ) from None


def postgres_conninfo(conn_id: str) -> str:
    """Return the libpq connection string of a Postgres connection; a socket directory may stand as its host."""
    from psycopg.conninfo import make_conninfo

    found = connection(conn_id)
    extra: dict[str, Any] = found.extra_dejson
    parts = {
        "host": found.host,
        "port": found.port,
        "dbname": found.schema,
        "user": found.login,
        "password": found.password,
        "application_name": "medflex",
        "connect_timeout": 10,
        # A database that is gone without a word must not hold a task for ever.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
        **{key: extra[key] for key in _LIBPQ_EXTRAS if key in extra},
    }
    if not found.schema:
        raise ConfigurationError(f"The Airflow connection {conn_id} names no database: fill in its field Schema.")
    return make_conninfo("", **{key: value for key, value in parts.items() if value not in (None, "")})


def digest_key() -> bytes:
    """Return the secret that keeps digests in the ledger from being guessed (``MEDFLEX_DIGEST_KEY``)."""
    key = os.environ.get("MEDFLEX_DIGEST_KEY", "")
    if len(key) < 16:
        raise ConfigurationError(
            "MEDFLEX_DIGEST_KEY is missing or shorter than 16 characters: set the same long random secret on every"
            " worker, and keep it; with another one everything is sent again."
        )
    return key.encode()
