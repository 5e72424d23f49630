"""One attempt of a task of ``medflex_partner_actions``: it stands still, loses a connection or dies at any step.

Like :mod:`tests.faults.machine`: one thread, an attempt is a greenlet, and what a dead one tries has no effect.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import greenlet
import psycopg

from medflex.airflow.acting import ActionReader, Actor, Answerer
from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings
from medflex.airflow.hooks.medlock_actions import ActionTransaction, MedlockActions
from medflex.errors import LedgerUnavailableError, MedflexPipelineError, MedlockUnavailableError
from medflex.ledger.store import Ledger
from sandbox.medflex.engine import Engine
from sandbox.medflex.inprocess import EngineAdapter
from tests.faults.actions.model import Clinics, Look, Model, Prediction
from tests.faults.machine import BASE_URL, TOKEN, Connections, Crash, FakeClock
from tests.faults.product import DIGEST_KEY

STEP_SECONDS = 0.001
PLANS = ("pause", "pause", "crash", "crash", "lose")
"""What can happen at a step; and ``edit``: the clinic changes what is being decided about."""

Plan = Mapping[int | tuple[str, int], str]


class Stormy(Protocol):
    """What an attempt needs of the storm that it is in."""

    engine: Engine
    clock: FakeClock
    model: Model
    clinics: Clinics
    counts: Counter[str]
    trace: list[str]
    raws: dict[UUID, dict[str, Any]]
    connections: Connections
    free: list[psycopg.Connection[Any]]
    medlock_actions: str
    ledger: str
    chunk: int

    def blame(self, text: str) -> None: ...
    def tell_time(self) -> None: ...
    def committed(self, attempt: Attempt, judged: Judged) -> None: ...
    def edit(self, wanted: list[int]) -> None: ...


@dataclass(frozen=True)
class Judged:
    """An action that is being decided: what must come out, and what has.

    edits, moves: how many changes of the clinics and moves of partners there were when it was judged, and its slot.
    looked: whether its appointment was looked at behind a lock.
    """

    action_id: UUID | None = None
    prediction: Prediction | None = None
    ruling: str = ""
    at: datetime | None = None
    stamp: datetime | None = None
    edits: int = 0
    moves: int = 0
    looked: bool = False


class Attempt:
    """An attempt to read, to apply or to answer.

    plan: step, or name of a step and how many of its name came before → one of ``PLANS`` or ``edit``, which happens in
    front of the step. Each commit has a step in front of it and one behind it.
    """

    def __init__(self, storm: Stormy, kind: str, number: int, plan: Plan) -> None:
        self.storm, self.kind, self.name = storm, kind, f"{kind}#{number}"
        self._plan = dict(plan)
        self._steps = 0
        self._named: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._parent = greenlet.getcurrent()
        self.dead = self.over = False
        self.result = ""
        self.error: BaseException | None = None
        self.look = Look({}, {})
        self._on_commit: Callable[[], None] = _nothing
        self._real_ledger = Ledger(storm.ledger, now=storm.clock.now)
        storm.connections.lend(self._real_ledger, storm.ledger)
        self._real_medlock = MedlockActions(storm.medlock_actions)
        if storm.free:
            self._real_medlock._connection = storm.free.pop()
        self.ledger = self._stepped_ledger()
        self.medlock: Any = _Medlock(self, self._real_medlock)
        self._greenlet = greenlet.greenlet(self._run)

    # -- running -----------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Run until the end, death or the next pause."""
        self._parent = greenlet.getcurrent()
        self._greenlet.parent = self._parent
        self._greenlet.switch()
        if self._greenlet.dead and not self.over:
            self._end()

    def step(self, kind: str, name: str, *, may_pause: bool = True) -> None:
        """Something is about to happen."""
        if self.dead:
            raise Crash
        number, self._steps = self._steps, self._steps + 1
        self.storm.clock.sleep(STEP_SECONDS)
        action = self._plan.get((f"{kind}.{name}", self._named[f"{kind}.{name}"])) or self._plan.get(number, "")
        self._named[f"{kind}.{name}"] += 1
        if action in ("pause", "edit") and (not may_pause or threading.get_ident() != self._thread):
            action = ""
        self.storm.trace.append(f"{self.name} {number} {kind}.{name} {action}".rstrip())
        if action:
            self.storm.counts[action] += 1
        if action == "pause":
            self._parent.switch()
            if self.dead:
                raise Crash
        elif action == "edit":
            self.storm.edit(self.medlock.at_work())
        elif action == "crash":
            self.dead = True
            raise Crash
        elif action == "lose":
            self._lose(kind)

    def kill(self) -> None:
        """Let it die where it stands."""
        if not self.over:
            self.dead = True
            self.storm.counts["crash"] += 1
            self.go_on()

    def _lose(self, kind: str) -> None:
        if kind == "ledger":
            raise LedgerUnavailableError("The connection was lost.")
        if kind == "medlock":
            raise MedlockUnavailableError("The connection was lost.")
        # Medflex loses connections by itself: see the storm's faults.

    def _run(self) -> None:
        try:
            self.result = getattr(self, f"_{self.kind}")()
        except Crash:
            self.result = "crashed"
        except MedflexPipelineError as error:
            self.result = f"{type(error).__name__}: {error}"
        except Exception as error:
            self.result, self.error = f"failed with {type(error).__name__}", error

    def _end(self) -> None:
        self.over = True
        self.storm.trace.append(f"{self.name} ends: {self.result}")
        if self.error is not None:
            self.storm.blame(f"{self.name} {self.result}: {self.error}")
        self.storm.connections.take_back(self._real_ledger, self.storm.ledger)
        mine = self._real_ledger._connections.mine
        for other in self._real_ledger._connections._of.values():
            if other is not mine:
                other.close()
        connection = self._real_medlock._connection
        idle = psycopg.pq.TransactionStatus.IDLE
        if connection is not None and not connection.closed and connection.info.transaction_status == idle:
            self.storm.free.append(connection)
        self._real_medlock._connection = None

    # -- what its task does ------------------------------------------------------------------------------------------

    def _read(self) -> str:
        reader = ActionReader(client=self._client(), ledger=self.ledger, clock=self.storm.clock, jitter=_always)
        result = reader.read(self.name)
        return f"{result.new} of {result.entries} new; {type(result.problem).__name__}"

    def _apply(self) -> str:
        actor = _Actor(
            medlock=self.medlock,
            ledger=self.ledger,
            clock=self.storm.clock,
            digest_key=DIGEST_KEY,
            run_id=self.name,
        )
        result = actor.apply(self.storm.chunk)
        self.storm.counts["waited"] += result.waiting
        return f"{result.numbers()} problems {[type(problem).__name__ for problem in result.problems]}"

    def _answer(self) -> str:
        answerer = Answerer(client=self._client(), ledger=self.ledger, clock=self.storm.clock, jitter=_always)
        result = answerer.answer(self.name, chunk=self.storm.chunk)
        return f"{dict(result.answers)} problems {[type(problem).__name__ for problem in result.problems]}"

    # -- its parts ---------------------------------------------------------------------------------------------------

    def _client(self) -> MedflexClient:
        client = MedflexClient(MedflexSettings(BASE_URL, TOKEN, parallel=1, attempts=3, rate_per_second=0))
        adapter = _Adapter(self)

        def session() -> Any:
            # Sessions are per thread, and answers are told from threads of their own.
            made = MedflexClient._session(client)
            if made.adapters.get(BASE_URL) is not adapter:
                made.mount(BASE_URL, adapter)
            return made

        client._session = session  # type: ignore[method-assign]
        return client

    def _stepped_ledger(self) -> Any:
        ledger = self._real_ledger
        plain, standings = ledger._transaction, ledger.standings

        @contextmanager
        def transaction() -> Iterator[Any]:
            self.step("ledger", "begin")
            with plain() as cursor:
                yield cursor
                # Somebody who stands still here would hold locks for which nobody else has a time-out.
                self.step("ledger", "commit", may_pause=False)
            self._on_commit()
            # What partners have been shown and what Medflex shows are two looks: nobody sends between them.
            self.step("ledger", "committed", may_pause=self._on_commit is _nothing)

        def looking(*arguments: Any) -> Any:
            model = self.storm.model
            # Seen at the commit: what happens while the attempt stands still behind it is not known to it.
            self._on_commit = lambda: self._look(shown=dict(model.shown), made=dict(model.made))
            try:
                return standings(*arguments)
            finally:
                self._on_commit = _nothing

        ledger._transaction = transaction  # type: ignore[method-assign]
        ledger.standings = looking  # type: ignore[assignment, method-assign]
        return ledger

    def _look(self, **seen: Any) -> None:
        self.look = replace(self.look, **seen)


class _Actor(Actor):
    """Says which action it decides about: its transaction is told the appointment only."""

    def _rule(self, transaction: Any, item: Any) -> Any:
        transaction.judged = replace(transaction.judged, action_id=item.action.action_id)
        return super()._rule(transaction, item)


class _Medlock:
    """Medlock as an attempt writes it: each call is a step."""

    def __init__(self, attempt: Attempt, part: MedlockActions) -> None:
        self._attempt, self._part = attempt, part
        self._asked: set[int] = set()
        self.locked: int | None = None

    def at_work(self) -> list[int]:
        """The appointment that is just being decided about, or all about which something is to be decided."""
        return [self.locked] if self.locked else sorted(self._asked)

    def journalled(self, action_ids: list[UUID]) -> Any:
        for action_id in action_ids:
            appointment_id = self._attempt.storm.raws[action_id].get("appointment_id")
            if isinstance(appointment_id, int):
                self._asked.add(appointment_id)
        return self._read("journalled", action_ids)

    def clinics_of(self, lpu_ids: Any) -> Any:
        found = self._read("clinics_of", lpu_ids)
        self._attempt._look(clinic_of=self._attempt.storm.model.clinic_of())
        return found

    def appointments(self, keys: Any) -> Any:
        found = self._read("appointments", keys)
        clinics = self._attempt.storm.clinics
        self._attempt._look(there=self._attempt.storm.model.there(), edits=clinics.edits)
        return found

    def clinics(self, clinic_ids: Any) -> Any:
        return self._read("clinics", clinic_ids)

    def _read(self, name: str, *arguments: Any) -> Any:
        self._attempt.step("medlock", name)
        return getattr(self._part, name)(*arguments)

    @contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        attempt = self._attempt
        attempt.step("medlock", "begin")
        try:
            with self._part.transaction() as real:
                made = _Transaction(attempt, real)
                yield made
                attempt.step("medlock", "commit")
        finally:
            self.locked = None
        attempt.storm.committed(attempt, made.judged)
        attempt.step("medlock", "committed")


class _Transaction:
    """A transaction of an attempt: the model judges at the same moments."""

    def __init__(self, attempt: Attempt, real: ActionTransaction) -> None:
        self._attempt, self._real = attempt, real
        self.judged = Judged()

    def lock(self, clinic_id: int, appointment_id: int) -> None:
        self._attempt.step("medlock", "lock")
        self._real.lock(clinic_id, appointment_id)
        self.judged = replace(self.judged, looked=True)
        self._attempt.medlock.locked = appointment_id

    def appointment(self, *key: int) -> Any:
        self._attempt.step("medlock", "appointment")
        return self._real.appointment(*key)

    def clinic(self, clinic_id: int) -> Any:
        # What the clinic's people do to patients in front of this was not seen any more by the step before.
        self._attempt.step("medlock", "clinic", may_pause=False)
        found = self._real.clinic(clinic_id)
        self._predict()
        storm, action_id = self._attempt.storm, self.judged.action_id
        assert action_id is not None
        touched = storm.clinics.touched.get(storm.raws[action_id]["appointment_id"], 0)
        storm.counts["changed between preparing and deciding"] += touched > self._attempt.look.edits
        return found

    def slot(self, clinic_id: int, appointment_id: int, *more: Any) -> Any:
        storm = self._attempt.storm
        self._attempt.step("medlock", "slot")
        found = self._real.slot(clinic_id, appointment_id, *more)
        if self.judged.prediction is not None:
            prediction = storm.model.judge_slot(appointment_id, self.judged.prediction)
            self.judged = replace(self.judged, prediction=prediction, moves=len(storm.model.moves))
        return found

    def carry_out(self, *arguments: Any) -> Any:
        self._attempt.step("medlock", "carry_out")
        self._attempt.storm.tell_time()
        self.judged = replace(self.judged, stamp=self._attempt.storm.clock.now())
        return self._real.carry_out(*arguments)

    def journal(self, action: Any, clinic_id: int | None, ruling: Any, *more: Any) -> Any:
        storm = self._attempt.storm
        if self.judged.prediction is None:
            self._predict()
        self._attempt.step("medlock", "journal")
        storm.tell_time()
        self.judged = replace(self.judged, ruling=ruling.value, at=storm.clock.now())
        return self._real.journal(action, clinic_id, ruling, *more)

    def _predict(self) -> None:
        storm, action_id = self._attempt.storm, self.judged.action_id
        assert action_id is not None
        prediction = storm.model.judge(storm.raws[action_id], self._attempt.look, storm.clock.now())
        self.judged = replace(self.judged, prediction=prediction, edits=storm.clinics.edits)


class _Adapter(EngineAdapter):
    """Carries an attempt's requests to Medflex."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt.storm.engine, attempt.storm.clock.sleep)
        self._attempt = attempt

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        # Without the cursor, which is another one each time.
        self._attempt.step("medflex", str(request.path_url).partition("?")[0])
        try:
            return super().send(request, *args, **kwargs)
        except Exception:
            self._attempt.storm.counts["lost Medflex replies"] += 1
            raise


def _nothing() -> None:
    """Nobody has to hear of this."""


def _always() -> float:
    return 1.0
