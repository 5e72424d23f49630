"""Regressions that other pipelines are known for, each with the mutation of this one that brings it back.

A scenario returns what is wrong. Every one is played twice: as the product is, when nothing may be wrong, and with its
mutation, when something must be.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest

import medflex.airflow.hooks.medflex as medflex_hook
import medflex.airflow.loading as loading
import medflex.airflow.withdrawing as withdrawing
import medflex.airflow.writing as writing
import medflex.domain.eligibility as eligibility
from medflex.airflow.hooks.medflex import BatchReply
from medflex.domain.changes import Change
from medflex.ledger.store import BatchOutcome, Ledger, Resolution
from tests.faults import mutations, product
from tests.faults.events import Event, Schedule
from tests.faults.medlock import FLAGS, Clinic, appointment_id, doctor_id, patient_id
from tests.faults.play import Play, Stage

Problems = Iterator[str]

HOURS = (24, 48, -24, 72, -300, 500)
CLINIC = Clinic(tuple((number % 3, 0, hours) for number, hours in enumerate(HOURS)))
DAILY: Event = ("run", "daily", 0, ())
QUICK: Event = ("run", "quick", 0, ())
FIRST = patient_id(1, 0)
OF_FIRST = {appointment_id(1, number) for number in range(len(HOURS)) if number % 3 == 0}
ALL = {appointment_id(1, number) for number in range(len(HOURS))}
REFUSAL: Event = ("patient", FIRST, "refused_marketing", True, 0)
CONSENT: Event = ("patient", FIRST, "refused_marketing", False, 0)


def fault(kind: str, times: int | None = 1, path: str = "/", skip: int = 0, **params: Any) -> Event:
    return ("fault", kind, params, {"times": times, "path": path, "skip": skip})


class Scene(Play):
    """A schedule that a scenario plays event by event, looking in between."""

    def __init__(self, stage: Stage, clinic: Clinic = CLINIC, **settings: Any) -> None:
        super().__init__(stage, Schedule(clinics=(clinic,), events=(), **settings))

    def let(self, *events: Event) -> None:
        for event in events:
            self.happen(event)

    def ids(self) -> set[int]:
        """The appointments that Medflex shows."""
        return {id_ for _, id_ in self.judge.shown()}

    def states(self) -> dict[int, str]:
        """The ledger's state of each appointment."""
        rows = self.stage.ledger.execute("SELECT appointment_id, state FROM ledger.record").fetchall()
        return dict(rows)

    def problems(self, *, thorough: bool = True) -> list[str]:
        """What is wrong when all is over."""
        return [f"{item.invariant}: {item.text}" for item in self.finish(thorough).violations]


@contextmanager
def scene(stage: Stage, clinic: Clinic = CLINIC, **settings: Any) -> Iterator[Scene]:
    with Scene(stage, clinic, **settings) as made:
        yield made


# -- the scenarios and their mutations -------------------------------------------------------------------------------


def a_failed_row_is_tried_again(stage: Stage) -> Problems:
    with scene(stage) as played:
        played.let(fault("reject_records", fraction=1.0), DAILY)
        wrong = [] if set(played.states().values()) == {"rejected"} else ["the rejections are not in the ledger"]
        yield from wrong + played.problems()


def rejected_rows_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    original = product.plan_changes

    def forgetful(eligible: pd.DataFrame, known: pd.DataFrame, resync: bool) -> pd.DataFrame:
        changes = original(eligible, known, resync)
        rejected = known.loc[known["state"] == "rejected", "appointment_id"]
        changes.loc[changes["id"].isin(rejected), "change"] = Change.UNCHANGED
        return changes

    monkeypatch.setattr(product, "plan_changes", forgetful)


def success_is_judged_per_row(stage: Stage) -> Problems:
    with scene(stage) as played:
        played.let(fault("reject_records", ids=sorted(OF_FIRST)), DAILY)
        states = played.states()
        wrong = [f"{id_} is {states[id_]}" for id_ in ALL if states[id_] != ("sent", "rejected")[id_ in OF_FIRST]]
        yield from wrong + played.problems()


def a_batch_with_one_success_is_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Ledger.resolve_together

    def as_a_whole(ledger: Ledger, resolutions: Sequence[Resolution]) -> list[bool]:
        whole = [
            replace(item, outcome=BatchOutcome(item.outcome.outcome, item.outcome.http_status)) for item in resolutions
        ]
        return original(ledger, whole)

    monkeypatch.setattr(Ledger, "resolve_together", as_a_whole)


def a_reply_of_200_with_failures_is_read(stage: Stage) -> Problems:
    with scene(stage) as played:
        # Half of the verdicts are left out, some of the others are rejections.
        played.let(fault("reject_records", ids=sorted(OF_FIRST)))
        played.let(fault("malformed_body", times=None, form="missing_items"), DAILY)
        states = played.states()
        wrong = [f"{id_} is {states[id_]}" for id_ in OF_FIRST if states[id_] == "sent"]
        wrong += [] if "sending" in states.values() else ["what the reply leaves out counts as told"]
        yield from wrong + played.problems()


def every_200_is_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(http_status: int, body: Any, versions: dict[int, int]) -> BatchReply:
        return BatchReply(http_status, frozenset(versions), {}, frozenset(), frozenset())

    monkeypatch.setattr(medflex_hook, "_read_verdicts", trusting)


def one_records_withdrawal_does_not_stick_to_the_next(stage: Stage) -> Problems:
    with scene(stage) as played:
        played.let(DAILY, REFUSAL, QUICK)
        wrong = [] if played.ids() == ALL - OF_FIRST else [f"{sorted(played.ids())} are shown"]
        played.let(("appointment", appointment_id(1, 1), "status", "confirmed", 0), DAILY)
        wrong += [] if played.ids() == ALL - OF_FIRST else [f"{sorted(played.ids())} are shown then"]
        yield from wrong + played.problems()


def withdrawals_stick(monkeypatch: pytest.MonkeyPatch) -> None:
    original = withdrawing.find_revocations

    def sticky(live: pd.DataFrame, *more: Any, **named: Any) -> pd.DataFrame:
        found = original(live, *more, **named)
        if not len(found):
            return found
        first = live.index[live["appointment_id"] == found["appointment_id"].iloc[0]][0]
        rest = live.loc[first:, ["clinic_id", "appointment_id", "lpu_id", "version"]]
        one = found.iloc[0]
        return rest.assign(
            reason=one["reason"],
            by_absence=one["by_absence"],
            revoked_at=pd.array([one["revoked_at"]] * len(rest), dtype="datetime64[us, UTC]"),
        ).reset_index(drop=True)

    monkeypatch.setattr(withdrawing, "find_revocations", sticky)


def a_full_resync_still_withdraws(stage: Stage) -> Problems:
    with scene(stage) as played:
        played.let(DAILY, REFUSAL, ("vanish", "appointment", (appointment_id(1, 1),)), ("run", "resync", 0, ()))
        left = ALL - OF_FIRST - {appointment_id(1, 1)}
        if played.ids() != left:
            yield f"{sorted(played.ids())} are shown"
        yield from played.problems()


def a_resync_only_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_sends(process: Any, holder: str) -> str:
        return product.transfer(process, holder, resync=True)

    monkeypatch.setitem(product.RUNS, "resync", only_sends)


def a_missing_or_unmapped_consent_denies(stage: Stage) -> Problems:
    denials: list[Event] = [
        *(("patient", FIRST, flag, None, 0) for flag in FLAGS),
        ("appointment", appointment_id(1, 0), "is_anonymous", None, 0),
        ("doctor", doctor_id(1, 0), "medflex_banned", None, 0),
        ("switch", 1, None, 1),
        ("switch", 1, True, 2),
        ("switch", 1, True, 9),
        ("link", 1, 1, False),
    ]
    for denial in denials:
        with scene(stage) as played:
            played.let(denial, DAILY)
            yield from played.problems()
        with scene(stage) as played:
            played.let(DAILY, denial)
            yield from played.problems()


def a_missing_flag_permits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eligibility, "_not_false", lambda flag: flag.to_numpy(dtype=bool, na_value=False))


def a_time_out_does_not_flood(stage: Stage) -> Problems:
    with scene(stage) as played:
        sent: list[float] = []
        judging = played.machine.on_request

        def counting(*arguments: Any) -> None:
            sent.append(played.clock.monotonic())
            judging(*arguments)

        played.machine.on_request = counting
        played.let(fault("timeout_before_effect", times=None, seconds=100), DAILY)
        attempts = medflex_hook.MedflexSettings("", "").attempts
        wrong = [] if len(sent) <= attempts else [f"{len(sent)} requests for one batch"]
        waits = [later - earlier - 70 for earlier, later in itertools.pairwise(sent)]
        wrong += [f"repeated {wait:.2f} s after a time-out" for wait in waits if wait < 0.4]
        wrong += [] if waits == sorted(waits) else ["the waits do not grow"]
        played.machine.on_request = judging
        yield from wrong + played.problems()


def repetitions_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.Writer, "_back_off", lambda *_: True)


def a_crash_between_taking_and_doing_loses_nothing(stage: Stage) -> Problems:
    """At every durable step of a daily run that withdraws and sends."""
    before: list[Event] = [
        DAILY,
        ("patient", patient_id(1, 1), "refused_marketing", True, 0),
        ("appointment", appointment_id(1, 2), "status", "confirmed", 0),
        ("new", 1, 0, 0, 100),
    ]
    with scene(stage) as played:
        played.let(*before, DAILY)
        steps = played.machine.processes[-1].log
    durable = [number for number, kind in enumerate(steps) if kind in ("ledger", "medflex")]
    if len(durable) < 15:
        yield f"a daily run has {len(durable)} durable steps only"
    for step in durable:
        for action in ("crash", "crash_after"):
            with scene(stage) as played:
                played.let(*before, ("run", "daily", 0, ((step, action),)), REFUSAL)
                yield from (f"{action} at step {step}: {text}" for text in played.problems(thorough=False))


def a_resumed_run_covers_every_row(stage: Stage) -> Problems:
    """For all totals, sizes of a batch and places to stop at."""
    for size in (3, 2, 1):
        for total in (6, 5, 4, 3, 1, 0):
            for start in range(-(-total // size) + 1):
                clinic = Clinic(tuple((number % 3, 0, 24 + number) for number in range(total)))
                with scene(stage, clinic, batch_size=size) as played:
                    # Down for good behind so many batches: whatever is left stays for the next run.
                    played.let(fault("status", times=None, skip=start, status=503), DAILY)
                    arrived = len(played.ids())
                    case = f"{total} records, {size} at a time, stopped after {start}"
                    if arrived != min(total, start * size):
                        yield f"{case}: {arrived} have arrived before"
                    yield from (f"{case}: {text}" for text in played.problems(thorough=False))
                    if len(played.ids()) != total:
                        yield f"{case}: {len(played.ids())} are shown in the end"


def a_resumed_run_begins_one_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loading.Loader._batches

    def late(loader: loading.Loader, chunks: Any, clinic_ids: set[int], known: Any) -> Iterator[Any]:
        for batch in original(loader, chunks, clinic_ids, known):
            skip = 1 if known._of and len(batch.records) > 1 else 0
            yield writing.Batch(batch.clinic_id, batch.records.cut(skip, len(batch.records)), batch.versions[skip:])

    monkeypatch.setattr(loading.Loader, "_batches", late)


def a_regrant_is_not_swallowed_by_an_old_key(stage: Stage) -> Problems:
    with scene(stage) as played:
        wrong = []
        for _ in range(2):
            played.let(DAILY, REFUSAL, DAILY)
            wrong += [] if played.ids() == ALL - OF_FIRST else ["a refusal is not honoured"]
            played.let(CONSENT, DAILY)
            wrong += [] if played.ids() == ALL else ["a consent that was given again is not honoured"]
        yield from wrong + played.problems()


def a_late_write_after_a_withdrawal_does_not_win(stage: Stage) -> Problems:
    for late_last in (False, True):
        with scene(stage, late_last=late_last) as played:
            # The client gives up, nobody knows whether the write will ever arrive; it does, when all is over.
            late = fault("late_delivery", times=None, path="/appointments/batch/", seconds=100, delay=None)
            played.let(late, DAILY, ("heal",), REFUSAL, DAILY, ("deliver",))
            if played.ids() & OF_FIRST:
                yield "a late write undoes a withdrawal"
            yield from played.problems()


def what_may_be_there_is_not_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Ledger.live

    def certain(ledger: Ledger, *arguments: Any) -> pd.DataFrame:
        live = original(ledger, *arguments)
        return live[live["state"] != "sending"].reset_index(drop=True)

    monkeypatch.setattr(Ledger, "live", certain)


def a_late_write_is_undone_where_versions_are_ignored(stage: Stage) -> Problems:
    with scene(stage, ignore_versions=True, late_last=True) as played:
        late = fault("late_delivery", times=None, path="/appointments/batch/", seconds=100, delay=None)
        played.let(late, DAILY, ("heal",), DAILY, REFUSAL, DAILY, ("deliver",))
        wrong = [] if played.ids() & OF_FIRST else ["the late write was to undo the withdrawal"]
        yield from wrong + played.problems()


def nothing_is_reconciled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(product.RUNS, "reconcile", lambda *_: "nothing")


@dataclass(frozen=True)
class Regression:
    """What must not come back, and what would bring it back."""

    scenario: Callable[[Stage], Problems]
    mutation: Callable[[pytest.MonkeyPatch], None]


REGRESSIONS = (
    Regression(a_failed_row_is_tried_again, rejected_rows_are_forgotten),
    Regression(success_is_judged_per_row, a_batch_with_one_success_is_a_success),
    Regression(a_reply_of_200_with_failures_is_read, every_200_is_a_success),
    Regression(one_records_withdrawal_does_not_stick_to_the_next, withdrawals_stick),
    Regression(a_full_resync_still_withdraws, a_resync_only_sends),
    Regression(a_missing_or_unmapped_consent_denies, a_missing_flag_permits),
    Regression(a_time_out_does_not_flood, repetitions_do_not_wait),
    Regression(a_crash_between_taking_and_doing_loses_nothing, mutations.intent_after_action),
    Regression(a_resumed_run_covers_every_row, a_resumed_run_begins_one_too_late),
    Regression(a_regrant_is_not_swallowed_by_an_old_key, mutations.key_without_generation),
    Regression(a_late_write_after_a_withdrawal_does_not_win, what_may_be_there_is_not_withdrawn),
    Regression(a_late_write_is_undone_where_versions_are_ignored, nothing_is_reconciled),
)
_by_name = pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda item: item.scenario.__name__)


@pytest.mark.timeout(300)
@_by_name
def test_it_has_not_come_back(stage: Stage, regression: Regression) -> None:
    assert list(regression.scenario(stage)) == []


@pytest.mark.timeout(300)
@_by_name
def test_it_would_be_noticed(stage: Stage, regression: Regression, monkeypatch: pytest.MonkeyPatch) -> None:
    regression.mutation(monkeypatch)
    assert next(regression.scenario(stage), None) is not None


# -- what the schedules have found, cut down --------------------------------------------------------------------------


def test_a_clinic_that_moves_is_withdrawn_where_it_was(stage: Stage) -> None:
    """A record known under two lpu_ids once stopped every later sweep."""
    with scene(stage) as played:
        played.let(DAILY, ("lpu", 1, 1), ("run", "transfer", 0, ()), QUICK, REFUSAL, QUICK)
        assert {lpu_id for lpu_id, _ in played.judge.shown()} == {7101}
        assert played.problems() == []


def test_no_question_stays_open_about_records_that_are_gone(stage: Stage) -> None:
    """What is held by absence, then refused in part, is few enough to be withdrawn: nobody need be asked any more."""
    many = Clinic(tuple((number % 3, 0, 24 + number) for number in range(13)))
    with scene(stage, many) as played:
        gone = ("vanish", "patient", (patient_id(1, 1), patient_id(1, 2)))
        played.let(DAILY, gone, ("phone", FIRST, -1, 0), ("run", "sweep", 0, ()), ("pass", 86_400), REFUSAL, DAILY)
        assert played.problems() == []
