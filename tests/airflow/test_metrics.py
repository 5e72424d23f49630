"""Metrics: tags from closed lists, nothing that fails a task, next to nothing while they are off; and OpenTelemetry."""

from __future__ import annotations

import atexit
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.observability import stats

from medflex.airflow import metrics
from medflex.airflow.hooks.medflex import MedflexClient, MedflexSettings, NotProcessedError, UnknownOutcomeError
from medflex.airflow.metrics import METRICS, TAGS, Kind
from sandbox.medflex.process import MedflexProcess
from tests.airflow.statsd import airflow_metrics, airflow_sends_to, statsd
from tests.airflow.test_medflex_client import free_port
from tests.ledger.times import Time

RUN = SimpleNamespace(run_key=1, mode="transfer", clinic_ids=None)
FUNNEL = dict.fromkeys(TAGS["stage"], 1)


@pytest.fixture
def medflex(_medflex_process: MedflexProcess) -> Iterator[MedflexProcess]:
    """The sandbox Medflex, empty."""
    _medflex_process.control.reset()
    yield _medflex_process
    _medflex_process.control.clear_faults()


def settle(ledger: Any = None) -> None:
    metrics.run_settled(ledger, RUN, funnel=FUNNEL, states={}, problems=[])


# -- tags ------------------------------------------------------------------------------------------------------------


def test_whatever_is_on_no_list_becomes_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        for metric in METRICS:
            metrics.emit(metric, 1, **dict.fromkeys(metric.tags, "Ann Example"), clinic_id=17)
            metrics.emit(metric, 1)
        server.settled()
    assert {name for name, _ in server.values} == {metric.name for metric in METRICS}
    for name, pairs in server.values:
        (metric,) = [item for item in METRICS if item.name == name]
        assert pairs == frozenset((tag, "other") for tag in metric.tags)
    assert "Ann" not in str(server.texts)


def test_every_value_of_every_tag_arrives_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comma, an equals sign or a letter beyond ASCII would lose the tag or the value."""
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        for metric in METRICS:
            for tag in metric.tags:
                for value in TAGS[tag]:
                    metrics.emit(metric, 1, **{tag: value})
        server.settled()
    arrived = {(name, *pair) for name, pairs in server.values for pair in pairs if pair[1] != "other"}
    assert arrived == {(metric.name, tag, value) for metric in METRICS for tag in metric.tags for value in TAGS[tag]}


def test_the_number_of_series_is_bounded() -> None:
    for metric in METRICS:
        series = 1
        for tag in metric.tags:
            assert "id" not in tag.split("_")
            series *= len(TAGS[tag]) + 1
        assert series < 2000, metric.name


# -- what must not disturb a task ------------------------------------------------------------------------------------


def test_a_dead_back_end_fails_and_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SimpleNamespace(reason_totals=lambda _: {})
    with airflow_sends_to(free_port(), monkeypatch):
        begun = time.perf_counter()
        for _ in range(10):
            settle(ledger)
    # Some 900 values. A millisecond each would already be far off.
    assert time.perf_counter() - begun < 2


def test_a_broken_back_end_is_told_by_its_type_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Ann Example")

    for kind in ("incr", "gauge", "timing"):
        monkeypatch.setattr(stats, kind, broken)
    for metric in METRICS:
        metrics.emit(metric, 1)
    assert caplog.text.count("could not be emitted (RuntimeError)") == len(METRICS)
    assert "Ann" not in caplog.text


def test_a_ledger_that_fails_while_it_is_asked_for_numbers_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with airflow_sends_to(free_port(), monkeypatch):
        settle()
        metrics.standing(None, 900)
    assert "The metrics of run_settled could not be emitted (AttributeError)." in caplog.text
    assert "The metrics of standing could not be emitted (AttributeError)." in caplog.text


def test_switched_off_the_ledger_is_not_asked_and_a_value_costs_microseconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settle()
    metrics.standing(None, 900)
    assert caplog.text == ""

    def once() -> float:
        begun = time.perf_counter()
        for _ in range(100):
            metrics.emit(metrics.REQUESTS, 1, operation="send", status=200)
        return (time.perf_counter() - begun) / 100

    # 4 µs on an idle core.
    assert statistics.median(once() for _ in range(20)) < 100e-6


def test_a_mass_revocation_is_told_by_a_part_of_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        metrics.withdrawn([(False, float(second)) for second in range(10_000)])
        server.settled()
    values = [
        number / 1000 for _, number in server.values["medflex.withdrawals.time", frozenset({("cause", "explicit")})]
    ]
    assert len(values) == metrics.MOST_TIMINGS
    assert statistics.median(values) == pytest.approx(5000, rel=0.01)
    assert max(values) == 9999


def test_counters_of_nothing_are_not_sent_and_gauges_are_never_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """StatsD takes ``-3`` for a gauge as three less than before; a clock that was set back makes such ages."""
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        metrics.emit(metrics.ACTIONS_READ, 0)
        metrics.emit(metrics.LOOK_AGE, -3.0)
        metrics.emit(metrics.ANSWER_TIME, -3.0)
        server.settled()
    assert server.values == {
        ("medflex.look.age", frozenset()): [("g", 0.0)],
        ("medflex.actions.time", frozenset()): [("ms", 0.0)],
    }


# -- what the client of Medflex observes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "settings", "error", "status"),
    [
        ("timeout_before_effect", {"seconds": 2}, UnknownOutcomeError, "timeout"),
        ("reset_before_effect", {}, UnknownOutcomeError, "lost_connection"),
        ("status", {"status": 503}, UnknownOutcomeError, "503"),
        ("rate_limited", {"retry_after": 1}, NotProcessedError, "429"),
        (None, {}, NotProcessedError, "not_connected"),
    ],
)
def test_requests_are_counted_by_how_they_ended(
    medflex: MedflexProcess,
    monkeypatch: pytest.MonkeyPatch,
    fault: str | None,
    settings: dict[str, Any],
    error: type[Exception],
    status: str,
) -> None:
    if fault:
        medflex.control.add_fault(fault, times=1, **settings)
    url = medflex.url if fault else f"http://127.0.0.1:{free_port()}"
    # On a busy machine what is no time-out must not become one.
    timeout = 0.5 if status == "timeout" else 10.0
    client = MedflexClient(MedflexSettings(url, medflex.token, timeout=timeout), metrics.RequestMetrics())
    with statsd() as server, airflow_sends_to(server.port, monkeypatch):
        with pytest.raises(error):
            client.actions(None)
        server.settled()
    assert server.values["medflex.requests", frozenset({("operation", "read_actions"), ("status", status)})] == [
        ("c", 1)
    ]
    ((_, milliseconds),) = server.values["medflex.request.time", frozenset({("operation", "read_actions")})]
    assert milliseconds >= 500 if status == "timeout" else milliseconds < 10_000


# -- what is open ----------------------------------------------------------------------------------------------------


def test_what_is_open_in_the_ledger(ledger_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    from medflex.ledger.store import Ledger

    clock = Time()
    with Ledger(ledger_db, now=clock) as ledger:
        nothing = ledger.standing(900)
        assert (nothing.revocations, nothing.oldest_revocation_seconds, nothing.oldest_action_seconds) == (0, 0, 0)
        # Never is not the same as just now.
        assert (nothing.transfer_age_seconds, nothing.look_age_seconds) == (None, None)
        now = clock()
        with psycopg.connect(ledger_db) as connection:
            for number, age in enumerate((10, 899, 901, 5000)):
                connection.execute(
                    "INSERT INTO ledger.revocation VALUES (1, %s, 7, 'doctor_banned', false, %s, %s)",
                    (number, now - timedelta(seconds=age), now),
                )
            connection.execute(
                "INSERT INTO ledger.hold (clinic_id, found_at, appointment_ids, lpu_ids, reasons, live, state)"
                " VALUES (1, %(now)s, '{1,2,3}', '{7,7,7}', '{a,a,a}', 9, 'open'),"
                " (2, %(now)s, '{4}', '{7}', '{a}', 9, 'kept')",
                {"now": now},
            )
            connection.execute(
                "INSERT INTO ledger.watch VALUES ('consent', %s), ('sweep', %s)", (now - timedelta(30), now)
            )
            for run, (mode, ids, outcome, age, is_of_today) in enumerate(
                [
                    ("transfer", None, "succeeded", 7200, None),
                    ("resync", None, "succeeded", 3600, True),
                    ("transfer", [1], "succeeded", 60, True),
                    ("transfer", None, "failed", 60, True),
                    ("transfer", None, "succeeded", 60, False),
                    ("plan", None, "succeeded", 60, True),
                    ("backfill", None, "succeeded", 60, None),
                ]
            ):
                run_type = "backfill" if mode == "backfill" else "manual"
                connection.execute(
                    "INSERT INTO ledger.run (dag_id, run_id, run_type, mode, anchor, clinic_ids, started_at,"
                    " settled_at, outcome, is_of_today) VALUES ('d', %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (
                        str(run),
                        run_type,
                        mode.replace("backfill", "transfer"),
                        now,
                        ids,
                        now,
                        now - timedelta(seconds=age),
                        outcome,
                        is_of_today,
                    ),
                )
        with statsd() as server, airflow_sends_to(server.port, monkeypatch):
            metrics.standing(ledger, 900)
            server.settled()
    told = {name.removeprefix("medflex."): values[0][1] for (name, _), values in server.values.items()}
    assert told == {
        "withdrawals.open": 4, "withdrawals.late": 2, "withdrawals.oldest": 5000, "withdrawals.held": 3,
        "holds.open": 1, "actions.undecided": 0, "actions.unanswered": 0, "actions.oldest": 0,
        "transfer.age": 3600, "look.age": 30 * 86_400,
    }  # fmt: skip


# -- OpenTelemetry ---------------------------------------------------------------------------------------------------


def test_opentelemetry_takes_the_same_names_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk._shared.observability.metrics.otel_logger import flush_otel_metrics
    from opentelemetry.metrics import get_meter_provider
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    received: list[ExportMetricsServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AIRFLOW__METRICS__OTEL_ON", "True")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    try:
        with airflow_metrics():
            assert metrics.are_on()
            for metric in METRICS:
                metrics.emit(metric, 2, **{tag: TAGS[tag][0] for tag in metric.tags})
            get_meter_provider().shutdown()  # type: ignore[attr-defined]
            atexit.unregister(flush_otel_metrics)
    finally:
        server.shutdown()
        server.server_close()
    arrived = {
        metric.name: metric
        for request in received
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    kinds = {Kind.COUNTER: "sum", Kind.GAUGE: "gauge", Kind.TIMING: "exponential_histogram"}
    assert arrived.keys() == {f"airflow.{metric.name}" for metric in METRICS}
    for metric in METRICS:
        found = arrived[f"airflow.{metric.name}"]
        assert found.WhichOneof("data") == kinds[metric.kind]
        (point,) = getattr(found, kinds[metric.kind]).data_points
        assert {item.key: item.value.string_value for item in point.attributes} == {
            tag: TAGS[tag][0] for tag in metric.tags
        }
