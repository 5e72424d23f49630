"""The columns of what the ledger returns as frames have their types whether or not there is a row."""

from __future__ import annotations

import pandas as pd
import pytest

from medflex.arrow import of_types
from medflex.domain.revocations import REVOCATION_COLUMNS, empty_revocations
from medflex.ledger.store import Ledger

IDS = {"clinic_id": "int64", "appointment_id": "int64", "lpu_id": "int64"}


def types_of(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def test_a_frame_that_has_its_types_is_not_copied() -> None:
    frame = pd.DataFrame({"id": [1], "state": pd.array(["sent"], dtype="str"), "else": [1.5]})
    assert of_types(frame, {"id": "int64", "state": "str"}) is frame


@pytest.mark.parametrize("values", [[], [1, 2]])
def test_a_column_of_another_type_gets_its_own(values: list[int]) -> None:
    frame = pd.DataFrame({"id": pd.Series(values, dtype=object), "state": pd.Series(values, dtype=object)})
    assert types_of(of_types(frame, {"id": "int64", "state": "str"})) == {"id": "int64", "state": "str"}


def test_a_missing_number_is_an_error_and_never_a_float() -> None:
    with pytest.raises((TypeError, ValueError)):
        of_types(pd.DataFrame({"id": [1, None]}), {"id": "int64"})


def test_without_a_row_the_types_are_the_same(ledger: Ledger) -> None:
    assert types_of(ledger.known([1])).items() >= {**IDS, "version": "int64", "state": "str"}.items()
    assert (
        types_of(ledger.live([1])).items() >= {**IDS, "version": "int64", "state": "str", "partner_ids": "str"}.items()
    )
    assert types_of(ledger.open_revocations([1])).items() >= IDS.items()


def test_revocations_without_a_row_have_their_types() -> None:
    types = {"reason": "str", "by_absence": "bool", "revoked_at": "datetime64[us, UTC]"}
    assert types_of(empty_revocations()) == {name: types.get(name, "int64") for name in REVOCATION_COLUMNS}
