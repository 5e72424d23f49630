"""What the tasks of ``medflex_partner_actions`` do. Between them goes nothing: each takes up what the ledger has."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from airflow.sdk import get_current_context

from medflex.airflow import connections
from medflex.airflow.tasks.parts import logged, open_ledger, open_medflex, open_medlock, speaking
from medflex.clock import SystemClock
from medflex.errors import MedflexPipelineError

log = logging.getLogger(__name__)

CLOCK = SystemClock()
SHARE_ATTEMPTS = 2
SHARE_BUDGET_SECONDS = 30.0
"""Sharing tries so often, and waits so long for Medflex: the next run has to begin, and it shares what is left."""


@speaking
def read_actions() -> dict[str, int]:
    """Bring what partners asked for since the last run into the ledger.

    Returns the numbers of entries read, and of actions that were new.
    """
    from medflex.airflow import metrics
    from medflex.airflow.acting import ActionReader

    with open_ledger() as ledger:
        ledger.check_schema()
        result = ActionReader(client=open_medflex(ledger), ledger=ledger, clock=CLOCK).read(_run_id())
    log.info("Read %d entries, %d of them new.", result.entries, result.new)
    metrics.actions_read(result.new)
    if result.problem is not None:
        raise result.problem
    return {"entries": result.entries, "new": result.new}


@speaking
def apply_actions() -> dict[str, int]:
    """Decide about what is not decided, and carry out in Medlock what is permitted.

    Returns how many actions of which type were decided in which way.
    """
    from medflex.airflow import metrics
    from medflex.airflow.acting import Actor
    from medflex.airflow.hooks.medlock_actions import MedlockActions

    with (
        open_ledger() as ledger,
        MedlockActions(connections.postgres_conninfo(connections.MEDLOCK_ACTIONS)) as medlock,
    ):
        ledger.check_schema()
        actor = Actor(
            medlock=medlock, ledger=ledger, clock=CLOCK, digest_key=connections.digest_key(), run_id=_run_id()
        )
        result = actor.apply()
    numbers = logged(result.numbers())
    metrics.actions_decided(result.rulings)
    if result.waiting:
        log.warning("%d actions wait for the next run.", result.waiting)
    _raise_first(result.problems)
    return numbers


@speaking
def answer_actions() -> dict[str, int]:
    """Tell Medflex what was decided, until it has taken it.

    Returns how many answers Medflex took, contradicted, or had no action for.
    """
    from medflex.airflow import metrics
    from medflex.airflow.acting import Answerer

    with open_ledger() as ledger:
        ledger.check_schema()
        result = Answerer(client=open_medflex(ledger), ledger=ledger, clock=CLOCK).answer(_run_id())
    numbers = logged(dict(result.answers))
    metrics.actions_answered(result.answers, result.delays)
    _raise_first(result.problems)
    return numbers


@speaking
def share_changes() -> dict[str, int]:
    """Send appointments that partners have changed, so that others need not wait for the daily transfer to see it.

    Returns how many were looked at, sent, rejected, unchanged, not to be shared, and left for the next run.
    """
    from medflex.airflow import metrics
    from medflex.airflow.sharing import ChangeSharer

    with open_ledger() as ledger, open_medlock() as medlock:
        ledger.check_schema()
        result = ChangeSharer(
            client=open_medflex(ledger, attempts=SHARE_ATTEMPTS, retry_budget=SHARE_BUDGET_SECONDS),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            digest_key=connections.digest_key(),
            holder=f"medflex_partner_actions/{_run_id()}/share",
        ).share()
    if not result.numbers:
        log.info("Nothing has changed that Medflex was not told.")
        return {}
    numbers = logged(dict(result.numbers))
    metrics.actions_shared(result.numbers)
    for name, number in result.rejected_fields.most_common():
        log.warning("Rejected by Medflex for the field %s: %d.", name, number)
    _raise_first(result.problems)
    return numbers


def _run_id() -> str:
    return str(get_current_context()["dag_run"].run_id)


def _raise_first(problems: Sequence[MedflexPipelineError]) -> None:
    if problems:
        # What no repetition heals is told before what may pass.
        raise min(problems, key=lambda error: error.transient)
