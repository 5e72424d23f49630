"""The funnel's equations: whole when all hold, told one by one when they do not."""

from __future__ import annotations

from dataclasses import fields, replace

import pandas as pd
import pytest

from medflex.domain.funnel import NUMBERS, Funnel

WHOLE = Funnel(
    extracted=1000, eligible=700, withheld=250, quarantined=50, unknown_statuses=4,
    new=100, changed=30, again=20, unchanged=550, planned=150,
    accepted=120, rejected=12, to_retry=8, unknown=6, dropped=4,
    revoked=90, withdrawn=50, withdraw_to_retry=9, withdraw_unknown=7, permitted_again=4, held=20,
)  # fmt: skip


def test_a_whole_funnel_breaks_no_equation() -> None:
    assert WHOLE.violations() == []
    assert Funnel().violations() == []


EXTRACTED = "extracted = eligible + withheld + quarantined does not hold: {} ≠ {}"
ELIGIBLE = "eligible = unchanged + planned does not hold: {} ≠ {}"
PLANNED = "planned = new + changed + again does not hold: {} ≠ {}"
SENT = "planned = accepted + rejected + to_retry + unknown + dropped does not hold: {} ≠ {}"


@pytest.mark.parametrize(
    ("name", "violations"),
    [
        ("extracted", [EXTRACTED.format(1001, 1000)]),
        ("eligible", [EXTRACTED.format(1000, 1001), ELIGIBLE.format(701, 700)]),
        ("withheld", [EXTRACTED.format(1000, 1001)]),
        ("quarantined", [EXTRACTED.format(1000, 1001)]),
        ("unchanged", [ELIGIBLE.format(700, 701)]),
        ("planned", [ELIGIBLE.format(700, 701), PLANNED.format(151, 150), SENT.format(151, 150)]),
        ("new", [PLANNED.format(150, 151)]),
        ("changed", [PLANNED.format(150, 151)]),
        ("again", [PLANNED.format(150, 151)]),
        ("accepted", [SENT.format(150, 151)]),
        ("rejected", [SENT.format(150, 151)]),
        ("to_retry", [SENT.format(150, 151)]),
        ("unknown", [SENT.format(150, 151)]),
        ("dropped", [SENT.format(150, 151)]),
        # Counted beside the others: a record with such a status is eligible like any other.
        ("unknown_statuses", []),
    ],
)
def test_one_record_too_many_is_told_with_both_numbers(name: str, violations: list[str]) -> None:
    assert replace(WHOLE, **{name: getattr(WHOLE, name) + 1}).violations() == violations


def test_each_number_is_covered() -> None:
    assert {field.name for field in fields(Funnel)} == set(NUMBERS)
    assert all(getattr(WHOLE, name) for name in NUMBERS), "a number that is nothing proves nothing"


WITHDRAWN = "revoked = withdrawn + withdraw_to_retry + withdraw_unknown + permitted_again + held does not hold: {} ≠ {}"


@pytest.mark.parametrize("name", ["withdrawn", "withdraw_to_retry", "withdraw_unknown", "permitted_again", "held"])
def test_what_was_revoked_has_to_have_come_to_an_end(name: str) -> None:
    assert WHOLE.withdrawal_violations() == []
    assert replace(WHOLE, **{name: getattr(WHOLE, name) + 1}).withdrawal_violations() == [WITHDRAWN.format(90, 91)]
    # Withdrawals are a lane of their own: they break no equation of the sending.
    assert replace(WHOLE, **{name: 0}).violations() == []
    assert replace(WHOLE, revoked=91).withdrawal_violations() == [WITHDRAWN.format(91, 90)]


def test_a_plan_sends_nothing_and_is_whole_all_the_same() -> None:
    plan = replace(WHOLE, accepted=0, rejected=0, to_retry=0, unknown=0, dropped=0)
    assert plan.violations(loaded=False) == []
    assert plan.violations() == [SENT.format(150, 0)]
    # The equations before the sending hold for a plan as for any run.
    assert replace(plan, unchanged=0, new=0).violations(loaded=False) == [
        ELIGIBLE.format(700, 150),
        PLANNED.format(150, 50),
    ]


def test_what_was_not_compared_is_held_to_the_first_equation_only() -> None:
    stopped = Funnel(extracted=10, eligible=6, withheld=3, quarantined=1)
    assert stopped.violations(compared=False, loaded=False) == []
    assert stopped.violations(loaded=False) == [ELIGIBLE.format(6, 0)]
    assert replace(stopped, quarantined=0).violations(compared=False, loaded=False) == [EXTRACTED.format(10, 9)]


def test_clinics_are_summed_up_and_what_none_has_come_to_counts_as_nothing() -> None:
    rows = pd.DataFrame({name: pd.array([1, 2, None], dtype="Int64") for name in NUMBERS})
    rows["accepted"] = pd.array([None, None, None], dtype="Int64")
    # As a driver hands numbers over when some are missing.
    rows["dropped"] = pd.Series([None, 5, None], dtype=object)
    rows["unknown"] = [float("nan"), 4.0, 3.0]
    rows["clinic_id"] = [1, 2, 3]
    funnel = Funnel.of(rows)
    assert (funnel.extracted, funnel.accepted, funnel.dropped, funnel.unknown) == (3, 0, 5, 7)
    assert all(type(value) is int for value in vars(funnel).values())


def test_no_clinics_make_an_empty_funnel() -> None:
    assert Funnel.of(pd.DataFrame(columns=list(NUMBERS))) == Funnel()
