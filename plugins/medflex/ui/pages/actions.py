"""The page *Partner actions*: what partners asked for, what was decided, what waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from medflex.domain.partner_actions import ActionType
from medflex.ledger.overview import ActionCount
from medflex.ui.view import View, view_of

router = APIRouter()

Reader = Annotated[View, Depends(view_of)]
DAYS = ("1", "7", "30")
SHOWN = 50


@router.get("/actions")
def actions_page(
    view: Reader, days: Literal["1", "7", "30"] = "7", page: Annotated[int, Query(ge=1, le=1000)] = 1
) -> Response:
    """What waits on top, then actions by type and decision, how long partners waited, and the newest actions."""
    since = view.now - timedelta(days=int(days))
    with view.overview() as ledger:
        counts = ledger.action_counts(since)
        times = ledger.action_times(since)
        waiting = ledger.waiting_actions()
        newest = ledger.newest_actions(SHOWN + 1, (page - 1) * SHOWN)
    types = [*(kind.value for kind in ActionType), None]
    return view.page(
        "actions.html",
        section="actions_page",
        days=days,
        choices=DAYS,
        types=[kind for kind in types if kind is not None or any(one.type is None for one in counts)],
        rulings=_by_ruling(counts),
        totals={kind: sum(one.actions for one in counts if one.type == kind) for kind in types},
        total=sum(one.actions for one in counts),
        contradicted=sum(one.contradicted for one in counts),
        times=times,
        waiting=waiting,
        newest=newest[:SHOWN],
        page=page,
        is_last=len(newest) <= SHOWN,
    )


def _by_ruling(counts: list[ActionCount]) -> list[tuple[int, str, dict[str | None, int], int]]:
    """Status code, ruling, actions by type, actions in all; what was carried out first, then the most frequent."""
    found: dict[tuple[int, str], dict[str | None, int]] = {}
    for one in counts:
        found.setdefault((one.status_code, one.reason), {})[one.type] = one.actions
    rows = [(code, ruling, by_type, sum(by_type.values())) for (code, ruling), by_type in found.items()]
    return sorted(rows, key=lambda row: (row[0] != 204, -row[3], row[1]))
