"""Where a storm takes place: two databases of its own, with a clock and a history in Medlock."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from sandbox.medlock import LOGINS
from sandbox.postgres import Cluster
from tests.faults.play import Stage

_SETUP = """
CREATE SCHEMA storm;

-- What the product takes for the server's clock, so that Medlock's time is the storm's.
CREATE TABLE storm.clock (reading timestamptz NOT NULL);
INSERT INTO storm.clock VALUES (clock_timestamp());
CREATE FUNCTION storm.clock_timestamp() RETURNS timestamptz LANGUAGE sql SECURITY DEFINER
    AS 'SELECT clock.reading FROM storm.clock AS clock';

-- What was done to each appointment, by whom, in which transaction.
CREATE TABLE storm.history (
    seq bigint GENERATED ALWAYS AS IDENTITY, who text, transaction bigint, operation text, LIKE medlock.appointment
);
CREATE FUNCTION storm.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO storm.history (
        who, transaction, operation, id, clinic_id, patient_id, doctor_id, starts_at, ends_at, status, is_anonymous,
        entry, comment, created_at, updated_at
    )
    SELECT session_user, pg_current_xact_id()::text::bigint, TG_OP, it.*
    FROM (SELECT (CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END).*) AS it;
    RETURN NULL;
END $$;
CREATE TRIGGER storm AFTER INSERT OR UPDATE OR DELETE ON medlock.appointment
    FOR EACH ROW EXECUTE FUNCTION storm.note();

GRANT USAGE ON SCHEMA storm TO medlock_actions;
"""


@dataclass(frozen=True)
class Ground:
    """The databases of a storm: a stage, and connection strings to Medlock as its owner and as ``medlock_actions``, and
    to the ledger.
    """

    stage: Stage
    medlock_owner: str
    medlock_actions: str
    ledger: str


def open_ground(cluster: Cluster, medlock_template: str, ledger_template: str, name: str = "storm") -> Ground:
    """Make the databases from empty, migrated ones."""
    medlock, ledger = f"{name}_medlock", f"{name}_ledger"
    cluster.create_database(medlock, "medlock_owner", template=medlock_template)
    cluster.create_database(ledger, "ledger_owner", template=ledger_template)
    for role in LOGINS:
        cluster.allow(medlock, role)
    owner = cluster.uri(medlock, "medlock_owner")
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(_SETUP.encode())
    with cluster.connect() as connection:
        connection.execute(
            sql.SQL("ALTER ROLE medlock_actions IN DATABASE {} SET search_path = storm, pg_catalog").format(
                sql.Identifier(medlock)
            )
        )
    ledger_uri = cluster.uri(ledger, "ledger_owner")
    stage = Stage(owner, cluster.uri(medlock, "medlock_app"), ledger_uri, cluster.uri("postgres"))
    return Ground(stage, owner, cluster.uri(medlock, "medlock_actions"), ledger_uri)
