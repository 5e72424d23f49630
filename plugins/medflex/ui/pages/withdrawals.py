"""The page *Withdrawals*: what is open, and how long withdrawals take."""

from __future__ import annotations

from datetime import datetime, time, timedelta, tzinfo
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from medflex.airflow.tasks.withdraw import deadline_seconds
from medflex.ledger.overview import BUCKETS, WithdrawTimes
from medflex.ui import charts
from medflex.ui.i18n import Speech
from medflex.ui.view import View, view_of

router = APIRouter()

Reader = Annotated[View, Depends(view_of)]
AIM_SECONDS = 60.0
"""A 95th percentile of at most so much is aimed at, from the commit in Medlock to Medflex's acknowledgement."""
DAYS = ("1", "7", "30")
LINES_SHOWN = 25


@router.get("/withdrawals")
def withdrawals_page(view: Reader, days: Literal["1", "7", "30"] = "7") -> Response:
    """Open revocations and questions on top, then the times to withdraw of the last days."""
    starts = day_starts(view.now, view.speech.zone, int(days))
    deadline = deadline_seconds()
    with view.overview() as ledger:
        waiting = ledger.open_withdrawals(deadline, LINES_SHOWN)
        holds = ledger.open_holds(LINES_SHOWN)
        times = ledger.withdraw_times(starts)
    return view.page(
        "withdrawals.html",
        section="withdrawals_page",
        waiting=waiting,
        holds=holds,
        times=times,
        days=days,
        choices=DAYS,
        deadline=deadline,
        aim=AIM_SECONDS,
        **_pictures(view, times, starts, deadline),
    )


def day_starts(now: datetime, zone: tzinfo, days: int) -> list[datetime]:
    """Return when the last ``days`` days began in a zone, today included, the earliest first."""
    today = now.astimezone(zone).date()
    return [datetime.combine(today - timedelta(days=back), time.min, tzinfo=zone) for back in reversed(range(days))]


def _pictures(view: View, times: WithdrawTimes, starts: list[datetime], deadline: float) -> dict[str, Any]:
    speech = view.speech
    bounds = (0.0, *BUCKETS)
    bars = []
    for place, records in enumerate(times.buckets):
        lower, upper = bounds[place], bounds[place + 1] if place + 1 < len(bounds) else None
        if upper is None:
            label = speech.text("withdrawals.from", time=speech.duration(lower))
        elif not lower:
            label = speech.text("withdrawals.below", time=speech.duration(upper))
        else:
            label = speech.text("withdrawals.between", lower=_lower(speech, lower, upper), upper=speech.duration(upper))
        kind = "bad" if lower >= deadline else "warn" if lower >= AIM_SECONDS else "step"
        bars.append(charts.Bar(label, records, speech.number(records), kind))
    by_day = [
        charts.Bar(
            speech.day(start),
            one.p95,
            speech.duration(one.p95),
            "step" if one.p95 is None or one.p95 <= AIM_SECONDS else "warn" if one.p95 <= deadline else "bad",
        )
        for start, one in zip(starts, times.by_day, strict=True)
    ]
    return {
        "histogram": charts.bars(
            speech,
            speech.text("withdrawals.histogram"),
            bars,
            heads=(speech.text("withdrawals.time"), speech.text("chart.records")),
        ),
        "by_day": charts.bars(
            speech,
            speech.text("withdrawals.by_day"),
            by_day,
            heads=(speech.text("chart.day"), speech.text("withdrawals.p95")),
            limit=(AIM_SECONDS, speech.text("withdrawals.aim", time=speech.duration(AIM_SECONDS))),
        ),
    }


def _lower(speech: Speech, lower: float, upper: float) -> str:
    """The lower bound of a bucket, without its unit where the upper one's is the same."""
    for size in (3600, 60, 1):
        if lower >= size:
            return f"{lower / size:g}" if upper < size * 60 else speech.duration(lower)
    return f"{lower:g}"
