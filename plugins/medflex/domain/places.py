"""Which row of an answer is whose appointment: by clinic and id, since an id is unique within its clinic only."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Places: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
"""Which rows of a frame; −1: none."""


def places_of(clinic_ids: np.ndarray[Any, Any], appointment_ids: np.ndarray[Any, Any], present: pd.DataFrame) -> Places:
    """For each appointment, given by its clinic and id, which row of ``present`` it is; −1 if none is.

    Args:
        clinic_ids: int64; ``appointment_ids`` runs in parallel with it.
        present: ``clinic_id``, ``appointment_id`` (int64), each pair at most once.
    """
    ids = pd.Index(present["appointment_id"].to_numpy("int64"))
    clinics = present["clinic_id"].to_numpy("int64")
    if ids.is_unique and len(ids):
        at = ids.get_indexer(appointment_ids)
        return np.where((at >= 0) & (clinics[at] == clinic_ids), at, -1)
    # An id that is there twice, in a Medlock that keys otherwise: by pairs, which takes ten times as long.
    index = pd.MultiIndex.from_arrays([clinics, ids])
    return np.asarray(index.get_indexer(pd.MultiIndex.from_arrays([clinic_ids, appointment_ids])))
