"""A storm: partners act, clinics work on the same appointments, attempts stand still and die, replies are lost.

Everything is drawn from one seed, so that a storm replays. The product's own code runs against a real Postgres and
Medflex in process; a model says what must come out, action by action and at the end.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import psycopg

import medflex.airflow.hooks.medflex as medflex_hook
import medflex.airflow.hooks.medlock_actions as actions_hook
from sandbox.medflex.engine import Engine
from sandbox.medflex.faults import Fault, FaultKind, Match, Params
from tests.faults import product
from tests.faults.actions.attempt import PLANS, Attempt, Judged, Plan
from tests.faults.actions.clinicians import ZONES, Clinicians
from tests.faults.actions.ground import Ground
from tests.faults.actions.model import CLINIC, CODES, PRODUCT, SECRET, Clinics, Model
from tests.faults.actions.partners import Partners, Raw
from tests.faults.machine import TOKEN, FakeClock, Machine
from tests.faults.medlock import Row

BEGINNING = datetime(2027, 3, 10, 6, 0, 30, tzinfo=UTC)
LOCK_SECONDS = 0.02
RUSH = 0.04
_LANES = ("transfer", "daily", "daily", "quick", "sweep")
_FAULTS: tuple[tuple[FaultKind, dict[str, Any]], ...] = (
    (FaultKind.RESET_BEFORE_EFFECT, {}),
    (FaultKind.RESET_AFTER_EFFECT, {}),
    (FaultKind.TIMEOUT_AFTER_EFFECT, {}),
    (FaultKind.STATUS, {"status": 503}),
    (FaultKind.STATUS, {"status": 500, "when": "after"}),
    (FaultKind.RATE_LIMITED, {"retry_after": 3}),
    (FaultKind.UNAUTHORIZED, {}),
    (FaultKind.MALFORMED_BODY, {"form": "truncated"}),
    (FaultKind.MALFORMED_BODY, {"form": "empty"}),
)
_FAULTS_OF_PAGES: tuple[tuple[FaultKind, dict[str, Any]], ...] = (
    (FaultKind.MALFORMED_BODY, {"form": "wrong_type"}),
    (FaultKind.MALFORMED_BODY, {"form": "missing_data"}),
    (FaultKind.MALFORMED_BODY, {"form": "item_without_id"}),
)
_CRITICAL = (
    "medlock.slot",
    "medlock.carry_out",
    "medlock.carry_out",
    "medlock.carry_out",
    "medlock.journal",
    "medlock.commit",
    "medlock.committed",
)
_COLUMNS = (
    "id",
    "clinic_id",
    "patient_id",
    "doctor_id",
    "starts_at",
    "ends_at",
    "status",
    "is_anonymous",
    "entry",
    "comment",
    "created_at",
    "updated_at",
)
_WRITABLE = frozenset({"status", "starts_at", "ends_at", "updated_at"})


@dataclass
class Outcome:
    """What a storm came to."""

    violations: list[str]
    trace: list[str]
    counts: Counter[str]
    reasons: Counter[str]
    edits: Counter[str]
    odd: Counter[str]


class Storm:
    """One storm on a ground that may be emptied. Attributes: see :class:`tests.faults.actions.attempt.Stormy`.

    rush: how often several partners want the same time of a doctor at once. If often, attempts stand still more, too,
    when they are about to move an appointment.
    """

    def __init__(self, ground: Ground, seed: int, rush: float = RUSH) -> None:
        # The product's jitter is random; the same dice make it the same.
        random.seed(seed)
        self._dice = dice = random.Random(seed)
        self._ground, self._stage = ground, ground.stage
        self.connections = ground.stage.connections
        self.medlock_actions, self.ledger = ground.medlock_actions, ground.ledger
        self.free: list[psycopg.Connection[Any]] = []
        self.chunk = 40
        self.counts: Counter[str] = Counter()
        self.trace: list[str] = []
        self.raws: dict[UUID, Raw] = {}
        self.clock = FakeClock(BEGINNING)
        self._empty()
        self.clinics = Clinics(self._stage.owner)
        self.model = Model(self.clinics)
        self.engine = Engine(self._stage.store, TOKEN, clock=self.clock.monotonic, wall=self.clock.now)
        numbers = range(1, len(ZONES) + 1)
        self._stage.store.put_clinics([(lpu, "clinic", 180) for n in numbers for lpu in (7000 + n, 7100 + n)])
        self._partners = Partners(dice, self.model, self.clock.now, rush)
        self._is_rush = rush > RUSH
        self._clinicians = Clinicians(dice, self.clinics, self.clock.now)
        self._violations: list[str] = []
        self._edits: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()
        self._places: dict[UUID, int] = {}
        self._delivered: Counter[UUID] = Counter()
        self._last_place: dict[int, int] = defaultdict(lambda: -1)
        self._attempts: list[Attempt] = []
        self._told_time: datetime | None = None
        self._held: tuple[psycopg.Connection[Any], int, Row] | None = None
        self._started = 0

    # -- the whole of it ---------------------------------------------------------------------------------------------

    def rage(self, actions: int, *, patience: int = 1) -> Outcome:
        """Let so many actions come, then let everything come to rest, and judge.

        patience: after so many violations it is broken off.
        """
        with self._patched(), psycopg.connect(self._ground.medlock_owner) as other:
            self._other = other
            self._clinicians.begin()
            self._stage.owner.execute("TRUNCATE storm.history")
            self.clinics.log.clear()
            self._first_rows = {id_: dict(row) for id_, row in self.clinics.rows["appointment"].items()}
            self._lane("transfer")
            while len(self.raws) < actions and len(self._violations) < patience:
                self._round(min(actions - len(self.raws), self._dice.randint(30, 100)))
            if len(self._violations) < patience:
                self._come_to_rest()
                self._judge()
        for connection in self.free:
            connection.close()
        reasons = Counter(decision.reason for decision in self.model.decided.values())
        self.counts["effects"] = self.model.effects
        return Outcome(self._violations, self.trace, self.counts, reasons, self._edits, self._odd)

    def blame(self, text: str) -> None:
        """Something is not as it must be."""
        self.trace.append(f"VIOLATED {text}")
        self._violations.append(text)

    def tell_time(self) -> None:
        """Let Medlock's server have the storm's time."""
        if self._told_time != self.clock.time:
            self._told_time = self.clock.time
            self._stage.owner.execute("UPDATE storm.clock SET reading = %s", [self.clock.time])

    def committed(self, attempt: Attempt, judged: Judged) -> None:
        """A transaction of an attempt is committed: a decision, and its effect."""
        if judged.action_id is None or judged.prediction is None or judged.at is None:
            self.blame(f"{attempt.name} has committed a transaction without a decision")
            return
        action_id, prediction = judged.action_id, judged.prediction
        raw = self.raws[action_id]
        if action_id in self.model.decided:
            self.blame(f"{action_id} is decided twice: {self.model.decided[action_id].reason}, {judged.ruling}")
            return
        if prediction.reason != judged.ruling:
            self.blame(f"{attempt.name}: {judged.ruling}, and not {prediction.reason}, is decided about {raw}")
        appointment_id: Any = raw.get("appointment_id")
        # What is told without a look at the appointment waits for nothing that is to happen to it.
        if type(appointment_id) is int and judged.looked:
            if self._places[action_id] < self._last_place[appointment_id]:
                self.blame(f"{action_id} is decided behind one that was delivered later about {appointment_id}")
            self._last_place[appointment_id] = self._places[action_id]
        self.trace.append(f"{attempt.name} decides {action_id}: {judged.ruling} {raw}")
        self.model.decide(action_id, raw, prediction, judged.at, judged.stamp)
        if prediction.values:
            if self.clinics.touched.get(appointment_id, 0) > judged.edits:
                self.blame(f"{attempt.name} has written over what the clinic made of {appointment_id} meanwhile")
            if prediction.times and self.model.collides(appointment_id, self.model.moves[judged.moves :]):
                self.blame(f"{attempt.name} has moved {appointment_id} to where another one was moved meanwhile")

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _round(self, actions: int) -> None:
        dice = self._dice
        self.counts["rounds"] += 1
        self.chunk = dice.choice((4, 20, 60, 100, 100, 100))
        medflex_hook.ACTION_PAGE_SIZE = dice.choice((7, 20, 100, 500))
        self._deliver(actions)
        self._fault()
        agenda = ["read", "apply", "answer", "read", "apply", "apply", "answer", "go on", "go on", "go on"]
        agenda += ["edit"] * dice.randint(3, 8) + ["hold", "mend", "mend"]
        agenda += dice.choice(([], [], ["lane"], ["lane"], ["lane", "lane"]))
        dice.shuffle(agenda)
        for name in agenda:
            getattr(self, f"_do_{name.replace(' ', '_')}")()
            self.clock.sleep(dice.choice((0.1, 1, 3)))
        self._let_go()
        for attempt in self._attempts:
            while not attempt.over:
                if dice.random() < 0.15:
                    attempt.kill()
                else:
                    attempt.go_on()
        self._attempts.clear()
        self.engine.faults.remove(None)
        self.engine.deliver_all()
        self._pass(dice.choices((2, 2 * 60, 20 * 60, 3 * 3600), (2, 5, 2, 1))[0])

    def _pass(self, seconds: float) -> None:
        """Time passes, up to half a minute past a minute: no step of a few milliseconds falls on a full minute."""
        self.clock.sleep(seconds)
        self.clock.time = self.clock.time.replace(second=30, microsecond=0) + timedelta(minutes=1)

    def _deliver(self, number: int) -> None:
        dice = self._dice
        acts = self._partners.act(number)
        earlier = list(self.raws)
        deliveries: list[Raw] = []
        for odd, raw in acts:
            self._odd[odd or "nothing odd"] += 1
            if dice.random() < 0.02:
                raw["id"] = raw["id"].upper()
            deliveries.append(raw)
            if dice.random() < 0.05:
                deliveries.append(raw)
        for _ in range(number // 8 if earlier else 0):
            raw = self.raws[dice.choice(earlier[-60:] if dice.random() < 0.7 else earlier)]
            # Medflex repeats an action as it is; something in between might give its id to another one.
            deliveries.append(raw if dice.random() < 0.8 else self._partners.again(raw))
        for raw in deliveries:
            action_id = UUID(raw["id"])
            self._delivered[action_id] += 1
            if action_id not in self.raws:
                self.raws[action_id] = raw
                self._places[action_id] = len(self._places)
            else:
                self.counts["repeats"] += 1
            self.engine.add_actions([raw], unchecked=True)
        if len(self.raws) < 1500 and dice.random() < 0.1:
            self.counts["cursors lost"] += 1
            self.engine.forget_actions(keep=True)

    def _fault(self) -> None:
        dice = self._dice
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            of_pages = dice.random() < 0.3
            kind, params = dice.choice(_FAULTS_OF_PAGES if of_pages else _FAULTS)
            match = Match(method="GET" if of_pages else None, path_prefix="/actions/")
            times, skip = dice.choice((1, 1, 2, 5)), dice.choice((0, 0, 1, 5, 30))
            self.counts["Medflex faults"] += 1
            self.engine.faults.add(Fault(kind=kind, match=match, times=times, skip=skip, params=Params(**params)))

    def _attempt(self, kind: str) -> None:
        dice = self._dice
        plan: dict[int | tuple[str, int], str] = {}
        if kind == "apply":
            plan = {dice.randrange(300): "edit" for _ in range(dice.randint(0, 24))}
            for _ in range(dice.randint(0, 4)):
                plan[dice.choice(_CRITICAL), dice.randrange(6)] = dice.choice((*PLANS, "pause", "edit", "edit"))
            if self._is_rush:
                plan |= {("medlock.carry_out", number): "pause" for number in range(0, 40, 2)}
        if dice.random() < 0.6:
            most = {"read": 11, "apply": dice.choice((30, 150, 400)), "answer": 20}[kind]
            plan |= {dice.randrange(most): dice.choice(PLANS) for _ in range(dice.randint(1, 3))}
        self._start(kind, plan)

    def _start(self, kind: str, plan: Plan) -> Attempt:
        attempt = Attempt(self, kind, self._started, plan)
        self._started += 1
        self.counts["attempts"] += 1
        self.counts["two at once"] += any(not other.over and other.kind == kind for other in self._attempts)
        self._attempts.append(attempt)
        self._go_on(attempt)
        return attempt

    def _go_on(self, attempt: Attempt) -> None:
        attempt.go_on()
        if not attempt.over and attempt.kind == "apply":
            # The clinic works on what somebody is just deciding about, and so does another attempt.
            for _ in range(self._dice.randint(0, 4)):
                self.edit(attempt.medlock.at_work())
            if self._dice.random() < 0.7 and sum(not other.over for other in self._attempts) < 4:
                self._attempt("apply")

    def _do_read(self) -> None:
        self._attempt("read")

    def _do_apply(self) -> None:
        self._attempt("apply")

    def _do_answer(self) -> None:
        self._attempt("answer")

    def _do_go_on(self) -> None:
        waiting = [attempt for attempt in self._attempts if not attempt.over]
        if waiting:
            self._go_on(self._dice.choice(waiting))

    def _do_edit(self) -> None:
        latest = [raw.get("appointment_id") for raw in list(self.raws.values())[-80:]]
        self.edit([id_ for id_ in latest if type(id_) is int])

    def edit(self, wanted: list[int]) -> None:
        """The clinic's people do something, often to one of these appointments."""
        kind = self._clinicians.edit(wanted)
        self._edits[kind or "not done"] += 1
        self.trace.append(f"edit {kind}")

    def _do_mend(self) -> None:
        self._edits["mended"] += self._clinicians.mend()

    def _do_hold(self) -> None:
        """Somebody at the clinic changes an appointment and takes his time to commit."""
        if self._held is not None:
            self._let_go()
            return
        rows = self.clinics.rows["appointment"]
        wanted = [raw.get("appointment_id") for raw in list(self.raws.values())[-30:]]
        there = [id_ for id_ in wanted if type(id_) is int and id_ in rows]
        if self._dice.random() < 0.5 or not there:
            return
        id_ = self._dice.choice(there)
        values = self._clinicians.opened(rows[id_])
        sets = ", ".join(f"{name} = %s" for name in values)
        try:
            self._other.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'".encode())
            self._other.execute(
                f"UPDATE medlock.appointment SET {sets} WHERE id = %s".encode(), [*values.values(), id_]
            )
        except psycopg.errors.LockNotAvailable:
            self._other.rollback()
            return
        self._held = self._other, id_, values
        self._edits["held open"] += 1

    def _let_go(self) -> None:
        if self._held is not None:
            connection, id_, values = self._held
            connection.commit()
            self.clinics.told("appointment", id_, values)
            self._held = None

    def _do_lane(self) -> None:
        self._lane(self._dice.choice(_LANES))

    def _lane(self, kind: str) -> None:
        """The daily transfer or a withdrawal; replies that are lost on the way are asked for again."""
        if self._dice.random() < 0.3:
            lost = Fault(kind=FaultKind.RESET_AFTER_EFFECT, match=Match(path_prefix="/appointments/"), times=1)
            self.engine.faults.add(lost)
        machine = Machine(self.connections, self.engine, self.clock)
        machine.settings = {"rate_per_second": 0, "batch_size": 50}
        read_at = self.clock.now()
        process = machine.start(kind, product.guarded(kind, "storm"), {})
        self.counts[f"lane {kind}"] += 1
        self.trace.append(f"lane {kind}: {process.result}")
        if process.error is not None:
            self.blame(f"{kind} {process.result}: {process.error}")
        (open_,) = self._stage.ledger.execute(
            "SELECT (SELECT count(*) FROM ledger.batch WHERE outcome IS NULL)"
            " + (SELECT count(*) FROM ledger.record WHERE state IN ('sending', 'withdrawing'))"
        ).fetchone() or (0,)
        if open_:
            self.blame(f"{kind} leaves {open_} records in doubt, of which the model knows nothing: {process.result}")
        shown = [orjson.loads(line) for line in self._stage.store.dump_records(None)]
        self.model.published({(item["lpu_id"], item["record"]["id"]): item["record"] for item in shown}, read_at)

    def _come_to_rest(self) -> None:
        """Everything is well again; what is left is worked off."""
        for _ in range(40):
            attempts = [self._start(kind, {}) for kind in ("read", "apply", "answer")]
            self._pass(120)
            if attempts[0].result.startswith("0 of 0 new") and self._stage.ledger.execute(
                "SELECT count(*) FROM ledger.partner_action WHERE answered_at IS NULL"
            ).fetchone() == (0,):
                break
        for attempt in attempts:
            if "Error" in attempt.result:
                self.blame(f"{attempt.name} is not at rest: {attempt.result}")

    # -- judging -----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        self._judge_decisions()
        self._judge_rows()
        self._judge_history()

    def _judge_decisions(self) -> None:
        """One final word about each action: in the journal, in the ledger, at Medflex and in the model the same."""
        owner = self._stage.owner
        expected = {id_: (item.code, item.reason) for id_, item in self.model.decided.items()}
        journal = {
            row[0]: row[1:]
            for row in owner.execute("SELECT action_id, status_code, reason FROM medlock.partner_action").fetchall()
        }
        rows = self._stage.ledger.execute(
            "SELECT action_id, status_code, reason, answer, deliveries, is_effect FROM ledger.partner_action"
        ).fetchall()
        ledger = {row[0]: row[1:3] for row in rows}
        told = self._stage.store.results()
        answers = {UUID(id_): result["status_code"] for id_, result in told.items()}
        self._compare("decided by the model", expected.keys(), self.raws.keys())
        self._compare("in the journal", journal, expected)
        self._compare("in the ledger", ledger, expected)
        self._compare("told to Medflex", answers, {id_: code for id_, (code, _) in expected.items()})
        for action_id, _, reason, answer, deliveries, is_effect in rows:
            if answer != "taken":
                self.blame(f"Medflex's word on the answer to {action_id} is {answer}")
            if deliveries < self._delivered[action_id]:
                self.blame(f"{action_id} was delivered {self._delivered[action_id]} times, {deliveries} are known")
            if is_effect != (reason == "done"):
                self.blame(f"{action_id} is {reason}, and is_effect is {is_effect}")
        details = defaultdict(set)
        for action_id, (_, reason) in expected.items():
            details[reason].add(told.get(str(action_id), {}).get("detail"))
        secrets = set().union(*(details[reason] for reason in SECRET))
        if len(secrets) > 1:
            self.blame(f"partners can tell refusals apart that must look alike: {secrets}")

    def _judge_rows(self) -> None:
        rows = self._stage.owner.execute(f"SELECT {', '.join(_COLUMNS)} FROM medlock.appointment".encode()).fetchall()
        there = {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in rows}
        expected = {
            id_: {name: row.get(name) for name in _COLUMNS} for id_, row in self.clinics.rows["appointment"].items()
        }
        self._compare("appointments in Medlock", there, expected)

    def _judge_history(self) -> None:
        """Each effect once and with its decision, nothing but what a partner may change, no edit of a clinic lost."""
        names = ("seq", "who", "transaction", "operation", *_COLUMNS)
        rows = [
            dict(zip(names, row, strict=True))
            for row in self._stage.owner.execute(
                f"SELECT {', '.join(names)} FROM storm.history ORDER BY seq".encode()
            ).fetchall()
        ]
        decisions = defaultdict(list)
        for action_id, appointment_id, transaction in self._stage.owner.execute(
            "SELECT action_id, appointment_id, xmin::text::bigint FROM medlock.partner_action WHERE reason = 'done'"
        ).fetchall():
            decisions[transaction].append((action_id, appointment_id))
        state = dict(self._first_rows)
        done: dict[int, list[tuple[str, str, Row]]] = defaultdict(list)
        effects: Counter[int] = Counter()
        for row in rows:
            id_, before = row["id"], state.get(row["id"], {})
            changed = {name: row[name] for name in _COLUMNS if before.get(name) != row[name]}
            done[id_].append((row["who"], row["operation"], {} if row["operation"] == "DELETE" else changed))
            state[id_] = {} if row["operation"] == "DELETE" else {name: row[name] for name in _COLUMNS}
            if row["who"] == PRODUCT:
                effects[row["transaction"]] += 1
                with_it = decisions.get(row["transaction"], [])
                if [appointment_id for _, appointment_id in with_it] != [id_]:
                    self.blame(f"a change of {id_} has {len(with_it)} decisions in its transaction")
                if row["operation"] != "UPDATE" or not changed.keys() <= _WRITABLE:
                    self.blame(f"the product changes {sorted(changed)} of {id_} by {row['operation']}")
        for transaction, items in decisions.items():
            if effects[transaction] != 1:
                self.blame(f"{items} took effect {effects[transaction]} times")
        if sum(effects.values()) != self.model.effects:
            self.blame(f"{sum(effects.values())} effects took place, the model has {self.model.effects}")
        expected = defaultdict(list)
        for id_, log in self.clinics.log.items():
            row = dict(self._first_rows.get(id_, {}))
            for who, operation, values in log:
                changed = {name: value for name, value in values.items() if row.get(name) != value}
                expected[id_].append((who, operation, changed))
                row = {} if operation == "DELETE" else row | values
        self._compare("what was done to appointments", done, expected)
        self.counts["clinics' changes of appointments"] = sum(row["who"] == CLINIC for row in rows)

    def _compare(self, what: str, there: Any, expected: Any) -> None:
        if not hasattr(there, "get") or not hasattr(expected, "get"):
            there, expected = dict.fromkeys(there), dict.fromkeys(expected)
        wrong = [key for key in {**there, **expected} if there.get(key, "-") != expected.get(key, "-")]
        for key in wrong[:3]:
            self.blame(f"{what}: {key} is {there.get(key, '-')}, and not {expected.get(key, '-')}")
        if len(wrong) > 3:
            self.blame(f"{what}: {len(wrong) - 3} more differ")

    # -- setting up --------------------------------------------------------------------------------------------------

    def _empty(self) -> None:
        self._stage.empty()
        self._stage.owner.execute("SET lock_timeout = 0")
        self._stage.owner.execute("TRUNCATE medlock.partner_action, medlock.doctor_schedule, storm.history")
        self._stage.owner.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'".encode())

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Shorter waits for locks, and pages of another size."""
        kept = actions_hook.LOCK_SECONDS, medflex_hook.ACTION_PAGE_SIZE
        machine = Machine(self.connections, self.engine, self.clock)
        try:
            actions_hook.LOCK_SECONDS = LOCK_SECONDS  # type: ignore[assignment]
            with machine.patched(light=True):
                yield
        finally:
            actions_hook.LOCK_SECONDS, medflex_hook.ACTION_PAGE_SIZE = kept


def rage(ground: Ground, seed: int, actions: int, rush: float = RUSH) -> Outcome:
    """One storm from its beginning to its judgement."""
    return Storm(ground, seed, rush).rage(actions)


__all__ = ["CODES", "Outcome", "Storm", "rage"]
