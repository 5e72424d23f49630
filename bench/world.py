"""What the measured tasks work on: a real Postgres with a generated Medlock and a ledger, and a sandbox Medflex."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.task import PROJECT, Figures
from sandbox.medflex.process import MedflexProcess
from sandbox.medlock import LOGINS
from sandbox.medlock.generate import clinic_offsets, create_schema, generate
from sandbox.postgres import Cluster

CLINICS = 5
"""All of the generator's first five clinics are open and wait for nothing."""
GENERATED_PER_ROW = 1.15
"""A tenth of the generated appointments lies outside of the window; the rest of this is margin."""


class BenchError(RuntimeError):
    """A measurement could not be made; the message says why."""


@dataclass
class World:
    """Servers and settings; ``run`` runs one task against them."""

    cluster: Cluster
    medflex: MedflexProcess
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def fill(self, rows: int) -> None:
        """Generate at least ``rows`` appointments inside the window, all of open clinics."""
        self.cluster.drop_database("medlock")
        self.cluster.create_database("medlock", "medlock_owner")
        for role in LOGINS:
            self.cluster.allow("medlock", role)
        owner = self.cluster.uri("medlock", "medlock_owner")
        create_schema(owner)
        generate(owner, appointments=int(rows * GENERATED_PER_ROW), clinics=CLINICS)

    def forget(self) -> None:
        """Empty the ledger and Medflex, so that the next run is a first one."""
        self.cluster.drop_database("ledger")
        self.cluster.create_database("ledger", "ledger_owner")
        _checked([sys.executable, "-m", "medflex.ledger.migrate"], self.environment)
        self.medflex.control.reset()
        self.medflex.control.put_clinics(
            clinic_offsets(self.cluster.uri("medlock", "medlock_owner"), datetime.now(UTC))
        )

    def run(self, task: str, run: dict[str, Any], shard: dict[str, Any] | None = None) -> Figures:
        """Run one task in a process of its own and return its figures.

        Args:
            run: ``run_id``, ``mode``, ``run_after``.
        """
        asked = json.dumps({**run, "task": task, "shard": shard})
        said = _checked([sys.executable, "-m", "bench.task", asked], self.environment)
        return Figures(**json.loads(said.rstrip().rsplit("\n", 1)[-1]))

    def postgres_version(self) -> str:
        """Return the server's version, such as 18.1."""
        with self.cluster.connect() as connection:
            return ".".join(map(str, divmod(connection.info.server_version, 10_000)))

    def writes(self) -> int:
        """Return how many write requests Medflex has seen since this was last called (of the last 100,000)."""
        number = sum(1 for request in self.medflex.control.request_log() if request["method"] == "POST")
        self.medflex.control.forget_request_log()
        return number


@contextmanager
def started(folder: Path) -> Iterator[World]:
    """Start the servers over an empty folder; stop them at the end."""
    cluster = Cluster(folder / "postgres")
    try:
        cluster.start()
        for role in ("medlock_owner", *LOGINS, "ledger_owner"):
            cluster.create_role(role)
        with MedflexProcess(folder / "medflex") as medflex:
            yield World(cluster, medflex, folder, _environment(cluster, medflex, folder))
    finally:
        cluster.stop()


def _environment(cluster: Cluster, medflex: MedflexProcess, folder: Path) -> dict[str, str]:
    """Settings of a task process; nothing of the caller's own Airflow."""
    foreign = ("AIRFLOW", "MEDFLEX_", "PG")
    medflex_api = {
        "conn_type": "http",
        "schema": "http",
        "host": "127.0.0.1",
        "port": medflex.port,
        "password": medflex.token,
        "extra": {"rate_per_second": 0},
    }
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": os.pathsep.join((str(PROJECT / "plugins"), str(PROJECT))),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "GX_ANALYTICS_ENABLED": "False",
        "AIRFLOW_CONN_MEDLOCK_DB": cluster.uri("medlock", "medlock_app"),
        "AIRFLOW_CONN_MEDLOCK_ACTIONS": cluster.uri("medlock", "medlock_actions"),
        "AIRFLOW_CONN_MEDFLEX_LEDGER": cluster.uri("ledger", "ledger_owner"),
        "AIRFLOW_CONN_MEDFLEX_API": json.dumps(medflex_api),
        "MEDFLEX_STAGING_URL": f"file://{folder / 'staging'}",
        "MEDFLEX_DIGEST_KEY": secrets.token_hex(32),
    }


def _checked(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
