"""When a worker takes nothing from a queue: its handler's dependency is down, an operator said so, or no database.

A handler that finds its dependency down opens its breaker (breaker.py). While it is open its queue is not consumed,
and what is buffered for that handler is deferred; then one message at a time is taken until one is handled, here or
by another worker, or until no message comes. Other queues go on. A pause by an operator (pausing.py) does the same to
the whole queue, until it is resumed. While nothing can be stored (the database is down, the outbox is full) no queue
is consumed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Set
from datetime import datetime, timedelta

import structlog

from hopline.breaker import Breaker
from hopline.broker import Consumer
from hopline.clock import utcnow
from hopline.handlers import Endpoint
from hopline.settings import Settings

PAUSED_DELAY_SECONDS = 1.0
"""What is buffered when an operator pauses its queue is back in the queue after so long, and waits there."""
REASON_CHARACTERS = 300
"""Of the reason of a pause, in the state that each heartbeat writes."""
PROBE_WAIT_SECONDS = 5.0
"""How long a probed queue waits for a message of the handler that found its dependency down."""
DEFER_SPREAD = 0.2
"""What is deferred comes back within so much of the pause after its end, not all at once."""

log = structlog.get_logger("hopline.worker")


class Pauses:
    """The breakers of a worker's handlers, and what its consumer is therefore told to take."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Consumer | None = None
        self._breakers: dict[str, tuple[Endpoint, Breaker]] = {}
        self._since: dict[str, datetime] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._found_down_at: dict[str, float] = {}
        """When each handler last found its dependency down, in seconds since 1970."""
        self._probe_ends: dict[str, float] = {}
        """By when a running probe has ended at the latest, by the monotonic clock."""
        self._by_operator: Set[str] = frozenset()
        """The queues that an operator has paused, as this worker knows."""
        self._waiting_to_store: dict[str, str] = {}
        """Who waits for the database or for room in the outbox, with the reason."""

    def attach(self, consumer: Consumer) -> None:
        """The consumer that is told."""
        self._consumer = consumer

    def close(self) -> None:
        """Stops the timers."""
        for timer in self._timers.values():
            timer.cancel()

    def is_open(self, endpoint: Endpoint) -> bool:
        """Whether the handler is not to be run now."""
        entry = self._breakers.get(endpoint.name)
        if entry is not None and entry[1].state == "probing":
            self._probe_ends[endpoint.name] = time.monotonic() + endpoint.deadline_seconds + PROBE_WAIT_SECONDS
        return endpoint.queue in self._by_operator or (entry is not None and entry[1].state == "open")

    def deferral_seconds(self, endpoint: Endpoint) -> float:
        """For how long a message of a handler that is not to be run is deferred."""
        entry = self._breakers.get(endpoint.name)
        remaining = entry[1].remaining_seconds(time.monotonic()) if entry else 0.0
        if endpoint.queue in self._by_operator:
            remaining = max(remaining, PAUSED_DELAY_SECONDS)
        return remaining * (1 + DEFER_SPREAD * random.random())

    def obey(self, paused: Collection[str]) -> None:
        """These queues, and no others, are paused by an operator now."""
        assert self._consumer is not None
        before, self._by_operator = self._by_operator, self._consumer.prefetches.keys() & frozenset(paused)
        for queue in sorted(before ^ self._by_operator):
            log.warning(
                "queue paused by an operator" if queue in paused else "queue resumed by an operator", queue=queue
            )
            self._tell(queue)

    @property
    def by_operator(self) -> list[str]:
        """The queues of this worker that an operator has paused."""
        return sorted(self._by_operator)

    def found_down(self, endpoint: Endpoint, reason: str, ran_seconds: float) -> None:
        """A handler that ran for so long found its dependency down."""
        _, breaker = self._breakers.setdefault(endpoint.name, (endpoint, self._breaker()))
        now = time.monotonic()
        self._found_down_at[endpoint.name] = time.time()
        if breaker.found_down(reason, now - ran_seconds, now, random.random()):
            seconds = breaker.remaining_seconds(now)
            self._since.setdefault(endpoint.name, utcnow())
            log.error(
                "queue paused",
                queue=endpoint.queue,
                endpoint=endpoint.name,
                reason=reason[:300],
                seconds=round(seconds, 1),
                in_a_row=breaker.openings,
            )
            self._call_later(endpoint, seconds, self._probe)
            self._tell(endpoint.queue)

    def found_up(self, endpoint: Endpoint, ran_seconds: float) -> None:
        """A handler that ran for so long got an answer from what it needs."""
        entry = self._breakers.get(endpoint.name)
        if entry is not None and entry[1].found_up(time.monotonic() - ran_seconds):
            self._resumed(endpoint, "a message was handled")

    @property
    def found_down_at(self) -> dict[str, float]:
        """The handlers whose queue is paused, each with when it last found its dependency down (since 1970)."""
        return {
            name: self._found_down_at[name]
            for name, (_, breaker) in self._breakers.items()
            if breaker.state != "closed"
        }

    def found_up_elsewhere(self, endpoints: Collection[str]) -> None:
        """Other workers have handled messages with these handlers since they were found down here."""
        for name in endpoints:
            entry = self._breakers.get(name)
            if entry is not None and entry[1].found_up_elsewhere():
                self._resumed(entry[0], "another worker handled a message")

    def storing_fails(self, who: str, trouble: str) -> None:
        """Nothing can be stored: no queue is consumed until `storing_works` for the same caller."""
        first = not self._waiting_to_store
        self._waiting_to_store[who] = trouble
        if first:
            log.error("no queue is consumed while nothing can be stored", error=trouble)
            self._tell_all()

    def storing_works(self, who: str) -> None:
        """This caller's transaction was stored."""
        if self._waiting_to_store.pop(who, None) is not None and not self._waiting_to_store:
            log.warning("the database stores again: queues are consumed")
            self._tell_all()

    @property
    def storing_trouble(self) -> str:
        """Why nothing can be stored; empty when it can, as far as is known."""
        return next(iter(self._waiting_to_store.values()), "")

    def state(self) -> dict[str, object]:
        """The paused queues, as JSON-able values: docs/reference/tables.md, `hopline_workers.state`."""
        now, monotonic = utcnow(), time.monotonic()
        return {
            endpoint.queue: {
                "endpoint": endpoint.name,
                "reason": breaker.reason[:REASON_CHARACTERS],
                "since": self._since[endpoint.name].isoformat(),
                "until": (now + timedelta(seconds=breaker.remaining_seconds(monotonic))).isoformat(),
                "probing": breaker.state == "probing",
            }
            for endpoint, breaker in self._breakers.values()
            if breaker.state != "closed"
        }

    def _resumed(self, endpoint: Endpoint, why: str) -> None:
        log.warning("queue resumed", queue=endpoint.queue, endpoint=endpoint.name, why=why)
        self._timers.pop(endpoint.name).cancel()
        self._probe_ends.pop(endpoint.name, None)
        del self._since[endpoint.name]
        self._tell(endpoint.queue)

    def _call_later(self, endpoint: Endpoint, seconds: float, function: Callable[[Endpoint], None]) -> None:
        before = self._timers.get(endpoint.name)
        if before is not None:
            before.cancel()
        self._timers[endpoint.name] = asyncio.get_running_loop().call_later(seconds, function, endpoint)

    def _breaker(self) -> Breaker:
        return Breaker(self._settings.pause_first_seconds, self._settings.pause_cap_seconds)

    def _probe(self, endpoint: Endpoint) -> None:
        _, breaker = self._breakers[endpoint.name]
        if breaker.waited(time.monotonic()):
            log.info("queue probed with one message", queue=endpoint.queue, endpoint=endpoint.name)
            self._tell(endpoint.queue)
            self._call_later(endpoint, PROBE_WAIT_SECONDS, self._end_probing)
        else:  # the timer was a little early
            self._call_later(endpoint, 0.01, self._probe)

    def _end_probing(self, endpoint: Endpoint) -> None:
        """No message came that could be tried; a probe that runs is waited for, to its deadline."""
        left = self._probe_ends.get(endpoint.name, 0.0) - time.monotonic()
        if left > 0:
            self._call_later(endpoint, left, self._end_probing)
        elif self._breakers[endpoint.name][1].nothing_to_probe():
            self._resumed(endpoint, "no message came that could be tried")

    def _tell_all(self) -> None:
        assert self._consumer is not None
        for queue in self._consumer.prefetches:
            self._tell(queue)

    def _tell(self, queue: str) -> None:
        assert self._consumer is not None
        states = {breaker.state for endpoint, breaker in self._breakers.values() if endpoint.queue == queue}
        if self._waiting_to_store or queue in self._by_operator or "open" in states:
            self._consumer.limit(queue, 0)
        else:
            self._consumer.limit(queue, 1 if "probing" in states else None)
