"""The watch on Medlock: each change that can revoke fires, others do not, and no restart or outage loses one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from medflex.airflow.assets import CONSENT
from medflex.airflow.triggers import consent
from medflex.airflow.triggers.consent import MOVED_ON, RECOVERED, STARTED, ConsentChangeTrigger
from sandbox.postgres import Cluster, free_port
from tests.airflow.test_loading import FakeClock

SOON = 20.0
QUIET = 0.6
"""Seconds in which some ten looks fit."""
CANARY = "Канария"


def run(uri: str, sql: str) -> None:
    with psycopg.connect(uri) as connection:
        connection.execute(sql.encode())


@pytest.fixture
def medlock(medlock_db: str, medlock_app: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two clinics, of which the first shares appointment 100 with partner 3; the owner's URI."""
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", medlock_app)
    # What stands there has stood there since yesterday.
    run(
        medlock_db,
        f"""
        INSERT INTO medlock.clinic VALUES (1, 41, 'Клиника', 'Europe/Moscow'), (2, 42, 'Клиника', 'Europe/Moscow');
        INSERT INTO medlock.staff VALUES (11, 1, '{CANARY}', 'a', 'head'), (12, 1, '{CANARY}', 'b', 'registrar');
        INSERT INTO medlock.medflex_access VALUES (1, true, now() - interval '3 days', 11);
        INSERT INTO medlock.partner VALUES (3, 'Партнёр', 'mailing'), (4, 'Партнёр', 'robot');
        INSERT INTO medlock.clinic_partner VALUES (1, 3, true, '{{}}'), (1, 4, false, '{{}}');
        INSERT INTO medlock.doctor VALUES (5, 1, '{CANARY}', 'терапевт', false, now() - interval '1 day'),
            (6, 1, '{CANARY}', 'терапевт', true, now() - interval '1 day');
        INSERT INTO medlock.patient VALUES
            (7, 1, '{CANARY}', '{CANARY}', NULL, '79001112233', NULL, false, false, false, now() - interval '1 day'),
            (8, 1, '{CANARY}', '{CANARY}', NULL, '79001112234', NULL, false, true, false, now() - interval '1 day'),
            (9, 2, '{CANARY}', '{CANARY}', NULL, '79001112235', NULL, false, false, false, now() - interval '1 day');
        INSERT INTO medlock.appointment VALUES (100, 1, 7, 5, now(), now(), 'confirmed', false, 'direct', '{CANARY}',
            now() - interval '1 day', now() - interval '1 day');
        """,
    )
    return medlock_db


class Watch:
    """A running trigger, driven as the triggerer drives it."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self._next: asyncio.Task[Any] | None = None

    async def event(self, within: float = SOON) -> str:
        """Return the reason of the next event, which has to come in time."""
        return (await self.payload(within))["reason"]

    async def payload(self, within: float = SOON) -> dict[str, Any]:
        found = await self.wait(within)
        assert found is not None, f"no event within {within} s"
        return dict(found)

    async def is_quiet(self, seconds: float = QUIET) -> bool:
        """Tell whether no event comes for a while."""
        return await self.wait(seconds) is None

    async def wait(self, seconds: float) -> Any:
        """Return the next event's payload, ``None`` if there is none in time."""
        self._next = self._next or asyncio.ensure_future(anext(self._events))  # type: ignore[arg-type]
        done, _ = await asyncio.wait([self._next], timeout=seconds)
        if not done:
            return None
        event, self._next = self._next.result(), None
        return event.payload

    async def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self._events.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def watching(poll_seconds: float = 0.05) -> AsyncIterator[Watch]:
    watch = Watch(ConsentChangeTrigger(poll_seconds=poll_seconds).run())
    try:
        yield watch
    finally:
        await watch.stop()


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def reason_after(uri: str, sql: str, within: float) -> str | None:
    """Return the reason of the event that a statement in Medlock brings about, ``None`` if there is none in time."""
    reasons: list[str | None] = []

    async def scenario() -> None:
        async with watching() as watch:
            assert await watch.event() == STARTED
            await asyncio.to_thread(run, uri, sql)
            found = await watch.wait(within)
            reasons.append(found and found["reason"])

    in_loop(scenario)
    return reasons[0]


REVOKING = {
    "personal data refused": "UPDATE medlock.patient SET refused_personal_data = true, updated_at = now() WHERE id = 7",
    "notifications refused": "UPDATE medlock.patient SET refused_notifications = true, updated_at = now() WHERE id = 7",
    "marketing refused": "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() WHERE id = 7",
    "flag unknown": "UPDATE medlock.patient SET refused_marketing = NULL, updated_at = now() WHERE id = 7",
    "doctor banned": "UPDATE medlock.doctor SET medflex_banned = true, updated_at = now() WHERE id = 5",
    "ban unknown": "UPDATE medlock.doctor SET medflex_banned = NULL, updated_at = now() WHERE id = 5",
    "anonymous": "UPDATE medlock.appointment SET is_anonymous = true, updated_at = now() WHERE id = 100",
    "anonymity unknown": "UPDATE medlock.appointment SET is_anonymous = NULL, updated_at = now() WHERE id = 100",
    "given to a patient who refused": (
        "UPDATE medlock.appointment SET patient_id = 8, updated_at = now() WHERE id = 100"
    ),
    "given to a banned doctor": "UPDATE medlock.appointment SET doctor_id = 6, updated_at = now() WHERE id = 100",
    "given to nobody": "UPDATE medlock.appointment SET patient_id = 404, updated_at = now() WHERE id = 100",
    "given to another clinic's patient": (
        "UPDATE medlock.appointment SET patient_id = 9, updated_at = now() WHERE id = 100"
    ),
    "without a doctor": "UPDATE medlock.appointment SET doctor_id = NULL, updated_at = now() WHERE id = 100",
    "of a transaction that took long": (
        "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() - interval '50 minutes' WHERE id = 7"
    ),
    "stamped in the future": (
        "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() + interval '3 hours' WHERE id = 7"
    ),
}
PERMISSIONS = {
    "switched off": "UPDATE medlock.medflex_access SET enabled = false WHERE clinic_id = 1",
    "off and on again": "UPDATE medlock.medflex_access SET changed_at = now() WHERE clinic_id = 1",
    "taken over": "UPDATE medlock.medflex_access SET changed_by = 12 WHERE clinic_id = 1",
    "head no more": "UPDATE medlock.staff SET role = 'doctor' WHERE id = 11",
    "head of another clinic": "UPDATE medlock.staff SET clinic_id = 2 WHERE id = 11",
    "no switch": "DELETE FROM medlock.medflex_access",
    "link cut": "UPDATE medlock.clinic_partner SET enabled = false WHERE partner_id = 3",
    "link unknown": "UPDATE medlock.clinic_partner SET enabled = NULL WHERE partner_id = 3",
    "link gone": "DELETE FROM medlock.clinic_partner WHERE partner_id = 3",
    "partner gone": "DELETE FROM medlock.partner WHERE id = 3",
    "link moved": "UPDATE medlock.clinic_partner SET partner_id = 5 WHERE partner_id = 3",
    "another identity at Medflex": "UPDATE medlock.clinic SET lpu_id = 43 WHERE id = 1",
    "clinic gone": "DELETE FROM medlock.clinic WHERE id = 2",
}
DELETIONS = {
    "appointment deleted": "DELETE FROM medlock.appointment WHERE id = 100",
    "patient deleted": "DELETE FROM medlock.patient WHERE id = 7",
    "doctor deleted": "DELETE FROM medlock.doctor WHERE id = 5",
    "appointments truncated": "TRUNCATE medlock.appointment",
}
PLAIN = {
    "name and phone": "UPDATE medlock.patient SET first_name = 'X', phone = '1', updated_at = now() WHERE id = 7",
    "time and status": (
        "UPDATE medlock.appointment SET status = 'cancelled', starts_at = now(), updated_at = now() WHERE id = 100"
    ),
    "doctor's speciality": "UPDATE medlock.doctor SET speciality = 'хирург', updated_at = now() WHERE id = 5",
    "new appointment": (
        "INSERT INTO medlock.appointment VALUES (101, 1, 7, 5, now(), now(), 'confirmed', false, 'online', NULL,"
        " now(), now())"
    ),
    "staff": "UPDATE medlock.staff SET full_name = 'X', login = 'c' WHERE id = 11",
    "role of somebody else": "UPDATE medlock.staff SET role = 'administrator' WHERE id = 12",
    "link that is off": "UPDATE medlock.clinic_partner SET scenarios = '{greeting}' WHERE partner_id = 4",
    "smart care": "INSERT INTO medlock.smart_care_scenario VALUES (1, 'greeting', true)",
    "clinic's name": "UPDATE medlock.clinic SET name = 'X' WHERE id = 1",
    "nothing but time": "SELECT 1",
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param(kind, change, id=name)
        for kind, changes in (("revoking", REVOKING), ("permissions", PERMISSIONS), ("deletions", DELETIONS))
        for name, change in changes.items()
    ],
)
def test_what_can_revoke_fires(medlock: str, kind: str, change: str) -> None:
    assert reason_after(medlock, change, SOON) == kind


@pytest.mark.parametrize("change", PLAIN.values(), ids=PLAIN.keys())
def test_a_plain_edit_does_not(medlock: str, change: str) -> None:
    assert reason_after(medlock, change, QUIET) is None


def test_a_refusal_that_is_committed_late_by_a_long_transaction_fires(medlock: str) -> None:
    """Its stamp is older than looks that have already been."""

    async def scenario() -> None:
        async with watching() as watch:
            with psycopg.connect(medlock) as slow:
                slow.execute("UPDATE medlock.patient SET refused_marketing = true, updated_at = now() WHERE id = 7")
                assert await watch.event() == STARTED
                await asyncio.to_thread(run, medlock, REVOKING["doctor banned"])
                assert await watch.event() == "revoking"
                assert await watch.is_quiet()
            assert await watch.event() == "revoking"

    in_loop(scenario)


def test_many_changes_between_two_looks_are_one_event(medlock: str) -> None:
    async def scenario() -> None:
        async with watching(poll_seconds=1.0) as watch:
            assert await watch.event() == STARTED
            both = f"{REVOKING['doctor banned']}; {PERMISSIONS['switched off']}; {DELETIONS['patient deleted']}"
            await asyncio.to_thread(run, medlock, both)
            assert set((await watch.event()).split("+")) == {"revoking", "permissions", "deletions"}
            assert await watch.is_quiet(1.5)

    in_loop(scenario)


def test_an_event_says_when_and_what_kind_and_nothing_else(medlock: str) -> None:
    async def scenario() -> None:
        async with watching() as watch:
            payload = await watch.payload()
        assert set(payload) == {"reason", "at"}
        assert abs(datetime.fromisoformat(payload["at"]) - datetime.now(UTC)) < timedelta(minutes=1)

    in_loop(scenario)


def test_a_restart_fires_although_nothing_differs_from_its_first_look(medlock: str) -> None:
    """What changed while nobody watched is in that first look already."""

    async def scenario() -> None:
        for change in ("SELECT 1", REVOKING["personal data refused"]):
            await asyncio.to_thread(run, medlock, change)
            async with watching() as watch:
                assert await watch.event() == STARTED
                assert await watch.is_quiet()

    in_loop(scenario)


def test_it_fires_each_time_the_look_back_moves_on(medlock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed with a stamp older than that is healed by the run that this brings about."""
    clock = FakeClock()
    monkeypatch.setattr(consent, "CLOCK", clock)

    async def scenario() -> None:
        async with watching() as watch:
            assert await watch.event() == STARTED
            # The sleeper's stamp lies before what is looked at, so that it can only be found in this way.
            run(medlock, "UPDATE medlock.patient SET refused_marketing = true, updated_at = now() - interval '1 day'")
            for _ in range(2):
                clock.sleep(consent.LOOK_BACK.total_seconds() - 1)
                assert await watch.is_quiet()
                clock.sleep(1)
                assert await watch.event() == MOVED_ON
                assert await watch.is_quiet()

    in_loop(scenario)


def sessions(postgres: Cluster, medlock: str, then: str = "") -> int:
    """Count the product's sessions in a Medlock; ``then`` is applied to each one's pid."""
    with psycopg.connect(postgres.uri("postgres", "postgres")) as connection:
        return connection.execute(
            f"SELECT {then or 'pid'} FROM (SELECT pid FROM pg_stat_activity"
            " WHERE datname = %s AND usename = 'medlock_app') AS found".encode(),
            [medlock.rsplit("/", 1)[1]],
        ).rowcount


def allow_connections(postgres: Cluster, medlock: str, allowed: bool) -> None:
    with psycopg.connect(postgres.uri("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {medlock.rsplit('/', 1)[1]} ALLOW_CONNECTIONS {allowed}".encode())


def test_a_lost_medlock_is_told_once_waited_for_and_fires_when_it_is_back(
    medlock: str, postgres: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with watching() as watch:
            assert await watch.event() == STARTED
            assert sessions(postgres, medlock) == 1
            allow_connections(postgres, medlock, False)
            sessions(postgres, medlock, "pg_terminate_backend(pid)")
            assert await watch.is_quiet(2.0)
            allow_connections(postgres, medlock, True)
            assert await watch.event() == RECOVERED
            assert await watch.is_quiet()
            await asyncio.to_thread(run, medlock, REVOKING["anonymous"])
            assert await watch.event() == "revoking"
        # Postgres ends a session some time after its client has gone.
        while sessions(postgres, medlock):
            await asyncio.sleep(0.02)

    in_loop(scenario)
    told = [record for record in caplog.records if "cannot be watched" in record.getMessage()]
    assert len(told) == 1
    assert told[0].exc_info is None
    assert "terminating connection" not in told[0].getMessage()
    assert [record for record in caplog.records if "watched again" in record.getMessage()]


def first_of(caplog: pytest.LogCaptureFixture) -> tuple[list[logging.LogRecord], str | None]:
    """Watch until something is told or fires, and a little longer; return what was told and the event's reason."""

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "cannot be watched" in record.getMessage()]

    found: list[str | None] = []

    async def scenario() -> None:
        async with watching() as watch:
            event, end = None, asyncio.get_running_loop().time() + SOON
            while not event and not told() and asyncio.get_running_loop().time() < end:
                event = await watch.wait(0.1)
            # What is told must not be told again at each attempt.
            event = event or await watch.wait(QUIET)
            found.append(event and event["reason"])

    caplog.clear()
    in_loop(scenario)
    return told(), found[0]


@pytest.mark.parametrize("wrong", ["server", "user", "table", "permission", "connection"])
def test_a_medlock_that_cannot_be_watched_is_told_in_one_sentence_and_does_not_end_the_watch(
    medlock: str,
    medlock_app: str,
    postgres: Cluster,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = medlock.rsplit("/", 1)[1]
    level, expected = logging.ERROR, ""
    if wrong == "server":
        monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", f"postgresql://medlock_app@127.0.0.1:{free_port()}/medlock")
        level, expected = logging.WARNING, "is up and reachable"
    elif wrong == "user":
        monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", postgres.uri(name, "nobody_at_all"))
        expected = "check user, password and database"
    elif wrong == "table":
        run(medlock, "ALTER TABLE medlock.patient RENAME TO person")
        expected = "adapt the query"
    elif wrong == "permission":
        run(medlock, "REVOKE SELECT ON medlock.patient FROM medlock_app")
        expected = "grant it SELECT"
    else:
        monkeypatch.delenv("AIRFLOW_CONN_MEDLOCK_DB")
        expected = "define it under Admin"
    told, fired = first_of(caplog)
    assert fired is None
    assert [record.levelno for record in told] == [level]
    message = told[0].getMessage()
    assert expected in message
    assert "\n" not in message
    assert CANARY not in message
    # Mended, it goes on by itself.
    if wrong == "table":
        run(medlock, "ALTER TABLE medlock.person RENAME TO patient")
    elif wrong == "permission":
        run(medlock, "GRANT SELECT ON medlock.patient TO medlock_app")
    else:
        monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", medlock_app)
    assert first_of(caplog) == ([], STARTED)


def test_pauses_grow_while_medlock_is_away(medlock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", f"postgresql://medlock_app@127.0.0.1:{free_port()}/medlock")
    pauses: list[float] = []

    async def scenario() -> None:
        trigger = ConsentChangeTrigger()

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 8:
                raise asyncio.CancelledError

        monkeypatch.setattr(consent.asyncio, "sleep", pause)
        with pytest.raises(asyncio.CancelledError):
            await anext(trigger.run())

    in_loop(scenario)
    assert pauses == [6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 60.0, 60.0]


def test_a_fault_of_its_own_is_told_without_its_text_and_does_not_end_the_watch(
    medlock: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> dict[str, str]:
        raise ValueError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(consent, "_look", broken)
        told, fired = first_of(caplog)
    assert fired is None
    assert len(told) == 1
    assert "ValueError" in told[0].getMessage()
    assert CANARY not in caplog.text
    assert first_of(caplog) == ([], STARTED)


def test_the_session_can_write_nothing_and_cannot_look_for_ever(medlock: str) -> None:
    async def scenario() -> None:
        connection = await ConsentChangeTrigger()._connect()
        try:
            shown = await (await connection.execute("SHOW statement_timeout")).fetchone()
            assert shown == ("30s",)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await connection.execute("CREATE TEMPORARY TABLE left_behind (id bigint)")
        finally:
            await connection.close()

    in_loop(scenario)


def test_the_loop_has_little_to_do_for_the_watch(medlock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The triggerer has one loop for everybody."""
    looks, look = 0, consent._look

    async def counted(*arguments: Any) -> dict[str, str]:
        nonlocal looks
        found = await look(*arguments)
        looks += 1
        return found

    monkeypatch.setattr(consent, "_look", counted)

    async def scenario() -> None:
        async with watching(poll_seconds=0.02) as watch:
            assert await watch.event() == STARTED
            waiting = asyncio.ensure_future(watch.wait(60))
            before = time.thread_time()
            while looks < 20:
                await asyncio.sleep(0.005)
                # What the thread itself has done: on a busy machine it also waits for its turn.
                took, before = time.thread_time() - before, time.thread_time()
                # Airflow warns from 0.2 s on.
                assert took < 0.2
            assert not waiting.done()

    in_loop(scenario)


def test_the_loop_goes_on_while_a_look_waits(medlock: str, postgres: Cluster) -> None:
    async def scenario() -> None:
        async with watching() as watch:
            assert await watch.event() == STARTED
            with psycopg.connect(medlock) as other:
                other.execute("LOCK TABLE medlock.patient")
                waiting = asyncio.ensure_future(watch.wait(SOON))
                while not await asyncio.to_thread(is_kept_waiting, postgres, medlock):
                    await asyncio.sleep(0.02)
                # Nobody lets the look go on but this loop itself.
                assert not waiting.done()
            await asyncio.to_thread(run, medlock, REVOKING["anonymous"])
            assert (await waiting)["reason"] == "revoking"

    in_loop(scenario)


def test_what_blocks_is_done_in_other_threads(medlock: str, medlock_app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports, the SDK's way to a connection, and putting into words what went wrong."""
    monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", f"postgresql://medlock_app@127.0.0.1:{free_port()}/medlock")
    threads: dict[str, set[int]] = {"_how_to_connect": set(), "_translate": set()}

    def note(name: str) -> None:
        given = getattr(consent, name)

        def noted(*arguments: Any) -> Any:
            threads[name].add(threading.get_ident())
            return given(*arguments)

        monkeypatch.setattr(consent, name, noted)

    for name in threads:
        note(name)

    async def scenario() -> None:
        async with watching() as watch:
            while not all(threads.values()):
                await watch.wait(0.05)
            monkeypatch.setenv("AIRFLOW_CONN_MEDLOCK_DB", medlock_app)
            assert await watch.event() == STARTED
        assert threading.get_ident() not in set.union(*threads.values())

    in_loop(scenario)


def is_kept_waiting(postgres: Cluster, medlock: str) -> bool:
    """Tell whether a session of the product's in that Medlock waits for a lock."""
    with psycopg.connect(postgres.uri("postgres", "postgres")) as connection:
        return (
            connection.execute(
                "SELECT FROM pg_stat_activity"
                " WHERE datname = %s AND usename = 'medlock_app' AND wait_event_type = 'Lock'",
                [medlock.rsplit("/", 1)[1]],
            ).rowcount
            > 0
        )


def test_airflow_keeps_one_and_the_same_watch(airflow_db: Cluster) -> None:
    """Airflow compares the trigger of each parse with the stored one by this hash; another one would restart it."""
    from airflow.models.trigger import Trigger
    from airflow.triggers.base import BaseEventTrigger

    (watcher,) = CONSENT.watchers
    path, arguments = watcher.trigger.serialize()
    stored = Trigger.from_object(ConsentChangeTrigger())
    assert (stored.classpath, stored.kwargs) == (path, arguments)
    assert BaseEventTrigger.hash(stored.classpath, stored.kwargs) == BaseEventTrigger.hash(path, arguments)
    assert path == f"{ConsentChangeTrigger.__module__}.{ConsentChangeTrigger.__qualname__}"
    assert ConsentChangeTrigger(**arguments).serialize() == (path, arguments)


def test_the_triggerer_is_spared_pandas() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, 'plugins'); import medflex.airflow.triggers.consent, medflex.airflow.assets;"
        "print(sorted({'pandas', 'pyarrow', 'requests', 'great_expectations'} & set(sys.modules)))"
    )
    root = __file__.rsplit("/tests/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
