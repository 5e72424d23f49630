"""How what Medflex shows differs from what the ledger believes and from what may be shared, cell by cell."""

from __future__ import annotations

from itertools import product

import pytest

from medflex.domain.access import judge_access
from medflex.domain.drift import Believed, Drift, Shown, contract_digest, judge_drift
from medflex.domain.payload import build_payload, to_records
from sandbox.medflex.contract import record_digest
from tests.domain.frames import KEY, NOW, clinics, rows

VERSION = 4
"""The version that the ledger believes in, and that was acknowledged where one was."""
RIGHT, OTHER = "what may be shared", "something else"
SETTLED = ("sent", "aged_out")
STATES = (*SETTLED, "sending", "rejected", "withdrawing", "withdrawn")


def shown(what: str) -> Shown | None:
    """Return what Medflex shows: ``nothing``, or its content and by how much its version is ahead."""
    if what == "nothing":
        return None
    content, ahead = what.split()
    return Shown(VERSION + int(ahead), {"right": RIGHT, "other": OTHER}[content])


def believed(state: str) -> Believed | None:
    """Return what the ledger says; a state with ``open`` is in an intent without outcome."""
    if state == "unknown":
        return None
    name, _, is_open = state.partition(" ")
    acked = VERSION if name in (*SETTLED, "withdrawn") else None
    return Believed(VERSION, name, acked, bool(is_open))


SHOWN = ("nothing", "right -1", "right +0", "right +1", "other -1", "other +0", "other +1")
CELLS: dict[str, Drift | None] = {
    "": None,
    "behind": Drift.LEDGER_BEHIND,
    **{drift.value: drift for drift in Drift if drift is not Drift.LEDGER_BEHIND},
}

# Rows: what Medflex shows. Columns: what the ledger believes. May be shared, and may not be. "" is no drift.
# fmt: off
MAY_BE_SHARED = {
    # shown      unknown    sent       aged_out   sending    rejected   withdrawing withdrawn
    "nothing":  ("",        "missing", "missing", "",        "",        "",         ""),
    # Sending: a newer version is on its way, which only a still newer one settles.
    "right -1": ("behind",  "behind",  "behind",  "",        "behind",  "",         "behind"),
    "right +0": ("behind",  "",        "behind",  "behind",  "behind",  "",         "behind"),
    "right +1": ("behind",  "behind",  "behind",  "behind",  "behind",  "",         "behind"),
    "other -1": ("extra",   "older",   "older",   "",        "",        "",         "extra"),
    "other +0": ("extra",   "",        "",        "",        "",        "",         "extra"),
    "other +1": ("extra",   "newer",   "newer",   "newer",   "newer",   "",         "extra"),
}
MAY_NOT_BE_SHARED = {
    "nothing":  ("",        "gone",    "gone",    "",        "",        "",         ""),
    "right -1": ("extra",   "older",   "older",   "",        "",        "",         "extra"),
    "right +0": ("extra",   "",        "",        "",        "",        "",         "extra"),
    "right +1": ("extra",   "newer",   "newer",   "newer",   "newer",   "",         "extra"),
    "other -1": ("extra",   "older",   "older",   "",        "",        "",         "extra"),
    "other +0": ("extra",   "",        "",        "",        "",        "",         "extra"),
    "other +1": ("extra",   "newer",   "newer",   "newer",   "newer",   "",         "extra"),
}
# fmt: on


@pytest.mark.parametrize(("expected", "table"), [(RIGHT, MAY_BE_SHARED), (None, MAY_NOT_BE_SHARED)])
def test_each_cell(expected: str | None, table: dict[str, tuple[str, ...]]) -> None:
    told = {
        (what, state): judge_drift(shown(what), believed(state), expected)
        for what, state in product(SHOWN, ("unknown", *STATES))
    }
    wanted = {
        (what, state): CELLS[cell]
        for what, cells in table.items()
        for state, cell in zip(("unknown", *STATES), cells, strict=True)
    }
    assert told == wanted


def test_each_kind_is_in_the_tables() -> None:
    kinds = {cell for table in (MAY_BE_SHARED, MAY_NOT_BE_SHARED) for cells in table.values() for cell in cells}
    assert kinds == set(CELLS)


@pytest.mark.parametrize("expected", [RIGHT, None])
def test_what_is_in_an_intent_without_outcome_is_being_dealt_with(expected: str | None) -> None:
    for what, state in product(SHOWN, STATES):
        assert judge_drift(shown(what), believed(f"{state} open"), expected) is None


def test_a_record_that_was_never_acknowledged_at_that_version_is_older() -> None:
    assert judge_drift(Shown(4, OTHER), Believed(4, "sent", 3), RIGHT) is Drift.OLDER
    assert judge_drift(Shown(4, OTHER), Believed(6, "sent", 6), RIGHT) is Drift.OLDER


def test_what_medflex_cannot_tell_the_content_of_is_judged_by_its_version() -> None:
    """A listing without digests: nothing equals what is expected, and what was acknowledged stands."""
    assert judge_drift(Shown(4, "None"), Believed(4, "sent", 4), RIGHT) is None
    assert judge_drift(Shown(4, "None"), Believed(4, "sent", 4), None) is None


def test_each_kind_has_its_line() -> None:
    assert all(drift.description.endswith(".") for drift in Drift)
    assert len({drift.description for drift in Drift}) == len(Drift)


def test_the_digest_is_that_of_the_contract() -> None:
    """Byte for byte what Medflex computes of what it was sent, whatever the version; each field counts."""
    made = rows({}, {"patronymic": None, "entry": "online"}, {"status": "перенос", "first_name": "Zoë \u2028"})
    payload = build_payload(made, judge_access(clinics({"partner_ids": [17, 3]}), NOW), KEY)
    records = to_records(payload, [1, 2**53 + 1, 3])
    assert [contract_digest(record) for record in records] == [record_digest(record) for record in records]
    assert len({contract_digest(record) for record in records}) == 3
    first = records[0]
    assert contract_digest(first | {"version": 99}) == contract_digest(first)
    for name in first.keys() - {"version"}:
        assert contract_digest(first | {name: "?"}) != contract_digest(first), name
