"""What the tasks of all DAGs share: the parameters of a run, checked before anything happens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medflex.airflow.tasks import transfer
from medflex.airflow.tasks.parts import clinic_ids_of, parameters_of
from medflex.errors import BadParameterError


def context(params: dict[str, Any], conf: dict[str, Any] | None = None) -> Any:
    return {"params": params, "dag_run": SimpleNamespace(conf=conf)}


def test_what_was_asked_for_counts_before_the_default() -> None:
    known = {"mode": "", "clinic_ids": ""}
    assert parameters_of(context({"mode": "transfer"}, {"mode": "plan"}), known) == {"mode": "plan"}
    assert parameters_of(context({}, None), known) == {}


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ({"mode": ""}, "This DAG has no parameter dry, mdoe: it knows mode."),
        ({"mode": "plan or transfer"}, "This DAG has no parameter dry, mdoe: it knows mode (plan or transfer)."),
        ({"mode": "", "days": "1 to 9"}, "This DAG has no parameter dry, mdoe: it knows mode and days (1 to 9)."),
        ({"a": "", "b": "", "c": ""}, "This DAG has no parameter dry, mdoe: it knows a, b and c."),
    ],
)
def test_an_unknown_parameter_is_told_with_those_that_there_are(known: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadParameterError) as error:
        parameters_of(context({"mdoe": "plan"}, {"dry": True}), known)
    assert str(error.value) == sentence


def test_clinics_come_once_and_in_order() -> None:
    assert clinic_ids_of({"clinic_ids": [3, 1, 3, 2**63 - 1]}) == [1, 3, 2**63 - 1]
    assert clinic_ids_of({"clinic_ids": None}) is clinic_ids_of({}) is None


@pytest.mark.parametrize("value", [[], 3, "3", (3,), {"3": 3}, ["3"], [True], [1.0], [None], [2**63], [-(2**63) - 1]])
def test_whatever_is_no_list_of_ids_is_refused(value: object) -> None:
    with pytest.raises(BadParameterError, match="clinic_ids must be a list of Medlock's clinic ids"):
        clinic_ids_of({"clinic_ids": value})


@pytest.mark.parametrize(
    ("params", "accepted"),
    [
        ({}, False),
        ({"accept_row_counts": True}, True),
        ({"clinic_ids": [1]}, True),
        ({"clinic_ids": [1], "accept_row_counts": False}, False),
        ({"clinic_ids": [1], "accept_row_counts": True}, True),
    ],
)
def test_who_names_clinics_accepts_their_numbers_of_rows_unless_told_otherwise(
    params: dict[str, Any], accepted: bool
) -> None:
    assert transfer._parameters(context(params)) == ("transfer", params.get("clinic_ids"), accepted)


@pytest.mark.parametrize("value", [0, 1, "false", []])
def test_row_counts_are_accepted_by_a_clear_word_only(value: object) -> None:
    # Where Airflow does not merge a run's conf into its params, nothing has looked at the value before.
    with pytest.raises(BadParameterError, match="accept_row_counts must be true, false or empty"):
        transfer._parameters(context({}, {"clinic_ids": [1], "accept_row_counts": value}))
