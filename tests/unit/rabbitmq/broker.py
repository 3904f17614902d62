"""A RabbitMQ of a few lines for the links: it takes logins, declares and consumers, and fails where a test says so.

    broker = ScriptedBroker(monkeypatch)
    broker.fail("consume", "apples", amqp.ReplyTimeout("no leader"))

It stands in for `amqp.connect`; no socket, no timing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from hopline import amqp

Host = tuple[str, int]


@dataclass
class ScriptedQueue:
    """A queue: `others` are consumers of other processes."""

    messages: int = 0
    others: int = 0
    consumers: dict[str, tuple[ScriptedChannel, Callable[[str], None] | None]] = field(default_factory=dict)


class ScriptedBroker:
    """All hosts of one cluster. `failures` has what an operation on a name ends with, from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queues: dict[str, ScriptedQueue] = {}
        self.failures: dict[tuple[str, str], Exception] = {}
        self.refused: dict[str, Exception] = {}
        """Hosts that refuse the login, or are not there."""
        self.without_quorum: set[str] = set()
        """Hosts that let clients log in and answer nothing that needs a queue."""
        self.logins: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.connections: list[ScriptedConnection] = []
        self.gate = asyncio.Event()
        """Confirms are selected when it is set."""
        self.gate.set()
        self.answer: Callable[[amqp.Outgoing], amqp.Published] = lambda _: amqp.Published.CONFIRMED
        self.published: list[amqp.Outgoing] = []
        monkeypatch.setattr(amqp, "connect", self.connect)

    def fail(self, operation: str, name: str, error: Exception | None) -> None:
        """From now on the operation fails for the name; with None it works again."""
        if error is None:
            self.failures.pop((operation, name), None)
        else:
            self.failures[operation, name] = error

    def cancel(self, queue: str) -> None:
        """RabbitMQ cancels the consumers of a queue."""
        there = self.queues[queue]
        gone, there.consumers = there.consumers, {}
        for tag, (_, on_cancel) in gone.items():
            if on_cancel is not None:
                on_cancel(tag)

    async def connect(self, _url: str, *, host: Host, **_: Any) -> ScriptedConnection:
        self.logins.append(host[0])
        if host[0] in self.refused:
            raise self.refused[host[0]]
        connection = ScriptedConnection(self, host[0])
        self.connections.append(connection)
        return connection


class ScriptedConnection:
    """One connection."""

    blocked: str | None = None
    on_blocked: Callable[[str | None], None] | None = None

    def __init__(self, broker: ScriptedBroker, host: str) -> None:
        self.broker = broker
        self.host = host
        self.channels: list[ScriptedChannel] = []
        self.close_reason: amqp.AMQPError | None = None
        self._over = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._over.is_set()

    async def wait_closed(self) -> amqp.AMQPError | None:
        await self._over.wait()
        return self.close_reason

    async def channel(self) -> ScriptedChannel:
        if self.closed:
            raise amqp.ConnectionClosed("the connection is over")
        channel = ScriptedChannel(self)
        self.channels.append(channel)
        return channel

    async def close(self, _timeout_seconds: float = 5.0) -> None:
        self.end(None)

    def end(self, reason: amqp.AMQPError | None) -> None:
        """The connection is over, and its channels with it."""
        if not self.closed:
            self.close_reason = reason
            self._over.set()
            for channel in self.channels:
                channel.end(reason)


class ScriptedChannel:
    """One channel; a failed operation closes it, as in AMQP."""

    def __init__(self, connection: ScriptedConnection) -> None:
        self.connection = connection
        self.broker = connection.broker
        self.close_reason: amqp.AMQPError | None = None
        self.confirms = False
        self._over = asyncio.Event()
        self._tags = itertools.count(1)
        self._consuming: dict[str, str] = {}

    @property
    def closed(self) -> bool:
        return self._over.is_set()

    async def wait_closed(self) -> amqp.AMQPError | None:
        await self._over.wait()
        return self.close_reason

    def end(self, reason: amqp.AMQPError | None) -> None:
        if not self.closed:
            self.close_reason = reason
            self._over.set()
            for tag, queue in self._consuming.items():
                if queue in self.broker.queues:
                    self.broker.queues[queue].consumers.pop(tag, None)

    async def close(self, _timeout_seconds: float = 5.0) -> None:
        self.end(None)

    async def _answer(self, operation: str, name: str) -> None:
        await asyncio.sleep(0)
        if self.closed:
            raise amqp.ChannelClosed("the channel is over")
        self.broker.calls[operation, name] += 1
        error = self.broker.failures.get((operation, name))
        if error is None and self.connection.host in self.broker.without_quorum and operation != "exchange":
            error = amqp.ReplyTimeout("no answer within 10 seconds")
        if error is not None:
            if isinstance(error, amqp.ConnectionClosed):
                self.connection.end(error)
            elif isinstance(error, amqp.AMQPError):
                self.end(error)
            raise error

    async def declare_exchange(self, name: str, _kind: str) -> None:
        await self._answer("exchange", name)

    async def declare_queue(self, name: str, *, passive: bool = False, arguments: object = None) -> amqp.QueueState:
        del arguments
        await self._answer("look" if passive else "declare", name)
        if passive and name not in self.broker.queues:
            self.end(error := amqp.NotFound(f"no queue {name!r}", code=404))
            raise error
        queue = self.broker.queues.setdefault(name, ScriptedQueue())
        return amqp.QueueState(name, queue.messages, queue.others + len(queue.consumers))

    async def bind_queue(self, queue: str, _exchange: str, _routing_key: str) -> None:
        await self._answer("bind", queue)

    async def qos(self, _prefetch: int) -> None:
        await self._answer("qos", "")

    async def consume(
        self, queue: str, _on_deliveries: object, *, on_cancel: Callable[[str], None] | None = None
    ) -> str:
        await self._answer("consume", queue)
        tag = f"{id(self)}.{next(self._tags)}"
        self._consuming[tag] = queue
        self.broker.queues[queue].consumers[tag] = (self, on_cancel)
        return tag

    async def cancel(self, tag: str) -> None:
        await self._answer("cancel", self._consuming[tag])
        self.broker.queues[self._consuming.pop(tag)].consumers.pop(tag, None)

    async def confirm_select(self) -> None:
        await self.broker.gate.wait()
        self.confirms = True

    async def publish(self, messages: Sequence[amqp.Outgoing], *, timeout_seconds: float) -> list[amqp.Published]:
        del timeout_seconds
        if not self.confirms:
            raise amqp.UsageError("publish needs confirm_select first")
        self.broker.published += messages
        return [self.broker.answer(message) for message in messages]
