"""What of the eligible records has to be sent: the difference to what Medflex acknowledged."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd


class Change(StrEnum):
    """Why a record is sent, or that it need not be."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    RETRY = "retry"


_NEW, _CHANGED, _UNCHANGED, _RETRY = range(4)
_CHANGES = pd.CategoricalDtype([change.value for change in Change])

_AGAIN = ("sending", "rejected", "withdrawing")
"""Ledger states in which it is not settled what Medflex has, or settled that it has not what it should."""


class Known:
    """What the ledger knows of records, for eligible ones to be compared with part by part.

    known: clinic_id, appointment_id int64, acked_digest Int64 (missing if nothing is acknowledged), state str; a record
    at most once, else ValueError. Nothing of the frame is held.
    """

    def __init__(self, known: pd.DataFrame) -> None:
        clinic_ids, ids = (known[name].to_numpy("int64") for name in ("clinic_id", "appointment_id"))
        # Sorted, not hashed: an index of a million records takes three times the memory.
        order = np.lexsort((clinic_ids, ids))
        self._clinic_ids, self._ids = clinic_ids[order], ids[order]
        if ((self._ids[1:] == self._ids[:-1]) & (self._clinic_ids[1:] == self._clinic_ids[:-1])).any():
            raise ValueError("The ledger gave a record twice: a record is one clinic and one appointment.")
        state = known["state"].array
        change = np.full(len(known), _CHANGED, dtype=np.int8)
        change[known["acked_digest"].array.isna() | state.isin(["withdrawn"])] = _NEW
        change[state.isin(list(_AGAIN))] = _RETRY
        # Position −1, the ledger does not know it, is the appended one.
        self._change = np.append(change[order], np.int8(_NEW))
        self._sent = np.append(state.isin(["sent"])[order], False)
        self._acked = np.append(known["acked_digest"].to_numpy(dtype="int64", na_value=0)[order], 0)

    def compare(self, eligible: pd.DataFrame, resync: bool) -> pd.DataFrame:
        """Tell what of these records has to be sent; see :func:`plan_changes`."""
        position = self._positions(*(eligible[name].to_numpy("int64") for name in ("clinic_id", "id")))
        change = self._change[position]
        if not resync:
            same = self._acked[position] == eligible["digest"].to_numpy("int64")
            change[(change == _CHANGED) & self._sent[position] & same] = _UNCHANGED
        return pd.DataFrame(
            {
                "clinic_id": eligible["clinic_id"].array,
                "id": eligible["id"].array,
                "change": pd.Categorical.from_codes(change, dtype=_CHANGES),
            },
            index=eligible.index,
        )

    def _positions(self, clinic_ids: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """For each record, where it is among those that are known; −1 if it is not."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        last = len(self._ids) - 1
        low, end = np.searchsorted(self._ids, ids, "left"), np.searchsorted(self._ids, ids, "right")
        high = end
        # Clinics that have the same id lie in their order: halved until the place of ours is left.
        while (more := low < high).any():
            middle = np.minimum((low + high) // 2, last)
            before = self._clinic_ids[middle] < clinic_ids
            low, high = np.where(more & before, middle + 1, low), np.where(more & ~before, middle, high)
        found = (low < end) & (self._clinic_ids[np.minimum(low, last)] == clinic_ids)
        return np.where(found, low, -1)


def plan_changes(eligible: pd.DataFrame, known: pd.DataFrame, resync: bool) -> pd.DataFrame:
    """Compare eligible records with the ledger.

    eligible: clinic_id, id int64, digest int64. known: the ledger's records, as for :class:`Known`. resync: send all
    again, also what has not changed.

    Returns clinic_id, id and change (categorical of Change), one row per eligible record with its index:

    - ``retry``: the last word about it is still open, or was a refusal (sending, rejected, withdrawing);
    - ``new``: never acknowledged, or withdrawn since;
    - ``unchanged``: sent, acknowledged with this digest, and no resync;
    - ``changed``: all else, also a record that comes back into the window (aged_out).
    """
    return Known(known).compare(eligible, resync)
