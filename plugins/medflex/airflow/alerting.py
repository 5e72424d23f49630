"""Telling somebody: alerts go to Airflow's notifiers, and to which ones is configuration.

A message is noted as told behind its delivery, for each channel. What a channel did not take is told again by the next
run; a crash between delivery and note repeats it: at least once, never silent.
"""

from __future__ import annotations

import io
import json
import logging
import pkgutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from airflow.sdk import BaseNotifier, Connection
from airflow.sdk.configuration import conf

from medflex.airflow import connections
from medflex.airflow.environment import setting
from medflex.domain.alerts import TITLES, AlertKind
from medflex.errors import AlertNotToldError, ConfigurationError
from medflex.ledger.alerts import Alerts, Message

log = logging.getLogger(__name__)

VARIABLE = "MEDFLEX_ALERT_NOTIFIERS"
TIMEOUT_SECONDS = 20
"""How long the default channel may take."""
MOST_SECONDS = 45.0
"""How long any channel may take for one message: one that hangs must not hold up the others until the task's time-out,
run after run.
"""
DEFAULT_BODY = {
    # What chat programs show of a webhook's body.
    "text": "{{ alert.title }}\n{{ alert.text }}",
    **{name: f"{{{{ alert.{name} }}}}" for name in ("id", "kind", "state", "title", "since", "at", "link")},
}
"""What the connection medflex_alerts is sent, as JSON."""
_DAGS = {
    AlertKind.LATE_WITHDRAWALS: "medflex_withdraw",
    AlertKind.WITHDRAWALS_STOPPED: "medflex_withdraw",
    AlertKind.WATCH_SILENT: "medflex_withdraw",
    AlertKind.SWEEP_STOPPED: "medflex_sweep",
    AlertKind.ACTIONS_WAITING: "medflex_partner_actions",
    AlertKind.ACTIONS_UNREAD: "medflex_partner_actions",
    AlertKind.HELD_ABSENCES: "medflex_release",
    AlertKind.STAGING_LEFT: "medflex_housekeeping",
    AlertKind.MEDFLEX_AWAY: "medflex_withdraw",
    AlertKind.TOKEN_REFUSED: "medflex_withdraw",
}
"""Where to look first; the others are matters of the transfer."""


@dataclass(frozen=True)
class AlertText:
    """What templates of notifiers know as ``alert``: text throughout, without personal data.

    id: the same for both messages of one alert. state: ``raised`` or ``cleared``. since, at: ISO 8601 in UTC, since
    when it has been so and when this state began. link: the DAG to look at in Airflow; empty where its base_url is not
    set.
    """

    id: str
    kind: str
    state: str
    title: str
    text: str
    since: str
    at: str
    link: str

    @classmethod
    def of(cls, message: Message) -> AlertText:
        """Put a message of the ledger into words."""
        kind = AlertKind(message.kind)
        dag = _DAGS.get(kind, "medflex_transfer")
        link = _link(dag)
        over = "Over: " if message.state == "cleared" else ""
        return cls(
            id=str(message.alert_id),
            kind=kind.value,
            state=message.state,
            title=f"Medlock → Medflex: {over}{TITLES[kind]}",
            text=f"{message.sentence} See {link or f'{dag} in Airflow'} and docs/runbook.md#alerts, {kind.value}.",
            since=_iso(message.since),
            at=_iso(message.at),
            link=link,
        )

    @classmethod
    def test(cls) -> AlertText:
        """Return a message by which somebody sees that a channel leads somewhere."""
        now = _iso(datetime.now(UTC))
        return cls(
            id="0",
            kind="test",
            state="raised",
            title="Medlock → Medflex: test message",
            text="Nothing is wrong: somebody has triggered medflex_alerts with test_message, to try this channel.",
            since=now,
            at=now,
            link=_link("medflex_alerts"),
        )


@dataclass(frozen=True)
class Channel:
    """A notifier and what it is made with. ``kwargs`` may hold secrets and are told nowhere.

    problem: why nothing can be told there.
    """

    name: str
    notifier: Callable[..., BaseNotifier] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    problem: ConfigurationError | None = None


def channels() -> list[Channel]:
    """Return where alerts go: what ``MEDFLEX_ALERT_NOTIFIERS`` says, else the connection ``medflex_alerts``, else
    nowhere.

    Raises:
        ConfigurationError: the variable cannot be used; without its content, which may hold secrets. One entry that
            cannot be used is its channel's problem, so that the others are told.
    """
    text = setting(VARIABLE)
    if text:
        return [_channel(number, entry) for number, entry in enumerate(_entries(text), 1)]
    try:
        found = connections.connection(connections.ALERTS)
    except ConfigurationError:
        return []
    from airflow.providers.http.notifications import HttpNotifier

    kwargs = {
        "http_conn_id": connections.ALERTS,
        "json": DEFAULT_BODY,
        "headers": {"Content-Type": "application/json"},
        "extra_options": {"timeout": TIMEOUT_SECONDS},
    }
    return [Channel(f"{connections.ALERTS} HttpNotifier", HttpNotifier, kwargs, _misread(found))]


def _misread(found: Connection) -> ConfigurationError | None:
    """Tell whether Airflow has taken the address apart, as it does where one is given as it is.

    ``https://chat.example/hooks/1`` is then the host ``chat.example`` with the schema ``hooks/1``, which its hook puts
    in front; without a path it is called without TLS.
    """
    host, schema = found.host or "", found.schema or ""
    begin, separator, rest = host.partition("://")
    if not separator:
        begin, rest = "", host
    used = begin or schema or "http"
    is_whole = rest and {used, schema or used} <= {"http", "https"}
    if is_whole and not (found.conn_type == "https" and used == "http"):
        return None
    return ConfigurationError(
        f"The Airflow connection {connections.ALERTS} cannot be called as Airflow reads it: give it as JSON with the"
        ' whole address as its host, {"conn_type": "http", "host": "https://…"}, path included.'
    )


def _entries(text: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text)
    except ValueError:
        entries = None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get("notifier"), str)
        and isinstance(entry.get("kwargs", {}), dict)
        and set(entry) <= {"notifier", "kwargs"}
        for entry in entries
    ):
        raise ConfigurationError(
            f'{VARIABLE} is no JSON list of {{"notifier": "<import path>", "kwargs": {{…}}}}: correct it.'
        )
    return entries


def _channel(number: int, entry: Mapping[str, Any]) -> Channel:
    try:
        found = pkgutil.resolve_name(entry["notifier"])
    except Exception:  # Whatever the module does when it is imported; its text may quote what was pasted here.
        found = None
    if not (isinstance(found, type) and issubclass(found, BaseNotifier)):
        problem = ConfigurationError(
            f"Entry {number} of {VARIABLE} names no notifier that can be imported here: give the import path of a class"
            " that is a BaseNotifier, and install its provider on every worker."
        )
        return Channel(str(number), BaseNotifier, {}, problem)
    return Channel(f"{number} {found.__name__}", found, entry.get("kwargs", {}))


def tell(ledger: Alerts, targets: Sequence[Channel], context: Mapping[str, Any]) -> int:
    """Tell each channel what it has not been told, in order; return how many messages have reached all of them.

    Args:
        context: what templates may use beside ``alert``, as Airflow gives it to a task.

    Raises:
        AlertNotToldError: a channel did not take a message; the others had theirs.
        ConfigurationError: a notifier cannot be made, or its templates cannot be filled; likewise.
    """
    messages = ledger.untold()
    if not targets:
        # What stands is told to whoever is there later; what is over is history by then.
        over = {message.alert_id for message in messages if message.state == "cleared"}
        for message in messages:
            if message.alert_id in over:
                ledger.note_all_told(message)
        return 0
    told = 0
    failed: dict[str, Exception] = {channel.name: channel.problem for channel in targets if channel.problem}
    for message in messages:
        alert = AlertText.of(message)
        for channel in targets:
            # What comes later must not come before what it could not be told.
            if channel.name in failed or channel.name in message.told_to:
                continue
            problem = _deliver(channel, alert, context)
            if problem is None:
                ledger.note_told(message, channel.name)
                message.told_to.append(channel.name)
                log.info("Told %s: alert %s, %s %s.", channel.name, alert.id, alert.kind, alert.state)
            else:
                failed[channel.name] = (
                    AlertNotToldError(f"{problem} The message is told again by the next run.")
                    if isinstance(problem, AlertNotToldError)
                    else problem
                )
        if {channel.name for channel in targets} <= set(message.told_to):
            ledger.note_all_told(message)
            told += 1
    if failed:
        raise _first(failed.values())
    return told


def try_out(targets: Sequence[Channel], context: Mapping[str, Any]) -> None:
    """Send each channel a test message.

    Raises:
        AlertNotToldError, ConfigurationError: as :func:`tell`, and where there is no channel; the others had theirs.
    """
    if not targets:
        raise ConfigurationError(
            f"No channel is configured that could be tried: set {VARIABLE} or define the connection"
            f" {connections.ALERTS}."
        )
    problems = [channel.problem or _deliver(channel, AlertText.test(), context) for channel in targets]
    if failed := [problem for problem in problems if problem is not None]:
        raise _first(failed)


def _first(problems: Iterable[Exception]) -> Exception:
    """Return what is told of several: what stays wrong before what may pass."""
    return min(problems, key=lambda error: not isinstance(error, ConfigurationError))


def _deliver(channel: Channel, alert: AlertText, context: Mapping[str, Any]) -> Exception | None:
    """Give one message to one notifier; return what went wrong, without the notifier's words."""
    given: Any = {**context, "alert": alert}
    # Not by calling the notifier: that logs the exception's text, in which an address with its secret may stand.
    try:
        with _silence(), _limit(MOST_SECONDS):
            return _notify(channel, given)
    except _TooLongError:
        return AlertNotToldError(
            f"The notifier {channel.name} did not end within {MOST_SECONDS:.0f} seconds: see whether what it speaks to"
            " answers."
        )


def _notify(channel: Channel, given: Any) -> Exception | None:
    """Make the notifier, fill its templates, let it tell; return what went wrong."""
    try:
        notifier = channel.notifier(**channel.kwargs)
    except (Exception, SystemExit):
        return ConfigurationError(
            f"The notifier {channel.name} cannot be made with its kwargs: correct them in {VARIABLE}."
        )
    try:
        notifier.render_template_fields(given)
    except (Exception, SystemExit):
        names = ", ".join(f"alert.{name}" for name in AlertText.__dataclass_fields__)
        return ConfigurationError(
            f"A template of the notifier {channel.name} cannot be filled: there are {names}; correct {VARIABLE}."
        )
    try:
        notifier.notify(given)
    except (Exception, SystemExit) as error:
        return AlertNotToldError(
            f"The notifier {channel.name} failed with {type(error).__name__}; its text is withheld, since it could"
            " quote an address with a secret."
        )
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """Let nothing be logged or printed: hooks tell addresses and replies, which may hold secrets."""
    processors: list[Any] = structlog.get_config()["processors"]
    before, disabled = processors.copy(), logging.root.manager.disable
    # In place, since loggers that were used before keep this list.
    processors[:] = [_drop]
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        processors[:] = before


class _TooLongError(BaseException):
    """The time is over. No ``Exception``, which a notifier might take for an answer of its other side."""


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, with ``_TooLongError``; elsewhere than in a main thread nothing can be.

    Airflow's time-out of a task uses the same timer, which goes on behind this, and here where it would end sooner.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise _TooLongError

    left, _ = signal.getitimer(signal.ITIMER_REAL)
    if 0 < left <= seconds:
        yield
        return
    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, interrupt)
    # Again each second, should the first time be caught all the same.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001))


def _link(dag_id: str) -> str:
    """Return the address of a DAG in Airflow; empty where Airflow's own is not known."""
    base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/dags/{dag_id}" if base else ""


def _drop(_logger: object, _method: str, _event: object) -> Any:
    raise structlog.DropEvent


def _iso(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds")
