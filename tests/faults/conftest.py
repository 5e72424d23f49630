"""A stage for schedules: databases that are emptied before each one, and connections that stay open."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from sandbox.postgres import Cluster
from tests.faults.play import Stage


@pytest.fixture(scope="session")
def stage(postgres: Cluster, _medlock_template: str, _ledger_template: str) -> Iterator[Stage]:
    """The two databases and the store of Medflex, used for one schedule after the other."""
    postgres.create_database("faults_medlock", "medlock_owner", template=_medlock_template)
    postgres.allow("faults_medlock", "medlock_app")
    postgres.create_database("faults_ledger", "ledger_owner", template=_ledger_template)
    with Stage(
        postgres.uri("faults_medlock", "medlock_owner"),
        postgres.uri("faults_medlock", "medlock_app"),
        postgres.uri("faults_ledger", "ledger_owner"),
        postgres.uri("postgres"),
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Every crash and every fault would be logged, thousands of times."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
