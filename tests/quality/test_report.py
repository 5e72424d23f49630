"""Data Docs of runs: true numbers, nothing asked of another host, no value of the data."""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from medflex.domain.messages import MessageLook, MessageWarning, Twice
from medflex.domain.reasons import Reason
from medflex.quality import report, suites, validation
from medflex.quality.report import RunInfo
from medflex.quality.results import SuiteResult
from medflex.quality.validation import Funnel
from tests.quality import frames

RUN = RunInfo("scheduled__2026-03-10T00:00:00+00:00", date(2026, 3, 10), "transfer", frames.NOW)
FUNNEL = Funnel(
    extracted=200,
    eligible=150,
    withheld=40,
    quarantined=10,
    unchanged=120,
    planned=30,
    accepted=27,
    rejected=1,
    to_retry=1,
    unknown=0,
    dropped=1,
    reasons={Reason.REFUSED_MARKETING: 40},
)


def source(rows: pd.DataFrame, shard: str = "open-01 · 2 clinics") -> SuiteResult:
    return validation.validate_source(
        [rows], clinics=frames.clinics(), windows=frames.windows(), history=None, now=frames.NOW, shard=shard
    )


def outgoing(rows: pd.DataFrame, shard: str = "open-01 · 2 clinics") -> SuiteResult:
    return validation.validate_outgoing([rows], clinics=frames.clinics(), now=frames.NOW, shard=shard)


@pytest.fixture(scope="module")
def results() -> list[SuiteResult]:
    odd, broken = frames.rows(), frames.rows().drop(columns="entry")
    odd.loc[0:6, "phone"] = "позже"
    double = frames.rows()
    double.loc[2, ["clinic_id", "appointment_id"]] = [1, 1]
    return [
        source(frames.rows()),
        source(odd, "open-02"),
        source(double, "open-03"),
        source(broken, "open-04"),
        outgoing(frames.outgoing()),
        validation.validate_run(FUNNEL, []),
    ]


class Page(HTMLParser):
    """The texts of a page, row by row, and everything that it would load or open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.rows = [row for row in self.rows if row]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "data", "action", "srcset")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def pages(target: Path) -> Iterator[Path]:
    yield from target.rglob("*.html")


def test_the_pages_say_how_many_rows_break_which_rule_in_how_many_shards(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    index = report.publish_data_docs(results, RUN, tmp_path, funnel=FUNNEL)
    home = tmp_path / "runs" / RUN.folder
    assert {path.name for path in home.iterdir()} == {"source.html", "outgoing.html", "run.html", "run.json"}
    rows = Page(home / "source.html").rows
    by_rule = {row[3]: row for row in rows if len(row) == 9}
    assert by_rule["phone_has_digits"][4:] == ["warning", "600", "7", "0", "1 of 4"]
    assert by_rule["appointment_unique"][4:] == ["critical", "600", "2", "0", "1 of 4"]
    assert by_rule["rows_columns_as_in_contract"][2] == "entry"
    assert set(by_rule) >= {rule.name for rule in suites.source_suite()}
    assert ["open-03", "200", "appointment_unique (2)", "–"] in rows
    assert any("2 of 4 shards send nothing" in cell for row in rows for cell in row)
    run = Page(home / "run.html").rows
    assert ["accepted", "27"] in run
    assert ["refused_marketing", "40", Reason.REFUSED_MARKETING.description] in run
    (_, line) = Page(index).rows
    assert line[1:] == [RUN.run_id, "2026-03-10", "transfer", "800", "critical in 2 of 4", "passed", "passed"]


def test_every_rule_stands_beside_its_own_description(results: list[SuiteResult], tmp_path: Path) -> None:
    report.publish_data_docs(results, RUN, tmp_path)
    for suite, build in suites.SUITES.items():
        rows = Page(tmp_path / "runs" / RUN.folder / f"{suite}.html").rows
        shown = {row[3]: row[1] for row in rows if len(row) >= 8}
        for rule in build():
            assert rule.description in shown[rule.name]


def test_nothing_is_asked_of_another_host_and_every_link_leads_somewhere(
    results: list[SuiteResult], tmp_path: Path
) -> None:
    report.publish_data_docs(results, RUN, tmp_path)
    for path in pages(tmp_path):
        page, text = Page(path), path.read_text(encoding="utf-8")
        assert not page.tags & {"script", "iframe", "img", "object", "embed", "form"}
        assert "://" not in text
        assert "url(" not in text
        assert "@import" not in text
        for link in page.links:
            if link.startswith("#"):
                assert f'id="{link[1:]}"' in text
            elif link != "data:,":
                assert (path.parent / link).resolve().is_file(), link


def test_publishing_a_run_again_replaces_it_and_leaves_the_others(results: list[SuiteResult], tmp_path: Path) -> None:
    other = replace(RUN, run_id="manual__2026-03-11", mode="plan", started_at=RUN.started_at + timedelta(days=1))
    report.publish_data_docs(results, RUN, tmp_path)
    report.publish_data_docs(results[:1], other, tmp_path)
    before = (tmp_path / "runs" / other.folder / "source.html").read_text(encoding="utf-8")
    index = report.publish_data_docs(results[:1], RUN, tmp_path)
    assert {path.name for path in (tmp_path / "runs" / RUN.folder).iterdir()} == {"source.html", "run.json"}
    assert (tmp_path / "runs" / other.folder / "source.html").read_text(encoding="utf-8") == before
    assert [row[1] for row in Page(index).rows] == ["Run", other.run_id, RUN.run_id], "the newest first, each once"


def test_a_run_without_results_has_its_line_in_the_index(tmp_path: Path) -> None:
    index = report.publish_data_docs([], RUN, tmp_path)
    assert Page(index).rows[1][1:] == [RUN.run_id, "2026-03-10", "transfer", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    "run_id", ["manual__<script>alert(1)</script>", "../../../etc/passwd", "запуск №1", "a" * 300, "$x ${y} {{ 1 }}"]
)
def test_any_run_id_makes_a_safe_folder_and_a_safe_page(
    run_id: str, results: list[SuiteResult], tmp_path: Path
) -> None:
    run = replace(RUN, run_id=run_id)
    shown = replace(results[1], shard=f"shard {run_id}")
    index = report.publish_data_docs([shown], run, tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9.-]+", run.folder)
    (home,) = (tmp_path / "runs").iterdir()
    assert home.name == run.folder
    assert Page(index).rows[1][1] == run_id
    page = Page(home / "source.html")
    assert "script" not in page.tags
    assert any(row[0] == f"shard {run_id}" for row in page.rows if row)


def test_a_rule_that_could_not_be_evaluated_is_shown_as_critical_with_the_exceptions_class(tmp_path: Path) -> None:
    tally = validation._Tally(next(rule for rule in suites.source_suite() if rule.name == "phone_has_digits"))
    tally.exception_class = "TypeError"
    report.publish_data_docs([SuiteResult("source", "open-01", 200, (tally.result(),))], RUN, tmp_path)
    rows = Page(tmp_path / "runs" / RUN.folder / "source.html").rows
    assert ["open-01", "200", "phone_has_digits (TypeError)", "–"] in rows
    assert any(row[3:5] == ["phone_has_digits", "critical (TypeError)"] for row in rows)


def test_different_runs_never_share_a_folder() -> None:
    assert replace(RUN, run_id="a:b").folder != replace(RUN, run_id="a+b").folder


def test_a_hundred_shards_take_seconds(results: list[SuiteResult], tmp_path: Path) -> None:
    many = [replace(one, shard=f"open-{at:03d}") for at in range(100) for one in (results[1], results[4])]
    began = time.monotonic()
    report.publish_data_docs(many, RUN, tmp_path)
    assert time.monotonic() - began < 30


# Messages

LOOK = MessageLook(
    frames.NOW,
    (
        MessageWarning(2, Twice.DOUBLED, "greeting", (17,), 1, (7,)),
        MessageWarning(9, Twice.DOUBLED, "visit_reminder", (17, 20), 1234, tuple(range(100, 1100))),
        MessageWarning(2, Twice.OVERLAP, "greeting", (17,)),
        MessageWarning(1, Twice.OVERLAP, "other", (20,)),
        MessageWarning(3, Twice.UNKNOWN, "", (5, 20)),
    ),
)


def run_page(tmp_path: Path, look: MessageLook | None) -> list[list[str]]:
    result = validation.validate_run(FUNNEL, [], None if look is None else look.by_clinic([1, 2, 3, 9]))
    index = report.publish_data_docs([result], RUN, tmp_path, funnel=FUNNEL, messages=look)
    verdict = "warnings in 1 of 1" if result.warnings else "passed"
    assert Page(index).rows[1][-1] == verdict
    return Page(tmp_path / "runs" / RUN.folder / "run.html").rows


def test_r15_the_page_of_the_run_says_which_messages_patients_get_twice(tmp_path: Path) -> None:
    rows = run_page(tmp_path, LOOK)
    first_ids = ", ".join(map(str, range(100, 110)))
    at = rows.index(["Clinic", "Scenario", "Partners", "Appointments", "First ids"])
    assert rows[at + 1 : at + 3] == [
        ["9", "visit_reminder", "17, 20", "1,234", f"{first_ids} …"],
        ["2", "greeting", "17", "1", "7"],
    ]
    at = rows.index(["Clinic", "Scenario", "Partners"])
    assert rows[at + 1 : at + 3] == [["1", "other", "20"], ["2", "greeting", "17"]]
    at = rows.index(["Clinic", "Partners"])
    assert rows[at + 1] == ["3", "5, 20"]
    by_rule = {row[3]: row for row in rows if len(row) == 8}
    assert by_rule["no_scenario_run_twice"][4:] == ["warning", "4", "2", "0"]
    assert by_rule["no_appointment_told_twice"][4:] == ["warning", "4", "2", "0"]
    text = (tmp_path / "runs" / RUN.folder / "run.html").read_text(encoding="utf-8")
    for kind in Twice:
        assert kind.description in text
    assert "Messages that patients get twice" in text
    assert f"Since {frames.NOW:%Y-%m-%d %H:%M} UTC." in text


def test_the_page_tells_nothing_found_from_not_judged(tmp_path: Path) -> None:
    rows = run_page(tmp_path, MessageLook(frames.NOW, ()))
    assert rows.count(["none", "", ""]) == rows.count(["none", "", "", "", ""]) == rows.count(["none", ""]) == 1
    rows = run_page(tmp_path, MessageLook(frames.NOW, (), "Medlock is <away>.", None))
    assert rows.count(["none", "", "", "", ""]) == 1
    assert rows.count(["Not judged: Medlock is <away>.", "", ""]) == 1
    assert rows.count(["Not judged: Medlock is <away>.", ""]) == 1
    by_rule = {row[3]: row for row in rows if len(row) == 8}
    assert by_rule["no_scenario_run_twice"][5:] == ["0", "0", "4"]
    assert by_rule["no_appointment_told_twice"][5:] == ["4", "0", "0"]
    rows = run_page(tmp_path, None)
    assert not any("none" in row for row in rows)


def test_a_page_of_many_clinics_stays_one_that_a_browser_opens(tmp_path: Path) -> None:
    many = tuple(MessageWarning(number, Twice.OVERLAP, "greeting", (17,)) for number in range(20_000))
    began = time.monotonic()
    rows = run_page(tmp_path, MessageLook(frames.NOW, many))
    at = rows.index(["Clinic", "Scenario", "Partners"])
    assert rows[at + 500] == ["499", "greeting", "17"]
    assert rows[at + 501] == ["… and 19,500 more lines, in the ledger's table message_warning", "", ""]
    assert (tmp_path / "runs" / RUN.folder / "run.html").stat().st_size < 1_000_000
    assert time.monotonic() - began < 20


# Canaries

CANARY = "Канарейкина"
CANARY_PHONE = "79990001122"
TEXTS = ("status", "entry", "phone", "dt_start", "dt_end", "mis_status", "partners", "first_name", "second_name")


def with_canaries(frame: pd.DataFrame) -> pd.DataFrame:
    for column in frame.columns.intersection([*TEXTS, "mobile_phone"]):
        frame.loc[0:60, column] = CANARY
        frame.loc[61:120, column] = f"+{CANARY_PHONE}"
    return frame


@pytest.mark.parametrize("with_text_in_numbers", [False, True])
def test_no_value_of_the_data_gets_out(
    with_text_in_numbers: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    caplog.set_level("DEBUG")
    rows, records, clinics = with_canaries(frames.rows()), with_canaries(frames.outgoing()), frames.clinics()
    clinics["timezone"] = clinics["access_changed_by_role"] = pd.Series([CANARY] * 2, dtype="str")
    if with_text_in_numbers:
        rows, records = rows.astype({"doctor_id": object}), records.astype({"time_offset": object})
        rows.loc[0, "doctor_id"] = records.loc[0, "time_offset"] = CANARY
    given = {"clinics": clinics, "windows": frames.windows(), "history": None, "now": frames.NOW}
    source_result = validation.validate_source([rows], shard="a", **given)
    outgoing_result = validation.validate_outgoing([records], clinics=clinics, now=frames.NOW, shard="a")
    assert source_result.critical_failures
    assert len(outgoing_result.critical_failures) >= (1 if with_text_in_numbers else len(TEXTS))
    ids = validation.failing_source_ids(source_result, [rows], **given)
    ids |= validation.failing_outgoing_ids(outgoing_result, [records], clinics=clinics, now=frames.NOW)
    report.publish_data_docs([source_result, outgoing_result], RUN, tmp_path)
    said = capfd.readouterr()
    texts = {
        "source result": source_result.to_json(),
        "outgoing result": outgoing_result.to_json(),
        "ids": json.dumps(ids),
        "repr": repr((source_result, outgoing_result)),
        "stdout": said.out,
        "stderr": said.err,
        "log": caplog.text,
        "warnings": " ".join(str(one.message) for one in recwarn),
        **{str(path): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()},
    }
    assert len([name for name in texts if name.endswith(".html")]) == 3
    for name, text in texts.items():
        assert CANARY not in text, name
        assert CANARY_PHONE not in text, name
        assert json.dumps(CANARY)[1:-1] not in text, name


@pytest.mark.long
def test_a_million_rows_need_no_more_memory_than_some_chunks(record_property: Callable[[str, object], None]) -> None:
    chunk = frames.rows(100_000)

    def look(count: int) -> SuiteResult:
        return validation.validate_source(
            (chunk.assign(appointment_id=chunk["appointment_id"] + at * 100_000) for at in range(count)),
            clinics=frames.clinics(),
            windows=frames.windows(),
            history=None,
            now=frames.NOW,
            shard="big",
        )

    assert look(2).success
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert look(10).rows == 1_000_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    record_property("seconds", time.monotonic() - began)
    record_property("peak_mb_beyond_two_chunks", grown)
    assert grown < 200
