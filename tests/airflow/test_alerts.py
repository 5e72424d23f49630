"""Alerts as they reach somebody: through Airflow's notifiers, to a receiver on loopback, from what really happens."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowFailException

from medflex.airflow import alerting, contacts, schedule
from medflex.airflow.acting import ActionReader, Actor, Answerer
from medflex.airflow.alerting import DEFAULT_BODY, VARIABLE, AlertText, channels, tell
from medflex.airflow.contacts import ContactNotes, failure_of
from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings, NoReply, Operation
from medflex.airflow.hooks.medlock import Medlock
from medflex.airflow.hooks.medlock_actions import MedlockActions
from medflex.airflow.metrics import RequestMetrics
from medflex.airflow.tasks import alerts
from medflex.airflow.withdrawing import Withdrawer
from medflex.domain.alerts import AlertKind, Failure, Limits, judge
from medflex.errors import AlertNotToldError, ConfigurationError, LedgerUnavailableError, MedflexPipelineError
from medflex.ledger.alerts import AlertLedger
from medflex.ledger.store import Ledger
from tests.airflow.acting import target
from tests.airflow.leaks import database_text, found_canaries
from tests.airflow.receiver import SECRET, Receiver, receiving
from tests.airflow.test_loading import FakeClock, load, planned
from tests.airflow.test_withdrawing import REFUSE, of_patients, shown_ids, some
from tests.airflow.world import DIGEST_KEY, World


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def read_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text + "".join(capfd.readouterr())


def context(**params: Any) -> dict[str, Any]:
    """What Airflow gives the task of a run that was started with these parameters."""
    return {"params": {"test_message": False} | params, "dag_run": SimpleNamespace(conf={})}


# -- an outage of an hour


class Hours:
    """The product's steps against a real world, round by round, on a clock that the test moves."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.clock = FakeClock()
        self.began = self.clock.time
        monkeypatch.setattr(alerts, "_ledger", lambda: AlertLedger(world.ledger, now=self.clock.now))
        monkeypatch.setattr(alerts, "get_current_context", context)
        self.troubles = 0
        self.attempts = 2

    @contextmanager
    def parts(self) -> Iterator[tuple[Medlock, Ledger, MedflexClient]]:
        settings = MedflexSettings(
            base_url=self.world.medflex.url,
            token=self.world.medflex.token,
            timeout=5.0,
            connect_timeout=1.0,
            rate_per_second=0.0,
            attempts=self.attempts,
        )
        with Medlock(self.world.medlock_app) as medlock, Ledger(self.world.ledger, now=self.clock.now) as ledger:
            yield medlock, ledger, MedflexClient(settings, ContactNotes(ledger, RequestMetrics()))

    def withdraw(self) -> None:
        """``medflex_withdraw``, and what it starts."""
        with self.parts() as (medlock, ledger, client):
            common: dict[str, Any] = {"client": client, "medlock": medlock, "ledger": ledger, "clock": self.clock}
            result = Withdrawer(holder="withdraw", run_key=None, **common).quick()
            self.troubles += bool(result.problems)
            if result.sweep_is_due:
                self.troubles += bool(Withdrawer(holder="sweep", run_key=None, **common).sweep_further().problems)

    def act(self) -> None:
        """``medflex_partner_actions``."""
        with self.parts() as (_, ledger, client):
            try:
                ActionReader(client=client, ledger=ledger, clock=self.clock).read("run")
            except MedflexPipelineError:
                self.troubles += 1
            with MedlockActions(self.world.medlock_actions) as medlock:
                Actor(
                    medlock=medlock, ledger=ledger, clock=self.clock, digest_key=DIGEST_KEY.encode(), run_id="run"
                ).apply()
            self.troubles += bool(Answerer(client=client, ledger=ledger, clock=self.clock).answer("run").problems)

    def minutes(self, until: int) -> None:
        """Let time pass up to so many minutes after the beginning, with everything that runs by the clock."""
        while (minute := self.minute()) < until:
            self.act()
            if round(minute) % 4 == 0:
                self.withdraw()
            alerts.tell_alerts()
            # The steps have slept as well; the next round is at its time.
            self.clock.time = max(self.clock.time, self.began + timedelta(minutes=round(minute) + 2))

    def minute(self) -> float:
        return (self.clock.time - self.began).total_seconds() / 60


@pytest.mark.parametrize(("fault", "lasts"), [(("down", {}), 60), (("unauthorized", {"status": 401}), 20)])
def test_an_outage_is_told_when_it_begins_to_matter_and_when_it_is_over(
    filled_world: World,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[], str],
    fault: tuple[str, dict[str, Any]],
    lasts: int,
) -> None:
    world = filled_world
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    assert not load(world, planned(world)).problems
    hours = Hours(world, monkeypatch)
    hours.minutes(4)
    assert receiver.bodies == []
    asked = world.control.add_actions(
        [{**target(world), "type": "notification", "scenario": "greeting", "created_at": _moment(hours.clock.time)}]
    )
    with hours.parts() as (_, ledger, client):
        # Read, and not answered before the outage begins.
        assert ActionReader(client=client, ledger=ledger, clock=hours.clock).read("run").new == 1
    kind, settings = fault
    world.control.add_fault(kind, **settings)
    refusing = some(world, 2)
    gone = of_patients(world, refusing)
    world.edit(REFUSE.format("refused_personal_data", "true"), [refusing])
    hours.minutes(4 + lasts)
    assert hours.troubles > lasts / 2
    assert gone <= shown_ids(world)
    expected = "token_refused" if kind == "unauthorized" else "medflex_away"
    assert receiver.told() == [(expected, "raised")]
    raised = datetime.fromisoformat(receiver.bodies[0]["at"])
    # A refused token at once, an outage when something has waited for ten minutes.
    matters = 0 if kind == "unauthorized" else 10
    after = raised - hours.began - timedelta(minutes=4)
    assert timedelta(minutes=matters, seconds=-1) <= after <= timedelta(minutes=matters + 5)
    world.control.clear_faults()
    hours.minutes(lasts + 24)
    assert receiver.told() == [(expected, "raised"), (expected, "cleared")]
    begin, end = receiver.bodies
    assert begin["id"] == end["id"]
    assert f"{len(gone)} withdrawals, 1 answers to partners" in end["text"]
    assert "See https://airflow.example/dags/medflex_withdraw and docs/runbook.md#alerts" in begin["text"]
    assert not gone & shown_ids(world)
    assert set(asked) == set(world.control.results())
    # What it held up was late, and is in that alert only.
    assert world.read_ledger("SELECT kind, cleared_at IS NULL FROM ledger.alert") == [(expected, False)]
    places = [("receiver", json.dumps(receiver.bodies, ensure_ascii=False)), ("log", read_log())]
    assert found_canaries([*places, *database_text(world.ledger)]) == []
    assert SECRET not in places[1][1]


def _moment(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# -- contacts


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        (200, None),
        (204, None),
        (404, None),
        (409, None),
        (401, Failure.REFUSED),
        (403, Failure.REFUSED),
        (NoReply.UNTRUSTED, Failure.REFUSED),
        (408, Failure.AWAY),
        (500, Failure.AWAY),
        (503, Failure.AWAY),
        *((item, Failure.AWAY) for item in NoReply if item is not NoReply.UNTRUSTED),
    ],
)
def test_what_the_end_of_a_request_says_of_medflex(ended: int | NoReply, failure: Failure | None) -> None:
    assert failure_of(ended) is failure


class Noted:
    """A ledger that takes notes."""

    def __init__(self) -> None:
        self.notes: list[str | None] = []
        self.is_away = False

    def note_contact(self, failure: str | None) -> None:
        if self.is_away:
            raise LedgerUnavailableError("It does not answer.")
        self.notes.append(failure)


def test_a_contact_is_noted_when_it_is_news_and_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(contacts.time, "monotonic", lambda: now)
    ledger = Noted()
    notes = ContactNotes(ledger, RequestMetrics())  # type: ignore[arg-type]

    def contact(*ended: int | NoReply) -> list[str | None]:
        ledger.notes.clear()
        for item in ended:
            notes.requested(Operation.SEND, item, 0.1)
        return list(ledger.notes)

    assert contact(200, 200, 404) == [None]
    # It asks for a pause: neither good nor bad.
    assert contact(429) == []
    assert contact(503, 429, NoReply.TIMEOUT, 200, 200, 401) == ["away", None, "refused"]
    # Nothing else for a minute, or five times in a row: it is not there for us.
    assert contact(200, 429, 429, 429, 429) == [None]
    assert contact(429, 429) == ["away"]
    assert contact(200, 429) == [None]
    now += 60
    assert contact(429, 429) == ["away"]
    assert contact(401) == ["refused"]
    now += 29
    assert contact(401) == []
    now += 1
    assert contact(401, 401) == ["refused"]
    ledger.is_away = True
    assert contact(200, 200) == []
    ledger.is_away = False
    assert contact(200, 200) == [None]


# -- channels


class Failing(BaseNotifier):
    """Says the secret in every way in which a notifier can."""

    template_fields = ("url",)

    def __init__(self, url: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.url = url

    def notify(self, context: Any) -> None:
        self.log.error("Could not reach %s", self.url)
        logging.getLogger("urllib3.connectionpool").warning("Retrying %s", self.url)
        raise RuntimeError(f"HTTP 500 from {self.url}")


TOLD: list[dict[str, str]] = []


class Listing(BaseNotifier):
    """Keeps what it is told."""

    template_fields = ("fields",)

    def __init__(self, fields: dict[str, str], **more: Any) -> None:
        super().__init__(**more)
        self.fields = fields

    def notify(self, context: Any) -> None:
        TOLD.append(dict(self.fields))


class Printing(BaseNotifier):
    """Says the secret where nobody expects it, and ends the process."""

    def __init__(self, url: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.url = url

    def notify(self, context: Any) -> None:
        print(self.url)  # noqa: T201
        print(self.url, file=sys.stderr)  # noqa: T201
        sys.exit(self.url)


class Hanging(BaseNotifier):
    """Is never answered, and takes no exception for an answer."""

    def notify(self, context: Any) -> None:
        for _ in range(2):
            try:
                threading.Event().wait(30)  # nobody answers
            except Exception as error:
                self.log.info("Once more: %s", error)


def configure(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, dict[str, Any]]) -> None:
    text = json.dumps([{"notifier": name, "kwargs": kwargs} for name, kwargs in entries])
    monkeypatch.setenv(VARIABLE, text)


HERE = "tests.airflow.test_alerts"
HTTP = "airflow.providers.http.notifications.HttpNotifier"
ASKED = {"questions": 1, "held_records": 30}


@pytest.fixture
def ledger(ledger_db: str) -> Iterator[AlertLedger]:
    """A ledger in which one alert is to be told."""
    TOLD.clear()
    with AlertLedger(ledger_db) as made:
        made.note_contact(Failure.REFUSED)
        assert len(made.turn_alerts(judge, Limits())) == 1
        yield made


def test_the_default_channel_is_the_connection_with_a_small_body(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/below/")
    assert tell(ledger, channels(), {}) == 1
    assert tell(ledger, channels(), {}) == 0
    (body,) = receiver.bodies
    assert set(body) == set(DEFAULT_BODY)
    assert body["text"].startswith("Medlock → Medflex: Medflex refuses us\nMedflex refuses our token")
    # Where it has to be put, or whoever is woken edits what nobody reads.
    assert "AIRFLOW_CONN_MEDFLEX_API" in body["text"]
    assert (body["kind"], body["state"]) == ("token_refused", "raised")
    assert body["link"] == "https://airflow.example/below/dags/medflex_withdraw"
    # The template is filled for each message anew.
    assert "{{" in DEFAULT_BODY["text"]


def test_without_any_channel_it_is_in_the_log_and_told_to_one_that_comes_while_it_stands(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(alerts, "_ledger", lambda: ledger)
    monkeypatch.setattr(alerts, "get_current_context", context)
    assert alerts.tell_alerts() == {"raised": 0, "cleared": 0, "told": 0}
    said = (
        "No channel is configured, so alerts are in this log only, and those that stand are told once there is one: set"
    )
    assert f"{said} {VARIABLE}" in read_log()
    assert [message.state for message in ledger.untold()] == ["raised"]
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
    assert alerts.tell_alerts()["told"] == 1
    assert receiver.told() == [("token_refused", "raised")]
    assert ledger.untold() == []


def test_what_was_over_before_there_was_any_channel_is_history(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tell(ledger, channels(), {}) == 0
    ledger.note_contact(None)
    with AlertLedger(ledger._conninfo, now=lambda: datetime.now(UTC) + timedelta(minutes=6)) as later:
        assert len(later.turn_alerts(judge, Limits())) == 1
    assert [message.state for message in ledger.untold()] == ["raised", "cleared"]
    assert tell(ledger, channels(), {}) == 0
    assert ledger.untold() == []
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
    assert tell(ledger, channels(), {}) == 0
    assert receiver.bodies == []


def _json(**fields: Any) -> str:
    return json.dumps({"conn_type": "http", **fields})


@pytest.mark.parametrize(
    ("value", "is_usable"),
    [
        (f"https://chat.example/{SECRET}", False),
        ("https://chat.example", False),
        (f"http://https://chat.example/{SECRET}", False),
        (_json(), False),
        (_json(host=f"ftp://chat.example/{SECRET}"), False),
        (_json(host="chat.example", schema=SECRET), False),
        (_json(host=f"https://chat.example/{SECRET}"), True),
        (_json(host=f"https://chat.example/{SECRET}?to=mailto://someone"), True),
        (_json(host=f"chat.example/{SECRET}", schema="https"), True),
        (_json(host=f"chat.example/{SECRET}"), True),
        ("http://relay:8080", True),
        ("http://relay:8080/https", True),
    ],
)
def test_a_connection_that_airflow_takes_apart_is_refused_in_one_sentence(
    ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch, value: str, is_usable: bool
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", value)
    (target,) = channels()
    assert (target.problem is None) is is_usable
    if target.problem is not None:
        with pytest.raises(ConfigurationError, match="give it as JSON with the whole address as its host") as caught:
            tell(ledger, channels(), {})
        assert SECRET not in str(caught.value)
        assert len(ledger.untold()) == 1


def test_a_test_message_goes_to_each_channel_and_tells_which_one_does_not_take_it(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(alerts, "_ledger", lambda: ledger)
    monkeypatch.setattr(alerts, "get_current_context", lambda: context(test_message=True))
    with pytest.raises(AirflowFailException, match="No channel is configured that could be tried"):
        alerts.tell_alerts()
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", receiver.connection)
    body = {name: f"{{{{ alert.{name} }}}}" for name in ("kind", "state", "title")}
    configure(
        monkeypatch,
        ("airflow.providers.chat.Notifier", {}),
        (f"{HERE}.Failing", {"url": f"https://chat.example/{SECRET}"}),
        (HTTP, {"http_conn_id": "chat", "json": body}),
    )
    with pytest.raises(AirflowFailException, match="Entry 1 of MEDFLEX_ALERT_NOTIFIERS names no notifier"):
        alerts.tell_alerts()
    configure(monkeypatch, (f"{HERE}.Failing", {}), (HTTP, {"http_conn_id": "chat", "json": body}))
    with pytest.raises(AirflowFailException, match=r"1 Failing failed with RuntimeError; .* with a secret\.$"):
        alerts.tell_alerts()
    assert receiver.told() == [("test", "raised")] * 2
    assert receiver.bodies[0]["title"] == "Medlock → Medflex: test message"
    # Beside it goes what is to be told.
    configure(monkeypatch, (HTTP, {"http_conn_id": "chat", "json": body}))
    assert alerts.tell_alerts()["told"] == 1
    assert receiver.told()[2:] == [("test", "raised"), ("token_refused", "raised")]
    monkeypatch.setattr(alerts, "get_current_context", lambda: context(test_message="yes"))
    with pytest.raises(AirflowFailException, match="The parameter test_message must be true or false"):
        alerts.tell_alerts()
    assert SECRET not in read_log()


def test_every_notifier_of_the_configuration_is_told_with_its_own_templates(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", receiver.connection)
    every = {name: f"{{{{ alert.{name} }}}}" for name in AlertText.__dataclass_fields__}
    configure(
        monkeypatch,
        (f"{HERE}.Listing", {"fields": every | {"run": "{{ run_id }}"}}),
        (HTTP, {"http_conn_id": "chat", "endpoint": "x", "json": {"kind": "{{ alert.kind }}", "state": "!"}}),
    )
    assert tell(ledger, channels(), {"run_id": "a run"}) == 1
    (told,) = TOLD
    assert told["run"] == "a run"
    assert "See medflex_withdraw in Airflow and" in told["text"]
    assert [name for name, value in told.items() if not value] == ["link"]
    assert "{{" not in str(told)
    assert receiver.told() == [("token_refused", "!")]


def test_what_a_channel_does_not_take_is_told_again_and_to_that_one_only(
    ledger: AlertLedger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CHAT", receiver.connection)
    body = dict.fromkeys(("kind", "state"), "{{ alert.state }}")
    configure(
        monkeypatch,
        (HTTP, {"http_conn_id": "chat", "json": body}),
        (f"{HERE}.Listing", {"fields": {"state": "{{ alert.state }}"}}),
    )
    receiver.status = 500
    with pytest.raises(AlertNotToldError, match="The notifier 1 HttpNotifier failed with AirflowException"):
        tell(ledger, channels(), {})
    assert [item["state"] for item in TOLD] == ["raised"]
    # Meanwhile it is over: told in order, each once, also where the channel comes back only now.
    ledger.note_contact(None)
    later = AlertLedger(ledger._conninfo, now=lambda: datetime.now(UTC) + timedelta(minutes=6))
    with later:
        assert len(later.turn_alerts(judge, Limits())) == 1
    with pytest.raises(AlertNotToldError):
        tell(ledger, channels(), {})
    assert [item["state"] for item in TOLD] == ["raised", "cleared"]
    assert len(receiver.refused) == 2
    receiver.status = 200
    assert tell(ledger, channels(), {}) == 2
    assert receiver.told() == [("raised", "raised"), ("cleared", "cleared")]
    assert [item["state"] for item in TOLD] == ["raised", "cleared"]
    assert SECRET not in read_log()


def test_a_notifiers_words_are_told_nowhere(
    ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(alerts, "_ledger", lambda: ledger)
    monkeypatch.setattr(alerts, "get_current_context", context)
    configure(monkeypatch, (f"{HERE}.Failing", {"url": f"https://chat.example/{SECRET}"}))
    with pytest.raises(
        AirflowFailException, match="1 Failing failed with RuntimeError; its text is withheld"
    ) as caught:
        alerts.tell_alerts()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    logging.getLogger("after").warning("Logged again.")
    text = read_log()
    assert "Logged again." in text
    assert SECRET not in text
    assert len(ledger.untold()) == 1


def test_a_channel_that_prints_and_ends_the_process_says_nothing_and_ends_nothing(
    ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str]
) -> None:
    configure(
        monkeypatch,
        (f"{HERE}.Printing", {"url": f"https://chat.example/{SECRET}"}),
        (f"{HERE}.Listing", {"fields": {"state": "{{ alert.state }}"}}),
    )
    with pytest.raises(AlertNotToldError, match="1 Printing failed with SystemExit"):
        tell(ledger, channels(), {})
    assert [item["state"] for item in TOLD] == ["raised"]
    assert SECRET not in read_log()


def test_a_channel_that_hangs_holds_up_no_other_one(ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting, "MOST_SECONDS", 1.0)
    configure(
        monkeypatch,
        (f"{HERE}.Hanging", {}),
        (f"{HERE}.Listing", {"fields": {"state": "{{ alert.state }}"}}),
    )
    before = signal.getsignal(signal.SIGALRM)
    # As Airflow does for the task's own time-out: it must still come.
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        began = time.monotonic()
        with pytest.raises(AlertNotToldError, match="1 Hanging did not end within 1 seconds"):
            tell(ledger, channels(), {})
        assert time.monotonic() - began < 10
        assert 30 < signal.getitimer(signal.ITIMER_REAL)[0] < 60
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert signal.getsignal(signal.SIGALRM) is before
    assert [item["state"] for item in TOLD] == ["raised"]
    # The next run tries it again, and tells the other one nothing twice.
    with pytest.raises(AlertNotToldError):
        tell(ledger, channels(), {})
    assert len(TOLD) == 1


def test_an_entry_that_cannot_be_used_silences_no_other_one(
    ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        monkeypatch,
        ("airflow.providers.chat.Notifier", {"token": SECRET}),
        (f"{HERE}.Listing", {"fields": {"state": "{{ alert.state }}"}}),
    )
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="Entry 1 of MEDFLEX_ALERT_NOTIFIERS names no notifier"):
            tell(ledger, channels(), {})
        assert [item["state"] for item in TOLD] == ["raised"]
    configure(monkeypatch, (f"{HERE}.Failing", {}), (f"{HERE}.Listing", {"fields": {}}))
    targets = channels()
    assert [target.name for target in targets] == ["1 Failing", "2 Listing"]
    # Told also where there is nothing to tell: before it matters.
    for message in ledger.untold():
        ledger.note_all_told(message)
    configure(monkeypatch, ("airflow.providers.chat.Notifier", {}))
    with pytest.raises(ConfigurationError):
        tell(ledger, channels(), {})


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (f"https://chat.example/{SECRET}", "is no JSON list"),
        (f'{{"notifier": "{SECRET}"}}', "is no JSON list"),
        (f'[{{"notifier": 5, "kwargs": {{"a": "{SECRET}"}}}}]', "is no JSON list"),
        (f'[{{"notifier": "x", "keywords": {{"a": "{SECRET}"}}}}]', "is no JSON list"),
        (f'[{{"notifier": "https://chat.example/{SECRET}"}}]', "Entry 1 of MEDFLEX_ALERT_NOTIFIERS names no notifier"),
        ('[{"notifier": "json.dumps"}]', "Entry 1 of MEDFLEX_ALERT_NOTIFIERS names no notifier"),
        (f'[{{"notifier": "{HERE}.Failing", "kwargs": {{"adress": "{SECRET}"}}}}]', "1 Failing cannot be made with"),
        (
            f'[{{"notifier": "{HERE}.Failing", "kwargs": {{"url": "{SECRET} {{{{ alert.titel.x }}}}"}}}}]',
            r"A template of the notifier 1 Failing cannot be filled: there are alert\.id, alert\.kind",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_sentence_without_its_content(
    ledger: AlertLedger, monkeypatch: pytest.MonkeyPatch, read_log: Callable[[], str], value: str, sentence: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        tell(ledger, channels(), {})
    assert SECRET not in str(caught.value) + read_log()
    assert len(ledger.untold()) == 1


def test_an_empty_list_is_no_channel_also_where_there_is_the_connection(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channels() == []
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_ALERTS", receiver.connection)
    assert len(channels()) == 1
    monkeypatch.setenv(VARIABLE, "[]")
    assert channels() == []


def test_a_channel_hides_its_kwargs() -> None:
    assert SECRET not in repr(alerting.Channel("1", Failing, {"url": SECRET}))


# -- the deadline of a daily run


def test_only_the_daily_run_has_a_deadline(ledger_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MEDFLEX_LEDGER", ledger_db)
    context = {"dag_run": {"dag_id": "medflex_transfer", "dag_run_id": "a run", "run_type": "manual"}}
    alerts.note_missed_deadline(context)
    with AlertLedger(ledger_db) as ledger:
        assert ledger.turn_alerts(judge, Limits()) == []
        context["dag_run"]["run_type"] = "scheduled"
        alerts.note_missed_deadline(context)
        (change,) = ledger.turn_alerts(judge, Limits())
    assert change.kind is AlertKind.DAILY_RUN_MISSED


def test_reading_may_wait_for_its_next_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alerts.limits().reading == timedelta(minutes=32)
    monkeypatch.setattr(schedule, "ACTIONS_CRON", "0 * * * *")
    assert alerts.limits().reading == timedelta(minutes=90)


@pytest.mark.parametrize("value", ["0", "-1", "25", "soon"])
def test_a_deadline_that_is_no_number_of_hours_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MEDFLEX_DAILY_DEADLINE_HOURS", value)
    with pytest.raises(ConfigurationError, match=r"^MEDFLEX_DAILY_DEADLINE_HOURS is no number of hours above 0, at "):
        alerts.limits()
    monkeypatch.setenv("MEDFLEX_DAILY_DEADLINE_HOURS", "2.5")
    assert alerts.limits().daily == timedelta(hours=2.5)
