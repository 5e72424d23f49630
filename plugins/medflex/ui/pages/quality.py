"""The page *Quality*: how each expectation came out in the last runs, so that a trend is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from markupsafe import Markup

from medflex.ledger.overview import Expectation, QualityRun
from medflex.quality.report import RunInfo
from medflex.quality.results import Severity
from medflex.quality.suites import SUITES
from medflex.ui import charts
from medflex.ui.i18n import Speech
from medflex.ui.view import View, view_of

router = APIRouter()

Reader = Annotated[View, Depends(view_of)]
RUNS_SHOWN = 30
_WEIGHTS = {"critical": 10_000, "warning": 100, "info": 1}


@dataclass(frozen=True)
class Line:
    """An expectation over the last runs. ``last``: its newest outcome; ``ran``, ``failed``: in how many runs."""

    suite: str
    name: str
    strip: Markup
    ran: int
    failed: int
    last: Expectation | None
    weight: int


@router.get("/quality")
def quality_page(view: Reader) -> Response:
    """Each expectation of each suite as a strip of runs; those that failed lately come first."""
    with view.overview() as ledger:
        runs = ledger.quality(RUNS_SHOWN)
    lines = {suite: _lines(view.speech, suite, runs) for suite in SUITES}
    newest = runs[-1] if runs else None
    return view.page(
        "quality.html",
        section="quality_page",
        runs=runs,
        troubled={suite: [line for line in mine if line.failed] for suite, mine in lines.items()},
        calm={suite: [line for line in mine if not line.failed] for suite, mine in lines.items()},
        newest=newest,
        folder=RunInfo(newest.run_id, newest.anchor.date(), "", newest.started_at).folder if newest else None,
        key=[
            (outcome, charts.strip("", [charts.Cell(outcome)]))
            for outcome in ("passed", "info", "warning", "critical", "none")
        ],
    )


def _lines(speech: Speech, suite: str, runs: list[QualityRun]) -> list[Line]:
    rules = [rule.name for rule in SUITES[suite]()]
    # A rule of an older release is shown as long as a run has judged by it.
    rules += sorted({name for run in runs for of, name in run.by_rule if of == suite} - set(rules))
    days = [speech.day(run.started_at) for run in runs]
    lines = [_line(speech, suite, name, runs, days) for name in rules]
    return sorted(lines, key=lambda line: -line.weight)


def _line(speech: Speech, suite: str, name: str, runs: list[QualityRun], days: list[str]) -> Line:
    found = [run.by_rule.get((suite, name)) for run in runs]
    worst = max((one.unexpected_share for one in found if one is not None and one.shards_failed), default=0.0)
    cells = []
    for when, one in zip(days, found, strict=True):
        if one is None:
            cells.append(charts.Cell("none", speech.text("quality.cell_none", day=when)))
        elif not one.shards_failed:
            cells.append(charts.Cell("passed"))
        else:
            outcome = speech.text(f"severity.{one.outcome}")
            share = speech.percent(one.unexpected_share)
            title = speech.text("quality.cell", day=when, outcome=outcome, share=share, rows=one.unexpected)
            cells.append(charts.Cell(one.outcome, title, one.unexpected_share / worst if worst else 1.0))
    judged = [one for one in found if one is not None]
    failed = [one for one in judged if one.shards_failed]
    severities = [severity.value for severity in Severity]
    said = [
        speech.text("quality.times", outcome=speech.text(f"severity.{severity}"), n=count)
        for severity in severities
        if (count := sum(one.severity == severity for one in failed))
    ]
    label = speech.text("quality.strip", n=len(judged), passed=len(judged) - len(failed))
    last = judged[-1] if judged else None
    return Line(
        suite=suite,
        name=name,
        strip=charts.strip(Markup(" ").join([label, *said]), cells),
        ran=len(judged),
        failed=len(failed),
        last=last,
        # The newest failure counts as much as all others together.
        weight=sum(_WEIGHTS[one.severity] for one in failed)
        + (100 * _WEIGHTS[last.severity] if last is not None and last.shards_failed else 0),
    )
