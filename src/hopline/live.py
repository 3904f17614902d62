"""The live broker, beside the declared topology: read its queues, compare, and declare what is missing.

Nothing here deletes or replaces anything: what differs may hold messages. Each call opens a connection of its
own, or asks RabbitMQ's management API, and ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from hopline import amqp, management
from hopline.errors import BrokerUnavailable, TopologyMismatch, UsageError
from hopline.topology import Plan, Topology, compare

CONNECT_TIMEOUT_SECONDS = 10.0
CLOSE_TIMEOUT_SECONDS = 3.0
READ_SECONDS = 5.0
"""Deadline of one reading of all queues: a queue without a leader can leave a request without an answer."""


async def declare(channel: amqp.Channel, topology: Topology) -> None:
    """Declares everything; TopologyMismatch if something exists with other arguments."""
    name = ""
    try:
        for exchange in topology.exchanges:
            name = exchange.name
            await channel.declare_exchange(exchange.name, exchange.kind)
        for queue in topology.queues:
            name = queue.name
            await channel.declare_queue(queue.name, arguments=queue.arguments)
        for binding in topology.bindings:
            name = binding.queue
            await channel.bind_queue(binding.queue, binding.exchange, binding.routing_key)
    except amqp.PreconditionFailed as error:
        raise TopologyMismatch(name, error.text) from error


@asynccontextmanager
async def channel_of(connection: amqp.Connection) -> AsyncIterator[amqp.Channel]:
    """A channel for the block. A block that is cancelled does not wait until RabbitMQ has closed it."""
    channel = await connection.channel()
    try:
        yield channel
    except asyncio.CancelledError:
        await channel.close(0)
        raise
    except BaseException:
        await channel.close(CLOSE_TIMEOUT_SECONDS)
        raise
    else:
        await channel.close(CLOSE_TIMEOUT_SECONDS)


async def look(connection: amqp.Connection, name: str) -> amqp.QueueState | None:
    """The queue as it is; None if it is missing. A queue without a leader has no messages and no consumers here."""
    try:
        async with channel_of(connection) as channel:  # of its own: a missing queue closes it
            return await channel.declare_queue(name, passive=True)
    except amqp.NotFound:
        return None


@dataclass(frozen=True, slots=True)
class QueueReading:
    """What a queue holds: ready, and delivered but not acknowledged (None: cannot be read)."""

    ready: int
    unacked: int | None
    consumers: int | None = None
    """None: was not asked."""

    @property
    def is_empty(self) -> bool | None:
        """None when unacknowledged deliveries cannot be ruled out."""
        if self.ready or self.unacked:
            return False
        return None if self.unacked is None else True


async def read_queues(broker_url: str, management_url: str, names: Sequence[str]) -> dict[str, QueueReading]:
    """Reads the queues that exist. With the management API's URL unacknowledged deliveries are known; without it
    only when a queue has no consumer (AMQP's passive declare). BrokerUnavailable if RabbitMQ does not answer."""
    try:
        if management_url:
            vhost = amqp.parse_url(broker_url).vhost
            return await asyncio.to_thread(_read_by_management, management_url, vhost, names)
        async with asyncio.timeout(READ_SECONDS):
            return await _read_by_amqp(broker_url, names)
    except (amqp.AMQPError, OSError, TimeoutError, ValueError) as error:
        raise BrokerUnavailable(f"the queues cannot be read: {_cause(error, management_url)}") from error


def _cause(error: Exception, management_url: str) -> str:
    """Why, in one line; an error of urllib holds the one that matters."""
    reason = getattr(error, "reason", None)
    text = str(reason if isinstance(reason, Exception) else error)
    text = text or f"no answer within {READ_SECONDS:g} s"
    return f"RabbitMQ's management API: {text}" if management_url else text


async def measure_queues(broker_url: str, management_url: str, names: Sequence[str]) -> dict[str, QueueReading]:
    """As `read_queues`, with the consumers. A management API that does not answer only leaves figures unknown."""
    asked = await read_queues(broker_url, "", names)
    if not management_url:
        return asked
    told: dict[str, QueueReading] = {}
    with suppress(BrokerUnavailable):
        told = await read_queues(broker_url, management_url, names)
    return {name: replace(reading, unacked=told.get(name, reading).unacked) for name, reading in asked.items()}


def _read_by_management(management_url: str, vhost: str, names: Sequence[str]) -> dict[str, QueueReading]:
    # A queue that says nothing of itself (it has no leader) is not known to be empty.
    return {
        row.name: QueueReading(0, None)
        if row.messages_ready is None
        else QueueReading(row.messages_ready, row.messages_unacknowledged)
        for row in management.queues(management_url, vhost)
        if row.name in names
    }


async def _read_by_amqp(broker_url: str, names: Sequence[str]) -> dict[str, QueueReading]:
    connection = await amqp.connect(broker_url, name="hopline queue reading", timeout_seconds=CONNECT_TIMEOUT_SECONDS)
    readings: dict[str, QueueReading] = {}
    try:
        for name in names:
            channel = await connection.channel()  # a missing queue closes its channel
            with suppress(amqp.NotFound):
                state = await channel.declare_queue(name, passive=True)
                readings[name] = QueueReading(state.messages, None if state.consumers else 0, state.consumers)
                await channel.close()
    finally:
        await connection.close(CLOSE_TIMEOUT_SECONDS)
    return readings


async def plan(broker_url: str, management_url: str, declared: Topology) -> Plan:
    """How the live broker differs from the declared topology; changes nothing.

    UsageError without the management API's URL, BrokerUnavailable if it does not answer.
    """
    if not management_url:
        raise UsageError(
            "the live topology is read through RabbitMQ's management API: set HOPLINE_MANAGEMENT_URL "
            "(http://user:password@host:15672; `rabbitmq-plugins enable rabbitmq_management` turns it on)"
        )
    try:
        vhost = amqp.parse_url(broker_url).vhost
        live = await asyncio.to_thread(management.live_topology, management_url, vhost)
        queues = [each.name for each in compare(declared, live).changes if each.name in live.queues]
        # RabbitMQ refreshes what the management API says of a quorum queue every 5 s: it must not be called empty.
        readings = await _read_by_amqp(broker_url, queues) if queues else {}
    except amqp.InvalidURL as error:
        raise UsageError(f"HOPLINE_BROKER_URL cannot be used: {error}") from None
    except (amqp.AMQPError, OSError, TimeoutError, ValueError) as error:
        raise BrokerUnavailable(f"the live topology cannot be read: {error}") from error
    return compare(declared, live.holding({name: reading.ready for name, reading in readings.items()}))


async def add(broker_url: str, additions: Topology) -> None:
    """Declares what is missing. TopologyMismatch if it has come meanwhile with other arguments."""
    try:
        connection = await amqp.connect(broker_url, name="hopline topology", timeout_seconds=CONNECT_TIMEOUT_SECONDS)
        try:
            await declare(await connection.channel(), additions)
        finally:
            await connection.close(CLOSE_TIMEOUT_SECONDS)
    except (amqp.AMQPError, OSError, TimeoutError) as error:
        raise BrokerUnavailable(f"the topology cannot be declared: {error}") from error
