"""A StatsD server on loopback that keeps what it is told of the product's metrics."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

Key = tuple[str, frozenset[tuple[str, str]]]
"""Name without Airflow's prefix, and tags."""


@dataclass
class StatsD:
    """What came in. ``texts``: each line as it was sent. ``values``: of each metric, with its type and in order."""

    socket: socket.socket
    texts: list[str] = field(default_factory=list)
    values: dict[Key, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def listen(self) -> None:
        """Read until an empty datagram comes."""
        while data := self.socket.recv(65536):
            for line in data.decode().splitlines():
                self.texts.append(line)
                name, _, value = line.partition(":")
                name, *tags = name.split(",")
                number, kind = value.split("|")[:2]
                pairs = frozenset((tag.split("=")[0], tag.split("=")[1]) for tag in tags)
                self.values[name.removeprefix("airflow."), pairs].append((kind, float(number)))

    def settled(self) -> StatsD:
        """Wait until all that was sent so far is read; loopback keeps the order."""
        if self._thread.is_alive():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"", self.socket.getsockname())
            self._thread.join(10)
        return self

    def start(self) -> None:
        self._thread = threading.Thread(target=self.listen, daemon=True)
        self._thread.start()

    def total(self, name: str, **tags: str) -> float:
        """Return the sum of a metric's values over all series that have these tags."""
        found = [values for (key, pairs), values in self.values.items() if key == name and set(tags.items()) <= pairs]
        return sum(number for values in found for _, number in values)

    def last(self, name: str, **tags: str) -> float:
        """Return the last value of the one series with exactly these tags."""
        return self.values[name, frozenset(tags.items())][-1][1]


@contextmanager
def statsd() -> Iterator[StatsD]:
    """Open a server and close it again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made = StatsD(opened)
        made.start()
        yield made
        made.settled()


@contextmanager
def airflow_sends_to(port: int, monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1") -> Iterator[None]:
    """Switch Airflow's StatsD on in this process, as the start of a task process does."""
    with monkeypatch.context() as patched:
        patched.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        patched.setenv("AIRFLOW__METRICS__STATSD_HOST", host)
        patched.setenv("AIRFLOW__METRICS__STATSD_PORT", str(port))
        patched.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
        with airflow_metrics():
            yield


@contextmanager
def airflow_metrics() -> Iterator[None]:
    """Let Airflow read its metrics settings anew, and once more behind it."""
    from airflow.sdk._shared.observability.metrics import stats as shared
    from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

    stats.initialize(factory=get_stats_factory(), export_legacy_names=False)
    try:
        yield
    finally:
        client = getattr(shared._backend, "statsd", None)
        if client is not None:
            client.close()
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)
