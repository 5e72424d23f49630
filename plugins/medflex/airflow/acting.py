"""Partner actions: read from Medflex, carried out in Medlock once, answered (R13, R14).

Each part goes on where it was stopped: what is read is kept with the cursor behind it, what is decided stands in
Medlock's journal in the transaction of its effect, and an answer is repeated until Medflex has taken it. Nothing here
imports Airflow, so that tests drive it against a real Postgres and a real Medflex with a clock of theirs.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pandas as pd
import pyarrow as pa

from medflex.airflow.hooks.medflex import AnswerTaken, CursorUnknownError
from medflex.airflow.hooks.medlock import APPOINTMENT_COLUMNS, CLINIC_TYPES, typed_frame
from medflex.airflow.hooks.medlock_actions import ActionTransaction, DecidedBeforeError, Entry, Facts, MedlockActions
from medflex.airflow.pace import Paced
from medflex.arrow import to_pandas
from medflex.clock import Clock
from medflex.domain.access import judge_access
from medflex.domain.eligibility import judge
from medflex.domain.partner_actions import (
    STATUS_ASKED,
    Action,
    ActionType,
    Appraisal,
    Ruling,
    Standing,
    is_from_the_future,
    is_too_old,
    new_times,
    read_action,
    rule,
    rule_time,
)
from medflex.domain.payload import build_payload
from medflex.domain.revocations import find_revocations
from medflex.domain.window import clinic_windows, zone_or_none
from medflex.errors import (
    ActionsUnreadableError,
    ActionsWaitError,
    AnswerContradictedError,
    MedflexContractError,
    MedflexPipelineError,
    MedflexRefusedError,
    RunIncompleteError,
    raised_at,
)
from medflex.ledger import watches
from medflex.ledger.actions import ActionDecision, RecordKey, Unanswered
from medflex.ledger.store import Ledger

log = logging.getLogger(__name__)

MOST_PAGES = 100
"""Pages read in one run: what is behind them is read by the next one, when these have been worked off."""
CHUNK = 500
"""Actions that are prepared together; each is then decided in a transaction of its own. With 100, half as many are
worked off in a second."""
OWN_DAYS = 90
"""A partner goes on from what it made of an appointment itself up to so long ago."""
_FAILURES = 20
"""So many answers in a row that are not taken after several attempts mean that Medflex itself is failing."""

_PRESENT_TYPES = APPOINTMENT_COLUMNS | dict.fromkeys(
    ("patient_updated_at", "doctor_updated_at"), pa.timestamp("us", "UTC")
)
_RECORD = ["clinic_id", "appointment_id", "lpu_id"]


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class Read:
    """What a reading came to: entries on the pages, actions that were new, pages, and what is wrong."""

    entries: int = 0
    new: int = 0
    pages: int = 0
    problem: MedflexPipelineError | None = None


class ActionReader(Paced):
    """Brings partner actions into the ledger; arguments as for :class:`Paced`."""

    def read(self, run_id: str, most_pages: int = MOST_PAGES) -> Read:
        """Read on from the ledger's cursor to the end of Medflex's queue, or for ``most_pages``.

        A cursor that Medflex does not know is told, and the queue is read from its beginning: the ledger knows which
        actions it has had. That it came to its end is noted in the ledger: else nothing would wait there, and nobody
        would be told that partners do.

        Raises:
            MedflexUnavailableError, MedflexRefusedError, MedflexContractError, ActionsUnreadableError: what was read so
                far is kept.
        """
        result = Read()
        self._ledger.begin_watch(watches.ACTIONS_READ, self._clock.now())
        after = self._ledger.action_cursor()
        doubted = None
        while result.pages < most_pages:
            try:
                page = self._repeat(lambda after=after: self._page(after))  # type: ignore[misc]
            except CursorUnknownError:
                if after != doubted:
                    # A gateway may have said so that found no Medflex: what is read anew is all answered again.
                    doubted = after
                    continue
                # Not a failure of this run: it is mended by reading anew.
                log.warning(
                    "Medflex does not know the place up to which partner actions were read (was its queue set up"
                    " anew?): they are read from the beginning, and those that were decided are only answered again."
                )
                after = None
                continue
            actions = [read_action(item) for item in page.items]
            readable = actions if None not in actions else actions[: actions.index(None)]
            kept = cast("list[Action]", readable)
            # Behind an entry that cannot be answered the cursor stays, so that it is not lost when it can be read.
            place = page.cursor if len(kept) == len(actions) else None
            if kept or place not in (None, after):
                result.new += self._ledger.store_actions(kept, place, run_id)
            result.entries += len(page.items)
            result.pages += 1
            if place is None:
                result.problem = ActionsUnreadableError(
                    f"Entry {len(kept) + 1} of Medflex's list of partner actions has no id by which it could be"
                    " answered: have it mended there; reading goes on from that entry."
                )
                break
            if page.is_last:
                break
            if place == after:
                raise ActionsUnreadableError(
                    "Medflex's list of partner actions does not move on from its cursor: have it looked at there."
                )
            after = place
        if result.problem is None:
            self._ledger.note_watch(watches.ACTIONS_READ, self._clock.now(), {})
        return result

    def _page(self, after: str | None) -> Any:
        self._wait_for_slot()
        return self._client.actions(after)


# -- deciding --------------------------------------------------------------------------------------------------------


@dataclass
class Applied:
    """What was decided, by type and ruling, and what is wrong."""

    rulings: Counter[tuple[str, str]] = field(default_factory=Counter)
    waiting: int = 0
    problems: list[MedflexPipelineError] = field(default_factory=list)

    def numbers(self) -> dict[str, int]:
        """Return the counts as ``type/ruling`` → number."""
        return {f"{kind}/{ruling}": number for (kind, ruling), number in sorted(self.rulings.items())}


@dataclass(frozen=True)
class _Prepared:
    """An action with what it is judged by; facts and permissions are kept to be compared with a later look."""

    action: Action
    clinic_id: int | None
    standing: Standing | None
    facts: tuple[Any, ...] | None
    permissions: tuple[Any, ...] | None
    live: pd.DataFrame
    appraisal: Appraisal


class Actor:
    """Decides about partner actions and carries them out in Medlock.

    Many are prepared at once, since judging one row costs as much as judging a hundred. Each is then decided in a
    transaction of its own, under a lock on its appointment; what was prepared counts only if nothing of what it was
    judged by differs there.

    Args:
        digest_key: the secret of the ledger's digests.
        run_id: Airflow's run, for the ledger.
    """

    def __init__(
        self, *, medlock: MedlockActions, ledger: Ledger, clock: Clock, digest_key: bytes, run_id: str
    ) -> None:
        self._medlock = medlock
        self._ledger = ledger
        self._clock = clock
        self._digest_key = digest_key
        self._run_id = run_id
        self._result = Applied()
        self._blocked: dict[int | None, ActionsWaitError] = {}

    def apply(self, chunk: int = CHUNK) -> Applied:
        """Decide about everything that is not decided.

        An action whose appointment somebody is just changing waits for the next run, and so do later ones of partners
        that know the appointment; the others go on.

        Raises:
            MedlockUnavailableError, LedgerUnavailableError, …: what was decided so far stands.
        """
        after = 0
        while batch := self._ledger.undecided(after, chunk):
            after = batch[-1][0]
            for wave in _waves([action for _, action in batch]):
                self._decide_all(wave)
        return self._result

    def _decide_all(self, actions: Sequence[Action]) -> None:
        """Decide about actions of which none is behind one that may change the same appointment."""
        before = self._medlock.journalled([action.action_id for action in actions])
        decisions = [self._noted(action, before[action.action_id]) for action in actions if action.action_id in before]
        try:
            self._decide_open([action for action in actions if action.action_id not in before], decisions)
        finally:
            # Also when Medlock is lost half-way: what stands in its journal is copied now or by the next run.
            self._ledger.save_decided(decisions, self._run_id)

    def _decide_open(self, actions: Sequence[Action], decisions: list[ActionDecision]) -> None:
        """Decide about actions of which none is decided, adding to ``decisions``.

        One whose data nobody foresaw is left alone, and the others are prepared without it: the halves by themselves.
        """
        if not actions:
            return
        try:
            prepared = self._prepare(actions)
        except MedflexPipelineError:
            raise
        except Exception as error:
            if len(actions) == 1:
                self._wait(actions[0], _unforeseen(error))
            else:
                half = len(actions) // 2
                self._decide_open(actions[:half], decisions)
                self._decide_open(actions[half:], decisions)
            return
        for item in prepared:
            try:
                decisions.append(self._decide(item))
            except ActionsWaitError as error:
                self._wait(item.action, error)
            except MedflexPipelineError:
                raise
            except Exception as error:
                self._wait(item.action, _unforeseen(error))

    def _wait(self, action: Action, error: ActionsWaitError) -> None:
        self._blocked[action.appointment_id] = error
        self._result.waiting += 1
        if str(error) not in map(str, self._result.problems):
            log.warning("%s", error)
            self._result.problems.append(error)

    # -- preparing --------------------------------------------------------------------------------------------------

    def _prepare(self, actions: Sequence[Action]) -> list[_Prepared]:
        readable = [action for action in actions if not action.malformed]
        clinic_of = self._medlock.clinics_of(sorted({cast("int", action.lpu_id) for action in readable}))
        about = {action.action_id: clinic_of.get(cast("int", action.lpu_id)) for action in readable}
        wanted = {
            action.action_id: ((clinic, cast("int", action.appointment_id), cast("int", action.lpu_id)), action)
            for action in readable
            if (clinic := about[action.action_id]) is not None
        }
        keys = sorted({record[:2] for record, _ in wanted.values()})
        facts = self._medlock.appointments(keys)
        permissions = self._medlock.clinics(sorted({clinic for clinic, _ in keys}))
        standings = self._ledger.standings(
            [(record, cast("int", action.partner_id)) for record, action in wanted.values()],
            self._clock.now() - timedelta(days=OWN_DAYS),
        )
        live = self._ledger.live([clinic for clinic, _ in keys], [appointment for _, appointment in keys])
        appraisals = self._appraise(readable, about, facts, permissions, live)
        prepared = []
        for action in actions:
            clinic_id = about.get(action.action_id)
            record = (clinic_id, action.appointment_id, action.lpu_id)
            prepared.append(
                _Prepared(
                    action,
                    clinic_id,
                    standings.get((cast("RecordKey", record), cast("int", action.partner_id))),
                    facts.rows.get((clinic_id, action.appointment_id)),
                    permissions.rows.get(clinic_id),
                    live,
                    appraisals.get(action.action_id, Appraisal(exists=False)),
                )
            )
        return prepared

    def _appraise(
        self,
        actions: Sequence[Action],
        about: Mapping[UUID, int | None],
        facts: Facts,
        permissions: Facts,
        live: pd.DataFrame,
    ) -> dict[UUID, Appraisal]:
        """Judge the appointments as they were read, by the rules of every other lane, and what actions would make of
        them.

        Args:
            about: action → the clinic that it means.
            live: LIVE, what Medflex shows or may show of these appointments and others.
        """
        if not facts.rows:
            return {}
        now = self._clock.now()
        clinics = judge_access(
            typed_frame("medlock/clinics", permissions.columns, list(permissions.rows.values()), CLINIC_TYPES), now
        )
        columns = dict(zip(facts.columns, zip(*facts.rows.values(), strict=True), strict=True))
        table = pa.table({name: pa.array(columns[name], type_) for name, type_ in _PRESENT_TYPES.items()})
        present = to_pandas(table, nullable_ids=("patient_id", "doctor_id"))
        revoked = _revoked(live, present, clinics, now)
        eligible = present[judge(present, clinics).eligible]
        now_digests = self._digests(eligible, clinics)
        rows = {(row["clinic_id"], row["appointment_id"]): row for row in present.to_dict("records")}
        clinic_rows = {row["clinic_id"]: row for row in clinics.to_dict("records")}
        appraisals: dict[UUID, Appraisal] = {}
        after: dict[UUID, dict[Any, Any]] = {}
        for action in actions:
            key = (cast("int", about[action.action_id]), cast("int", action.appointment_id))
            if key not in rows or key[0] not in clinic_rows:
                continue
            row, clinic = rows[key], clinic_rows[key[0]]
            zone = zone_or_none(clinic["timezone"])
            times = new_times(action, zone, now) if zone and action.type is ActionType.RESCHEDULE else None
            changed = _after(action, times)
            if changed and key in now_digests:
                after[action.action_id] = row | changed
            raw = dict(zip(facts.columns, facts.rows[key], strict=True))
            appraisals[action.action_id] = Appraisal(
                exists=True,
                revoked=(*key, action.lpu_id) in revoked or key not in now_digests,
                linked_partners=frozenset(int(partner) for partner in clinic["partner_ids"]),
                status=raw["status"],
                starts_at=raw["starts_at"],
                ends_at=raw["ends_at"],
                changed_at=raw["updated_at"],
                doctor_id=raw["doctor_id"],
                patient_id=raw["patient_id"],
                digest=now_digests.get(key),
                new_times=times,
                timezone=clinic["timezone"] if zone else None,
            )
        return self._with_digests_after(appraisals, after, present, clinics)

    def _digests(self, eligible: pd.DataFrame, clinics: pd.DataFrame) -> dict[tuple[int, int], int]:
        if not len(eligible):
            return {}
        payload = build_payload(eligible, clinics, self._digest_key)
        keys = zip(payload["clinic_id"].tolist(), payload["id"].tolist(), strict=True)
        return dict(zip(keys, payload["digest"].tolist(), strict=True))

    def _with_digests_after(
        self,
        appraisals: dict[UUID, Appraisal],
        after: dict[UUID, dict[Any, Any]],
        present: pd.DataFrame,
        clinics: pd.DataFrame,
    ) -> dict[UUID, Appraisal]:
        if not after:
            return appraisals
        # Each column with its type at once: one without any value would become another, which cannot be cast.
        frame = pd.DataFrame(
            {
                name: pd.array([row[name] for row in after.values()], dtype=dtype)
                for name, dtype in present.dtypes.items()
            }
        )
        digests = build_payload(frame, clinics, self._digest_key)["digest"].tolist()
        told = dict(zip(after, digests, strict=True))
        return {
            action_id: replace(appraisal, digest_after=told.get(action_id))
            for action_id, appraisal in appraisals.items()
        }

    # -- one action -------------------------------------------------------------------------------------------------

    def _decide(self, item: _Prepared) -> ActionDecision:
        action = item.action
        try:
            with self._medlock.transaction() as transaction:
                ruling, digest_after = self._rule(transaction, item)
                entry = transaction.journal(action, item.clinic_id, ruling, digest_after)
        except DecidedBeforeError:
            # Another attempt of this task was quicker; what was done here is undone.
            entry = self._medlock.journalled([action.action_id])[action.action_id]
        return self._noted(action, entry)

    def _rule(self, transaction: ActionTransaction, item: _Prepared) -> tuple[Ruling, int | None]:
        """Decide, and carry out what is decided, inside a transaction."""
        action, now = item.action, self._clock.now()
        if action.malformed or is_from_the_future(action, now):
            return Ruling.MALFORMED, None
        if is_too_old(action, now):
            return Ruling.TOO_OLD, None
        if item.clinic_id is None:
            return Ruling.UNKNOWN_CLINIC, None
        appointment_id = cast("int", action.appointment_id)
        if item.facts is None:
            # Not locked: there is no row. One that comes into being just now was not shared, either.
            return Ruling.UNKNOWN_APPOINTMENT, None
        if item.standing is None or action.partner_id not in item.standing.partner_ids:
            # Nor waited for: that there is no answer yet would tell that there is such an appointment.
            return rule(action, item.standing, item.appraisal, now), None
        if appointment_id in self._blocked:
            raise self._blocked[appointment_id]
        transaction.lock(item.clinic_id, appointment_id)
        # Behind the lock: somebody else may have been waited for.
        now = self._clock.now()
        key = (item.clinic_id, appointment_id)
        appraisal = self._appraisal_now(transaction, item, key)
        ruling = rule(action, item.standing, appraisal, now)
        if ruling is not Ruling.DONE:
            return ruling, None
        if action.type is ActionType.RESCHEDULE:
            if appraisal.new_times is None or appraisal.new_times[0] <= now:
                return Ruling.NO_SUCH_TIME, None
            ruling = rule_time(
                transaction.slot(
                    *key, cast("int", appraisal.doctor_id), cast("int", appraisal.patient_id), appraisal.new_times
                )
            )
            if ruling is not Ruling.DONE:
                return ruling, None
        if not transaction.carry_out(action, item.clinic_id, appraisal.new_times):
            return Ruling.SLOT_TAKEN, None
        return Ruling.DONE, appraisal.digest_after

    def _appraisal_now(self, transaction: ActionTransaction, item: _Prepared, key: tuple[int, int]) -> Appraisal:
        """Return what was prepared if the clinic has changed nothing since; else judge anew, this action by itself."""
        facts, permissions = transaction.appointment(*key), transaction.clinic(key[0])
        if facts.rows.get(key) == item.facts and permissions.rows.get(key[0]) == item.permissions:
            return item.appraisal
        action = item.action
        live = item.live[item.live["appointment_id"] == key[1]]
        fresh = self._appraise([action], {action.action_id: key[0]}, facts, permissions, live)
        return fresh.get(action.action_id, Appraisal(exists=False))

    def _noted(self, action: Action, entry: Entry) -> ActionDecision:
        kind = action.type.value if action.type else "unreadable"
        self._result.rulings[kind, entry.reason] += 1
        return ActionDecision(
            action_id=action.action_id,
            clinic_id=entry.clinic_id,
            status_code=entry.status_code,
            reason=entry.reason,
            is_effect=entry.reason == Ruling.DONE,
            decided_at=entry.decided_at,
            digest_after=entry.digest_after,
        )


def _unforeseen(error: Exception) -> ActionsWaitError:
    """By its type and place only: its text could quote a row."""
    return ActionsWaitError(
        f"What a partner asked for cannot be decided because of an error that nobody foresaw ({type(error).__name__} in"
        f" {raised_at(error)[0]}): report it; the action waits until it is mended."
    )


def _waves(actions: Sequence[Action]) -> list[list[Action]]:
    """Cut actions so that in each part none is behind one that may change the same appointment; those about one stay in
    order.

    What an action made of an appointment is what the next one about it is judged by.
    """
    waves: list[list[Action]] = []
    changes: Counter[int | None] = Counter()
    for action in actions:
        number = changes[action.appointment_id]
        changes[action.appointment_id] += action.may_change
        if number == len(waves):
            waves.append([])
        waves[number].append(action)
    return waves


def _revoked(
    live: pd.DataFrame, present: pd.DataFrame, clinics: pd.DataFrame, now: datetime
) -> set[tuple[int, int, int]]:
    """Which records may no longer be shared (R12).

    With nobody, that is: whether the link to a partner stands is asked for the one that acts, and one that is cut does
    not take the others' word from them.
    """
    if not len(live):
        return set()
    windows = clinic_windows(clinics, now, now, cut_to_today=False)
    found = find_revocations(live.assign(partner_ids=pd.array([None] * len(live), "str")), present, clinics, windows)
    return set(found[_RECORD].itertuples(index=False, name=None))


def _after(action: Action, times: tuple[Any, Any] | None) -> dict[str, Any] | None:
    """What an action changes of the appointment; ``None`` for nothing."""
    if action.type in STATUS_ASKED:
        return {"status": STATUS_ASKED[action.type]}
    return {"starts_at": times[0], "ends_at": times[1]} if times else None


# -- answering -------------------------------------------------------------------------------------------------------


@dataclass
class Answered:
    """What Medflex said to the answers, how many seconds after reading each it was told, and what is wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    problems: list[MedflexPipelineError] = field(default_factory=list)


class Answerer(Paced):
    """Tells Medflex what became of actions; arguments as for :class:`Paced`."""

    _failures = 0
    _told_up_to = 0

    def answer(self, run_id: str, chunk: int = CHUNK) -> Answered:
        """Tell Medflex all decisions that it has not taken yet, several at a time.

        Trouble does not raise: it is in ``problems``; what is left is told by the next run. Where this one is halted,
        the next one begins: answers that are never taken must not hold up those behind them for ever.
        """
        result = Answered()
        start = self._ledger.answers_halted()
        with ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="medflex") as pool:
            for after, last in ((start, math.inf), (0, start)):
                self._tell_all(pool, result, run_id, chunk, after, last)
        if start or self._halted:
            self._ledger.note_answers_halted(self._told_up_to if self._halted else 0)
        if number := result.answers[AnswerTaken.CONTRADICTED]:
            result.problems.append(
                AnswerContradictedError(
                    f"Medflex has another answer to {number} partner actions than was decided here: see answer ="
                    " 'contradicted' in ledger.partner_action; partners go by Medflex's."
                )
            )
        if number := result.answers[AnswerTaken.UNKNOWN_ACTION]:
            log.warning("Medflex knows %d of the answered partner actions no more.", number)
        return result

    def _tell_all(
        self, pool: ThreadPoolExecutor, result: Answered, run_id: str, chunk: int, after: int, last: float
    ) -> None:
        """Tell decisions whose actions were delivered first behind ``after``, and not behind ``last``."""
        while not self._halted and (batch := self._ledger.unanswered(after, chunk)):
            after = batch[-1].seq
            told: dict[UUID, str] = {}
            batch = [item for item in batch if item.seq <= last]
            try:
                for item, answer in zip(batch, pool.map(self._tell, batch), strict=True):
                    if answer is not None:
                        self._told_up_to = item.seq
                    if isinstance(answer, MedflexPipelineError):
                        if str(answer) not in map(str, result.problems):
                            log.error("%s", answer)
                            result.problems.append(answer)
                    elif answer is not None:
                        told[item.action_id] = answer
                        result.answers[answer] += 1
                        result.delays.append((self._clock.now() - item.read_at).total_seconds())
            finally:
                self._ledger.save_answered(told, run_id)

    def _tell(self, item: Unanswered) -> str | MedflexPipelineError | None:
        """Tell one decision; ``None`` when telling has stopped."""
        if self._halted:
            return None
        try:
            answer = self._repeat(lambda: self._post(item))
            if answer == AnswerTaken.UNKNOWN_ACTION:
                # For good, so that it has to be Medflex's word: a gateway that finds no Medflex knows nothing at all.
                self._repeat(self._list)
                answer = self._repeat(lambda: self._post(item))
        except RunIncompleteError:
            return None
        except MedflexContractError as error:
            # A matter of this answer only.
            return error
        except MedflexPipelineError as error:
            with self._lock:
                self._failures += 1
                # One answer that Medflex cannot take must not hold up the others; many in a row mean Medflex itself.
                self._halted |= isinstance(error, MedflexRefusedError) or self._failures >= _FAILURES
            return error
        with self._lock:
            self._failures = 0
        return answer

    def _post(self, item: Unanswered) -> str:
        if not self._wait_for_slot():
            raise RunIncompleteError("Telling has stopped.")
        return self._client.answer(item.action_id, item.status_code, Ruling(item.reason).detail).value

    def _list(self) -> None:
        """Have Medflex list actions, which it does if it is there."""
        if not self._wait_for_slot():
            raise RunIncompleteError("Telling has stopped.")
        self._client.actions(None)
