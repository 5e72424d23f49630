"""Records by columns. Batches have some hundred rows, and a frame of so few costs more than what is done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Array: TypeAlias = "np.ndarray[Any, Any]"


class Columns:
    """Some arrays of one length: NumPy's, or Arrow's where long texts are only passed on. Not changed in place.

    Args:
        of: the arrays by their names, at least one.
    """

    def __init__(self, of: Mapping[str, Any]) -> None:
        self._of = dict(of)

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> Columns:
        """Return a frame's columns."""
        return cls({str(name): frame[name].to_numpy() for name in frame.columns})

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Return parts with the same columns one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls({name: _joined([part[name] for part in parts]) for name in parts[0]._of})

    def __len__(self) -> int:
        return len(next(iter(self._of.values())))

    def __getitem__(self, name: str) -> Any:
        return self._of[name]

    def cut(self, start: int, end: int) -> Columns:
        """Return the records from ``start`` on and before ``end``; they share memory with these."""
        return Columns({name: array[start:end] for name, array in self._of.items()})

    def take(self, places: Array) -> Columns:
        """Return a copy of the records at these places, in their order."""
        return Columns(
            {
                name: pc.take(array, pa.array(places)) if isinstance(array, pa.Array) else array[places]
                for name, array in self._of.items()
            }
        )

    def keep(self, mask: Array) -> Columns:
        """Return a copy of the records for which ``mask`` is true."""
        return self.take(np.flatnonzero(mask))

    def copy(self) -> Columns:
        """Return a copy that holds nothing but these records in memory."""
        return self.take(np.arange(len(self)))

    def by(self, name: str, then: str) -> Iterator[tuple[int, Columns]]:
        """Yield the records of each value of an integer column, in its order, and those in the order of ``then``."""
        if not len(self):
            return
        order = np.lexsort((self[then], self[name]))
        values = self[name][order]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]).tolist()
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
            # Of their own: who holds those of one value holds nothing of the others in memory.
            yield int(values[start]), self.take(order[start:end])


def _joined(arrays: Sequence[Any]) -> Any:
    return pa.concat_arrays(arrays) if isinstance(arrays[0], pa.Array) else np.concatenate(arrays)
