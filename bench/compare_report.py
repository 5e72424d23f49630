"""What the comparison shows: the figures that have to hold, computed from compare.json, and the section of the docs."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.document import write_section

EXTRACTION_SHARE, EXTRACTION_MB = 0.85, 300
TASK_MB = 500
PLAIN_TIMES, RECORDS_TIMES = 1.3, 25.0
FLOOR_TIMES = 3.0
CHANGED_SHARE, CHANGED_OF_DLT = 0.35, 0.25
GROWTH = 1.15
MEMORY_GROWTH = 1.05
"""What is measured twice differs by this much."""
LATENCY_TIMES = 1.5
DAYS = ("first", "changed", "unchanged")
NAMES = {
    "product": "this product, whole Airflow",
    "work": "this product, its own work",
    "plain": "plain Airflow task, batches of 500",
    "lean": "the same, filtered by Postgres, only the columns that are sent",
    "records": "plain Airflow task, record by record",
    "dlt": "dlt, pyarrow backend, all rows that may be shared",
    "dlt+unruled": "dlt, pyarrow backend, no rules: all rows in the windows",
    "dlt+cursor": "dlt, pyarrow backend, cursor on updated_at",
    "latency": "this product, 50 ms of latency at Medflex",
    "copy": "floor: COPY to nowhere",
    "pandas": "the product's extraction into pandas",
    "post": "floor: the same bodies, bare client",
}


@dataclass(frozen=True)
class Verdict:
    """One figure that has to hold. value: what was measured; text: both as told."""

    title: str
    allowed: str
    value: float
    told: str
    met: bool


class Figures:
    """Medians of what was measured at one size."""

    def __init__(self, measured: Mapping[str, Any], size: int) -> None:
        self.size = size
        self._items = [item for item in measured["measurements"] if item["size"] == size]
        self.data = measured["sizes"][str(size)]

    def of(self, what: str, day: str = "first", key: str = "seconds") -> list[Any]:
        """Return all values of a kind."""
        return [item[key] for item in self._items if (item["what"], item["day"]) == (what, day) and key in item]

    def median(self, what: str, day: str = "first", key: str = "seconds") -> float | None:
        """Return the median of a kind; ``None`` if there is none. Of ``records`` the time of all rows."""
        if what == "records" and key == "seconds" and day == "first":
            return self._one_by_one()
        values = self.of(what, day, key)
        return median(values) if values else None

    @property
    def is_extrapolated(self) -> bool:
        """Whether only a slice was posted one by one."""
        return any(self.of("records", key="is_slice"))

    def _one_by_one(self) -> float | None:
        values = [item for item in self._items if item["what"] == "records"]
        if not values:
            return None
        if not self.is_extrapolated:
            return median(item["seconds"] for item in values)
        rate = median(item["records"] / item["sending"] for item in values)
        whole, sending = self.median("plain"), self.median("plain", key="sending")
        before = whole - sending if whole is not None and sending is not None else 0.0
        return before + float(self.data["permitted"]) / rate

    def ratios(self, top: tuple[str, str], bottom: tuple[str, str]) -> list[float]:
        """Return the ratio of the seconds of two kinds in each round, of those that were measured as often."""
        tops, bottoms = self.of(*top), self.of(*bottom)
        return [one / other for one, other in zip(tops, bottoms, strict=True)] if len(tops) == len(bottoms) else []

    def peaks(self) -> dict[str, float]:
        """Return the most memory of each of the product's tasks, on any day."""
        found: dict[str, float] = defaultdict(float)
        for day in DAYS:
            for name, task in self.tasks(day).items():
                found[name] = max(found[name], task["peak_mb"])
        return found

    def tasks(self, day: str) -> dict[str, dict[str, float]]:
        """Return per task of the product's runs: number, median of the summed seconds, longest, most memory."""
        runs = [item["tasks"] for item in self._items if (item["what"], item["day"]) == ("product", day)]
        names = dict.fromkeys(task["task"] for run in runs for task in run)
        found: dict[str, dict[str, float]] = {}
        for name in names:
            of_runs = [[task for task in run if task["task"] == name] for run in runs]
            found[name] = {
                "number": median(len(tasks) for tasks in of_runs),
                "seconds": median(sum(task["seconds"] for task in tasks) for tasks in of_runs),
                "longest": max(task["seconds"] for tasks in of_runs for task in tasks),
                "peak_mb": max(task["peak_mb"] for tasks in of_runs for task in tasks),
                "cpu_seconds": median(sum(task["cpu_seconds"] for task in tasks) for tasks in of_runs),
            }
        return found

    def work(self) -> dict[str, dict[str, float]]:
        """Return per task of the product's own work: medians of seconds and of seconds of imports."""
        runs = [item["tasks"] for item in self._items if item["what"] == "work"]
        return {
            name: {key: median(run[name][key] for run in runs) for key in ("seconds", "imports")}
            for name in (runs[0] if runs else {})
        }


def figures_of(measured: Mapping[str, Any]) -> list[Figures]:
    """Return the figures of each size, the smallest first."""
    return [Figures(measured, size) for size in sorted(map(int, measured["sizes"]))]


def judge(measured: Mapping[str, Any]) -> list[Verdict]:
    """Return each figure that has to hold and was measured; at the largest size where the size does not say else."""
    small, *more = figures_of(measured)
    large = more[-1] if more else small
    found: list[Verdict | None] = []
    at_most: Callable[[float, float], bool] = lambda value, limit: value <= limit  # noqa: E731
    at_least: Callable[[float, float], bool] = lambda value, limit: value >= limit  # noqa: E731

    def ratio(
        title: str, allowed: str, top: float | None, bottom: float | None, limit: float,
        holds: Callable[[float, float], bool], as_percent: bool = False, more: str = "",
    ) -> None:  # fmt: skip
        if top is None or bottom is None:
            return
        value = top / bottom
        told = f"{_ratio(value, as_percent)} ({_number(top)} / {_number(bottom)}{more})"
        found.append(Verdict(title, allowed, value, told, holds(value, limit)))

    def rounds(top: tuple[str, str], bottom: tuple[str, str], as_percent: bool = False) -> str:
        each = large.ratios(top, bottom)
        return (
            f"; {_ratio(min(each), as_percent)} to {_ratio(max(each), as_percent)} in {len(each)} pairs" if each else ""
        )

    def limit(title: str, value: float | None, most: float, unit: str) -> None:
        if value is not None:
            found.append(Verdict(title, f"≤ {most:g} {unit}", value, f"{value:,.0f} {unit}", value <= most))

    size = f"{large.size:,}"
    ratio(f"Extraction into pandas, speed of COPY to nowhere = 100 %, {size}", f"≥ {EXTRACTION_SHARE:.0%}",
          large.median("copy", "-"), large.median("pandas", "-"), EXTRACTION_SHARE, at_least, True,
          rounds(("copy", "-"), ("pandas", "-"), True))  # fmt: skip
    limit(f"Extraction into pandas, peak memory, {size}", _most(large.of("pandas", "-", "peak_mb")),
          EXTRACTION_MB, "MB")  # fmt: skip
    first = large.median("product")
    ours = ("product", "first")
    for what, how in (("dlt+unruled", "without our rules"), ("dlt", "given our rules as a view")):
        ratio(f"First run, dlt's time {how} / ours, {size}", "> 1 ×", large.median(what), first, 1.0,
              lambda value, least: value > least, more=rounds((what, "first"), ours))  # fmt: skip
    ratio(f"First run, the plain task's time with batches / ours, {size}", f"≥ {PLAIN_TIMES:g} ×",
          large.median("plain"), first, PLAIN_TIMES, at_least, more=rounds(("plain", "first"), ours))  # fmt: skip
    ratio(f"First run, the plain task's time record by record / ours, {size}", f"≥ {RECORDS_TIMES:g} ×",
          large.median("records"), first, RECORDS_TIMES, at_least)  # fmt: skip
    floors = _sum(large.median("copy", "-"), large.median("post", "-"))
    ratio(f"First run, our own work / the sum of both floors, {size}", f"≤ {FLOOR_TIMES:g} ×",
          large.median("work"), floors, FLOOR_TIMES, at_most)  # fmt: skip
    limit(f"Peak memory of any task, {size}", _peak(large), TASK_MB, "MB")
    ratio(f"A day with 1 % changed / the first run, {size}", f"≤ {CHANGED_SHARE:.0%}",
          large.median("product", "changed"), first, CHANGED_SHARE, at_most, True)  # fmt: skip
    ratio(f"A day with 1 % changed / dlt's same day (all rows, as each day), {size}", f"≤ {CHANGED_OF_DLT:.0%}",
          large.median("product", "changed"), large.median("dlt"), CHANGED_OF_DLT, at_most, True)  # fmt: skip
    for figures in figures_of(measured):
        limit(f"A day with nothing changed, requests to write operations, {figures.size:,}",
              _most(figures.of("product", "unchanged", "writes")), 0, "requests")  # fmt: skip
    if large is not small:
        sizes = f"{size} / {small.size:,}"
        ratio(f"Our own work per row, {sizes}", f"≤ {GROWTH:.0%}", _per_row(large), _per_row(small), GROWTH,
              at_most, True)  # fmt: skip
        ratio(f"Peak memory of any task, {sizes}", f"≤ {MEMORY_GROWTH:.0%}", _peak(large), _peak(small),
              MEMORY_GROWTH, at_most, True, _most_growth(small, large))  # fmt: skip
        if len(more) > 1:
            # Two sizes alone: what is fixed of a small run's work would hide that rows cost more and more.
            middle = more[-2]
            of_sizes = f"{middle.size:,} to {size} / {small.size:,} to {middle.size:,}"
            ratio(f"Our own work for each further row, {of_sizes}", f"≤ {GROWTH:.0%}",
                  _per_further_row(middle, large), _per_further_row(small, middle), GROWTH, at_most, True)  # fmt: skip
    for figures in figures_of(measured):
        ratio(f"First run with 50 ms of latency / without, {figures.size:,}", f"≤ {LATENCY_TIMES:g} ×",
              figures.median("latency"), figures.median("product"), LATENCY_TIMES, at_most)  # fmt: skip
    return [verdict for verdict in found if verdict is not None]


def render(measured: Mapping[str, Any]) -> str:
    """Return the section of the document."""
    sizes = figures_of(measured)
    machine, versions = measured["machine"], measured["versions"]
    begun = datetime.fromisoformat(measured["begun"])
    lines = [
        "## Beside what people would use instead",
        "",
        f"Written by `{measured['command']}`; every single measurement is in bench/measured/compare.json.",
        "",
        f"{begun:%Y-%m-%d %H:%M} UTC · {machine['cores']} cores, {machine['memory_gb']:.0f} GB, load average"
        f" {measured['load_before']:.1f} before, {_load(measured)} while it was measured · {machine['system']} ·"
        f" {', '.join(f'{name} {number}' for name, number in versions.items() if number)}",
        "",
        *_explained(sizes),
        "### What has to hold",
        "",
        "| figure | allowed | measured | |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {verdict.title} | {verdict.allowed} | {verdict.told} | {'met' if verdict.met else '**not met**'} |"
            for verdict in judge(measured)
        ),
        "",
    ]
    for figures in sizes:
        lines += _section(figures)
    return "\n".join(lines) + "\n"


def _explained(sizes: Sequence[Figures]) -> list[str]:
    told = "; ".join(
        f"{figures.size:,}: {figures.data['extracted']:,} in the windows of {figures.data['open_clinics']} open"
        f" clinics, {figures.data['permitted']:,} of them may be shared"
        for figures in sizes
    )
    return [
        f"Appointments: {told}. All contenders read the same tables of the same Postgres and post the same records"
        " (but dlt without rules: all in the windows) to the same receiver (bench/receiver.py), which unpacks and"
        " parses each body and answers with a verdict for each record; what it shows after a whole first run of each"
        " contender, and after each run of the product in Airflow, has to be exactly what SQL says that it should"
        " (not checked: the slice record by record, dlt with a cursor on later days, our own work alone), and on the"
        " day with changes the product has to send and to withdraw as many records as SQL counts; where midnight"
        " passes in a clinic during a run of the product, its"
        " first day may be missing. Of a size in the middle only our own work and its bodies are measured. Which phones"
        " cannot be read, and which clinics have no known zone, is told to the others: SQL cannot tell. Rows a second"
        " are appointments in the windows, whoever drops what may not be shared; of the floor that posts, records."
        " Everything runs on this one machine.",
        "",
        "- **This product** runs in the whole Airflow of `make demo` (scheduler, LocalExecutor, triggerer); the time is"
        " that from the queueing of the run to its end, with the start of all its tasks' processes, the rules, Great"
        " Expectations, the ledger and the quality report. Airflow was running before, its libraries imported"
        " ([why](adr/0023-preloaded-libraries.md)), for the plain tasks as well; dlt's time has the start of its"
        " process and its imports, a few seconds. Its other DAGs are paused, so that the run does all the work. No"
        " clinic waits for its 24 hours on this day.",
        "- **Its own work** is what happens inside its tasks' functions, one task after the other; what they import"
        " there is told apart.",
        "- **Plain Airflow task** (bench/dags): `PostgresHook.get_df` of the product's query, a filter in pandas,"
        " `json.dumps`, `requests`. It remembers nothing, so each day costs what the first one does, and refusals of"
        " what was sent before are never withdrawn. Above 200,000 rows it posts a slice record by record, and the rest"
        " is extrapolated at that rate. Written with more care, for comparison only: Postgres filters, and gives the"
        " columns alone that are sent.",
        "- **dlt** (bench/contenders): `sql_table` of a view, pyarrow backend, custom destination, batches of 500,"
        " without Airflow around it; its time is that of its process. As it comes it knows no rule: then it posts every"
        " row in the windows, also of those who refused. Or the view filters: then it posts what may be shared: a"
        " stricter measure, as somebody has written our rules in SQL, and Postgres spares it what may not be shared."
        " *All rows* is what it does each day without a cursor, so that its first day stands for each day;"
        " what a day with changes is held against is the filtered one. With a"
        " *cursor* on `updated_at` it reads only appointments that changed, and sees neither refusals nor new phones of"
        " patients, nor what has left. It checks nothing before sending.",
        "- **Floors**: the product's query by binary `COPY`, thrown away; the product's own request bodies, posted by"
        " a client that does nothing else, in four threads. The extraction into pandas is measured beside the former"
        " by turns before and behind it; it is that of the product's reader, in parts as large as the task `extract`"
        " stages, which writes them to Parquet instead (its own seconds and memory are in the tables below).",
        "- **1 % changed**: 0.5 % of the appointments have another status, 0.3 % of the patients another phone, 0.2 %"
        " refuse.",
        "",
        "Seconds are medians; peak memory is the highest seen: of a task's process (RSS), sampled from /proc. Requests,"
        " bytes as received, and records are those of one run.",
        "",
    ]


_EACH_DAY = ("plain", "lean", "records", "dlt", "dlt+unruled")


def _section(figures: Figures) -> list[str]:
    lines = [
        f"### {figures.size:,} appointments",
        "",
        "| | day | seconds | of runs | rows/s | × first run of this product | peak MB | write requests | MB sent |"
        " records | withdrawn |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    product = figures.median("product")
    for what, day in (
        ("product", "first"), ("product", "changed"), ("product", "unchanged"), ("latency", "first"),
        ("plain", "first"), ("lean", "first"), ("records", "first"), ("dlt+unruled", "first"), ("dlt", "first"),
        ("dlt+cursor", "first"), ("dlt+cursor", "changed"), ("dlt+cursor", "unchanged"), ("work", "first"),
        ("pandas", "-"), ("copy", "-"), ("post", "-"),
    ):  # fmt: skip
        seconds = figures.median(what, day)
        if seconds is None:
            continue
        sliced = what == "records" and figures.is_extrapolated
        rows = figures.median(what, day, "rows") or figures.data["extracted"]
        peak = _most(figures.of(what, day, "peak_mb"))
        sent = [figures.median(what, day, key) for key in ("writes", "bytes", "records", "withdrawn")]
        cells = [
            NAMES[what] + (", extrapolated" if sliced else ""),
            {"-": "", "first": "first" if what not in _EACH_DAY else "each"}.get(day, day),
            f"{seconds:,.1f}",
            f"{len(figures.of(what, day))}",
            f"{rows / seconds:,.0f}" if day in ("first", "-") else "",
            f"{seconds / product:.2f}" if product else "",
            f"{peak:,.0f}" if peak is not None else "",
            *(
                "" if number is None or sliced else f"{number / (1e6 if place == 1 else 1):,.0f}"
                for place, number in enumerate(sent)
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *_tasks(figures), *_sizes(figures)]


def _tasks(figures: Figures) -> list[str]:
    first, changed, work = figures.tasks("first"), figures.tasks("changed"), figures.work()
    names = list(dict.fromkeys([*first, *work]))
    if not names:
        return []
    lines = [
        "The product's tasks. In Airflow: number, seconds summed over them, CPU seconds, most memory; alone: seconds"
        " inside the function, and of the imports that it makes there.",
        "",
        "| task | number | s, first | CPU s | peak MB | number, 1 % | s, 1 % | own work, s | µs a row | imports, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = figures.data["extracted"]
    for name in names:
        one, other, alone = first.get(name), changed.get(name), work.get(name)
        cells = [
            f"`{name}`",
            *([f"{one['number']:.0f}", f"{one['seconds']:.1f}", f"{one['cpu_seconds']:.1f}", f"{one['peak_mb']:.0f}"]
              if one else [""] * 4),
            *([f"{other['number']:.0f}", f"{other['seconds']:.1f}"] if other else [""] * 2),
            *([f"{alone['seconds']:.2f}", f"{alone['seconds'] / rows * 1e6:.2f}", f"{alone['imports']:.1f}"]
              if alone else [""] * 3),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _sizes(figures: Figures) -> list[str]:
    """What is kept and sent, per record."""
    parts = []
    ledgers, records = figures.of("product", key="ledger_bytes"), figures.median("product", key="records")
    if ledgers and records:
        parts.append(f"ledger {median(sum(item.values()) for item in ledgers) / records:,.0f} bytes a record sent")
    staged = figures.of("work", key="staged_bytes")
    if staged:
        rows = figures.data["extracted"]
        parts.append(f"staging {median(sum(item.values()) for item in staged) / rows:,.0f} bytes a row while it runs")
    for key, told in (("bytes", "as received"), ("unpacked_bytes", "unpacked")):
        number = figures.median("product", key=key)
        if number and records:
            parts.append(f"bodies {number / records:,.0f} bytes a record {told}")
    return [f"After the first run: {', '.join(parts)}.", ""] if parts else []


def _load(measured: Mapping[str, Any]) -> str:
    loads = [item["load"] for item in measured["measurements"]]
    return f"{min(loads):.1f} to {max(loads):.1f}" if loads else "–"


def _per_row(figures: Figures) -> float | None:
    seconds = figures.median("work")
    return None if seconds is None else seconds / float(figures.data["extracted"]) * 1e6


def _peak(figures: Figures) -> float | None:
    return _most([peak for day in DAYS for peak in figures.of("product", day, "peak_mb")])


def _most_growth(small: Figures, large: Figures) -> str:
    """Of which task the peak grows most, behind the figure of the largest one."""
    before, after = small.peaks(), large.peaks()
    name = max(before.keys() & after.keys(), key=lambda task: after[task] / max(before[task], 1.0), default=None)
    return f"; of one task at most {after[name] / max(before[name], 1.0):.1%}, `{name}`" if name else ""


def _per_further_row(small: Figures, large: Figures) -> float | None:
    """Microseconds of the product's own work for each row that the larger size has more."""
    before, after = small.median("work"), large.median("work")
    if before is None or after is None:
        return None
    return (after - before) / float(large.data["extracted"] - small.data["extracted"]) * 1e6


def _ratio(value: float, as_percent: bool) -> str:
    return f"{value:.1%}" if as_percent else f"{value:.2f} ×"


def _most(values: Sequence[float]) -> float | None:
    return max(values) if values else None


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def main() -> None:
    """Render a compare.json again; with ``--write`` into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare_report", description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args()
    text = render(json.loads(options.measured.read_text()))
    print(text)
    if options.write:
        write_section("comparison", text)


if __name__ == "__main__":
    main()
