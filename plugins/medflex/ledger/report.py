"""The funnel of a run as text, from the ledger."""

from __future__ import annotations

from typing import Any

import pandas as pd
import psycopg

from medflex.domain.funnel import Funnel
from medflex.domain.messages import Twice
from medflex.domain.reasons import REASONS
from medflex.errors import RunIncompleteError
from medflex.ledger.connection import translated_ledger_errors
from medflex.ledger.store import Ledger

_WIDTH = 40
_NAMED_CLINICS = 5


def latest_run(conninfo: str, dag_id: str = "medflex_transfer") -> str | None:
    """Return the run id of the newest run, or ``None`` when there is none yet."""
    with translated_ledger_errors(), psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "SELECT run_id FROM ledger.run WHERE dag_id = %s ORDER BY started_at DESC LIMIT 1", (dag_id,)
        ).fetchone()
    return row[0] if row else None


def funnel_text(conninfo: str, run_id: str | None = None, dag_id: str = "medflex_transfer") -> str:
    """Return the funnel of a run, or of the newest one, as lines of text: counts, reason codes, ids.

    Raises:
        RunIncompleteError: there is no such run.
    """
    run_id = run_id or latest_run(conninfo, dag_id)
    if run_id is None:
        raise RunIncompleteError("The ledger knows no run yet: trigger the DAG medflex_transfer first.")
    with Ledger(conninfo) as ledger:
        run = ledger.run(dag_id, run_id)
        clinics = ledger.run_clinics(run.run_key)
        held = ledger.reasons(run.run_key)
        shards = ledger.shards(run.run_key)
        messages = _messages(ledger, run.run_key)
    funnel = Funnel.of(clinics)
    states = clinics["access_state"].value_counts()
    lines = [
        f"Run {run.run_id} · mode {run.mode} · {run.anchor:%Y-%m-%d %H:%M} UTC",
        f"Clinics: {states.get('open', 0)} open, {states.get('waiting', 0)} waiting, {states.get('closed', 0)} closed",
    ]
    for reason, number in clinics["closed_reason"].dropna().value_counts().items():
        lines.append(f"    {reason}: {number}")
    reasons = _Reasons(held)
    lines += ["", *_sending(funnel, reasons, run.mode), *_withdrawing(funnel, reasons, run.mode)]
    if funnel.unknown_statuses:
        lines += ["", f"Sent as undefined, since their status has no mapping: {funnel.unknown_statuses}"]
    for shard in shards:
        if shard.problem or shard.skipped_because:
            lines.append(f"Shard {shard.label}: {shard.problem or shard.skipped_because}")
        if shard.withdraw_problem:
            lines.append(f"Shard {shard.label}, withdrawals: {shard.withdraw_problem}")
    lines += messages
    return "\n".join(lines)


class _Reasons:
    """How many records each reason holds for, by decision; a record with several counts under each."""

    def __init__(self, decided: pd.DataFrame) -> None:
        self._counted = decided.explode("reasons").groupby(["decision", "reasons"])["records"].sum()
        self._order = {str(reason): position for position, reason in enumerate(REASONS)}

    def of(self, decision: str) -> list[str]:
        numbers = self._counted[decision] if decision in self._counted.index.get_level_values(0) else {}
        return [
            f"      {reason}: {numbers[reason]}"
            for reason in sorted(numbers.keys(), key=lambda reason: (self._order.get(reason, 99), reason))
        ]


def _sending(funnel: Funnel, reasons: _Reasons, mode: str) -> list[str]:
    """From extracted to accepted."""
    lines = [_bar("extracted", funnel.extracted, funnel.extracted)]
    for name in ("withheld", "quarantined"):
        lines.append(_bar(f"− {name}", getattr(funnel, name), funnel.extracted))
        lines += reasons.of(name)
    lines.append(_bar("eligible", funnel.eligible, funnel.extracted))
    lines.append(_bar("− unchanged", funnel.unchanged, funnel.extracted))
    lines.append(_bar("planned", funnel.planned, funnel.extracted))
    lines.append(f"      new {funnel.new}, changed {funnel.changed}, again {funnel.again}")
    if mode != "plan":
        for name in ("dropped", "rejected", "to_retry", "unknown"):
            lines.append(_bar(f"− {name}", getattr(funnel, name), funnel.extracted))
            if name == "dropped":
                lines += reasons.of("dropped")
        lines.append(_bar("accepted", funnel.accepted, funnel.extracted))
    return lines


def _withdrawing(funnel: Funnel, reasons: _Reasons, mode: str) -> list[str]:
    """From revoked to withdrawn; nothing if nothing was revoked."""
    if not funnel.revoked:
        return []
    lines = ["", _bar("revoked", funnel.revoked, funnel.revoked), *reasons.of("revoked")]
    for name in ("permitted_again", "held", "withdraw_to_retry", "withdraw_unknown"):
        if getattr(funnel, name):
            lines.append(_bar(f"− {name}", getattr(funnel, name), funnel.revoked))
            lines += reasons.of(name)
    if mode != "plan":
        lines.append(_bar("withdrawn", funnel.withdrawn, funnel.revoked))
    return lines


def _messages(ledger: Ledger, run_key: int) -> list[str]:
    """What patients get twice (R15); nothing if the run has not looked."""
    found = ledger.message_totals(run_key, _NAMED_CLINICS)
    if found is None:
        return []
    look, totals = found
    since = f"{look.since:%Y-%m-%d}"
    titles = {
        Twice.DOUBLED: (f"Appointments that got two messages of one scenario since {since}", look.doubled_problem),
        Twice.OVERLAP: ("Scenarios that Smart Care and a partner both run", look.overlaps_problem),
        Twice.UNKNOWN: ("Partners beside Smart Care of which it is not known what they run", look.overlaps_problem),
    }
    lines = [""]
    for kind, (title, problem) in titles.items():
        mine = totals[totals["kind"] == kind.value]
        if problem is not None:
            # The two that one question answers have one line.
            lines += [f"{title}: not judged. {problem}"] if kind is not Twice.UNKNOWN else []
        elif mine.empty:
            lines += [f"{title}: none"] if kind is not Twice.UNKNOWN else []
        else:
            lines += [f"{title}:", *(_of_scenario(row) for row in mine.itertuples(index=False))]
    return lines


def _of_scenario(row: Any) -> str:
    more = " …" if row.clinics > len(row.clinic_ids) else ""
    clinics = f"clinics {row.clinics:,} ({', '.join(map(str, row.clinic_ids))}{more})"
    appointments = f"appointments {row.appointments:,}, " if row.kind == Twice.DOUBLED else ""
    return f"      {row.scenario + ': ' if row.scenario else ''}{appointments}{clinics}"


def print_funnel(conninfo: str, run_id: str | None = None) -> None:
    """Print :func:`funnel_text`."""
    print(funnel_text(conninfo, run_id))  # noqa: T201 - this is its purpose


def _bar(name: str, number: int, total: int) -> str:
    share = number / total if total else 0.0
    return f"{name:<19} {number:>10,} {share:>7.1%} {'█' * round(share * _WIDTH)}"
