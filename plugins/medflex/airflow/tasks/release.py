"""What the tasks of ``medflex_release`` do. Between them go ids, counts and the answer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.sdk import Context, get_current_context

from medflex.airflow.tasks.parts import open_ledger, open_medflex, open_medlock, speaking, told
from medflex.clock import CLOCKS_DIFFER, SystemClock
from medflex.errors import BadParameterError

log = logging.getLogger(__name__)

CLOCK = SystemClock()
WITHDRAW, KEEP = "Withdraw", "Keep"
OPTIONS = [WITHDRAW, KEEP]
"""The answers that a person can give."""
MOST_QUESTIONS = 500
"""So many questions are asked by one run. Airflow refuses to map tasks over more than 1,024 of them (its setting
``max_map_length``), and then nobody is asked anything."""


@speaking
def list_holds() -> list[dict[str, Any]]:
    """Take up the holds that nobody has been asked about; return one question per hold.

    Where there are more than one run can ask, the next run is started.

    Returns ``{"hold_id", "subject", "body"}`` each: ids, counts and reason codes, never a name.
    """
    from medflex.airflow.assets import HELD, HELD_ALIAS

    context = get_current_context()
    with open_ledger() as ledger:
        holds = ledger.claim_holds(context["dag_run"].run_id, MOST_QUESTIONS)
    log.info("%d questions.", len(holds))
    if len(holds) == MOST_QUESTIONS:
        log.info("There may be more than one run can ask: medflex_release is started once more.")
        context["outlet_events"][HELD_ALIAS].add(HELD)
    return [{"hold_id": hold.hold_id, **question(hold.clinic_id, hold.reasons, hold.live)} for hold in holds]


@speaking
def carry_out(hold_id: int, answer: Mapping[str, Any]) -> dict[str, int]:
    """Do what a person decided: withdraw what is held, or leave it at Medflex; write down who decided.

    Args:
        hold_id: the hold that was asked about.
        answer: what ``HITLOperator`` returns.
    """
    context = get_current_context()
    context["hold_label"] = f"hold {hold_id}"  # type: ignore[typeddict-unknown-key]
    chosen, decided_by, answered_at = read_answer(answer)
    if chosen == WITHDRAW:
        return _withdraw(hold_id, decided_by, answered_at)
    return _keep(hold_id, decided_by, answered_at)


def read_answer(answer: Mapping[str, Any]) -> tuple[str, str, datetime]:
    """Return the chosen option, the log-in of the person who chose it, and when that was (aware).

    Raises:
        BadParameterError: the answer is none of the options.
    """
    options = list(answer.get("chosen_options") or ())
    if len(options) != 1 or options[0] not in OPTIONS:
        raise BadParameterError("The answer is none of Withdraw and Keep: clear the task ask, and answer again.")
    person = answer.get("responded_by_user") or {}
    return options[0], str(person.get("id") or "unknown"), answer["responded_at"]


def question(clinic_id: int, reasons: Sequence[str], live: int) -> dict[str, str]:
    """Return subject and body of the question about one clinic's hold.

    Args:
        clinic_id: Medlock's id of the clinic.
        reasons: the reason code of each held record.
        live: how many records of the clinic Medflex shows.
    """
    share = f"{len(reasons) / live:.0%}" if live else "all"
    lines = [f"- {count} × `{reason}`" for reason, count in sorted(Counter(reasons).items())]
    return {
        "subject": f"Clinic {clinic_id}: withdraw {len(reasons)} records that are gone from Medlock?",
        "body": "\n".join(
            [
                f"{len(reasons)} of the {live} records of clinic {clinic_id} that partners see ({share}) have vanished"
                " from Medlock. Until somebody decides, partners keep seeing them.",
                "",
                *lines,
                "",
                f"**{WITHDRAW}**: they are really gone; Medflex is told so now.",
                "",
                f"**{KEEP}**: Medlock lacks them by mistake; they stay at Medflex. Nobody is"
                " asked about these records again for a week.",
            ]
        ),
    }


def _withdraw(hold_id: int, decided_by: str, answered_at: datetime) -> dict[str, int]:
    from medflex.airflow.withdrawing import Withdrawer

    context = get_current_context()
    with open_ledger() as ledger, open_medlock() as medlock:
        hold = ledger.hold(hold_id)
        if not _is_ours(hold, context, answered_at):
            return {}
        if not ledger.decide_hold(hold_id, "released", decided_by) and hold.state != "released":
            log.info("Hold %d is %s already: nothing to withdraw.", hold_id, hold.state)
            return {}
        # Judged anew: what has come back meanwhile stays.
        withdrawer = Withdrawer(
            client=open_medflex(ledger),
            medlock=medlock,
            ledger=ledger,
            clock=CLOCK,
            holder=f"{context['dag_run'].dag_id}/{hold_id}",
            run_key=None,
        )
        return told(withdrawer.sweep([hold.clinic_id]), context, ledger)


def _keep(hold_id: int, decided_by: str, answered_at: datetime) -> dict[str, int]:
    with open_ledger() as ledger:
        if not _is_ours(ledger.hold(hold_id), get_current_context(), answered_at):
            return {}
        if not ledger.decide_hold(hold_id, "kept", decided_by):
            log.info("Hold %d is %s already.", hold_id, ledger.hold(hold_id).state)
    return {}


def _is_ours(hold: Any, context: Context, answered_at: datetime) -> bool:
    """Tell whether the answer is one to this question.

    A ledger that was restored from a backup gives the same number again to another question; one that has stood for a
    week is asked anew; and where list_holds was cleared by itself, the answer at this place is one to what stood there.
    """
    if hold.asked_in != context["dag_run"].run_id:
        log.warning("Hold %d is asked about in another run now: this answer counts for nothing.", hold.hold_id)
        return False
    # The one is the ledger's clock, the other Airflow's.
    if answered_at < hold.asked_at - CLOCKS_DIFFER:
        log.warning(
            "Hold %d was asked about after this answer was given, which counts for nothing: clear the task ask of this"
            " hold with Downstream, and answer.",
            hold.hold_id,
        )
        return False
    return True
