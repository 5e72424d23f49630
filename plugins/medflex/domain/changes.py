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


def plan_changes(eligible: pd.DataFrame, known: pd.DataFrame, resync: bool) -> pd.DataFrame:
    """Compare eligible records with the ledger.

    eligible: clinic_id, id int64, digest int64. known: the ledger's records, clinic_id, appointment_id int64,
    acked_digest Int64 (missing if nothing is acknowledged), state str; a record at most once, else ValueError.
    resync: send all again, also what has not changed.

    Returns clinic_id, id and change (categorical of Change), one row per eligible record with its index:

    - ``retry``: the last word about it is still open, or was a refusal (sending, rejected, withdrawing);
    - ``new``: never acknowledged, or withdrawn since;
    - ``unchanged``: sent, acknowledged with this digest, and no resync;
    - ``changed``: all else, also a record that comes back into the window (aged_out).
    """
    keys, known_keys = _keys(eligible, known)
    index = pd.Index(known_keys)
    if not index.is_unique:
        raise ValueError("The ledger gave a record twice: a record is one clinic and one appointment.")
    position = index.get_indexer(pd.Index(keys))

    state = known["state"].array
    as_known = np.full(len(known) + 1, _CHANGED, dtype=np.int8)
    as_known[:-1][known["acked_digest"].array.isna() | state.isin(["withdrawn"])] = _NEW
    as_known[:-1][state.isin(list(_AGAIN))] = _RETRY
    as_known[-1] = _NEW  # Position −1: the ledger does not know it.
    change = as_known[position]
    if not resync:
        acked = np.append(known["acked_digest"].to_numpy(dtype="int64", na_value=0), 0)
        sent = np.append(state.isin(["sent"]), False)
        same = acked[position] == eligible["digest"].to_numpy("int64")
        change[(change == _CHANGED) & sent[position] & same] = _UNCHANGED
    return pd.DataFrame(
        {
            "clinic_id": eligible["clinic_id"].array,
            "id": eligible["id"].array,
            "change": pd.Categorical.from_codes(change, dtype=_CHANGES),
        },
        index=eligible.index,
    )


def _keys(eligible: pd.DataFrame, known: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One integer per record for both frames, equal only for the same clinic and appointment."""
    clinic, clinics = pd.factorize(
        np.concatenate([eligible["clinic_id"].to_numpy("int64"), known["clinic_id"].to_numpy("int64")])
    )
    ids = np.concatenate([eligible["id"].to_numpy("int64"), known["appointment_id"].to_numpy("int64")])
    lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if (highest - lowest + 1) * len(clinics) >= 2**63:  # Ids too far apart to number them as they are.
        ids, distinct = pd.factorize(ids)
        lowest, highest = 0, len(distinct) - 1
    keys = clinic * (highest - lowest + 1) + (ids - lowest)
    return keys[: len(eligible)], keys[len(eligible) :]
