"""The fixtures that the other tests stand on."""

import socket

import psycopg
import pytest

from tests.conftest import OutsideNetworkError


def test_each_medlock_is_empty_and_own(medlock_db: str) -> None:
    with psycopg.connect(medlock_db) as connection:
        assert connection.execute("SELECT count(*) FROM medlock.appointment").fetchone() == (0,)


def test_the_product_may_read_medlock_and_not_write(medlock_db: str, medlock_app: str) -> None:
    with psycopg.connect(medlock_app) as connection:
        assert connection.execute("SELECT count(*) FROM medlock.patient").fetchone() == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM medlock.patient")


def test_the_product_cannot_enter_other_databases(medlock_app: str, ledger_db: str) -> None:
    foreign = medlock_app.rsplit("/", 1)[0] + "/" + ledger_db.rsplit("/", 1)[1]
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(foreign)


def test_other_machines_cannot_be_reached() -> None:
    with socket.socket() as outside, pytest.raises(OutsideNetworkError):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(OutsideNetworkError):
        socket.create_connection(("medflex.example", 443))
