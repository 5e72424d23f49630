"""The product with one of its guards taken out: what the schedules must not let pass."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

import medflex.airflow.loading as loading
import medflex.ledger.store as store
from medflex.errors import LeaseLostError
from medflex.ledger.store import BatchOutcome, Intent, Ledger


def intent_after_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written down when its outcome is known, not before its first byte leaves."""
    record_intent, resolve = Ledger.record_intent, Ledger.resolve
    pending: dict[int, dict[str, Any]] = {}

    def postponed(ledger: Ledger, **batch: Any) -> Intent:
        pending[-len(pending) - 1] = batch
        return Intent(-len(pending), uuid.uuid4())

    def both(ledger: Ledger, batch_id: int, result: BatchOutcome, *more: Any) -> bool:
        try:
            written = record_intent(ledger, **pending[batch_id])
        except LeaseLostError:
            return False
        return resolve(ledger, written.batch_id, result, *more)

    monkeypatch.setattr(Ledger, "record_intent", postponed)
    monkeypatch.setattr(Ledger, "resolve", both)


def key_without_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The idempotency key is made from what is sent, and does not know how often it was sent before."""
    record_intent = Ledger.record_intent

    def by_content(ledger: Ledger, **batch: Any) -> Intent:
        intent = record_intent(ledger, **batch)
        names = ("operation", "lpu_id", "appointment_ids", "digests")
        return Intent(intent.batch_id, uuid.uuid5(uuid.NAMESPACE_URL, str([batch[name] for name in names])))

    monkeypatch.setattr(Ledger, "record_intent", by_content)


def version_without_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again after a withdrawal begins with version 1 again."""
    known = Ledger.known

    def forgetful(ledger: Ledger, *arguments: Any) -> Any:
        records = known(ledger, *arguments)
        return records.assign(version=records["version"].mask(records["state"] == "withdrawn", 0))

    monkeypatch.setattr(Ledger, "known", forgetful)


def no_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read just before sending does not matter."""
    monkeypatch.setattr(loading, "last_look", lambda prepared, *_: [loading.PERMITTED] * len(prepared))


def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever once had a clinic's lease may go on writing for it."""
    query = store.query
    fence = "lease.clinic_id = %(clinic_id)s AND lease.holder = %(holder)s::text AND lease.epoch = %(epoch)s"
    assert fence in query("ledger/record_intent")

    def without(name: str) -> str:
        text = query(name)
        return text.replace(fence, "lease.clinic_id = %(clinic_id)s") if name == "ledger/record_intent" else text

    monkeypatch.setattr(store, "query", without)
    monkeypatch.setattr(loading.Loader, "_require_lease", lambda *_: None)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    mutation.__name__: mutation
    for mutation in (
        intent_after_action,
        key_without_generation,
        version_without_generation,
        no_last_look,
        no_fence,
    )
}
