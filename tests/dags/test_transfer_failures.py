"""Bad input: one clear sentence in the task's log, no personal data anywhere, nothing lost, healed by the next run."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from medflex.ledger.store import Ledger
from sandbox.postgres import Cluster, free_port
from tests.airflow.dag_runs import run_transfer, task_states
from tests.airflow.leaks import database_text, folder_text, found_canaries
from tests.airflow.world import World

pytestmark = [pytest.mark.usefixtures("airflow_db"), pytest.mark.timeout(300)]


def _no_medlock(world: World) -> None:
    world.monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", f"postgresql://medlock_app:x@127.0.0.1:{free_port()}/medlock")


def _wrong_password(world: World) -> None:
    user, _, rest = world.medlock_app.removeprefix("postgresql://").partition(":")
    world.monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", f"postgresql://{user}:wrong@{rest.partition('@')[2]}")


def _missing_column(world: World) -> None:
    world.edit("ALTER TABLE medlock.patient RENAME COLUMN refused_marketing TO refused_adverts")


def _other_type(world: World) -> None:
    world.edit("ALTER TABLE medlock.patient ALTER COLUMN refused_marketing TYPE text")


def _row_that_breaks_the_query(world: World) -> None:
    """Another MIS, whose query casts a text that on one row is a canary's name: libpq's message quotes it."""
    world.edit("ALTER TABLE medlock.doctor RENAME TO doctor_table")
    world.edit(
        "CREATE VIEW medlock.doctor AS SELECT id, clinic_id, full_name, speciality, updated_at, (CASE WHEN id IN ("
        "   SELECT doctor_id FROM medlock.appointment JOIN medlock.patient ON patient.id = patient_id"
        "   WHERE patient.first_name LIKE 'Канарий%'"
        " ) THEN (SELECT max(first_name) FROM medlock.patient WHERE first_name LIKE 'Канарий%') ELSE 'false' END)"
        " ::boolean AS medflex_banned FROM medlock.doctor_table"
    )
    world.edit("GRANT SELECT ON medlock.doctor TO medlock_app")


def _missing_table(world: World) -> None:
    world.edit("ALTER TABLE medlock.medflex_access RENAME TO access")


def _no_right(world: World) -> None:
    world.edit("REVOKE SELECT ON medlock.patient FROM medlock_app")


def _wrong_token(world: World) -> None:
    world.connect_medflex(token="wrong")


def _medflex_down(world: World) -> None:
    world.connect_medflex(port=free_port())


def _malformed_reply(world: World) -> None:
    world.control.add_fault("malformed_body", form="truncated")


def _verdicts_left_out(world: World) -> None:
    world.control.add_fault("malformed_body", form="missing_items")


def _careless_rejections(world: World) -> None:
    """Medflex quotes names and phones in its error texts: none of that may be kept, and it is nobody's failure."""
    world.control.add_fault("reject_records", fraction=1.0, echo=True)


def _no_ledger(world: World) -> None:
    world.monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", f"postgresql://x:x@127.0.0.1:{free_port()}/ledger")


def _ledger_not_migrated(world: World) -> None:
    with psycopg.connect(world.ledger) as connection:
        connection.execute("ALTER TABLE ledger.schema_version RENAME TO schema_version_hidden")


def _no_connection(world: World) -> None:
    world.monkeypatch.delenv("AIRFLOW_CONN_MEDFLEX_API")


def _no_key(world: World) -> None:
    world.monkeypatch.delenv("MEDFLEX_DIGEST_KEY")


# What breaks, and what the log must say about it.
FAILURES: dict[str, tuple[Callable[[World], None], str]] = {
    "no Medlock": (_no_medlock, "Medlock's database does not answer or broke off: check that the server"),
    "wrong password": (_wrong_password, "Medlock's database refuses the log-in: check user, password and database"),
    "missing column": (_missing_column, "Medlock lacks the column patient.refused_marketing"),
    "column of another type": (
        _other_type,
        "The column refused_marketing of include/sql/medlock/appointments.sql has type",
    ),
    "row that breaks the query": (_row_that_breaks_the_query, "fails on Medlock's data"),
    "missing table": (_missing_table, "Medlock lacks the relation medlock.medflex_access"),
    "no right to read": (_no_right, "may not read a table of Medlock: grant it SELECT"),
    "wrong token": (
        _wrong_token,
        "Medflex refuses the token (HTTP 401): put a valid one into the password of the connection medflex_api: into"
        " the variable AIRFLOW_CONN_MEDFLEX_API",
    ),
    "Medflex down": (_medflex_down, "Medflex could not be reached or kept failing (no connection)"),
    "malformed reply": (_malformed_reply, "Medflex could not be reached or kept failing (a reply that is no JSON)"),
    "verdicts left out": (_verdicts_left_out, "kept failing (a reply that leaves records out)"),
    "no ledger": (_no_ledger, "The ledger's database does not answer"),
    "ledger not migrated": (_ledger_not_migrated, "run python -m medflex.ledger.migrate"),
    "no connection defined": (_no_connection, "The Airflow connection medflex_api does not exist"),
    "no digest key": (_no_key, "MEDFLEX_DIGEST_KEY is missing or shorter"),
}

HEAL = {
    "row that breaks the query": "DROP VIEW medlock.doctor; ALTER TABLE medlock.doctor_table RENAME TO doctor",
    "missing column": "ALTER TABLE medlock.patient RENAME COLUMN refused_adverts TO refused_marketing",
    "column of another type": "ALTER TABLE medlock.patient ALTER COLUMN refused_marketing TYPE boolean"
    " USING refused_marketing::boolean",
    "missing table": "ALTER TABLE medlock.access RENAME TO medflex_access",
    "no right to read": "GRANT SELECT ON medlock.patient TO medlock_app",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_says_what_where_and_what_to_do_and_loses_nothing(
    failure: str, filled_world: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    world = filled_world
    breaking, sentence = FAILURES[failure]
    breaking(world)
    run = run_transfer()
    assert run.state == "failed", task_states(run)
    text = log_text()
    assert sentence in text
    assert found_canaries([("logs", text)]) == []
    assert found_canaries(database_text(airflow_db.uri("airflow"))) == []
    assert found_canaries(database_text(world.ledger)) == []
    assert found_canaries(folder_text(world.data_docs)) == []
    assert [path for path in world.staging.rglob("*") if path.is_file()] == []
    _heal(world, failure)
    assert run_transfer().state == "success"
    assert world.shown() == world.expected()


def _heal(world: World, failure: str) -> None:
    world.connect()
    world.control.clear_faults()
    if failure in HEAL:
        world.edit(HEAL[failure])
    if failure == "ledger not migrated":
        with psycopg.connect(world.ledger) as connection:
            connection.execute("ALTER TABLE ledger.schema_version_hidden RENAME TO schema_version")


def test_rejections_that_quote_the_patient_are_kept_as_field_names_only(
    filled_world: World, airflow_db: Cluster, log_text: Callable[[], str]
) -> None:
    _careless_rejections(filled_world)
    run = run_transfer()
    assert run.state == "success"
    assert filled_world.read_ledger("SELECT sum(rejected) = sum(planned) FROM ledger.run_clinic") == [(True,)]
    assert found_canaries([("logs", log_text())]) == []
    assert found_canaries(database_text(airflow_db.uri("airflow"))) == []
    assert found_canaries(database_text(filled_world.ledger)) == []
    filled_world.control.clear_faults()
    assert run_transfer().state == "success"
    assert filled_world.shown() == filled_world.expected()


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"mdoe": "plan"}, "This DAG has no parameter mdoe"),
        ({"clinic_ids": [999_999_999]}, "Medlock has no clinic with the id 999999999"),
        ({"clinic_ids": []}, "The parameter clinic_ids must be a list"),
    ],
)
def test_a_bad_parameter_is_refused_before_anything_happens(
    filled_world: World, conf: dict[str, object], sentence: str, log_text: Callable[[], str]
) -> None:
    run = run_transfer(**conf)
    assert run.state == "failed"
    assert sentence in log_text()
    assert filled_world.sent() == 0


def test_an_error_that_nobody_foresaw_is_told_without_its_text(
    filled_world: World, monkeypatch: pytest.MonkeyPatch, log_text: Callable[[], str]
) -> None:
    import medflex.airflow.sharing

    canary = filled_world.read("SELECT first_name FROM medlock.patient WHERE first_name LIKE %s", ["Канарий%"])[0][0]

    def broken(*_: object) -> None:
        raise ValueError(f"cannot convert {canary}")

    monkeypatch.setattr(medflex.airflow.sharing, "build_payload", broken)
    assert run_transfer().state == "failed"
    text = log_text()
    assert "withhold failed with ValueError in" in text
    assert found_canaries([("logs", text)]) == []
    assert canary not in text


def test_a_task_that_fails_behind_what_it_has_written_down_fails_the_run(
    filled_world: World, monkeypatch: pytest.MonkeyPatch, log_text: Callable[[], str]
) -> None:
    """All is loaded, so the ledger is content; Airflow is asked what it has of the tasks."""
    set_stage = Ledger.set_stage

    def then_fails(ledger: Ledger, run_key: int, shard: int, stage: str, **more: str | None) -> None:
        set_stage(ledger, run_key, shard, stage, **more)
        if stage == "loaded":
            raise RuntimeError

    monkeypatch.setattr(Ledger, "set_stage", then_fails)
    run = run_transfer()
    assert run.state == "failed"
    assert task_states(run)["settle_run", -1] == "failed"
    assert filled_world.read_ledger("SELECT stage, problem FROM ledger.run_shard") == [("loaded", None)]
    assert "Tasks have failed: shard.load_0. See their logs, then clear them." in log_text()


def test_a_plan_sends_nothing_even_where_conf_is_not_merged_into_params(
    filled_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__DAG_RUN_CONF_OVERRIDES_PARAMS", "False")
    assert run_transfer(mode="plan").state == "success"
    assert filled_world.sent() == 0
