"""Data Docs of a run, built from reduced results: counts and fixed bounds, never a value.

Great Expectations' own renderers make the content, one page per run and suite with the sums over all shards and a table
of the shards. The shell around it is ours (``templates/``): the stock one loads scripts, fonts and styles from other
hosts. Layout under the target: ``index.html``, and per run ``runs/<run>/{source,outgoing,run}.html`` with ``run.json``,
from which the index over all runs is written anew. One writer at a time: the task that publishes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from medflex.domain.messages import MessageLook, MessageWarning, Twice
from medflex.domain.reasons import Reason
from medflex.quality import suites
from medflex.quality.gx import import_great_expectations, silence
from medflex.quality.results import ExpectationResult, SuiteResult
from medflex.quality.validation import Funnel, merge

_TEMPLATES = Path(__file__).with_name("templates")
_TITLES = {"source": "Source", "outgoing": "Outgoing", "run": "Whole run"}
_FUNNEL = tuple(one.name for one in fields(Funnel) if one.name != "reasons")
_NOTE = "Counts, ids and names of scenarios only: nothing else of the data is kept here."
_SHOWN_WARNINGS = 500
"""Rows of a table of double messages: a page has to open in a browser; the ledger has them all."""
_SHOWN_IDS = 10


@dataclass(frozen=True)
class RunInfo:
    """What the pages say about a run. ``started_at`` is aware."""

    run_id: str
    day: date
    mode: str
    started_at: datetime

    @property
    def folder(self) -> str:
        """The run's folder under ``runs/``: readable, safe in a path, and never that of another run."""
        readable = re.sub(r"[^A-Za-z0-9.-]+", "-", self.run_id).strip("-.")[:80]
        return f"{readable}-{sha256(self.run_id.encode()).hexdigest()[:8]}"


def publish_data_docs(
    results: Sequence[SuiteResult],
    run: RunInfo,
    target: Path,
    *,
    funnel: Funnel | None = None,
    messages: MessageLook | None = None,
) -> Path:
    """Write the run's pages and the index over all runs under ``target``; return the index's path.

    ``results``: those of all shards, of any suites, in any order, and :func:`medflex.quality.validation.validate_run`'s
    if there is one; ``funnel`` and ``messages`` are told on the page of the latter. ``target`` is a folder, also on an
    object store (``ObjectStoragePath``). Publishing the same run again replaces its pages. Without results there is
    only the run's line in the index.
    """
    import_great_expectations()
    home = target / "runs" / run.folder
    home.mkdir(parents=True, exist_ok=True)
    for old in list(home.iterdir()):
        old.unlink()
    by_suite = {suite: [one for one in results if one.suite == suite] for suite in _TITLES}
    by_suite = {suite: mine for suite, mine in by_suite.items() if mine}
    merged = {suite: merge(mine) for suite, mine in by_suite.items()}
    for suite, mine in by_suite.items():
        links = [{"href": f"{name}.html", "text": _TITLES[name], "current": name == suite} for name in by_suite]
        page = _suite_page(merged[suite], mine, run)
        if suite == "run":
            page.sections[1:1] = [
                *([_funnel_section(funnel)] if funnel is not None else []),
                *([_messages_section(messages)] if messages is not None else []),
            ]
        title = f"{_TITLES[suite]}: {run.day.isoformat()}, {run.mode}, {run.run_id}"
        _write(home / f"{suite}.html", _render(page, title, "../../index.html", links))
    summary = {
        "run_id": run.run_id,
        "day": run.day.isoformat(),
        "mode": run.mode,
        "started_at": run.started_at.isoformat(),
        "rows": merged["source"].rows if "source" in merged else None,
        "suites": {suite: _verdict(mine) for suite, mine in by_suite.items()},
    }
    _write(home / "run.json", json.dumps(summary, ensure_ascii=False, sort_keys=True))
    return _write(target / "index.html", index_page(target))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _verdict(results: Sequence[SuiteResult]) -> dict[str, int]:
    """Counts for the index: how many shards there are, and in how many a rule failed."""
    return {
        "shards": len(results),
        "critical": sum(bool(one.critical_failures) for one in results),
        "warning": sum(bool(one.warnings) for one in results),
    }


# --- Pages ------------------------------------------------------------------------------------------------------


def _suite_page(merged: SuiteResult, shards: Sequence[SuiteResult], run: RunInfo) -> Any:
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    passed = sum(one.success for one in merged.results)
    validation = ExpectationSuiteValidationResult(
        success=merged.success,
        results=[_validation_result(one, merged.suite) for one in merged.results],
        suite_name=merged.suite,
        statistics={
            "evaluated_expectations": len(merged.results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(merged.results) - passed,
            "success_percent": 100.0 * passed / len(merged.results) if merged.results else None,
        },
        meta={"run_id": {"run_name": run.run_id, "run_time": run.started_at.isoformat()}},
    )
    with silence():
        document = ValidationResultsPageRenderer().render(validation)
    overview = document.sections[0]
    # Statistics stay; the header links to pages that we do not make, and the fold-out needs a script.
    overview.content_blocks = [block for block in overview.content_blocks if block.content_block_type == "table"]
    overview.content_blocks.insert(0, _verdict_table(merged, shards))
    for section in document.sections[1:]:
        _add_columns(section, merged, shards)
    if merged.suite != "run":
        findings = [one for one in shards if one.critical_failures or one.warnings]
        if findings:
            document.sections.insert(1, _shard_section("Shards with findings", findings))
        document.sections.append(_shard_section("All shards", shards))
    return document


def _validation_result(one: ExpectationResult, suite: str) -> Any:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    rule = _rules(suite)[one.name]
    config = ExpectationConfiguration(
        type=one.expectation_type,
        kwargs=dict(rule.kwargs),
        meta={"rule": one.name},
        description=rule.description,
        severity=FailureSeverity(one.severity.value),
    )
    result: dict[str, Any] = {
        "element_count": one.evaluated,
        "unexpected_count": one.unexpected,
        "unexpected_percent": one.unexpected_percent,
        "missing_count": one.missing,
    }
    if rule.part == "contract":
        result = {"observed_value": ", ".join(one.columns) if not one.success else "as in the contract"}
    return ExpectationValidationResult(
        success=one.success,
        expectation_config=config,
        result=result,
        exception_info={
            "raised_exception": one.exception_class is not None,
            "exception_message": one.exception_class or "",
            "exception_traceback": "",
        },
    )


def _add_columns(section: Any, merged: SuiteResult, shards: Sequence[SuiteResult]) -> None:
    """Add rule, severity and counts to a table of Great Expectations, whose rows keep the order of the results.

    Its own way to add columns (``meta_properties_to_render``) fails on any expectation of 1.24.1.
    """
    group = [one for one in merged.results if _section_name(merged.suite, one) == section.section_name]
    table = section.content_blocks[-1]
    table.header_row = ["", "Expectation", "Observed", "Rule", "Severity", "Judged", "Unexpected", "Missing"]
    table.header_row += ["Failed in shards"] if merged.suite != "run" else []
    for row, one in zip(table.table, group, strict=True):
        failed_in = sum(any(mine.name == one.name and not mine.success for mine in shard.results) for shard in shards)
        style = "result-passed" if one.success else f"result-{one.severity.value}"
        cause = f" ({one.exception_class})" if one.exception_class else ""
        counts = [one.evaluated - one.missing, one.unexpected, one.missing]
        row += [one.name, _text(one.severity.value + cause, style), *(f"{count:,}" for count in counts)]
        row += [f"{failed_in} of {len(shards)}"] if merged.suite != "run" else []


@cache
def _rules(suite: str) -> Mapping[str, suites.Rule]:
    return {rule.name: rule for rule in suites.SUITES[suite]()}


def _section_name(suite: str, one: ExpectationResult) -> str:
    """Where Great Expectations puts a result: under its column, or among those about more than one column."""
    rule = _rules(suite)[one.name]
    return str(rule.kwargs.get("column", "Table-Level Expectations"))


def _verdict_table(merged: SuiteResult, shards: Sequence[SuiteResult]) -> Any:
    if merged.suite == "run":
        meaning = "the numbers of the run do not add up"
    else:
        stopped = sum(bool(one.critical_failures) for one in shards)
        meaning = f"{stopped} of {len(shards)} shards send nothing until this is mended"
    if merged.critical_failures:
        text, style = f"Critical: {meaning}.", "result-critical"
    elif merged.warnings:
        text, style = "Passed with warnings: nothing is stopped.", "result-warning"
    else:
        text, style = "Passed.", "result-passed"
    return _table([[_text(text, style)]])


def _shard_section(name: str, shards: Sequence[SuiteResult]) -> Any:
    from great_expectations.render.components import RenderedSectionContent

    def failures(found: Sequence[ExpectationResult], style: str) -> Any:
        texts = [
            one.name + (f" ({one.exception_class})" if one.exception_class else f" ({one.unexpected:,})")
            for one in found
        ]
        return _text(", ".join(texts), style) if texts else "–"

    rows = [
        [
            escape(one.shard),
            f"{one.rows:,}",
            failures(one.critical_failures, "result-critical"),
            failures(one.warnings, "result-warning"),
        ]
        for one in sorted(shards, key=lambda one: (not one.critical_failures, not one.warnings, one.shard))
    ]
    table = _table(rows, ["Shard", "Rows", "Critical (rows)", "Warnings (rows)"], name)
    return RenderedSectionContent(section_name=name, content_blocks=[table])


def _funnel_section(funnel: Funnel) -> Any:
    from great_expectations.render.components import RenderedSectionContent

    def number(value: int | None) -> str:
        return "–" if value is None else f"{value:,}"

    blocks = [
        _table(
            [[name.replace("_", " "), number(getattr(funnel, name))] for name in _FUNNEL], ["Stage", "Rows"], "Funnel"
        ),
        _table(
            [[reason.value, number(funnel.reasons.get(reason, 0)), reason.description] for reason in Reason],
            ["Reason", "Rows", "Meaning"],
            "Reasons (a row counts under each that holds)",
        ),
    ]
    return RenderedSectionContent(section_name="Funnel", content_blocks=blocks)


def _messages_section(look: MessageLook) -> Any:
    from great_expectations.render.components import RenderedSectionContent

    def partners(item: MessageWarning) -> str:
        return ", ".join(map(str, item.partner_ids))

    def ids(item: MessageWarning) -> str:
        more = " …" if item.appointments > min(_SHOWN_IDS, len(item.appointment_ids)) else ""
        return ", ".join(map(str, item.appointment_ids[:_SHOWN_IDS])) + more

    def clinic(item: MessageWarning) -> str:
        return str(item.clinic_id)

    def scenario(item: MessageWarning) -> str:
        return escape(item.scenario)

    def appointments(item: MessageWarning) -> str:
        return f"{item.appointments:,}"

    columns: dict[str, Any] = {"Clinic": clinic, "Scenario": scenario, "Partners": partners}
    of_kind = {
        Twice.DOUBLED: {**columns, "Appointments": appointments, "First ids": ids},
        Twice.OVERLAP: columns,
        Twice.UNKNOWN: {"Clinic": clinic, "Partners": partners},
    }
    blocks = []
    for kind, shown in of_kind.items():
        since = f" Since {look.since:%Y-%m-%d %H:%M} UTC." if kind is Twice.DOUBLED else ""
        problem = look.doubled_problem if kind is Twice.DOUBLED else look.overlaps_problem
        found = sorted(look.of(kind), key=lambda item: -item.appointments)
        rows = [[cell(item) for cell in shown.values()] for item in found[:_SHOWN_WARNINGS]]
        if len(found) > _SHOWN_WARNINGS:
            rest = f"… and {len(found) - _SHOWN_WARNINGS:,} more lines, in the ledger's table message_warning"
            rows.append([rest, *[""] * (len(shown) - 1)])
        if problem is not None:
            rows = [[_text(f"Not judged: {problem}", "result-warning"), *[""] * (len(shown) - 1)]]
        blocks.append(_table(rows or [["none", *[""] * (len(shown) - 1)]], list(shown), kind.description + since))
    return RenderedSectionContent(section_name="Messages that patients get twice", content_blocks=blocks)


def index_page(target: Any) -> str:
    from great_expectations.render.components import RenderedDocumentContent, RenderedSectionContent

    runs = []
    for folder in (target / "runs").iterdir():
        summary = folder / "run.json"
        if summary.exists():  # missing: another run's publication was cut off; its own repetition will mend it
            runs.append((folder.name, json.loads(summary.read_text(encoding="utf-8"))))
    runs.sort(key=lambda item: (datetime.fromisoformat(item[1]["started_at"]), item[0]), reverse=True)
    rows = [
        [
            one["started_at"][:19].replace("T", " ") + one["started_at"][19:].replace(".000000", ""),
            escape(one["run_id"]),
            one["day"],
            escape(one["mode"]),
            "–" if one["rows"] is None else f"{one['rows']:,}",
            *(_verdict_cell(one["suites"].get(suite), f"runs/{folder}/{suite}.html") for suite in _TITLES),
        ]
        for folder, one in runs
    ]
    header = ["Started", "Run", "Day", "Mode", "Rows", *_TITLES.values()]
    document = RenderedDocumentContent(
        renderer_type="SiteIndexPageRenderer",
        page_title="Runs",
        sections=[RenderedSectionContent(section_name="Runs", content_blocks=[_table(rows, header)])],
        utm_medium="",
    )
    return _render(document, "Runs", "index.html", [])


def _verdict_cell(verdict: Mapping[str, int] | None, href: str) -> Any:
    if verdict is None:
        return "–"
    if verdict["critical"]:
        text, style = f"critical in {verdict['critical']} of {verdict['shards']}", "result-critical"
    elif verdict["warning"]:
        text, style = f"warnings in {verdict['warning']} of {verdict['shards']}", "result-warning"
    else:
        text, style = "passed", "result-passed"
    return _text(text, style, {"href": href})


# --- Great Expectations' blocks ---------------------------------------------------------------------------------


def _text(text: str, style: str, link: Mapping[str, str] | None = None) -> Any:
    from great_expectations.render.components import RenderedStringTemplateContent

    template: dict[str, Any] = {
        "template": "$text",
        "params": {"text": text},  # escaped by Great Expectations
        "tag": "a" if link else "span",
        "styling": {"classes": [style], "attributes": dict(link or {})},
    }
    return RenderedStringTemplateContent(content_block_type="string_template", string_template=template)


def _table(rows: list[list[Any]], header_row: list[str] | None = None, header: str | None = None) -> Any:
    from great_expectations.render.components import RenderedTableContent

    styling = {"body": {"classes": ["table"]}, "header": {"classes": ["alert"]}, "classes": ["table-responsive"]}
    # Great Expectations asks the first row for the number of columns.
    table = rows or [["–"] * len(header_row or [""])]
    return RenderedTableContent(table=table, header=header, header_row=header_row, styling=styling)


def _render(document: Any, title: str, home: str, links: list[dict[str, Any]]) -> str:
    content = {**document.to_json_dict(), "page_title": title}
    with silence():
        return str(_template().render(content, home=home, links=links, note=_NOTE))


@cache
def _template() -> Any:
    """Return the shell of all pages, which takes longer to compile than to fill in."""
    from great_expectations.render.view.view import DefaultJinjaPageView

    return DefaultJinjaPageView(custom_views_directory=str(_TEMPLATES)).env.get_template("data_docs_page.j2")
