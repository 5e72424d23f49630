"""The product with one of its guards taken out: what a storm must not let pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import medflex.airflow.hooks.medlock_actions as medlock_actions
from medflex.airflow.hooks.medflex import AnswerTaken, MedflexClient, UnknownOutcomeError
from medflex.airflow.hooks.medlock_actions import ActionTransaction, Facts, MedlockActions
from medflex.ledger.store import Ledger


def no_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks the journal, and it takes a second decision about an action."""
    journal = ActionTransaction.journal

    def over_it(transaction: ActionTransaction, action: Any, *more: Any) -> Any:
        forget = "DELETE FROM medlock.partner_action WHERE action_id = %s"
        transaction._cursor.execute(forget, [action.action_id])
        return journal(transaction, action, *more)

    monkeypatch.setattr(MedlockActions, "journalled", lambda *_: {})
    monkeypatch.setattr(ActionTransaction, "journal", over_it)


def journal_in_another_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effect is committed before its decision is written."""
    journal = ActionTransaction.journal

    def later(transaction: ActionTransaction, *arguments: Any) -> Any:
        transaction._cursor.execute("COMMIT")
        transaction._cursor.execute("BEGIN")
        return journal(transaction, *arguments)

    monkeypatch.setattr(ActionTransaction, "journal", later)


def no_look_behind_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An action is judged by what was read when it was prepared."""
    appointments = MedlockActions.appointments
    kept: dict[tuple[int, int], Any] = {}

    def keeping(medlock: MedlockActions, keys: Sequence[tuple[int, int]]) -> Facts:
        facts = appointments(medlock, keys)
        kept.update(facts.rows)
        kept["columns"] = facts.columns  # type: ignore[index]
        return facts

    def stale(_: ActionTransaction, *key: int) -> Facts:
        return Facts(kept["columns"], {key: kept[key]})  # type: ignore[index]

    monkeypatch.setattr(MedlockActions, "appointments", keeping)
    monkeypatch.setattr(ActionTransaction, "appointment", stale)


def no_look_at_permissions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clinic's permissions are those of when the action was prepared."""
    clinics = MedlockActions.clinics
    kept: list[Facts] = []

    def keeping(medlock: MedlockActions, clinic_ids: Sequence[int]) -> Facts:
        kept.append(clinics(medlock, clinic_ids))
        return kept[-1]

    monkeypatch.setattr(MedlockActions, "clinics", keeping)
    monkeypatch.setattr(ActionTransaction, "clinic", lambda *_: kept[-1])


def no_row_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clinic may change an appointment between the judgement and the effect."""
    monkeypatch.setattr(ActionTransaction, "lock", lambda *_: None)


def no_lock_on_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts may move two appointments of a doctor to the same time."""
    query, name = medlock_actions.query, "medlock/actions/lock_people"
    assert "pg_advisory_xact_lock" in query(name)
    without = query(name).replace("pg_advisory_xact_lock", "abs")
    monkeypatch.setattr(medlock_actions, "query", lambda asked: without if asked == name else query(asked))


def cursor_before_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where to read on is written down before what was read."""
    store_actions = Ledger.store_actions

    def in_two(ledger: Ledger, actions: Sequence[Any], place: str | None, run_id: str) -> int:
        store_actions(ledger, [], place, run_id)
        return store_actions(ledger, actions, None, run_id)

    monkeypatch.setattr(Ledger, "store_actions", in_two)


def lost_answers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of which nobody knows whether Medflex has it is not repeated."""
    answer = MedflexClient.answer

    def once(client: MedflexClient, *arguments: Any) -> AnswerTaken:
        try:
            return answer(client, *arguments)
        except UnknownOutcomeError:
            return AnswerTaken.TAKEN

    monkeypatch.setattr(MedflexClient, "answer", once)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    mutation.__name__: mutation
    for mutation in (
        no_arbiter,
        journal_in_another_transaction,
        no_look_behind_the_lock,
        no_look_at_permissions,
        no_row_lock,
        no_lock_on_people,
        cursor_before_page,
        lost_answers_count,
    )
}
