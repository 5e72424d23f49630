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


def test_what_partners_ask_for_changes_an_appointment_and_the_journal_and_nothing_else(
    medlock_db: str, medlock_actions: str
) -> None:
    with psycopg.connect(medlock_db, autocommit=True) as owner:
        owner.execute("INSERT INTO medlock.appointment (id, status, comment) VALUES (1, 'unconfirmed', 'first visit')")
    with psycopg.connect(medlock_actions, autocommit=True) as connection:
        connection.execute("SELECT FROM medlock.appointment FOR UPDATE")
        connection.execute(
            "UPDATE medlock.appointment SET status = 'confirmed', starts_at = now(), ends_at = now(),"
            " updated_at = now()"
        )
        connection.execute(
            "INSERT INTO medlock.partner_action (action_id, status_code, reason, decided_at)"
            " VALUES (gen_random_uuid(), 204, 'done', now())"
        )
        assert connection.execute("DELETE FROM medlock.partner_action").rowcount == 1
        for forbidden in (
            "UPDATE medlock.appointment SET comment = ''",
            "UPDATE medlock.appointment SET patient_id = 1",
            "DELETE FROM medlock.appointment",
            "INSERT INTO medlock.appointment (id) VALUES (2)",
            "UPDATE medlock.partner_action SET status_code = 204",
            "UPDATE medlock.patient SET phone = ''",
            "DELETE FROM medlock.doctor_schedule",
            "SELECT FROM medlock.smart_care_message",
            "CREATE TABLE medlock.other (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'medlock'"
        found = {name for (name,) in connection.execute(tables)} - {"smart_care_message", "smart_care_scenario"}
        assert len(found) == 10
        for name in found:
            connection.execute(f"SELECT count(*) FROM medlock.{name}".encode())


def test_the_product_cannot_enter_other_databases(medlock_app: str, ledger_db: str) -> None:
    foreign = medlock_app.rsplit("/", 1)[0] + "/" + ledger_db.rsplit("/", 1)[1]
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(foreign)


def test_other_machines_cannot_be_reached() -> None:
    with socket.socket() as outside, pytest.raises(OutsideNetworkError):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(OutsideNetworkError):
        socket.create_connection(("medflex.example", 443))
