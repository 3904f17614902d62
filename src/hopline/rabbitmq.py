"""The broker protocols on hopline.amqp: a publisher and a consumer, each on a connection of its own.

Two connections, because a memory or disk alarm blocks the publishing one while consumers go on. Each is kept
alive by one task: connect, declare the topology, work, and after any loss again, with full-jitter backoff.
What was in flight then ends as Published.UNKNOWN, so that the outbox sends it again. A queue or exchange that
exists with other arguments (406) is our mistake: it ends the task with TopologyMismatch; nothing is deleted.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

import structlog

from hopline import amqp, management
from hopline.broker import Delivery, Publish, Published, Receive
from hopline.clock import id_time
from hopline.codec import CONTENT_TYPE
from hopline.errors import BrokerUnavailable, TopologyMismatch, UsageError
from hopline.message import Envelope
from hopline.schema import storable
from hopline.topology import Plan, Topology, compare

HEARTBEAT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 10.0
CLOSE_TIMEOUT_SECONDS = 3.0
BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_CAP_SECONDS = 10.0
WATCHDOG_SECONDS = 30.0
SECOND_LOOK_SECONDS = 1.0
"""A message that has just come may be ready for a moment: a consumer is idle only if it is so on two looks."""
REBUILDS_BEFORE_TROUBLE = 3

ALARM = "RabbitMQ blocks publishers: "
"""How the trouble of a memory or disk alarm begins."""

VERSION_HEADER = "hopline-version"
KEY_HEADER = "hopline-key"
CAUSE_HEADER = "hopline-cause"
RUN_HEADER = "hopline-run"
ATTEMPT_HEADER = "hopline-attempt"
_OWN_HEADERS = frozenset({VERSION_HEADER, KEY_HEADER, CAUSE_HEADER, RUN_HEADER, ATTEMPT_HEADER})
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_PROPERTIES = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "user_id", "app_id", "headers",
)  # fmt: skip

log = structlog.get_logger("hopline.rabbitmq")

_OUTCOMES = {
    amqp.Published.CONFIRMED: Published.CONFIRMED,
    amqp.Published.RETURNED: Published.RETURNED,
    amqp.Published.REFUSED: Published.REFUSED,
    amqp.Published.UNKNOWN: Published.UNKNOWN,
}


class Link:
    """Keeps one connection with one channel alive. `start()` it, watch `ready`, `failed` and `trouble`, `stop()` it."""

    def __init__(self, url: str, topology: Topology, *, name: str) -> None:
        try:
            amqp.parse_url(url)
        except amqp.InvalidURL as error:
            raise UsageError(f"HOPLINE_BROKER_URL cannot be used: {error}") from None
        self.name = name
        self.trouble = "not connected yet"
        """Why the link is not ready; empty while it is."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with TopologyMismatch when only a person can help."""
        self.reconnects = 0
        self._url = url
        self._topology = topology
        self._connection: amqp.Connection | None = None
        self._channel: amqp.Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Connected, topology declared, not blocked by an alarm of the broker."""
        return self._channel is not None and not self._channel.closed and not self.trouble

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"link {self.name}")

    async def stop(self) -> None:
        """Closes in order and ends the task."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # seen: whoever stops the link has been told or does not care any more
        await self._close()

    async def opened(self, channel: amqp.Channel) -> None:
        """What a role does with a fresh channel."""
        raise NotImplementedError

    def lose(self, why: str) -> None:
        """Gives the connection up, to make a new one."""
        self.trouble = why
        self._lost.set()

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            try:
                await self._open()
            except TopologyMismatch as error:
                self.trouble = str(error)
                self.failed.set_exception(error)
                return
            except (amqp.AMQPError, OSError, TimeoutError) as error:
                self.trouble = f"cannot connect to RabbitMQ: {error}"
                log.warning("broker unavailable", link=self.name, error=str(error), failures=failures)
                await self._close()
                await asyncio.sleep(backoff_seconds(failures, random.random()))
                failures += 1
                continue
            failures = 0
            log.info("broker connected", link=self.name)
            await self._until_lost()
            log.warning("broker connection lost", link=self.name, error=self.trouble)
            self.reconnects += 1
            await self._close()
            await asyncio.sleep(backoff_seconds(0, random.random()))

    async def _open(self) -> None:
        self._lost.clear()
        connection = await amqp.connect(
            self._url,
            name=self.name,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            timeout_seconds=CONNECT_TIMEOUT_SECONDS,
        )
        self._connection = connection
        connection.on_blocked = self._blocked
        channel = await connection.channel()
        await declare(channel, self._topology)
        self.trouble = f"{ALARM}{connection.blocked}" if connection.blocked is not None else ""
        self._channel = channel
        await self.opened(channel)

    async def _until_lost(self) -> None:
        assert self._channel is not None
        closed = asyncio.create_task(self._channel.wait_closed())
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait([closed, lost], return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                self.trouble = str(closed.result() or "the connection was closed")
        finally:
            for task in (closed, lost):
                task.cancel()
            await asyncio.gather(closed, lost, return_exceptions=True)

    def _blocked(self, reason: str | None) -> None:
        if reason is not None:
            self.trouble = f"{ALARM}{reason}"
        elif self.trouble.startswith(ALARM):
            self.trouble = ""
        log.warning("broker alarm" if reason is not None else "broker alarm over", link=self.name, reason=reason)

    async def _close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await connection.close(CLOSE_TIMEOUT_SECONDS)


class RabbitPublisher(Link):
    """The Publisher protocol."""

    async def opened(self, channel: amqp.Channel) -> None:
        """Confirms are on from the first publish."""
        await channel.confirm_select()

    async def publish(self, batch: Sequence[Publish], *, timeout_seconds: float) -> list[Published]:
        """See broker.Publisher."""
        channel = self._channel
        if channel is None:
            return [Published.UNKNOWN] * len(batch)
        outgoing = [
            amqp.Outgoing(publish.exchange, publish.routing_key, properties_of(publish.envelope), publish.envelope.body)
            for publish in batch
        ]
        outcomes = await channel.publish(outgoing, timeout_seconds=timeout_seconds)
        if amqp.Published.UNKNOWN in outcomes and not channel.closed and not self.trouble:
            self.lose("no confirm within the deadline")
        return [_OUTCOMES[outcome] for outcome in outcomes]


class RabbitConsumer(Link):
    """The Consumer protocol: consumes all queues on one channel, each with its own prefetch.

    A watchdog looks every `watchdog_seconds` for a queue that has messages ready while its consumer here holds
    none and was given none: a consumer that RabbitMQ has forgotten, which nothing else would tell. The link is
    then made again; after three times without an effect `trouble` says so, until a look finds nothing wrong.
    """

    def __init__(
        self,
        url: str,
        topology: Topology,
        *,
        name: str,
        queues: Sequence[str],
        prefetch: int,
        receive: Receive,
        watchdog_seconds: float = WATCHDOG_SECONDS,
    ) -> None:
        super().__init__(url, topology, name=name)
        self.rebuilds = 0
        """How often the watchdog had the link made again."""
        self._rebuilds_in_a_row = 0
        self._watchdog_seconds = watchdog_seconds
        self._delivered: Counter[str] = Counter()
        self._unsettled: Counter[str] = Counter()
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._receive = receive
        self._tags: list[str] = []
        self._settlement: Settlement | None = None
        self._taking = True

    async def opened(self, channel: amqp.Channel) -> None:
        """Starts to consume every queue."""
        self._settlement = Settlement(channel)
        self._unsettled = Counter()
        self._tags = []
        await channel.qos(self._prefetch)
        for queue in self._queues if self._taking else ():
            receive = self._receiver(queue, self._settlement)
            self._tags.append(await channel.consume(queue, receive, on_cancel=self._cancelled))
        if self._rebuilds_in_a_row >= REBUILDS_BEFORE_TROUBLE:
            self.trouble = (
                f"RabbitMQ has messages for this consumer and delivers none, after {self._rebuilds_in_a_row} new "
                "connections; look at the queue's consumers and leader on the management pages"
            )

    def owns(self, delivery: Delivery) -> bool:
        """See broker.Consumer."""
        receipt = delivery.receipt
        return isinstance(receipt, Receipt) and not receipt.settlement.channel.closed

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """See broker.Consumer."""
        for settlement in {d.receipt.settlement for d in deliveries if isinstance(d.receipt, Receipt)}:
            settlement.settle(
                [
                    d.receipt.tag
                    for d in deliveries
                    if isinstance(d.receipt, Receipt) and d.receipt.settlement is settlement
                ]
            )
            if settlement is self._settlement:
                self._unsettled.subtract(
                    d.queue for d in deliveries if isinstance(d.receipt, Receipt) and d.receipt.settlement is settlement
                )

    async def stop_taking(self) -> None:
        """Cancels the consumers: no further delivery comes; what was delivered can still be settled."""
        self._taking = False
        channel = self._channel
        if channel is not None:
            for tag in self._tags:
                with suppress(amqp.AMQPError, TimeoutError):
                    await channel.cancel(tag)

    def _receiver(self, queue: str, settlement: Settlement) -> Callable[[list[amqp.Delivery]], None]:
        def received(deliveries: list[amqp.Delivery]) -> None:
            self._delivered[queue] += len(deliveries)
            self._unsettled[queue] += len(deliveries)
            self._receive([delivery_of(queue, delivery, settlement) for delivery in deliveries])

        return received

    def _cancelled(self, consumer_tag: str) -> None:
        # The queue was deleted or its leader moved (RabbitMQ, "Consumer Cancel Notification"): the topology
        # has to be checked and every consumer made again.
        self.lose(f"RabbitMQ cancelled the consumer {consumer_tag}")

    async def _until_lost(self) -> None:
        watchdog = asyncio.create_task(self._watch(), name=f"watchdog {self.name}")
        try:
            await super()._until_lost()
        finally:
            watchdog.cancel()
            await asyncio.gather(watchdog, return_exceptions=True)

    async def _watch(self) -> None:
        while self._taking:
            try:
                idle = await self._given_nothing(self._queues, self._watchdog_seconds)
                idle = await self._given_nothing(idle, min(SECOND_LOOK_SECONDS, self._watchdog_seconds)) if idle else []
            except (amqp.AMQPError, TimeoutError) as error:
                log.warning("the watchdog could not look", link=self.name, error=str(error))
                continue
            if idle and self._taking:
                self.rebuilds += 1
                self._rebuilds_in_a_row += 1
                log.error("queues have messages and deliver none", link=self.name, queues=idle, rebuilds=self.rebuilds)
                self.lose(f"the consumer of {', '.join(idle)} is idle while messages are ready")
                return
            if self._rebuilds_in_a_row >= REBUILDS_BEFORE_TROUBLE:
                self.trouble = ""
            self._rebuilds_in_a_row = 0

    async def _given_nothing(self, queues: Sequence[str], seconds: float) -> list[str]:
        """The queues that gave nothing for so long, of which nothing is unsettled, and that have messages ready."""
        before = self._delivered.copy()
        await asyncio.sleep(seconds)
        silent = [queue for queue in queues if not self._unsettled[queue] and self._delivered[queue] == before[queue]]
        return [queue for queue in silent if await self._ready_messages(queue)]

    async def _ready_messages(self, queue: str) -> int:
        connection = self._connection
        if connection is None:
            return 0
        channel = await connection.channel()  # of its own: a missing queue closes it
        try:
            return (await channel.declare_queue(queue, passive=True)).messages
        except amqp.NotFound:
            return 0  # deleted: RabbitMQ has cancelled the consumer, or is about to
        finally:
            await channel.close()


class Settlement:
    """Acknowledges on one channel: `multiple` up to the lowest unsettled tag, one by one above it.

    A channel numbers its deliveries 1, 2, 3 … over all its consumers (AMQP 0-9-1, basic.deliver), so the lowest
    unsettled tag is known without a list of what was delivered.
    """

    def __init__(self, channel: amqp.Channel) -> None:
        self.channel = channel
        self._lowest = 1
        self._acked: set[int] = set()
        """Tags above the lowest unsettled one that are acknowledged."""

    def settle(self, tags: Sequence[int]) -> None:
        """Settles deliveries; forgets them if the channel is gone."""
        if self.channel.closed:
            return
        settled = set(tags)
        # A `multiple` ack that names a tag which was acked by itself before is a channel error (406), so the
        # highest tag that is still open on the broker's side is the one to name.
        highest = 0
        while True:
            if self._lowest in settled:
                settled.discard(self._lowest)
                highest = self._lowest
            elif self._lowest in self._acked:
                self._acked.discard(self._lowest)
            else:
                break
            self._lowest += 1
        if highest:
            self.channel.ack(highest, multiple=True)
        for tag in settled:
            self.channel.ack(tag)
        self._acked |= settled


@dataclass(frozen=True, slots=True)
class Receipt:
    """A delivery tag, bound to the channel that it is valid on."""

    settlement: Settlement
    tag: int


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


@dataclass(frozen=True, slots=True)
class QueueReading:
    """What a queue holds: ready, and delivered but not acknowledged (None: cannot be read)."""

    ready: int
    unacked: int | None

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
        return await _read_by_amqp(broker_url, names)
    except (amqp.AMQPError, OSError, TimeoutError, ValueError) as error:
        raise BrokerUnavailable(f"the queues cannot be read: {error}") from error


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
                readings[name] = QueueReading(state.messages, None if state.consumers else 0)
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


def backoff_seconds(failures: int, chance: float) -> float:
    """Full jitter: evenly between nothing and a bound that doubles with each failure (`chance` is in [0, 1))."""
    return chance * min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 16))


def properties_of(envelope: Envelope) -> amqp.Properties:
    """The AMQP properties of an envelope (docs/reference/message-format.md)."""
    headers: dict[str, Any] = {
        **envelope.headers,
        VERSION_HEADER: envelope.version,
        KEY_HEADER: envelope.key,
        RUN_HEADER: envelope.run,
        ATTEMPT_HEADER: envelope.attempt,
    }
    if envelope.cause_id is not None:
        headers[CAUSE_HEADER] = envelope.cause_id
    return amqp.Properties(
        content_type=CONTENT_TYPE,
        headers=headers,
        delivery_mode=2,
        correlation_id=envelope.correlation_id,
        message_id=envelope.id,
        timestamp=int(envelope.created_at.timestamp()),
        type=envelope.type,
    )


def delivery_of(queue: str, delivery: amqp.Delivery, settlement: Settlement) -> Delivery:
    """A broker.Delivery; its envelope is None when the properties are not those of a message of Hopline."""
    return Delivery(
        queue=queue,
        body=delivery.body,
        envelope=envelope_of(delivery),
        redelivered=delivery.redelivered,
        receipt=Receipt(settlement, delivery.delivery_tag),
        describe=lambda: describe(delivery),
    )


def envelope_of(delivery: amqp.Delivery) -> Envelope | None:
    """The envelope in a delivery's properties, None if they lack an id or a type or have wrong kinds of values."""
    try:
        properties = delivery.properties
    except amqp.AMQPError:
        return None
    identifier, type_name = properties.message_id, properties.type
    headers: Mapping[str, Any] = properties.headers or {}
    version, run, attempt = headers.get(VERSION_HEADER, 1), headers.get(RUN_HEADER, 0), headers.get(ATTEMPT_HEADER, 0)
    cause = headers.get(CAUSE_HEADER)
    if not type_name or not is_id(identifier) or (cause is not None and not is_id(cause)):
        return None
    if not all(isinstance(number, int) and 0 <= number < 1 << 31 for number in (version, run, attempt)):
        return None
    correlation = properties.correlation_id
    return Envelope(
        id=identifier,
        type=type_name,
        version=version,
        key=storable(str(headers.get(KEY_HEADER, ""))[:255]),
        correlation_id=correlation if is_id(correlation) else identifier,
        cause_id=cause,
        created_at=id_time(identifier),
        body=delivery.body,
        headers={
            storable(name): storable(value)
            for name, value in headers.items()
            if name not in _OWN_HEADERS and isinstance(value, str)
        },
        run=run,
        attempt=attempt,
    )


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is a UUIDv7 in its canonical form of 36 characters."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def describe(delivery: amqp.Delivery) -> dict[str, object]:
    """The raw properties of a delivery as JSON-able values, for a dead letter."""
    try:
        properties = delivery.properties
    except amqp.AMQPError as error:
        return {"unreadable": str(error), "exchange": delivery.exchange, "routing_key": delivery.routing_key}
    values = {
        name: _jsonable(getattr(properties, name)) for name in _PROPERTIES if getattr(properties, name) is not None
    }
    return {**values, "exchange": delivery.exchange, "routing_key": delivery.routing_key}


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | bytearray):
        return value.hex()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
