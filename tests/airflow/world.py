"""A whole world for tests of tasks and DAGs: Medlock, ledger, Medflex, staging and Airflow's connections, all real."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings
from medflex.airflow.hooks.medlock import Medlock
from medflex.ledger.store import Ledger
from sandbox.medflex.control import Control
from sandbox.medflex.process import MedflexProcess
from sandbox.medlock.generate import DAYS_AHEAD, DAYS_BACK, ZONES, clinic_offsets, generate
from tests.domain.oracles.loop import expected_records

DIGEST_KEY = "a digest key for tests only"
LONGEST_TEST = timedelta(hours=1)
"""No test takes longer; so far ahead a midnight is seen to."""


def fill(uri: str, **size: Any) -> None:
    """Generate data in which nobody waits for the 24 hours, since a run would wait with them."""
    generate(uri, **size)
    with psycopg.connect(uri) as connection:
        connection.execute(
            "UPDATE medlock.medflex_access SET changed_at = now() - interval '2 days'"
            " WHERE enabled AND changed_at BETWEEN now() - interval '24 hours' AND now()"
        )
    see_to_midnights(uri)


def see_to_midnights(uri: str, now: datetime | None = None) -> None:
    """Let no clinic's midnight that comes during a test change what lies in the window (R6).

    Else the test fails that is sending before and looks after it. At midnight the window's first day leaves it, and the
    day behind its last one enters. What begins on those days is moved a day on, to where it is inside or outside
    before midnight as after it. Clinics whose midnight is far away keep the edges that they were generated with.
    """
    now = now or datetime.now(UTC)
    with psycopg.connect(uri) as connection:
        for clinic_id, name in connection.execute("SELECT id, timezone FROM medlock.clinic").fetchall():
            # The days of a clinic whose zone is none are UTC's.
            zone = ZoneInfo(name if name in ZONES else "UTC")
            today = now.astimezone(zone).date()
            if (now + LONGEST_TEST).astimezone(zone).date() == today:
                continue
            for days in (-DAYS_BACK, DAYS_AHEAD + 1):
                begin, end = (
                    datetime.combine(today + timedelta(days=number), time(), zone) for number in (days, days + 1)
                )
                connection.execute(
                    "UPDATE medlock.appointment SET starts_at = starts_at + interval '1 day',"
                    " ends_at = ends_at + interval '1 day' WHERE clinic_id = %s AND starts_at >= %s AND starts_at < %s",
                    [clinic_id, begin, end],
                )


@dataclass
class World:
    """The parts of one test's world, as connection URIs. Those of ``medlock`` and ``ledger`` are the owner's."""

    medlock: str
    medlock_app: str
    medlock_actions: str
    ledger: str
    medflex: MedflexProcess
    control: Control
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    @property
    def data_docs(self) -> Path:
        return self.folder / "data-docs"

    def connect(self) -> None:
        """Define Airflow's connections and the product's settings."""
        self.monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", self.medlock_app)
        self.monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_ACTIONS", self.medlock_actions)
        self.monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", self.ledger)
        self.connect_medflex()
        self.monkeypatch.setenv("MEDFLEX_STAGING_URL", f"file://{self.staging}")
        self.monkeypatch.setenv("MEDFLEX_DATA_DOCS_URL", f"file://{self.data_docs}")
        self.monkeypatch.setenv("MEDFLEX_DIGEST_KEY", DIGEST_KEY)

    def connect_medflex(self, *, token: str | None = None, port: int | None = None, **extra: Any) -> None:
        """Define the connection to Medflex; ``extra`` overrides its settings."""
        settings = {"rate_per_second": 0, "timeout_seconds": 5, "attempts": 3, "backoff_seconds": 0.05, **extra}
        self.monkeypatch.setenv(
            "AIRFLOW_CONN_MEDFLEX_API",
            json.dumps(
                {
                    "conn_type": "http",
                    "schema": "http",
                    "host": "127.0.0.1",
                    "port": port or self.medflex.port,
                    "password": token or self.medflex.token,
                    "extra": settings,
                }
            ),
        )

    def fill(self, appointments: int = 3000, **more: Any) -> None:
        """Put generated data into Medlock and make its clinics known to Medflex."""
        fill(self.medlock, appointments=appointments, **more)
        self.introduce_clinics()

    def introduce_clinics(self) -> None:
        """Make Medlock's clinics known to Medflex."""
        self.control.put_clinics(clinic_offsets(self.medlock, datetime.now(UTC)))

    def edit(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run a statement in Medlock; return the number of rows it touched. Behind it Postgres' counters have it."""
        with psycopg.connect(self.medlock) as connection:
            # No parameters at all, so that a % in the statement is itself.
            rows = connection.execute(sql.encode(), parameters or None).rowcount
            # Else it hands them on some time after the commit.
            connection.execute("SELECT pg_stat_force_next_flush()")
            return rows

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query in Medlock."""
        with psycopg.connect(self.medlock) as connection:
            return connection.execute(sql.encode(), parameters).fetchall()

    def read_ledger(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query in the ledger."""
        with psycopg.connect(self.ledger) as connection:
            return connection.execute(sql.encode(), parameters).fetchall()

    def shown(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Return what Medflex shows, by lpu_id and id, without versions."""
        return {
            key: {name: value for name, value in record.items() if name != "version"}
            for key, record in self.control.records().items()
        }

    def expected(self, now: datetime | None = None, day: Any = None) -> dict[tuple[int, int], dict[str, Any]]:
        """Return what Medflex should show, by the independent loop over Medlock's tables."""
        now = now or datetime.now(UTC)
        with psycopg.connect(self.medlock) as connection:
            return expected_records(connection, now=now, day=day or now)

    def sent(self) -> int:
        """Return how many requests to write operations Medflex has seen."""
        return sum(1 for item in self.control.request_log() if item["method"] == "POST")

    @contextmanager
    def parts(self, **settings: Any) -> Iterator[tuple[Medlock, Ledger, MedflexClient]]:
        """Open the product's parts directly, without Airflow."""
        made = MedflexSettings(
            **{
                "base_url": self.medflex.url,
                "token": self.medflex.token,
                "timeout": 5.0,
                "rate_per_second": 0.0,
                "attempts": 3,
                "backoff": 0.05,
                **settings,
            }
        )
        with Medlock(self.medlock_app) as medlock, Ledger(self.ledger) as ledger:
            yield medlock, ledger, MedflexClient(made)
