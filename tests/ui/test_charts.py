"""Charts: the numbers, what a screen reader is told, colours that can be told apart, nothing that breaks out."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from medflex.domain.funnel import NUMBERS, Funnel
from medflex.ui import charts
from medflex.ui.charts import Bar, Cell, funnel_steps
from medflex.ui.i18n import LANGUAGES, Speech

STATIC = Path(charts.__file__).parent / "static"
CSS = (STATIC / "charts.css").read_text()
PAPER = {
    theme: f"#{colour[1:] * (2 if len(colour) == 4 else 1)}"
    for theme, colour in zip(
        ("light", "dark"),
        re.findall(r"--mx-paper: light-dark\((#\w+), (#\w+)\)", (STATIC / "medflex.css").read_text())[0],
        strict=True,
    )
}
WHOLE = Funnel(
    extracted=1000, withheld=200, quarantined=50, eligible=750, unchanged=650, planned=100, new=60, changed=40,
    dropped=5, rejected=4, to_retry=3, unknown=2, accepted=86, revoked=9, withdrawn=4, permitted_again=1, held=2,
    withdraw_to_retry=1, withdraw_unknown=1,
)  # fmt: skip


def english() -> Speech:
    return Speech("en")


def parsed(markup: str) -> ET.Element:
    """The markup as XML; fails unless it is well formed."""
    return ET.fromstring(f"<body>{markup}</body>")  # noqa: S314 - made here


def drawn(markup: str, kind: str) -> list[ET.Element]:
    return [rect for rect in parsed(markup).iter("rect") if kind in rect.get("class", "").split()]


# -- the funnel


def test_every_number_of_the_funnel_is_a_step_or_falls_off() -> None:
    steps = funnel_steps(WHOLE) + funnel_steps(WHOLE, withdrawing=True)
    assert {step.name for step in steps} == set(NUMBERS) - {"new", "changed", "again", "unknown_statuses"}
    assert all(step.number == getattr(WHOLE, step.name) for step in steps)


def test_what_falls_off_ends_where_the_next_step_ends() -> None:
    steps = funnel_steps(WHOLE)
    ends = {step.name: (step.start, step.start + step.number) for step in steps}
    assert ends["withheld"] == (800, 1000)
    assert ends["quarantined"] == (750, 800)
    assert ends["eligible"] == (0, 750)
    assert ends["unchanged"] == (100, 750)
    assert ends["unknown"][0] == ends["accepted"][1] == 86


@pytest.mark.parametrize(("mode", "withdrawing", "last"), [("plan", False, "planned"), ("dry_run", True, "held")])
def test_a_plan_ends_at_what_it_would_do(mode: str, withdrawing: bool, last: str) -> None:
    assert funnel_steps(WHOLE, mode, withdrawing=withdrawing)[-1].name == last


def test_bars_are_as_long_as_their_numbers_and_stay_inside() -> None:
    picture = charts.funnel(english(), "Funnel", funnel_steps(WHOLE))
    widths = [float(rect.get("width", "")) for rect in drawn(picture, "step")]
    assert [round(width / widths[0], 3) for width in widths] == [1.0, 0.75, 0.1, 0.086]
    for rect in parsed(picture).iter("rect"):
        assert 0 <= float(rect.get("x", "")) <= float(rect.get("x", "")) + float(rect.get("width", "")) <= charts.WIDTH


def test_a_single_record_among_millions_is_seen() -> None:
    funnel = Funnel(extracted=5_000_000, eligible=4_999_999, withheld=1, unchanged=4_999_999)
    (held,) = drawn(charts.funnel(english(), "Funnel", funnel_steps(funnel)), "held")
    assert float(held.get("width", "")) >= 2


def test_the_funnel_tells_its_numbers_and_shares_in_text_description_and_table() -> None:
    picture = charts.funnel(english(), "From extracted to accepted", funnel_steps(WHOLE))
    body = parsed(picture)
    svg = next(body.iter("svg"))
    titles = {element.get("id"): element.text for element in svg if element.tag in ("title", "desc")}
    title, description = (titles[name] for name in svg.get("aria-labelledby", "").split())
    assert (svg.get("role"), title) == ("img", "From extracted to accepted")
    assert "Withheld: 200 (20.0 %)" in str(description)
    rows = [[cell.text for cell in row] for row in next(body.iter("tbody"))]
    assert ["− Withheld", "200", "20.0 %"] in rows
    assert len(rows) == len(funnel_steps(WHOLE))
    assert "86 · 8.6 %" in [text.text for text in body.iter("text")]


def test_an_empty_funnel_is_drawn_without_bars() -> None:
    picture = charts.funnel(english(), "Funnel", funnel_steps(Funnel()))
    assert list(parsed(picture).iter("rect")) == []


# -- bars and days


def test_bars_have_heights_values_a_limit_and_a_table() -> None:
    items = [Bar("Mon", 30, "30 s"), Bar("Tue", None, "–"), Bar("Wed", 120, "2 min", "warn")]
    picture = charts.bars(english(), "Times", items, heads=("Day", "Time"), limit=(60, "aim"))
    heights = [float(rect.get("height", "")) for kind in ("step", "warn") for rect in drawn(picture, kind)]
    assert heights[1] == pytest.approx(4 * heights[0])
    assert len(list(parsed(picture).iter("rect"))) == 2
    (limit,) = [line for line in parsed(picture).iter("line") if line.get("class") == "limit"]
    (wednesday,) = drawn(picture, "warn")
    assert float(limit.get("y1", "")) == pytest.approx(float(wednesday.get("y", "")) + heights[1] / 2, abs=0.2)
    (name,) = [text for text in parsed(picture).iter("text") if text.text == "aim"]
    assert float(name.get("x", "")) > float(wednesday.get("x", "")) + float(wednesday.get("width", ""))
    assert [[cell.text for cell in row] for row in next(parsed(picture).iter("tbody"))] == [
        ["Mon", "30 s"], ["Tue", "–"], ["Wed", "2 min"],
    ]  # fmt: skip


def test_labels_never_overlap() -> None:
    items = [Bar(f"{day} November", day, str(day)) for day in range(1, 31)]
    picture = charts.bars(english(), "Times", items, heads=("Day", "Time"))
    ticks = [
        (float(text.get("x", "")), len(text.text or "")) for text in parsed(picture).iter("text")
        if text.get("class") == "tick"
    ]  # fmt: skip
    assert 5 < len(ticks) < 30
    for (left, letters), (right, more) in pairwise(ticks):
        assert right - left >= (letters + more) / 2 * 6.5


def test_days_are_stacked_and_add_up() -> None:
    days = [("1 Nov", {"a": 30, "b": 10}), ("2 Nov", {"a": 20}), ("3 Nov", {})]
    picture = charts.stacked_days(english(), "Reasons", days, {"a": "Refused", "b": "Banned"})
    legend = [rect for item in parsed(picture).iter("li") for rect in item.iter("rect")]
    bars = [rect for rect in drawn(picture, "series") if float(rect.get("x", "")) > 1]
    assert len(legend) == 2
    assert [rect.get("class") for rect in bars] == ["series s0", "series s1", "series s0"]
    first, second, third = (float(rect.get("height", "")) for rect in bars)
    assert (first / third, first / second) == (pytest.approx(1.5, abs=0.01), pytest.approx(3, abs=0.05))
    assert float(bars[1].get("y", "")) + second == pytest.approx(float(bars[0].get("y", "")), abs=0.2)
    heads = [head.text for head in next(parsed(picture).iter("thead")).iter("th")]
    assert heads == ["Day", "Refused", "Banned"]


def test_more_series_than_can_be_told_apart_become_others() -> None:
    days = [("1 Nov", {f"r{number}": 100 - number for number in range(12)})]
    picture = charts.stacked_days(english(), "Reasons", days, {})
    heads = [head.text for head in next(parsed(picture).iter("thead")).iter("th")]
    assert heads == ["Day", *(f"r{number}" for number in range(8)), "Other"]
    (row,) = next(parsed(picture).iter("tbody"))
    assert row[-1].text == str(sum(100 - number for number in range(8, 12)))


def test_series_of_the_same_colour_differ_by_their_pattern() -> None:
    days = [("1 Nov", {f"r{number}": 10 for number in range(8)})]
    picture = charts.stacked_days(english(), "Reasons", days, {})
    mark = next(parsed(picture).iter("pattern")).get("id")
    hatched = [rect for item in parsed(picture).iter("li") for rect in item.iter("rect") if rect.get("fill")]
    assert {rect.get("fill") for rect in hatched} == {f"url(#{mark})"}
    assert len(hatched) == 4


# -- strips


def test_a_strip_tells_by_height_what_it_tells_by_colour() -> None:
    cells = [Cell("passed"), Cell("warning", "1 Nov: warning", 0.1), Cell("warning", "2 Nov", 1.0), Cell("critical")]
    strip = charts.strip("Passed in 1 of 4 runs.", [*cells, Cell("none")])
    svg = next(parsed(strip).iter("svg"))
    assert (svg.get("role"), svg.get("aria-label")) == ("img", "Passed in 1 of 4 runs.")
    heights = [float(rect.get("height", "")) for rect in svg.iter("rect")][:4]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4
    assert [rect.get("class") for rect in svg.iter("rect")] == ["good", "warn", "warn", "bad", "gap"]
    assert [title.text for title in svg.iter("title")] == ["1 Nov: warning", "2 Nov"]


# -- all of them


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_that_is_put_in_breaks_out(language: str) -> None:
    evil = '<script>"&'
    speech = Speech(language)
    for picture in (
        charts.funnel(speech, evil, funnel_steps(WHOLE)),
        charts.bars(speech, evil, [Bar(evil, 1, evil)], heads=(evil, evil), limit=(1, evil)),
        charts.stacked_days(speech, evil, [(evil, {evil: 1})], {evil: evil}),
        charts.strip(evil, [Cell("critical", evil)]),
    ):
        assert "<script" not in picture
        assert "&amp;lt;" not in picture  # escaped once, not twice
        assert evil in "".join(parsed(picture).itertext()) + "".join(
            value for element in parsed(picture).iter() for value in element.attrib.values()
        )


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_marks_stand_out_from_the_page_in_light_and_dark() -> None:
    colours = re.findall(r"(--mx-[a-z0-9-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", CSS)
    assert len(colours) == CSS.count("light-dark(") == 10
    for name, *pair in colours:
        for theme, colour in zip(PAPER, pair, strict=True):
            lighter, darker = sorted((luminance(colour), luminance(PAPER[theme])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 3, (name, theme)
