"""What can go wrong, as types. Each message is one sentence for the person on call: what, where, what to do.

A message never holds a row, a name, a phone or a driver's text that could quote one.
"""

from __future__ import annotations

import pathlib
import traceback
from typing import Self


class MedflexPipelineError(Exception):
    """Base of all errors of this product.

    ``transient`` says whether the same task may succeed when it is simply tried again later.
    """

    transient = False


class BadParameterError(MedflexPipelineError):
    """A run was started with a parameter that is unknown or has a value that cannot be used."""


class ConfigurationError(MedflexPipelineError):
    """A connection, an environment variable or a migration is missing or wrong."""


class MedlockUnavailableError(MedflexPipelineError):
    """Medlock's database does not answer."""

    transient = True


class MedlockSlowError(MedlockUnavailableError):
    """Medlock's database answers, but a query took longer than it may."""


class MedlockRefusedError(ConfigurationError):
    """Medlock's database refuses the log-in."""


class MedlockSchemaError(ConfigurationError):
    """A table or column that the queries in include/sql/medlock need is missing or has another type."""


class LedgerUnavailableError(MedflexPipelineError):
    """The ledger's database does not answer."""

    transient = True


class LedgerConflictError(LedgerUnavailableError):
    """The ledger has something already that was to be new."""


class LedgerDeadlockError(LedgerUnavailableError):
    """A transaction of the ledger and another one waited for each other."""


class LedgerRefusedError(ConfigurationError):
    """The ledger's database refuses the log-in."""


class LedgerOutdatedError(LedgerRefusedError):
    """The ledger's schema is another than this version of the code needs: an update is under way, or half done."""

    # While an update is under way, what begins too early or ends too late finds it done at its next attempt.
    transient = True


class LeaseHeldError(MedflexPipelineError):
    """Another run is writing for this clinic."""

    transient = True


class LeaseLostError(MedflexPipelineError):
    """Another task has taken over the clinic; this one must not send any more."""

    transient = True

    @classmethod
    def of(cls, clinic_id: int) -> Self:
        """Return the error for a clinic that somebody else writes for now."""
        return cls(f"Clinic {clinic_id} has been taken over by another task, so this one stops sending for it.")


class MedflexUnavailableError(MedflexPipelineError):
    """Medflex does not answer, or answers with 429 or 5xx beyond the budget."""

    transient = True


class MedflexRefusedError(ConfigurationError):
    """Medflex refuses the token (401 or 403), or its certificate is not trusted.

    Args:
        is_of_clinic: the token is a good one that may not do this (403): for one clinic it may not, for others it may.
    """

    def __init__(self, sentence: str, *, is_of_clinic: bool = False) -> None:
        super().__init__(sentence)
        self.is_of_clinic = is_of_clinic


class MedflexContractError(MedflexPipelineError):
    """Medflex answered something that its contract does not know, or refused a whole request.

    Args:
        is_of_clinic: it does not know the clinic (404), whatever the request holds.
    """

    def __init__(self, sentence: str, *, is_of_clinic: bool = False) -> None:
        super().__init__(sentence)
        self.is_of_clinic = is_of_clinic


class VersionsOutdatedError(MedflexPipelineError):
    """Medflex holds newer versions than the ledger knew of; the ledger has caught up."""

    transient = True


class WithdrawalsLateError(MedflexPipelineError):
    """Something that may no longer be shared has not been withdrawn for longer than it may take."""


class ValidationFailedError(MedflexPipelineError):
    """A critical expectation failed; the shard is not sent."""


class ConservationError(MedflexPipelineError):
    """The numbers of a run do not add up."""


class RunIncompleteError(MedflexPipelineError):
    """A shard of the run did not come to its end."""


class TaskEndedError(RunIncompleteError):
    """Somebody has ended this task, or its run, while it was at work."""


class ActionsWaitError(MedflexPipelineError):
    """What partners asked for could not be decided yet."""

    transient = True


class ActionsUnreadableError(MedflexPipelineError):
    """Medflex lists a partner action without an id by which it could be answered; those behind it cannot be read."""

    transient = True


class AnswerContradictedError(MedflexPipelineError):
    """Medflex has another answer to a partner action than the one that was decided."""


class NotHeadError(MedflexPipelineError):
    """Somebody who is not the head of the clinic wants to turn its access switch (R2)."""


class SwitchTurnedError(MedflexPipelineError):
    """The access switch was turned by somebody else between looking at it and turning it."""


class AlertNotToldError(MedflexPipelineError):
    """A notifier did not take an alert; the next run tells it again."""


def raised_at(error: Exception) -> tuple[str, str]:
    """Return file and line of our own that an error came through last, and of where it was raised: what can be told of
    one that nobody foresaw, as its text could quote a row.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((frame for frame in reversed(frames) if "medflex" in pathlib.Path(frame.filename).parts), frames[-1])
    of_ours, of_raised = (f"{pathlib.Path(frame.filename).name}, line {frame.lineno}" for frame in (ours, frames[-1]))
    return of_ours, of_raised
