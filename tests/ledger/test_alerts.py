"""Alerts in a real ledger: judged from what is there, raised and cleared once, told once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from medflex.domain.access import AccessState
from medflex.domain.alerts import CALM, AlertKind, Clear, Failure, Limits, Raise, RaiseAnew, judge
from medflex.domain.packing import Shard
from medflex.ledger import alerts as ledger_alerts
from medflex.ledger import watches
from medflex.ledger.alerts import AlertLedger
from medflex.ledger.retention import LedgerRetention
from medflex.ledger.store import BatchOutcome, Ledger, Run
from medflex.sql import query
from tests.ledger.times import NOW, Time

DAG = "medflex_transfer"
DAY = timedelta(hours=24)
LIMITS = Limits()
STATES = {Raise: "raised", RaiseAnew: "raised anew", Clear: "cleared"}


class Scene:
    """Puts things into the ledger, and judges."""

    def __init__(self, ledger: Ledger, time: Time, uri: str) -> None:
        self.ledger, self.time, self.uri = ledger, time, uri

    def sql(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.uri) as connection:
            cursor = connection.execute(text.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def looked(self) -> None:
        """Somebody has just looked for revocations, and has removed old staging."""
        for name in ("consent", "staging_removed"):
            self.sql(
                "INSERT INTO ledger.watch (name, looked_at) VALUES (%s, %s) ON CONFLICT (name)"
                " DO UPDATE SET looked_at = excluded.looked_at",
                name,
                self.time.now,
            )

    def round(self, **after: float) -> list[tuple[str, str]]:
        """Judge, some time later; return what is to be told."""
        self.time.now += timedelta(**after)
        return [(change.kind.value, STATES[type(change)]) for change in self.ledger.turn_alerts(judge, LIMITS)]

    def run(
        self,
        run_id: str,
        *stages: str,
        mode: str = "transfer",
        run_type: str = "scheduled",
        clinic_ids: list[int] | None = None,
        is_of_today: bool | None = None,
        waiting: bool = False,
    ) -> Run:
        """A run that starts now, with a shard of one clinic at each of these stages."""
        kinds = [AccessState.OPEN] * len(stages)
        if waiting:
            kinds[-1] = AccessState.WAITING
        shards = [Shard(f"shard {i}", (i,), kind) for i, kind in enumerate(kinds)]
        made = self.ledger.start_run(
            dag_id=DAG, run_id=run_id, run_type=run_type, mode=mode, anchor=self.time.now, clinic_ids=clinic_ids,
            started_at=self.time.now, shards=shards, is_of_today=is_of_today,
            clinics=[{"clinic_id": i, "lpu_id": 7000 + i, "access_state": "open", "closed_reason": None,
                      "opens_at": None} for i in range(len(stages))],
        )  # fmt: skip
        for i, stage in enumerate(stages):
            self.ledger.set_stage(made.run_key, i, stage)
        return made

    def daily(self, run_id: str = "first") -> None:
        """The daily run begins, brings everything over and is settled, all now."""
        made = self.run(run_id, "loaded", "skipped")
        self.ledger.settle_run(made.run_key, [])


@pytest.fixture
def scene(ledger: Ledger, time: Time, ledger_db: str) -> Scene:
    made = Scene(ledger, time, ledger_db)
    made.looked()
    made.daily()
    return made


def revoke(scene: Scene) -> None:
    scene.sql(
        "INSERT INTO ledger.revocation (clinic_id, appointment_id, lpu_id, reason, by_absence, revoked_at, found_at)"
        " SELECT 1, id, 7001, 'doctor_banned', false, %s, %s FROM generate_series(1, 3) AS id",
        scene.time.now - timedelta(minutes=16),
        scene.time.now,
    )


def hold(scene: Scene) -> None:
    scene.sql(
        "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)"
        " VALUES (1, %s, '{1,2}', '{7001,7001}', '{appointment_gone,appointment_gone}', 40)",
        scene.time.now,
    )


def ask(scene: Scene, *, decided: bool = False) -> None:
    then = scene.time.now - timedelta(minutes=31)
    scene.sql(
        "INSERT INTO ledger.partner_action (action_id, read_at, read_in, decided_at, status_code, reason)"
        " VALUES (%s, %s, 'run', %s, %s, %s)",
        uuid4(),
        then,
        *((then, 204, "done") if decided else (None, None, None)),
    )


def fail(scene: Scene, failure: Failure = Failure.REFUSED) -> None:
    scene.ledger.note_contact(failure)


def away(scene: Scene) -> None:
    scene.time.now -= timedelta(minutes=40)
    for _ in range(3):
        fail(scene, Failure.AWAY)
        scene.time.now += timedelta(minutes=20)
    scene.time.now -= timedelta(minutes=20)


def critical(scene: Scene) -> None:
    made = scene.run("bad", "withheld", "loaded")
    scene.ledger.set_problem(made.run_key, 0, "1 critical expectations failed.", critical=1)


def broken(scene: Scene) -> None:
    made = scene.run("broken", "loaded")
    scene.ledger.settle_run(made.run_key, ["Shard 0: it does not add up"], broken=1)


def rejecting(scene: Scene, rejected: int = 101, accepted: int = 5, run_id: str = "rejecting") -> None:
    """The next daily run succeeds, and Medflex rejects so many of the records of its first clinic."""
    scene.time.now += timedelta(seconds=1)
    made = scene.run(run_id, "loaded", "skipped")
    epochs = scene.ledger.acquire([0], "load")
    ids = list(range(rejected + accepted))
    sent = scene.ledger.record_intent(
        run_key=made.run_key, clinic_id=0, lpu_id=7000, holder="load", epoch=epochs[0], operation="send",
        appointment_ids=ids, versions=[made.run_key] * len(ids), digests=ids,
    )  # fmt: skip
    fields = {id_: ["client.mobile_phone", *(["times"] if id_ == 0 else [])] for id_ in ids[:rejected]}
    scene.ledger.resolve(sent.batch_id, BatchOutcome("acknowledged", 200, rejected=fields))
    scene.ledger.release(epochs, "load")
    scene.sql(
        "UPDATE ledger.run_clinic SET accepted = %s, rejected = %s WHERE run_key = %s AND clinic_id = 0",
        accepted,
        rejected,
        made.run_key,
    )
    scene.ledger.settle_run(made.run_key, [])


def missed(scene: Scene) -> None:
    made = scene.run("late", "loaded", "extracted")
    assert made
    assert scene.ledger.note_missed_deadline(DAG, "late")


def not_looked(scene: Scene) -> None:
    scene.sql("UPDATE ledger.watch SET looked_at = %s", scene.time.now - timedelta(minutes=16))


def not_swept(scene: Scene) -> None:
    """It is due since an hour ago, and each look of that hour has said so; the last piece was made just before that."""
    then = scene.time.now - timedelta(minutes=61)
    scene.sql("INSERT INTO ledger.watch (name, looked_at, value) VALUES ('sweep', %s, '{}')", then)
    scene.sql("UPDATE ledger.watch SET value = %s WHERE name = 'consent'", Jsonb({"sweep_due_since": then.isoformat()}))


def swept(scene: Scene) -> None:
    scene.sql("UPDATE ledger.watch SET looked_at = %s WHERE name = 'sweep'", scene.time.now)


def unread(scene: Scene) -> None:
    """Reading what partners ask for was last tried 31 minutes ago, for the first time."""
    scene.ledger.begin_watch(watches.ACTIONS_READ, scene.time.now - timedelta(minutes=31))


def read(scene: Scene) -> None:
    scene.ledger.note_watch(watches.ACTIONS_READ, scene.time.now, {})


def silent(scene: Scene) -> None:
    """Looks have gone on for three hours, by the clock alone."""
    scene.ledger.note_watch(watches.WOKEN, scene.time.now - timedelta(minutes=181), {})


def woken(scene: Scene) -> None:
    scene.ledger.note_watch(watches.WOKEN, scene.time.now, {})


def not_removed(scene: Scene) -> None:
    scene.ledger.note_watch(watches.STAGING_REMOVED, scene.time.now - timedelta(hours=36, minutes=1), {})


def removed(scene: Scene) -> None:
    scene.ledger.note_watch(watches.STAGING_REMOVED, scene.time.now, {})


def good(scene: Scene) -> None:
    scene.ledger.note_contact(None)


def next_daily(scene: Scene) -> None:
    scene.time.now += timedelta(seconds=1)
    scene.daily("next")


KINDS: dict[AlertKind, tuple[Callable[[Scene], None], Callable[[Scene], object]]] = {
    AlertKind.MEDFLEX_AWAY: (away, good),
    AlertKind.TOKEN_REFUSED: (fail, good),
    AlertKind.LATE_WITHDRAWALS: (revoke, lambda scene: scene.sql("DELETE FROM ledger.revocation")),
    AlertKind.WITHDRAWALS_STOPPED: (not_looked, Scene.looked),
    AlertKind.WATCH_SILENT: (silent, woken),
    AlertKind.SWEEP_STOPPED: (not_swept, swept),
    AlertKind.ACTIONS_WAITING: (ask, lambda scene: scene.sql("DELETE FROM ledger.partner_action")),
    AlertKind.ACTIONS_UNREAD: (unread, read),
    AlertKind.DAILY_RUN_MISSED: (missed, next_daily),
    AlertKind.CRITICAL_VALIDATION: (critical, next_daily),
    AlertKind.HELD_ABSENCES: (hold, lambda scene: scene.ledger.decide_hold(1, "kept", "vera")),
    AlertKind.CONSERVATION_BROKEN: (broken, next_daily),
    AlertKind.RECORDS_REJECTED: (rejecting, next_daily),
    AlertKind.STAGING_LEFT: (not_removed, removed),
}


@pytest.mark.parametrize("kind", AlertKind)
def test_each_kind_is_raised_once_and_cleared_once_by_what_the_ledger_holds(scene: Scene, kind: AlertKind) -> None:
    begin, end = KINDS[kind]
    assert scene.round() == []
    begin(scene)
    assert scene.round() == [(kind, "raised")]
    assert scene.round() == []
    end(scene)
    assert scene.round() == []
    assert scene.round(minutes=4.9) == []
    assert scene.round(minutes=0.2) == [(kind, "cleared")]
    assert scene.round() == []
    # And it can be raised anew; both stay.
    if kind is AlertKind.HELD_ABSENCES:
        begin(scene)
        scene.looked()
        assert scene.round() == [(kind, "raised")]
        assert [(item.kind, item.cleared_at is None) for item in scene.ledger.alerts()] == [(kind, True), (kind, False)]


def test_what_the_ledger_says_of_an_alert_is_what_a_page_needs(scene: Scene) -> None:
    revoke(scene)
    scene.round()
    (alert,) = scene.ledger.alerts()
    assert (alert.kind, alert.raised_at, alert.cleared_at) == ("late_withdrawals", NOW, None)
    assert alert.since == NOW - timedelta(minutes=16)
    assert alert.facts == {"records": 3, "clinics": 1}
    assert alert.sentence.startswith("3 records of 1 clinics may no longer be shared since 2026-11-22 11:44 UTC")
    scene.sql("DELETE FROM ledger.revocation")
    scene.round()
    scene.looked()
    scene.round(minutes=6)
    (alert,) = scene.ledger.alerts()
    assert alert.cleared_at == NOW + timedelta(minutes=6)
    assert alert.over_sentence == "It is over since 2026-11-22 12:00 UTC, after 16 min."


@pytest.mark.parametrize(
    ("due", "swept", "looked", "is_told"),
    [
        (-61, None, 0, True),
        (-59, None, 0, False),
        # It comes further, however long it takes.
        (-300, -59, 0, False),
        (-300, -61, 0, True),
        # It has ended, and nobody has looked since whether that was all.
        (-300, -61, -62, False),
    ],
)
def test_a_search_for_deleted_rows_stands_where_it_comes_no_further(
    scene: Scene, due: float, swept: float | None, looked: float, is_told: bool
) -> None:
    def at(minutes: float) -> datetime:
        return scene.time.now + timedelta(minutes=minutes)

    scene.looked()
    scene.sql(
        "UPDATE ledger.watch SET looked_at = %s, value = %s", at(looked), Jsonb({"sweep_due_since": str(at(due))})
    )
    if swept is not None:
        scene.sql("INSERT INTO ledger.watch (name, looked_at, value) VALUES ('sweep', %s, '{}')", at(swept))
    assert (("sweep_stopped", "raised") in scene.round()) is is_told


def test_reading_is_expected_from_the_first_look_on_where_an_earlier_release_has_read(scene: Scene) -> None:
    def quiet(minutes: int) -> list[tuple[str, str]]:
        scene.time.now += timedelta(minutes=minutes)
        scene.looked()
        return scene.round()

    # Where partners never acted, nobody has to read.
    assert [quiet(60), quiet(60)] == [[], []]
    scene.ledger.store_actions([], "a cursor", "run")
    scene.time.now += timedelta(minutes=60)
    scene.looked()
    assert [scene.round(), quiet(30), quiet(1)] == [[], [], [("actions_unread", "raised")]]


def test_staging_is_to_be_removed_from_the_first_look_behind_a_run_on(
    ledger: Ledger, time: Time, ledger_db: str
) -> None:
    scene = Scene(ledger, time, ledger_db)

    def told(hours: float) -> bool:
        return ("staging_left", "raised") in scene.round(hours=hours)

    # Nothing was staged in a new ledger; one of an earlier release knows runs of long ago.
    assert not any(told(hours) for hours in (0, 50, 50))
    scene.daily()
    assert [told(hours) for hours in (50, 36, 0.1)] == [False, False, True]


# -- the daily run


@pytest.mark.parametrize(
    ("stages", "waiting", "is_missed"),
    [
        (("loaded", "skipped"), False, False),
        (("loaded", "planned"), True, False),
        (("loaded", "planned"), False, True),
        (("loaded", "compared"), True, True),
        ((), False, False),
    ],
)
def test_clinics_that_wait_for_their_24_hours_do_not_miss_a_deadline(
    scene: Scene, stages: tuple[str, ...], waiting: bool, is_missed: bool
) -> None:
    scene.run("the run", *stages, waiting=waiting)
    assert scene.ledger.note_missed_deadline(DAG, "the run") is is_missed
    assert scene.round() == ([("daily_run_missed", "raised")] if is_missed else [])


def test_a_run_that_never_began_has_missed_its_deadline_until_it_is_done(scene: Scene) -> None:
    assert scene.ledger.note_missed_deadline(DAG, "the run")
    assert scene.round() == [("daily_run_missed", "raised")]
    made = scene.run("the run", "loaded", "extracted")
    assert scene.round(minutes=6) == []
    scene.ledger.set_problem(made.run_key, 0, "Medflex does not answer.")
    scene.ledger.set_stage(made.run_key, 1, "loaded")
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == []
    scene.ledger.set_stage(made.run_key, 0, "loaded")
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == [("daily_run_missed", "cleared")]


@pytest.mark.parametrize(
    "other",
    [
        {"mode": "plan"},
        {"run_type": "backfill"},
        # An older day's run that was cleared, or triggered by hand.
        {"is_of_today": False},
        {"clinic_ids": [1]},
    ],
)
def test_without_a_daily_run_for_a_day_and_its_deadline_it_is_missed_whatever_else_ran(
    scene: Scene, other: dict[str, Any]
) -> None:
    scene.time.now += DAY + timedelta(hours=3)
    scene.run("another", "loaded", **other)
    scene.looked()
    assert scene.round() == []
    scene.looked()
    assert scene.round(seconds=1) == [("daily_run_missed", "raised")]


def test_a_run_of_today_that_was_begun_anew_as_a_backfill_brings_everything_over(scene: Scene) -> None:
    """What Airflow makes of a failed run for which somebody asks to have it reprocessed."""
    scene.time.now += DAY + timedelta(hours=3)
    scene.run("another", "loaded", run_type="backfill", is_of_today=True)
    scene.looked()
    assert scene.round() == []
    scene.looked()
    assert scene.round(seconds=1) == []


def test_what_the_validation_has_stopped_is_one_alert_and_ends_for_those_clinics_only(scene: Scene) -> None:
    made = scene.run("bad", "withheld", "withheld")
    for shard in (0, 1):
        scene.ledger.set_problem(made.run_key, shard, "1 critical expectations failed.", critical=1)
    scene.ledger.settle_run(made.run_key, ["They failed."])
    assert not scene.ledger.note_missed_deadline(DAG, "bad")
    scene.looked()
    assert scene.round() == [("critical_validation", "raised")]
    assert scene.ledger.alerts()[0].facts == {"clinics": 2}
    # One of the clinics comes through in a run of its own; in a plan the other one does, and is still not sent.
    scene.run("one", "validated", clinic_ids=[0])
    scene.run("plan", "compared", "compared", mode="plan")
    scene.round()
    assert scene.ledger.alerts()[0].facts == {"clinics": 1}
    # Cleared in the grid: it is judged anew.
    scene.ledger.set_stage(made.run_key, 1, "extracted")
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == [("critical_validation", "cleared")]


def test_what_the_validation_has_stopped_is_over_when_its_clinic_is_gone_from_medlock(scene: Scene) -> None:
    made = scene.run("bad", "loaded", "withheld")
    scene.ledger.set_problem(made.run_key, 1, "1 critical expectations failed.", critical=1)
    assert scene.round() == [("critical_validation", "raised")]
    # A run of other clinics says nothing of it.
    scene.run("some", "loaded", clinic_ids=[0])
    scene.run("bad again", "loaded", "withheld")
    scene.looked()
    assert scene.round(minutes=6) == []
    assert scene.ledger.alerts()[0].facts == {"clinics": 1}
    scene.time.now += timedelta(seconds=1)
    scene.run("without it", "loaded")
    scene.looked()
    scene.round()
    scene.looked()
    assert scene.round(minutes=6) == [("critical_validation", "cleared")]


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_daily_run_in_an_outage_is_told_with_its_end_and_not_once_more_before_the_next_one(
    scene: Scene, is_settled: bool
) -> None:
    """The outage begins late in a run that takes hours; a shard gives up, the others may still be under way."""
    scene.time.now += timedelta(hours=24)
    scene.looked()
    made = scene.run("second", "loaded", "compared")
    told: list[tuple[str, str]] = []

    def minutes(number: int, failure: Failure | None, every: int = 2) -> None:
        for _ in range(number // every):
            scene.ledger.note_contact(failure)
            scene.looked()
            told.extend(scene.round(minutes=every))

    minutes(80, None, every=10)
    minutes(6, Failure.AWAY)
    scene.ledger.set_problem(made.run_key, 1, "Medflex does not answer.")
    if is_settled:
        scene.ledger.settle_run(made.run_key, ["Medflex does not answer."])
    minutes(54, Failure.AWAY)
    assert told == [("medflex_away", "raised")]
    minutes(20, None)
    assert told == [("medflex_away", "raised"), ("medflex_away", "cleared")]
    assert "It held up: 1 daily transfer." in str(scene.ledger.alerts()[0].over_sentence)
    if not is_settled:
        scene.ledger.settle_run(made.run_key, ["Medflex does not answer."])
    scene.ledger.note_missed_deadline(DAG, "second")
    minutes(20 * 60, None, every=15)
    assert len(told) == 2
    # The next one comes not either: that is another matter.
    minutes(6 * 60, None, every=15)
    assert told[2:] == [("daily_run_missed", "raised")]
    facts = scene.ledger.alert_facts(LIMITS)
    assert (facts.shards, facts.undone_shards) == (2, 1)


def test_what_a_run_has_not_brought_over_counts_when_it_is_settled_or_its_deadline_has_passed(scene: Scene) -> None:
    scene.time.now += timedelta(hours=24)
    scene.run("slow", "loaded", "compared", "compared")

    def undone(**after: float) -> tuple[int, int]:
        scene.time.now += timedelta(**after)
        facts = scene.ledger.alert_facts(LIMITS)
        return facts.undone_shards, facts.shards

    assert undone() == (0, 2)
    assert undone(hours=3) == (0, 2)
    assert undone(seconds=1) == (2, 3)
    scene.time.now -= timedelta(hours=2)
    scene.ledger.settle_run(scene.ledger.run(DAG, "slow").run_key, ["Something."])
    assert undone() == (2, 3)


def test_a_missing_daily_run_that_becomes_worse_is_told_anew_to_everybody(scene: Scene) -> None:
    def day(run_id: str, *stages: str) -> list[tuple[str, str]]:
        scene.time.now += timedelta(hours=24)
        scene.ledger.settle_run(scene.run(run_id, *stages).run_key, ["Something."])
        scene.looked()
        told = scene.round(seconds=1)
        scene.time.now += timedelta(hours=4)
        scene.looked()
        told += scene.round()
        scene.time.now -= timedelta(hours=4)
        return told

    assert day("one stuck", "loaded", "loaded", "withheld") == [("daily_run_missed", "raised")]
    (message,) = scene.ledger.untold()
    scene.ledger.note_told(message, "chat")
    scene.ledger.note_all_told(message)
    assert day("stuck", "loaded", "loaded", "withheld") == []
    assert day("all", "compared", "compared", "compared") == [("daily_run_missed", "raised anew")]
    (again,) = scene.ledger.untold()
    assert (again.alert_id, again.state, again.told_to) == (message.alert_id, "raised", [])
    assert again.at > message.at
    assert again.since == message.since
    assert day("mended", "loaded", "loaded", "loaded") == [("daily_run_missed", "cleared")]


def test_what_medflex_rejects_is_told_by_the_fields_it_names(scene: Scene) -> None:
    # Single records are a matter of their data.
    rejecting(scene, rejected=100, run_id="few")
    assert scene.round() == []
    rejecting(scene, rejected=101, accepted=2000, run_id="a small part")
    assert scene.round() == []
    rejecting(scene, rejected=202)
    assert scene.round() == [("records_rejected", "raised")]
    (alert,) = scene.ledger.alerts()
    assert alert.facts == {"rejected": 202, "judged": 207, "before": 101}
    assert "rejected 202 of 207 records of the transfer" in alert.sentence
    assert "most of all for client.mobile_phone, times; partners" in alert.sentence


def test_what_is_rejected_day_by_day_is_told_once_and_only_if_it_is_many_at_a_time(scene: Scene) -> None:
    def day(number: int, rejected: int, accepted: int = 5) -> list[tuple[str, str]]:
        rejecting(scene, rejected, accepted, run_id=f"day {number}")
        scene.looked()
        told = scene.round()
        scene.looked()
        return told + scene.round(minutes=6)

    assert [day(number, 50 * number) for number in range(1, 5)] == [[]] * 4
    assert day(5, 400) == [("records_rejected", "raised")]
    # Nothing more comes, and nothing is mended.
    assert [day(number, 400) for number in range(6, 9)] == [[]] * 3
    assert day(9, 300) == [("records_rejected", "cleared")]
    assert [day(number, 300) for number in range(10, 12)] == [[]] * 2


def test_what_was_rejected_before_is_that_of_the_clinics_which_medflex_has_judged(scene: Scene) -> None:
    def day(run_id: str, *numbers: tuple[int | None, int | None, int | None]) -> tuple[int, int]:
        scene.time.now += timedelta(seconds=1)
        made = scene.run(run_id, *["loaded"] * len(numbers))
        for clinic_id, (accepted, rejected, to_retry) in enumerate(numbers):
            scene.sql(
                "UPDATE ledger.run_clinic SET accepted = %s, rejected = %s, to_retry = %s, unknown = 0"
                " WHERE run_key = %s AND clinic_id = %s",
                accepted,
                rejected,
                to_retry,
                made.run_key,
                clinic_id,
            )
        scene.ledger.settle_run(made.run_key, [])
        facts = scene.ledger.alert_facts(LIMITS)
        return facts.rejected, facts.rejected_before

    assert day("both", (9, 70, 0), (9, 80, 0)) == (150, 0)
    # An outage: of the second clinic nothing was said, neither that day nor, for it was closed, the next one.
    assert day("half", (9, 75, 0), (0, 0, 90)) == (75, 70)
    assert day("closed", (9, 75, 0), (None, None, None)) == (75, 75)
    assert day("both again", (9, 75, 0), (9, 85, 0)) == (160, 155)
    # Nothing was to be sent, so nothing was rejected.
    assert day("mended", (9, 75, 0), (0, 0, 0)) == (75, 75)
    assert day("after that", (9, 75, 0), (9, 7, 0)) == (82, 75)


def test_the_fields_are_looked_up_once_and_in_a_sample(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(name: str) -> Any:
        asked.append(name)
        return query(name)

    monkeypatch.setattr(ledger_alerts, "query", noted)
    # Only the record with the id 0 was rejected for its times.
    rejecting(scene, rejected=150)
    scene.sql("UPDATE ledger.batch SET rejected_ids = rejected_ids[2:] || 0::bigint WHERE rejected_ids <> '{}'")
    assert scene.round() == [("records_rejected", "raised")]
    assert "most of all for client.mobile_phone; partners" in scene.ledger.alerts()[0].sentence
    assert scene.round() == []
    assert asked.count("ledger/alerts/rejected_fields") == 1
    # It may be over, and is so not yet.
    next_daily(scene)
    assert scene.round() == []
    assert asked.count("ledger/alerts/rejected_fields") == 1


def test_the_fields_are_looked_up_in_some_batches_only(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_alerts, "_BATCHES", 1)
    rejecting(scene, rejected=150)
    # The same batch of another clinic, whose record is rejected for another field.
    scene.sql(
        "INSERT INTO ledger.batch (run_key, clinic_id, lpu_id, operation, epoch, appointment_ids, versions, looked_at,"
        " created_at, resolved_at, outcome, rejected_ids) SELECT run_key, 1, 7001, operation, epoch, '{1}', '{1}',"
        " looked_at, created_at, resolved_at, outcome, '{1}' FROM ledger.batch WHERE rejected_ids <> '{}'"
    )
    scene.sql(
        "INSERT INTO ledger.record (clinic_id, appointment_id, lpu_id, version, state, rejected_fields, batch_id,"
        " changed_at) SELECT 1, 1, 7001, 1, 'rejected', '{doctor}', batch_id, created_at FROM ledger.batch"
        " WHERE clinic_id = 1"
    )
    scene.round()
    sentence = scene.ledger.alerts()[0].sentence
    assert ("client.mobile_phone" in sentence) is not ("doctor" in sentence)


def test_a_run_in_which_medflex_was_not_asked_does_not_end_what_it_rejects(scene: Scene) -> None:
    rejecting(scene)
    assert scene.round() == [("records_rejected", "raised")]
    scene.time.now += timedelta(seconds=1)
    # Nor does one that is still under way, or of some clinics.
    scene.ledger.settle_run(scene.run("outage", "compared", "loaded").run_key, ["Medflex does not answer."])
    scene.time.now += timedelta(seconds=1)
    scene.run("under way", "loaded", "loaded")
    scene.ledger.settle_run(scene.run("some", "loaded", clinic_ids=[1]).run_key, [])
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == []
    next_daily(scene)
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == [("records_rejected", "cleared")]


def test_a_run_of_some_clinics_does_not_mend_numbers_that_do_not_add_up(scene: Scene) -> None:
    broken(scene)
    assert scene.round() == [("conservation_broken", "raised")]
    scene.time.now += timedelta(minutes=1)
    made = scene.run("some", "loaded", clinic_ids=[1])
    scene.ledger.settle_run(made.run_key, [])
    scene.round()
    assert scene.round(minutes=6) == []
    # The same run, cleared and settled once more.
    scene.sql("UPDATE ledger.run SET broken = 0 WHERE run_id = 'broken'")
    scene.looked()
    scene.round()
    assert scene.round(minutes=6) == [("conservation_broken", "cleared")]


# -- contacts


def test_contacts_are_good_or_failing_since_the_first_of_their_kind(scene: Scene) -> None:
    def contact() -> tuple[datetime | None, ...]:
        facts = scene.ledger.alert_facts(LIMITS)
        return facts.good_since, facts.failing_since, facts.failed_at

    def after(seconds: float, failure: Failure | None) -> tuple[datetime | None, ...]:
        scene.time.now = NOW + timedelta(seconds=seconds)
        scene.ledger.note_contact(failure)
        return contact()

    at = [NOW + timedelta(seconds=number) for number in range(9)]
    assert contact() == (None, None, None)
    assert after(1, None) == (at[1], None, None)
    assert after(2, None) == (at[1], None, None)
    assert after(3, Failure.AWAY) == (None, at[3], at[3])
    assert after(4, Failure.REFUSED) == (None, at[3], at[4])
    assert scene.ledger.alert_facts(LIMITS).failure == "refused"
    assert after(5, None) == (at[5], None, at[4])
    assert after(6, Failure.AWAY) == (None, at[6], at[6])
    # An hour later: it may have been there meanwhile.
    assert after(3606, Failure.AWAY) == (None, NOW + timedelta(seconds=3606), NOW + timedelta(seconds=3606))
    assert after(5405, Failure.AWAY) == (None, NOW + timedelta(seconds=3606), NOW + timedelta(seconds=5405))


# -- telling


@pytest.fixture
def told(scene: Scene) -> Scene:
    """A ledger in which an alert is to be told, raised and cleared."""
    hold(scene)
    scene.round()
    scene.ledger.decide_hold(1, "kept", None)
    scene.round()
    scene.round(minutes=6)
    return scene


def test_an_answer_that_medflex_does_not_take_is_told_while_it_answers_otherwise(scene: Scene) -> None:
    good(scene)
    ask(scene, decided=True)
    assert scene.round() == [("actions_waiting", "raised")]
    assert scene.ledger.alerts()[0].facts == {"undecided": 0, "unanswered": 1}


def test_a_message_stays_until_no_channel_is_left(told: Scene) -> None:
    raised, *_ = told.ledger.untold()
    assert [message.state for message in told.ledger.untold() if message.kind == "held_absences"] == [
        "raised",
        "cleared",
    ]
    told.ledger.note_told(raised, "one")
    told.ledger.note_told(raised, "one")
    assert told.ledger.untold()[0].told_to == ["one"]
    told.ledger.note_all_told(raised)
    assert [message.state for message in told.ledger.untold()] == ["cleared"]
    told.ledger.note_all_told(told.ledger.untold()[0])
    assert told.ledger.untold() == []


def test_two_that_judge_at_the_same_time_raise_one_alert(scene: Scene, ledger_db: str) -> None:
    hold(scene)
    with AlertLedger(ledger_db, now=scene.time) as other:

        def judge_slowly(*arguments: Any) -> Any:
            # While the first one judges, the second one can do nothing.
            with psycopg.connect(ledger_db) as second:
                second.execute("SET lock_timeout = '50ms'")
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    second.execute("LOCK TABLE ledger.alert IN SHARE ROW EXCLUSIVE MODE")
            return judge(*arguments)

        assert len(scene.ledger.turn_alerts(judge_slowly, LIMITS)) == 1
        assert other.turn_alerts(judge, LIMITS) == []
    with pytest.raises(psycopg.errors.UniqueViolation):
        scene.sql(
            "INSERT INTO ledger.alert (kind, since, raised_at, sentence) VALUES ('held_absences', now(), now(), '')"
        )


def test_old_alerts_go_and_those_that_stand_or_were_not_told_stay(told: Scene, ledger_db: str) -> None:
    revoke(told)
    told.round()
    told.ledger.note_missed_deadline(DAG, "x")
    with LedgerRetention(ledger_db, now=told.time) as retention:
        told.time.now += timedelta(days=121)
        assert retention.prune_alerts(120) == 1  # The deadline.
        for message in told.ledger.untold():
            told.ledger.note_all_told(message)
        assert retention.prune_alerts(122) == 0
        assert retention.prune_alerts(120) == 1
    assert [alert.kind for alert in told.ledger.alerts()] == ["late_withdrawals"]


def test_an_alert_of_an_earlier_release_is_kept_and_only_one_that_stands_is_told(
    new_database: Callable[[], str],
) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text

    from medflex.ledger import migrate as migrations

    uri = new_database()
    config = Config()
    config.set_main_option("script_location", str(migrations.MIGRATIONS))
    engine = create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        connection.execute(text("CREATE SCHEMA ledger"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.execute(
            text(
                "INSERT INTO ledger.alert (name, raised_at, cleared_at, sentence) VALUES"
                " ('late_withdrawals', now(), NULL, 'Late.'), ('held_absences', now(), now(), 'Held.')"
            )
        )
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()
    with Ledger(uri) as ledger:
        assert [(message.kind, message.state) for message in ledger.untold()] == [("late_withdrawals", "raised")]
        assert [alert.kind for alert in ledger.alerts()] == ["late_withdrawals", "held_absences"]


def test_alerts_need_neither_pandas_nor_what_draws_it_in() -> None:
    """They run every two minutes in a process of their own."""
    code = (
        "import sys; sys.path.insert(0, 'plugins');"
        "import medflex.airflow.tasks.alerts, medflex.airflow.alerting;"
        "heavy = {'pandas', 'pyarrow', 'numpy', 'great_expectations', 'sqlalchemy.orm'} & set(sys.modules);"
        "print(sorted(heavy - {'sqlalchemy.orm'}))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_calm_is_longer_than_two_rounds() -> None:
    """Else one good look between two bad ones would tell that it is over."""
    assert timedelta(minutes=4) < CALM
