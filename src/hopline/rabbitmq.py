"""The broker protocols on hopline.amqp: a publisher and a consumer, each on a connection of its own.

Two connections, because a memory or disk alarm blocks the publishing one while consumers go on. Each is kept
alive by one task: connect, declare the topology, work, and after any loss again, with full-jitter backoff.
What was in flight then ends as Published.UNKNOWN, so that the outbox sends it again. A queue or exchange that
exists with other arguments (406) is our mistake: it ends the task with TopologyMismatch; nothing is deleted.
A queue that is missing is told of (`on_missing`) before it is declared anew: what was in it is lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import structlog

from hopline import amqp
from hopline.broker import Delivery, Publish, Published, Receive
from hopline.errors import OutsideError, TopologyMismatch, UsageError
from hopline.live import CLOSE_TIMEOUT_SECONDS, CONNECT_TIMEOUT_SECONDS, declare, missing_queues
from hopline.properties import describe, envelope_of, properties_of
from hopline.topology import Topology

HEARTBEAT_SECONDS = 10
BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_CAP_SECONDS = 10.0
WATCHDOG_SECONDS = 30.0
SECOND_LOOK_SECONDS = 1.0
"""A message that has just come may be ready for a moment: a consumer is idle only if it is so on two looks."""
REBUILDS_BEFORE_TROUBLE = 3
RESTORE_SECONDS = 5.0
"""Returned messages have the topology declared again at most so often."""

ALARM = "RabbitMQ blocks publishers: "
"""How the trouble of a memory or disk alarm begins."""

log = structlog.get_logger("hopline.rabbitmq")

OnMissing = Callable[[Sequence[str]], Awaitable[None]]
"""Told of queues that are missing, or were made anew, before they are used; may raise OutsideError to be told again."""


async def unheard(_queues: Sequence[str]) -> None:
    """The OnMissing of a link whose owner has nothing to recover."""


_OUTCOMES = {
    amqp.Published.CONFIRMED: Published.CONFIRMED,
    amqp.Published.RETURNED: Published.RETURNED,
    amqp.Published.REFUSED: Published.REFUSED,
    amqp.Published.UNKNOWN: Published.UNKNOWN,
}


class Link:
    """Keeps one connection with one channel alive. `start()` it, watch `ready`, `failed` and `trouble`, `stop()` it."""

    def __init__(self, url: str, topology: Topology, *, name: str, on_missing: OnMissing = unheard) -> None:
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
        self._on_missing = on_missing
        self._doubtful: set[str] = set()
        """Queues that RabbitMQ cancelled a consumer of: if they are empty now, they were made anew."""
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

    def state(self) -> dict[str, object]:
        """What an operator wants to know of it, as JSON-able values."""
        return {"ready": self.ready, "trouble": self.trouble, "reconnects": self.reconnects}

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
            except (amqp.AMQPError, OSError, TimeoutError, OutsideError) as error:
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
        await self._restore(connection)
        channel = await connection.channel()
        self.trouble = f"{ALARM}{connection.blocked}" if connection.blocked is not None else ""
        self._channel = channel
        await self.opened(channel)

    async def _restore(self, connection: amqp.Connection) -> None:
        """Declares the topology, on a channel of its own; tells of queues that are missing before that."""
        names = [queue.name for queue in self._topology.queues]
        missing = await missing_queues(connection, names, doubtful=self._doubtful)
        if missing:
            log.info("queues are missing, or were made anew", link=self.name, queues=missing)
            await self._on_missing(missing)
        self._doubtful.clear()
        channel = await connection.channel()
        await declare(channel, self._topology)
        await channel.close()

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
    """The Publisher protocol. A returned message has it look whether a queue is missing."""

    def __init__(self, url: str, topology: Topology, *, name: str, on_missing: OnMissing = unheard) -> None:
        super().__init__(url, topology, name=name, on_missing=on_missing)
        self._returned = asyncio.Event()

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
        if amqp.Published.RETURNED in outcomes:
            self._returned.set()
        return [_OUTCOMES[outcome] for outcome in outcomes]

    async def _until_lost(self) -> None:
        restoring = asyncio.create_task(self._restore_when_returned(), name=f"topology {self.name}")
        try:
            await super()._until_lost()
        finally:
            restoring.cancel()
            await asyncio.gather(restoring, return_exceptions=True)

    async def _restore_when_returned(self) -> None:
        while True:
            await self._returned.wait()
            connection = self._connection
            try:
                if connection is not None:
                    await self._restore(connection)
            except TopologyMismatch as error:
                self.lose(str(error))  # the new link meets it again, and ends with it
            except (amqp.AMQPError, TimeoutError, OutsideError) as error:
                log.warning("the topology could not be declared again", link=self.name, error=str(error))
            await asyncio.sleep(RESTORE_SECONDS)
            self._returned.clear()


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
        prefetches: Mapping[str, int],
        receive: Receive,
        watchdog_seconds: float = WATCHDOG_SECONDS,
        on_missing: OnMissing = unheard,
    ) -> None:
        super().__init__(url, topology, name=name, on_missing=on_missing)
        self.prefetches = dict(prefetches)
        self.rebuilds = 0
        """How often the watchdog had the link made again."""
        self._rebuilds_in_a_row = 0
        self._watchdog_seconds = watchdog_seconds
        self._delivered: Counter[str] = Counter()
        self._unsettled: Counter[str] = Counter()
        self._receive = receive
        self._limits: dict[str, int] = {}
        self._consuming: dict[str, tuple[str, int]] = {}
        """The consumer tag and the prefetch of every queue that is consumed."""
        self._adjusting = asyncio.Lock()
        self._to_adjust = asyncio.Event()
        self._settlement: Settlement | None = None
        self._taking = True

    async def opened(self, channel: amqp.Channel) -> None:
        """Starts to consume every queue."""
        self._settlement = Settlement(channel)
        self._unsettled = Counter()
        self._consuming = {}
        await self._adjust(channel)
        if self._rebuilds_in_a_row >= REBUILDS_BEFORE_TROUBLE:
            self.trouble = (
                f"RabbitMQ has messages for this consumer and delivers none, after {self._rebuilds_in_a_row} new "
                "connections; look at the queue's consumers and leader on the management pages"
            )

    def limit(self, queue: str, prefetch: int | None) -> None:
        """See broker.Consumer."""
        if prefetch is None:
            self._limits.pop(queue, None)
        else:
            self._limits[queue] = prefetch
        self._to_adjust.set()

    def state(self) -> dict[str, object]:
        """See Link; with how often the watchdog had the link made again."""
        return {**super().state(), "rebuilds": self.rebuilds}

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
        if self._channel is not None:
            with suppress(amqp.AMQPError, TimeoutError):
                await self._adjust(self._channel)

    async def _adjust(self, channel: amqp.Channel) -> None:
        """Makes what is consumed what is wanted. A prefetch counts for the consumers that are made after it."""
        async with self._adjusting:
            for queue, usual in self.prefetches.items():
                wanted = min(usual, self._limits.get(queue, usual)) if self._taking else 0
                tag, prefetch = self._consuming.get(queue, ("", 0))
                if wanted == prefetch:
                    continue
                if tag:
                    del self._consuming[queue]
                    await channel.cancel(tag)
                if wanted:
                    assert self._settlement is not None
                    await channel.qos(wanted)
                    receive = self._receiver(queue, self._settlement)
                    self._consuming[queue] = (
                        await channel.consume(queue, receive, on_cancel=self._cancelled),
                        wanted,
                    )

    async def _adjust_when_told(self) -> None:
        while True:
            await self._to_adjust.wait()
            self._to_adjust.clear()
            if self._channel is not None:
                try:
                    await self._adjust(self._channel)
                except (amqp.AMQPError, TimeoutError) as error:
                    self.lose(f"the consumers could not be changed: {error}")

    def _receiver(self, queue: str, settlement: Settlement) -> Callable[[list[amqp.Delivery]], None]:
        def received(deliveries: list[amqp.Delivery]) -> None:
            self._delivered[queue] += len(deliveries)
            self._unsettled[queue] += len(deliveries)
            self._receive([delivery_of(queue, delivery, settlement) for delivery in deliveries])

        return received

    def _cancelled(self, consumer_tag: str) -> None:
        # The queue was deleted or its leader moved (RabbitMQ, "Consumer Cancel Notification"): the topology
        # has to be checked and every consumer made again.
        self._doubtful |= {queue for queue, (tag, _) in self._consuming.items() if tag == consumer_tag}
        self.lose(f"RabbitMQ cancelled the consumer {consumer_tag}")

    async def _until_lost(self) -> None:
        loops = [
            asyncio.create_task(self._watch(), name=f"watchdog {self.name}"),
            asyncio.create_task(self._adjust_when_told(), name=f"limits {self.name}"),
        ]
        try:
            await super()._until_lost()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _watch(self) -> None:
        while self._taking:
            try:
                idle = await self._given_nothing(self._wanted(), self._watchdog_seconds)
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

    def _wanted(self) -> list[str]:
        """The queues that should be consumed now."""
        return [queue for queue in self.prefetches if self._limits.get(queue) != 0]

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


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """A delivery tag, bound to the channel that it is valid on."""

    settlement: Settlement
    tag: int


def backoff_seconds(failures: int, chance: float) -> float:
    """Full jitter: evenly between nothing and a bound that doubles with each failure (`chance` is in [0, 1))."""
    return chance * min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 16))


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
