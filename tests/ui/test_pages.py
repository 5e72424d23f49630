"""The pages *Run*, *Withdrawals*, *Partner actions* and *Quality*, as Airflow serves them, over a real ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import psycopg
import pytest
from fastapi.testclient import TestClient

from medflex.domain.partner_actions import Ruling
from medflex.ledger.store import Ledger, Run
from medflex.quality.report import RunInfo
from medflex.quality.suites import SUITES
from medflex.ui.i18n import LANGUAGES, Speech, texts
from medflex.ui.pages.withdrawals import day_starts
from tests.ledger.times import Time
from tests.ui import story

SignIn = Callable[..., TestClient]
PAGES = ("runs", "runs?dag_id=medflex_withdraw", "withdrawals", "withdrawals?days=30", "actions", "quality")


@pytest.fixture
def empty(ledger_db: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ledger that the pages read."""
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    return ledger_db


@pytest.fixture
def ledger(empty: str) -> Iterator[Ledger]:
    clock = Time()
    clock.now = datetime.now(UTC).replace(microsecond=0)
    with Ledger(empty, now=clock) as made:
        yield made


@pytest.fixture
def run(ledger: Ledger) -> Run:
    """The newest run of the story, which ends now."""
    clock = ledger._now

    def at_time(moment: datetime) -> None:
        clock.now = moment

    return story.tell(ledger, ledger._conninfo, clock.now, at_time)


def of_run(run: Run | str, **more: object) -> str:
    run_id = run if isinstance(run, str) else run.run_id
    asked = "".join(f"&{name}={quote(str(value), safe='')}" for name, value in more.items())
    return f"runs/view?dag_id=medflex_transfer&run_id={quote(run_id, safe='')}{asked}"


def read(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(f"/medflex/{path}")
    assert answer.status_code == status, re.sub(r"<[^>]+>", " ", answer.text)
    return answer.text


def words(page: str) -> str:
    """What is read on a page, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def section(page: str, name: str) -> str:
    """A part of a page, in one line."""
    return words(page.split(f'id="{name}"')[1].split("</section>")[0])


class Outline(HTMLParser):
    """What matters to who reads a page with a screen reader or a keyboard."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# -- runs


def test_the_list_of_runs_leads_to_each_run(client: TestClient, run: Run) -> None:
    page = read(client, "runs")
    assert words(page).index("failed") < words(page).index("succeeded")
    assert "200 15 7.5 % 7 3.5 % 11 1 0.5 %" in words(page)  # extracted, withheld, quarantined, accepted, rejected
    links = [str(a["href"]) for a in Outline(page).all("a") if "runs/view" in str(a.get("href"))]
    assert len(links) == 2
    assert client.get(links[0]).status_code == 200


def test_runs_come_in_pages(client: TestClient, ledger: Ledger) -> None:
    at = datetime.now(UTC)
    for number in range(53):
        story.begin(ledger, f"r{number}", at - timedelta(hours=number))
    first, second = read(client, "runs"), read(client, "runs?page=2")
    assert (first.count("runs/view?"), second.count("runs/view?")) == (50, 3)
    assert 'rel="next"' in first
    assert 'rel="next"' not in second
    assert 'rel="prev"' in second


@pytest.mark.parametrize("path", ["runs?page=9", "actions?page=9", of_run("scheduled__2", shard=0, page=9)])
def test_a_page_behind_the_last_does_not_say_that_there_is_nothing(client: TestClient, run: Run, path: str) -> None:
    page = read(client, path)
    assert "There is nothing on this page" in page
    for untrue in ("knows no run", "No partner has asked", "Nothing was sent or withdrawn"):
        assert untrue not in page
    (first,) = (str(a["href"]) for a in Outline(page).all("a") if a.get("rel") == "first")
    assert "There is nothing on this page" not in client.get(first).text


def test_shards_behind_the_last_page_are_those_of_the_last(client: TestClient, run: Run) -> None:
    assert "open-001" in section(read(client, of_run(run, page=9)), "shards")


@pytest.mark.parametrize(
    "path", ["runs?page=0", "runs?dag_id=", "withdrawals?days=8", "actions?days=x", of_run("a\0b")]
)
def test_an_address_that_makes_no_sense_is_refused(client: TestClient, empty: str, path: str) -> None:
    read(client, path, 422)


@pytest.mark.parametrize(
    "path",
    [of_run("never"), of_run("scheduled__2", shard=9), "runs/view?dag_id=medflex_withdraw&run_id=scheduled__2"],
)
def test_a_run_or_shard_that_nobody_knows_is_a_page_that_says_so(client: TestClient, run: Run, path: str) -> None:
    assert "<h1>" in read(client, path, 404)


def test_the_run_shows_its_funnel_and_what_has_changed(client: TestClient, run: Run) -> None:
    page = read(client, of_run(run))
    funnel = section(page, "funnel")
    assert "Extracted: 200 (100.0 %). Withheld: 15 (7.5 %). Quarantined: 7 (3.5 %)" in funnel
    assert "Revoked: 2 (100.0 %)" in funnel
    assert "Extracted 200 100.0 % 170 +30" in funnel
    assert "Withheld 15 7.5 % 15 0" in funnel
    reasons = section(page, "reasons")
    assert "refused_marketing Withheld 12 12 0 +12" in reasons
    assert "anonymous_appointment Withheld 10 3 0 +10" in reasons
    assert "doctor_banned Withheld 0 0 2 −2" in reasons


def test_the_first_run_has_nothing_to_be_compared_with(client: TestClient, run: Run) -> None:
    page = words(read(client, of_run("scheduled__1")))
    assert "Compared with" not in page
    assert "Difference" not in page


def test_results_have_their_severity_and_lead_into_data_docs(client: TestClient, run: Run) -> None:
    page = read(client, of_run(run))
    results = section(page, "results")
    assert results.index("appointment_unique") < results.index("status_known") < results.index("2 expectations passed")
    assert "Each appointment of a clinic comes once. Source critical 80 3 3.8 % 1 of 2" in results
    folder = RunInfo(run.run_id, run.anchor.date(), run.mode, run.started_at).folder
    for suite in ("source", "run"):
        assert f'href="/medflex/data-docs/runs/{folder}/{suite}.html"' in page


def test_records_to_mend_shards_and_requests(client: TestClient, run: Run) -> None:
    page = read(client, of_run(run))
    assert "phone_missing" in section(page, "records")
    assert "clinic 3 : 36" in section(page, "records")
    assert "1 record rejected by Medflex for the field mobile_phone" in section(page, "records")
    shards = section(page, "shards")
    assert shards.index("open-001") < shards.index("open-000")
    assert "Medflex does not answer, see the log." in shards
    assert "send 2 acknowledged 1 rejected 200" in section(page, "batches")


def test_one_shard_has_its_own_numbers(client: TestClient, run: Run) -> None:
    page = read(client, of_run(run, shard=1))
    assert "Shard open-001" in page.split("<h1>")[1].split("</h1>")[0]
    assert "Extracted: 20 (100.0 %)" in section(page, "funnel")
    assert "refused_marketing Withheld 5 5" in section(page, "reasons")
    assert "appointment_unique" in section(page, "results").split("expectation")[0]
    assert "clinic 1" not in words(page)
    assert "Nothing was sent or withdrawn." in section(page, "batches")


@pytest.mark.parametrize(
    ("task_id", "map_index", "shard", "first"),
    [
        ("shard.validate", "1", "open-001", "results"),
        ("shard.load", "0", "open-000", "batches"),
        ("shard.extract", "0", "open-000", "funnel"),
        ("settle_run", "-1", None, "funnel"),
        ("settle_run", "{MAP_INDEX}", None, "funnel"),
        ("shard.load", "{MAP_INDEX}", None, "batches"),
        ("another.load", "0", None, "batches"),
    ],
)
def test_the_tab_of_a_task_instance_is_that_of_its_shard(
    client: TestClient, run: Run, task_id: str, map_index: str, shard: str | None, first: str
) -> None:
    page = read(client, of_run(run, task_id=task_id, map_index=map_index))
    assert re.findall(r'<section aria-labelledby="(\w+)"', page)[0] == first
    title = page.split("<h1>")[1].split("</h1>")[0]
    assert (f"Shard {shard}" in title) if shard else ("Shard" not in title)


def test_a_running_run_is_shown_as_far_as_it_has_come(client: TestClient, ledger: Ledger) -> None:
    run = story.begin(ledger, "now", datetime.now(UTC))
    page = words(read(client, of_run(run)))
    assert "running" in page
    assert "not yet" in page
    story.numbers(ledger, run)
    assert "Extracted: 170" in words(read(client, of_run(run)))


def test_a_plan_shows_no_sending(client: TestClient, ledger: Ledger) -> None:
    run = story.begin(ledger, "plan", datetime.now(UTC), mode="plan")
    story.numbers(ledger, run)
    funnel = section(read(client, of_run(run)), "funnel").split("Numbers as a table")[0]
    assert "Planned: 12" in funnel
    assert "Accepted" not in funnel


def test_a_run_of_withdrawals_has_its_own_funnel(client: TestClient, ledger: Ledger) -> None:
    run = story.begin(ledger, "quick", datetime.now(UTC), dag_id="medflex_withdraw", mode="withdraw")
    story.numbers(ledger, run)
    page = read(client, "runs/view?dag_id=medflex_withdraw&run_id=quick")
    assert "Revoked: 2 (100.0 %)" in section(page, "funnel")
    assert "Extracted" not in section(page, "funnel")
    assert 'id="results"' not in page


def test_whoever_may_not_read_a_dag_does_not_see_its_runs(
    client: TestClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.app import get_auth_manager

    def only_transfer(**asked: Any) -> bool:
        return bool(asked["details"].id == "medflex_transfer")

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", only_transfer)
    read(client, of_run(run))
    read(client, "runs?dag_id=medflex_withdraw", 403)
    read(client, "runs/view?dag_id=medflex_withdraw&run_id=quick", 403)


# -- withdrawals, actions, quality


def test_open_withdrawals_are_on_top_with_those_that_are_late(client: TestClient, run: Run) -> None:
    page = read(client, "withdrawals")
    assert words(page).index("Open withdrawals") < words(page).index("Time to withdraw ")
    opened = section(page, "open")
    assert "1 record waits for longer than 15 min" in opened
    assert re.search(r"refused_marketing 2 .* 1 h( \d s)? late", opened.split("doctor_banned")[0])
    assert "late" not in opened.split("doctor_banned")[1]
    assert "appointment_gone 2 50" in section(page, "holds")


def test_questions_beyond_those_shown_count_too(client: TestClient, run: Run, ledger: Ledger) -> None:
    with psycopg.connect(ledger._conninfo) as connection:
        connection.execute(
            "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live)"
            " SELECT clinic_id, now(), '{71, 72}', '{103, 103}', '{appointment_gone, appointment_gone}', 50"
            " FROM generate_series(3, 61) AS clinic_id"
        )
    page = read(client, "withdrawals")
    assert "120 held: a person is asked" in words(page)
    assert "25 of 60 questions" in section(page, "holds")


@pytest.mark.parametrize(
    ("language", "tiles"),
    [
        ("en", ("1 to be withdrawn", "1 held: a person is asked", "1 without a decision yet")),
        ("ru", ("1 в очереди на отзыв", "1 на решении у человека", "1 пока без решения")),
    ],
)
def test_a_tile_reads_well_with_any_number(
    sign_in: SignIn, run: Run, ledger: Ledger, language: str, tiles: tuple[str, ...]
) -> None:
    with psycopg.connect(ledger._conninfo) as connection:
        connection.execute("DELETE FROM ledger.revocation WHERE appointment_id <> 61")
        connection.execute("UPDATE ledger.hold SET appointment_ids = '{71}', lpu_ids = '{102}', reasons = '{x}'")
    client = sign_in("viewer", **{"accept-language": language})
    read_at_once = words(read(client, "withdrawals") + read(client, "actions"))
    for tile in tiles:
        assert tile in read_at_once


def test_the_deadline_is_that_of_the_alert(client: TestClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFLEX_WITHDRAW_DEADLINE_SECONDS", "86400")
    assert "late" not in section(read(client, "withdrawals"), "open")


def test_times_to_withdraw_as_a_distribution(client: TestClient, run: Run) -> None:
    times = section(read(client, "withdrawals"), "times")
    assert "2 records withdrawn" in times
    assert "median 24 s, 95th percentile 5 min 4 s, longest 5 min 4 s" in times
    assert "&lt; 2 s: 0. 2–5 s: 0" in times
    assert "20–30 s: 1" in times
    assert "5–15 min: 1" in times
    assert "30 s–1 min: 0" in times
    assert "doctor_banned 1 5 min 4 s" in times


def test_days_begin_at_the_readers_midnight() -> None:
    # The 25th has 25 hours there.
    starts = day_starts(datetime(2026, 10, 26, 12, tzinfo=UTC), ZoneInfo("Europe/Berlin"), 3)
    assert [start.astimezone(UTC) for start in starts] == [
        datetime(2026, 10, 23, 22, tzinfo=UTC),
        datetime(2026, 10, 24, 22, tzinfo=UTC),
        datetime(2026, 10, 25, 23, tzinfo=UTC),
    ]


def test_actions_by_type_and_decision(client: TestClient, run: Run) -> None:
    page = read(client, "actions")
    assert "1 without a decision yet" in words(page)
    decisions = section(page, "decisions")
    assert "recorded 204 0 0 0 2 0 2 40.0 %" in decisions
    assert "done 204 0 1 0 0 0 1 20.0 %" in decisions
    assert "malformed 400 0 0 0 0 1 1" in decisions
    assert "All 0 2 0 2 1 5 100.0 %" in decisions
    assert "cancel 2 1 min 1 min 1 min 1 min" in section(page, "times")
    newest = section(page, "newest")
    assert newest.index("waits") < newest.index("malformed" if "malformed" in newest else "400")
    assert "00000000-0000-0000-0000-000000000001" in newest


def test_quality_as_strips_with_what_failed_first(client: TestClient, run: Run) -> None:
    page = read(client, "quality")
    assert "Judged in 2 runs: passed in 1. critical: 1." in page
    assert page.index("appointment_unique") < page.index("status_known")
    strip = page.split("appointment_unique")[1].split("</svg>")[0]
    assert re.findall(r'<rect class="(\w+)"', strip) == ["good", "bad"]
    assert "critical, 3 rows, 3.8 %" in strip
    for suite in SUITES:
        assert f'id="suite-{suite}"' in page


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("path", PAGES)
def test_an_empty_ledger_has_empty_pages(sign_in: SignIn, empty: str, language: str, path: str) -> None:
    assert "<h1>" in read(sign_in("viewer", **{"accept-language": language}), path)


# -- all of them


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_are_in_the_readers_language_and_whole(sign_in: SignIn, run: Run, language: str) -> None:
    client = sign_in("viewer", **{"accept-language": language})
    for path in (*PAGES, of_run(run), of_run(run, shard=0)):
        page = read(client, path)
        outline = Outline(page)
        assert outline.all("html")[0]["lang"] == language
        assert len(outline.all("h1")) == 1, path
        assert len(outline.all("caption")) == len(outline.all("table")), path
        assert all("scope" in head for head in outline.all("th")), path
        ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), path
        labels = {label["for"] for label in outline.all("label")}
        assert all(control["id"] in labels for control in outline.all("select")), path
        for tag, attributes in outline.tags:
            if tag == "svg":
                assert attributes.get("role") == "img" or attributes.get("focusable") == "false", path
            for name in ("href", "src", "action"):
                assert not str(attributes.get(name, "")).startswith(("http", "//", "javascript")), path
            assert not any(name.startswith("on") for name in attributes), path
        if language == "ru":
            for word in ("Withheld", "Extracted", "Newest", "Quarantined", "None"):
                assert word not in words(page), (path, word)
        assert len(outline.all("script")) == 1


def test_what_people_and_partners_typed_is_on_no_page(client: TestClient, run: Run, ledger: Ledger) -> None:
    with psycopg.connect(ledger._conninfo) as connection:
        connection.execute(
            "UPDATE ledger.partner_action SET scenario = 'canary', dt_start = 'Canary Patientova +79001112233',"
            " dt_end = 'Canary', malformed = '{canary}', read_in = 'canary'"
        )
        connection.execute("UPDATE ledger.hold SET decided_by = 'Canary Headova'")
    for path in (*PAGES, of_run(run), of_run(run, shard=0)):
        assert "canary" not in read(client, path).lower(), path


def test_every_link_leads_somewhere(client: TestClient, run: Run) -> None:
    seen: set[str] = set()
    for path in (*PAGES, of_run(run), of_run(run, shard=0)):
        for link in Outline(read(client, path)).all("a"):
            address = str(link["href"]).split("#")[0]
            # Clinics are read from Medlock, Data Docs from their folder; both have tests of their own.
            if address and "data-airflow" not in link and not re.search(r"/clinics|/data-docs|^/$", address):
                seen.add(address)
    assert len(seen) > 8
    for address in seen:
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_rule_ruling_and_stage_has_a_text(language: str) -> None:
    known = texts(language)
    for suite, rules in SUITES.items():
        for rule in rules():
            assert known[f"rule.{suite}.{rule.name}"], rule.name
            if language == "en":
                assert known[f"rule.{suite}.{rule.name}"] == rule.description
    for ruling in Ruling:
        assert known[f"ruling.{ruling}"]
        if language == "en":
            assert known[f"ruling.{ruling}"] == ruling.description
    assert len([key for key in known if key.startswith("rule.")]) == sum(len(rules()) for rules in SUITES.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_whole_html(language: str) -> None:
    """They are put into pages as they are."""
    assert not [key for key, text in texts(language).items() if re.search(r"[<>]|&(?!lt;|gt;|amp;)", text)]


def test_stages_modes_and_the_like_have_texts(empty: str) -> None:
    """The values that the ledger's schema allows, each with a text."""
    with psycopg.connect(empty) as connection:
        rows = connection.execute(
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'"
        ).fetchall()
    english = Speech("en")
    prefixes = {
        ("ledger.run", "mode"): "mode", ("ledger.run", "outcome"): "outcome", ("ledger.run_shard", "stage"):
        "shard_stage", ("ledger.run_shard", "withdraw_stage"): "withdraw_stage", ("ledger.batch", "operation"):
        "operation", ("ledger.batch", "outcome"): "batch", ("ledger.message_warning", "kind"): "twice",
        ("ledger.run_decision", "decision"): "stage", ("ledger.run_expectation", "severity"): "severity",
    }  # fmt: skip
    met = set()
    for table, definition in rows:
        column = re.match(r"CHECK \(\((\w+) = ANY", definition)
        if column and (table, column[1]) in prefixes:
            met.add((table, column[1]))
            for value in re.findall(r"'(\w+)'::text", definition):
                assert english.has(f"{prefixes[table, column[1]]}.{value}"), (table, column[1], value)
    assert met == set(prefixes)
