"""The funnel of a run, from extracted to accepted, and the equations that hold in it (conservation)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pandas as pd


@dataclass(frozen=True)
class Funnel:
    """Numbers of records of a clinic, a shard or a whole run."""

    extracted: int = 0
    eligible: int = 0
    withheld: int = 0
    quarantined: int = 0
    unknown_statuses: int = 0
    new: int = 0
    changed: int = 0
    again: int = 0
    unchanged: int = 0
    planned: int = 0
    accepted: int = 0
    rejected: int = 0
    to_retry: int = 0
    unknown: int = 0
    dropped: int = 0
    revoked: int = 0
    withdrawn: int = 0
    withdraw_to_retry: int = 0
    withdraw_unknown: int = 0
    permitted_again: int = 0
    held: int = 0

    @classmethod
    def of(cls, clinics: pd.DataFrame) -> Funnel:
        """Sum up rows of ``ledger.run_clinic``; what a clinic has not come to counts as nothing."""
        return cls(**{name: int(clinics[name].fillna(0).sum()) for name in NUMBERS})

    def violations(self, *, compared: bool = True, loaded: bool = True) -> list[str]:
        """Return the equations that do not hold, as text with their numbers.

        Args:
            compared: the change plan was made, so its equations must hold.
            loaded: the records were sent, so that equation must hold.
        """
        equations = [
            (
                "extracted",
                self.extracted,
                "eligible + withheld + quarantined",
                self.eligible + self.withheld + self.quarantined,
            ),
        ]
        if compared:
            equations += [
                ("eligible", self.eligible, "unchanged + planned", self.unchanged + self.planned),
                ("planned", self.planned, "new + changed + again", self.new + self.changed + self.again),
            ]
        if loaded:
            equations.append(
                (
                    "planned",
                    self.planned,
                    "accepted + rejected + to_retry + unknown + dropped",
                    self.accepted + self.rejected + self.to_retry + self.unknown + self.dropped,
                )
            )
        return _broken(equations)

    def withdrawal_violations(self) -> list[str]:
        """Return, in the same way, what does not hold once everything that was revoked was dealt with."""
        ended = self.withdrawn + self.withdraw_to_retry + self.withdraw_unknown + self.permitted_again + self.held
        names = "withdrawn + withdraw_to_retry + withdraw_unknown + permitted_again + held"
        return _broken([("revoked", self.revoked, names, ended)])


def _broken(equations: list[tuple[str, int, str, int]]) -> list[str]:
    return [f"{left} = {right} does not hold: {a} ≠ {b}" for left, a, right, b in equations if a != b]


NUMBERS = tuple(field.name for field in fields(Funnel))
"""The names of the numbers, in the order in which records pass them; those of withdrawals last."""
