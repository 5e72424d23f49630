"""The product with one of its guards taken out: what the schedules must not let pass."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import medflex.airflow.loading as loading
import medflex.airflow.writing as writing
import medflex.ledger.connection as connection
from medflex.ledger.store import BatchContent, Intent, Ledger, Resolution


def intent_after_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written down when its outcome is known, not before its first byte leaves."""
    record_intents, resolve_together = Ledger.record_intents, Ledger.resolve_together
    pending: dict[int, BatchContent] = {}

    def postponed(ledger: Ledger, batches: Sequence[BatchContent]) -> list[Intent | None]:
        intents: list[Intent | None] = []
        for batch in batches:
            pending[-len(pending) - 1] = batch
            intents.append(Intent(-len(pending), uuid.uuid4()))
        return intents

    def both(ledger: Ledger, resolutions: Sequence[Resolution]) -> list[bool]:
        resolved = []
        for resolution in resolutions:
            (written,) = record_intents(ledger, [pending[resolution.batch_id]])
            resolved += (
                resolve_together(ledger, [replace(resolution, batch_id=written.batch_id)]) if written else [False]
            )
        return resolved

    monkeypatch.setattr(Ledger, "record_intents", postponed)
    monkeypatch.setattr(Ledger, "resolve_together", both)


def key_without_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The idempotency key is made from what is sent, and does not know how often it was sent before."""
    record_intents = Ledger.record_intents

    def by_content(ledger: Ledger, batches: Sequence[BatchContent]) -> list[Intent | None]:
        intents = record_intents(ledger, batches)
        contents = [
            str((batch.operation, batch.lpu_id, list(batch.appointment_ids), _listed(batch.digests)))
            for batch in batches
        ]
        return [
            intent and Intent(intent.batch_id, uuid.uuid5(uuid.NAMESPACE_URL, content))
            for intent, content in zip(intents, contents, strict=True)
        ]

    monkeypatch.setattr(Ledger, "record_intents", by_content)


def _listed(ids: Any) -> list[int] | None:
    return None if ids is None else list(ids)


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


def old_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at may leave whenever it gets round to it."""
    monkeypatch.setattr(writing, "LOOK_SECONDS", float("inf"))


def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever once had a clinic's lease may go on writing for it."""
    query = connection.query
    fence = "lease.clinic_id = %(clinic_id)s AND lease.holder = %(holder)s::text AND lease.epoch = %(epoch)s"
    assert fence in query("ledger/record_intent")

    def without(name: str) -> str:
        text = query(name)
        return text.replace(fence, "lease.clinic_id = %(clinic_id)s") if name == "ledger/record_intent" else text

    monkeypatch.setattr(connection, "query", without)
    monkeypatch.setattr(loading.Loader, "_require_lease", lambda *_: None)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    mutation.__name__: mutation
    for mutation in (
        intent_after_action,
        key_without_generation,
        version_without_generation,
        no_last_look,
        old_look,
        no_fence,
    )
}
