"""Charts as inline SVG: pictures with a name and a description, and the same numbers as a table.

Pure functions that return markup. Colours are classes of ``static/charts.css``, for light and dark; each thing is told
apart by its label, place or pattern as well. A chart grows with the page and never shrinks below its own size (its
frame scrolls), so that text stays at 12 px or more. Nothing here needs a script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from markupsafe import Markup, escape

from medflex.domain.funnel import Funnel
from medflex.ui.i18n import Speech

WIDTH = 860
SERIES = 8
"""So many series are told apart; what is beyond becomes "other"."""
_LETTER = 7.0
"""A letter's width at 12 px, rather too much than too little."""
_ROW, _BAR = 28, 18
_LABELS, _VALUES = 262, 150


@dataclass(frozen=True)
class Bar:
    """One bar. ``value`` is its height, ``None`` for a gap; ``text`` says it, ``kind`` is its colour.

    kind: ``step``, ``good``, ``warn``, ``bad`` or ``off``.
    """

    label: str
    value: float | None
    text: str
    kind: str = "step"


@dataclass(frozen=True)
class Cell:
    """One run in a strip.

    outcome: ``passed``, ``info``, ``warning``, ``critical`` or ``none`` (not run).
    title: what it says when it is pointed at; may be empty.
    weight: how bad an info or a warning is, from 0 to 1.
    """

    outcome: str
    title: str = ""
    weight: float = 1.0


# -- the funnel ------------------------------------------------------------------------------------------------------

_SENDING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("extracted", ()),
    ("eligible", ("withheld", "quarantined")),
    ("planned", ("unchanged",)),
    ("accepted", ("dropped", "rejected", "to_retry", "unknown")),
)
_WITHDRAWING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("revoked", ()),
    ("withdrawn", ("permitted_again", "held", "withdraw_to_retry", "withdraw_unknown")),
)
_KINDS = {
    "withheld": "held",
    "quarantined": "warn",
    "unchanged": "off",
    "dropped": "held",
    "rejected": "bad",
    "to_retry": "warn",
    "unknown": "bad",
    "permitted_again": "off",
    "held": "warn",
    "withdraw_to_retry": "warn",
    "withdraw_unknown": "bad",
}


@dataclass(frozen=True)
class Step:
    """A line of a funnel: a number that goes on, or (``is_loss``) falls off; ``start``: where its bar begins."""

    name: str
    number: int
    share: float
    start: int
    is_loss: bool


def funnel_steps(funnel: Funnel, mode: str = "transfer", *, withdrawing: bool = False) -> list[Step]:
    """Return the lines of a funnel in the order in which records pass them. A plan ends at what it would do.

    What falls off is told also where it is nothing, so that two funnels have the same lines.
    """
    parts = _WITHDRAWING if withdrawing else _SENDING
    is_plan = mode in ("plan", "dry_run")
    total = getattr(funnel, parts[0][0])
    left = total
    steps: list[Step] = []
    for name, losses in parts:
        if is_plan and name in ("accepted", "withdrawn"):
            # Only what is decided without sending is known.
            losses = tuple(loss for loss in losses if withdrawing and loss in ("permitted_again", "held"))
        for loss in losses:
            number = getattr(funnel, loss)
            left -= number
            steps.append(Step(loss, number, _share(number, total), max(0, left), True))
        if is_plan and name in ("accepted", "withdrawn"):
            continue
        left = getattr(funnel, name)
        steps.append(Step(name, left, _share(left, total), 0, False))
    return steps


def funnel(speech: Speech, title: str, steps: Sequence[Step], *, table: bool = True) -> Markup:
    """Return a funnel: a bar for each step, and between two of them, at its end, what fell off on the way."""
    total = max((step.start + step.number for step in steps), default=0)
    area = WIDTH - _LABELS - _VALUES
    parts: list[Markup] = []
    height = _ROW * len(steps) + 8
    for place, step in enumerate(steps):
        y = place * _ROW + 4
        name = speech.text(f"stage.{step.name}")
        width = max(area * step.number / total, 2.0) if total and step.number else 0.0
        x = _LABELS + (min(area * step.start / total, area - width) if total else 0.0)
        kind = _KINDS[step.name] if step.is_loss else "step"
        parts.append(
            Markup('<text class="{}" x="{}" y="{}" text-anchor="end">{}{}</text>').format(
                "name loss" if step.is_loss else "name", _LABELS - 10, y + 14, "− " if step.is_loss else "", name
            )
        )
        if width:
            parts.append(
                _rect(x, y if not step.is_loss else y + 3, width, _BAR if not step.is_loss else _BAR - 6, kind)
            )
        parts.append(
            Markup('<text class="{}" x="{}" y="{}">{} · {}</text>').format(
                "value loss" if step.is_loss else "value",
                _LABELS + area + 10,
                y + 14,
                speech.number(step.number),
                speech.percent(step.share),
            )
        )
    said = Markup(". ").join(
        Markup("{}: {} ({})").format(
            speech.text(f"stage.{step.name}"), speech.number(step.number), speech.percent(step.share)
        )
        for step in steps
    )
    rows = [
        [
            Markup("{}{}").format("− " if step.is_loss else "", speech.text(f"stage.{step.name}")),
            speech.number(step.number),
            speech.percent(step.share),
        ]
        for step in steps
    ]
    heads = [speech.text("chart.step"), speech.text("chart.records"), speech.text("chart.share")]
    return _figure(speech, title, said, height, parts, (heads, rows) if table else None)


def _share(number: int, total: int) -> float:
    return number / total if total else 0.0


# -- bars ------------------------------------------------------------------------------------------------------------


def bars(
    speech: Speech,
    title: str,
    items: Sequence[Bar],
    *,
    heads: tuple[str, str],
    limit: tuple[float, str] | None = None,
    height: int = 200,
) -> Markup:
    """Return upright bars, each with its value above it where there is room; for histograms and days.

    Args:
        heads: what the labels and the values are, for the table.
        limit: a value that is marked by a line, and its name.
    """
    highest = max([item.value or 0.0 for item in items] + ([limit[0]] if limit else []), default=0.0)
    top, bottom = 22, 24
    area = height - top - bottom
    # What the line means stands beside the bars, where none of them can hide it.
    width = WIDTH - (len(limit[1]) * _LETTER + 14 if limit else 0)
    slot = width / max(len(items), 1)
    bar = min(slot * 0.72, 60.0)
    parts: list[Markup] = [_line(0, width, height - bottom, "axis")]
    every = _every([item.label for item in items], slot)
    roomy = all(len(item.text) * _LETTER <= slot for item in items)
    for place, item in enumerate(items):
        middle = slot * (place + 0.5)
        if item.value:
            size = max(area * item.value / highest, 2.0)
            rect = _rect(
                middle - bar / 2,
                height - bottom - size,
                bar,
                size,
                item.kind,
                Markup("{}: {}").format(item.label, item.text),
            )
            parts.append(rect)
            if roomy:
                parts.append(_text(middle, height - bottom - size - 5, item.text, "value"))
        if place % every == 0:
            parts.append(_text(middle, height - 7, item.label, "tick"))
    if limit and highest:
        y = height - bottom - area * limit[0] / highest
        parts += [_line(0, WIDTH, y, "limit"), _text(width + 8, y - 5, limit[1], "name", "start")]
    said = Markup(". ").join(Markup("{}: {}").format(item.label, item.text) for item in items)
    rows = [[escape(item.label), item.text] for item in items]
    return _figure(speech, title, said, height, parts, (list(heads), rows))


def stacked_days(
    speech: Speech,
    title: str,
    days: Sequence[tuple[str, Mapping[str, int]]],
    names: Mapping[str, str],
    *,
    height: int = 240,
) -> Markup:
    """Return one bar per day, made of series; the largest series lie at the bottom.

    Args:
        days: label and numbers by series of each day, in order; at most about 31.
        names: what each series is called; one without a name is called by its key.
    """
    totals: dict[str, int] = {}
    for _, numbers in days:
        for key, number in numbers.items():
            totals[key] = totals.get(key, 0) + number
    order = sorted((key for key in totals if totals[key]), key=lambda key: (-totals[key], key))
    # One more than told apart is not worth an "other".
    shown, rest = (order, []) if len(order) <= SERIES + 1 else (order[:SERIES], order[SERIES:])
    called: dict[str, str] = {key: names.get(key, key) for key in shown}
    if rest:
        called[""] = speech.text("chart.other")
    series = [*shown, *([""] if rest else [])]
    table = [
        (label, [sum(numbers.get(k, 0) for k in rest) if key == "" else numbers.get(key, 0) for key in series])
        for label, numbers in days
    ]
    highest = max((sum(numbers) for _, numbers in table), default=0)
    mark = f"mx{sha256(title.encode()).hexdigest()[:8]}"
    top, bottom, left = 18, 24, 60
    area = height - top - bottom
    slot = (WIDTH - left) / max(len(days), 1)
    bar = min(slot * 0.8, 48.0)
    parts: list[Markup] = [_patterns(mark, len(series)), _line(left, WIDTH, height - bottom, "axis")]
    if highest:
        parts += [_line(left, WIDTH, top, "grid"), _text(left - 6, top + 4, speech.number(highest), "tick", "end")]
        parts.append(_text(left - 6, height - bottom + 4, speech.number(0), "tick", "end"))
    every = _every([label for label, _ in days], slot)
    for place, (label, stack) in enumerate(table):
        middle, y = left + slot * (place + 0.5), float(height - bottom)
        for nth, number in enumerate(stack):
            if number:
                size = area * number / highest
                y -= size
                about = Markup("{}, {}: {}").format(label, called[series[nth]], speech.number(number))
                parts.append(_rect(middle - bar / 2, y, bar, size, f"series s{nth}", about, mark, nth))
        if place % every == 0:
            parts.append(_text(middle, height - 7, label, "tick"))
    said = Markup(". ").join(
        Markup("{}: {}").format(called[key], speech.number(_sum(totals, key, rest))) for key in series
    )
    heads = [speech.text("chart.day"), *(called[key] for key in series)]
    rows = [[escape(label), *(speech.number(number) for number in stack)] for label, stack in table]
    legend = Markup('<ul class="chart-legend" aria-hidden="true">{}</ul>').format(
        Markup("").join(
            Markup('<li><svg width="16" height="16" viewBox="0 0 16 16" focusable="false">{}</svg> {}</li>').format(
                _rect(1, 1, 14, 14, f"series s{place}", None, mark, place), called[key]
            )
            for place, key in enumerate(series)
        )
    )
    return _figure(speech, title, said, height, parts, (heads, rows), legend)


def _sum(totals: Mapping[str, int], key: str, rest: Iterable[str]) -> int:
    return sum(totals[one] for one in rest) if key == "" else totals[key]


# -- strips ----------------------------------------------------------------------------------------------------------

_STRIP = {"passed": (3, 3, "good"), "info": (5, 15, "off"), "warning": (5, 15, "warn"), "critical": (23, 23, "bad")}
"""The least and the greatest height, and the colour."""
_CELL = 12


def strip(label: str, cells: Sequence[Cell]) -> Markup:
    """Return runs side by side, the oldest first; the worse it came out, the higher the bar. A frame: not run.

    Args:
        label: what it shows, in a sentence, for who does not see it.
    """
    parts: list[Markup] = []
    for place, cell in enumerate(cells):
        x = place * _CELL + 1
        if cell.outcome in _STRIP:
            least, most, kind = _STRIP[cell.outcome]
            size = least + (most - least) * min(max(cell.weight, 0.0), 1.0)
            parts.append(_rect(x, 24 - size, _CELL - 2, size, kind, cell.title or None))
        else:
            parts.append(Markup('<rect class="gap" x="{}" y="16.5" width="{}" height="6"></rect>').format(x, _CELL - 2))
    width = max(len(cells), 1) * _CELL
    return Markup(
        '<svg class="strip" role="img" aria-label="{}" width="{}" height="24" viewBox="0 0 {} 24" focusable="false">'
        "{}</svg>"
    ).format(label, width, width, Markup("").join(parts))


# -- pieces ----------------------------------------------------------------------------------------------------------


def _figure(
    speech: Speech,
    title: str,
    said: Markup,
    height: int,
    parts: Sequence[Markup],
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None,
    legend: Markup | str = "",
) -> Markup:
    mark = f"mx{sha256(title.encode()).hexdigest()[:8]}"
    picture = Markup(
        '<div class="chart-frame" tabindex="0" role="group" aria-label="{title}">'
        '<svg class="chart" role="img" aria-labelledby="{mark}-t {mark}-d" viewBox="0 0 {width} {height}"'
        ' width="{width}" height="{height}" focusable="false">'
        '<title id="{mark}-t">{title}</title><desc id="{mark}-d">{said}</desc>{parts}</svg></div>'
    ).format(title=title, mark=mark, width=WIDTH, height=height, said=said, parts=Markup("").join(parts))
    numbers = Markup("")
    if table is not None:
        heads, rows = table
        numbers = Markup(
            '<details class="chart-numbers"><summary>{}</summary><div class="scroll" tabindex="0" role="group"'
            ' aria-label="{}"><table><caption class="visually-hidden">{}</caption><thead><tr>{}</tr></thead>'
            "<tbody>{}</tbody></table></div></details>"
        ).format(
            speech.text("chart.table"),
            title,
            title,
            Markup("").join(
                Markup('<th scope="col"{}>{}</th>').format(Markup(' class="number"') if place else "", head)
                for place, head in enumerate(heads)
            ),
            Markup("").join(
                Markup('<tr><th scope="row">{}</th>{}</tr>').format(
                    row[0], Markup("").join(Markup('<td class="number">{}</td>').format(cell) for cell in row[1:])
                )
                for row in rows
            ),
        )
    return Markup('<figure class="chart-figure">{}{}{}</figure>').format(picture, legend, numbers)


def _rect(
    x: float,
    y: float,
    width: float,
    height: float,
    kind: str,
    about: str | None = None,
    mark: str = "",
    series: int | None = None,
) -> Markup:
    """A bar; of the second half of the series the hatched form."""
    title = Markup("<title>{}</title>").format(about) if about else Markup("")
    hatch = Markup("")
    size = (_round(x), _round(y), _round(width), _round(height))
    if series is not None and series >= SERIES // 2 and mark:
        hatch = Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="url(#{}-h)" pointer-events="none"></rect>')
        hatch = hatch.format(*size, mark)
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(kind, *size, title) + hatch


def _patterns(mark: str, series: int) -> Markup:
    if series <= SERIES // 2:
        return Markup("")
    return Markup(
        '<defs><pattern id="{}-h" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="hatch" width="1.6" height="5"></rect></pattern></defs>'
    ).format(mark)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _round(x), _round(y), anchor, text
    )


def _line(start: float, end: float, y: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"></line>').format(
        kind, _round(start), _round(end), _round(y), _round(y)
    )


def _round(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _every(labels: Sequence[str], slot: float) -> int:
    """Return that each so many-th label fits beside the next one."""
    widest = max((len(label) for label in labels), default=0) * _LETTER + 8
    return max(1, -(-int(widest) // max(int(slot), 1)))
