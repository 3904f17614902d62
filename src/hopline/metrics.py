"""What a process counts, for Prometheus: in the default registry of prometheus-client, beside the program's own.

What happens is counted where it happens, once a batch where there are batches. What is (links, the outbox, pauses)
is not counted along: `text` reads it from the process's state when somebody asks, so it cannot go stale.
Labels are names from the program's code (endpoints, queues, links), never ids or keys: their number is bounded.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

State = Mapping[str, Any]
"""What a process says of itself: Producer.state, or a report of health.py, which adds to it."""

_PUBLISHED: Final = prometheus.Counter(
    "hopline_published", "Messages given to RabbitMQ, by how each publish ended.", ["outcome"]
)
_PUBLISH_SECONDS: Final = prometheus.Histogram(
    "hopline_publish_seconds",
    "From writing a batch of messages to the last answer for it.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_HANDLED: Final = prometheus.Counter(
    "hopline_handled", "Deliveries handled, by the endpoint and the outcome that was stored.", ["endpoint", "outcome"]
)
_HANDLER_SECONDS: Final = prometheus.Histogram(
    "hopline_handler_seconds",
    "One run of an endpoint's handler: for one message, or for a list of them.",
    ["endpoint"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def published(outcomes: Iterable[str], seconds: float) -> None:
    """One batch was published: how each of its messages ended, and how long the whole batch took."""
    for outcome, count in Tally(outcomes).items():
        _published(outcome).inc(count)
    _PUBLISH_SECONDS.observe(seconds)


def handled(endpoint: str, outcome: str, seconds: float, messages: int = 1) -> None:
    """A handler ran for so many seconds, for so many messages, and this outcome of them is committed."""
    _handled(endpoint, outcome).inc(messages)
    _handler_seconds(endpoint).observe(seconds)


# Finding a child by its labels costs more than counting in it; labels are few, so these are bounded.


@cache
def _published(outcome: str) -> prometheus.Counter:
    return _PUBLISHED.labels(outcome)


@cache
def _handled(endpoint: str, outcome: str) -> prometheus.Counter:
    return _HANDLED.labels(endpoint, outcome)


@cache
def _handler_seconds(endpoint: str) -> prometheus.Histogram:
    return _HANDLER_SECONDS.labels(endpoint)


def text(state: State) -> bytes:
    """All metrics of this process in Prometheus' text format; `state` may lack any part. Safe in any thread."""
    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(_Collected(state))
    return prometheus.generate_latest(prometheus.REGISTRY) + prometheus.generate_latest(registry)


class _Collected:
    """The metric families of one state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        yield from _links(self._state.get("links", {}))
        yield from _pauses(self._state.get("paused", {}))
        for name, help_text, value in _numbers(self._state):
            if value is not None:
                yield GaugeMetricFamily(name, help_text, value)


def _numbers(state: State) -> Iterator[tuple[str, str, float | None]]:
    yield "hopline_ready", "1 if /readyz says that the process is ready.", state.get("ready")
    yield "hopline_outbox_unsent", "Messages in the outbox that are not sent yet.", state.get("unsent")
    yield "hopline_deliveries_busy", "Deliveries taken and not settled yet.", state.get("busy")
    database = state.get("database")
    up = None if database is None else database == "ok"
    yield "hopline_database_up", "1 if the database answers.", up
    lag = state.get("loop_lag_seconds")
    yield "hopline_event_loop_lag_seconds", "How long the event loop took to turn to this very question.", lag


def _links(links: Mapping[str, State]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("hopline_link_ready", "1 if the connection to RabbitMQ can be used.", labels=["link"])
    blocked = GaugeMetricFamily("hopline_link_blocked", "1 while an alarm of RabbitMQ blocks it.", labels=["link"])
    reconnects = CounterMetricFamily("hopline_link_reconnects", "Connections that were lost.", labels=["link"])
    rebuilds = CounterMetricFamily(
        "hopline_link_rebuilds", "Consumers that the watchdog had made again.", labels=["link"]
    )
    for name, link in links.items():
        ready.add_metric([name], float(link["ready"]))
        blocked.add_metric([name], float(link["blocked"]))
        reconnects.add_metric([name], link["reconnects"])
        if "rebuilds" in link:
            rebuilds.add_metric([name], link["rebuilds"])
    yield from (ready, blocked, reconnects, rebuilds)


def _pauses(paused: Mapping[str, State]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "hopline_queue_paused",
        "1 while a queue is not consumed because what its handler needs is down.",
        labels=["queue"],
    )
    for queue in paused:
        family.add_metric([queue], 1)
    yield family
