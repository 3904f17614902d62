"""One queue's consumer, on a channel of its own, for as long as that channel lives.

`run` consumes until the channel or the consumer is over. Whoever calls it declares the queue and calls it again.

A watchdog looks every `watchdog_seconds` whether the queue has messages ready while its consumer here holds none and
was given none: a consumer that RabbitMQ has forgotten, which nothing else would tell. The consumer is then made again;
after three times without an effect `trouble` says so, until a look finds nothing wrong.

A consumer that RabbitMQ cancels is a reason to doubt: the queue was deleted, or a message was not settled in time
(RabbitMQ 4.3). If the queue exists, only evidence makes it "made anew, so that what was in it is lost": it has a leader
(the new consumer was accepted), nothing is ready in it, nothing was delivered, and nobody else consumes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from hopline import amqp
from hopline.broker import Receive
from hopline.errors import OutsideError
from hopline.live import channel_of, look
from hopline.rabbitmq.link import OnMissing
from hopline.rabbitmq.settlement import Settlement, delivery_of

WATCHDOG_SECONDS = 30.0
SECOND_LOOK_SECONDS = 1.0
"""A message that has just come may be ready for a moment: what counts is what two looks find."""
REBUILDS_BEFORE_TROUBLE = 3

log = structlog.get_logger("hopline.rabbitmq")


class Subscription:
    """Consumes one queue within its limit. `limit` and `stop_taking` may be called at any time."""

    def __init__(
        self, queue: str, prefetch: int, receive: Receive, *, watchdog_seconds: float, link: str, on_missing: OnMissing
    ) -> None:
        self.queue = queue
        self._idle = ""
        """Why the queue delivers nothing though it is consumed."""
        self._begun = False
        """Whether it is consumed, or is not wanted to be."""
        self.rebuilds = 0
        """How often the watchdog had the consumer made again."""
        self.remade = 0
        """How often the consumer was made again because RabbitMQ or the watchdog ended it."""
        self._delivered_before = 0
        """Deliveries that came on earlier channels."""
        self._prefetch = prefetch
        self._limit: int | None = None
        self._receive = receive
        self._watchdog_seconds = watchdog_seconds
        self._link = link
        self._on_missing = on_missing
        self._taking = True
        self._doubtful = False
        """RabbitMQ cancelled the last consumer: the queue may have been made anew."""
        self._rebuilds_in_a_row = 0
        self._channel: amqp.Channel | None = None
        self._settlement: Settlement | None = None
        self._consuming: tuple[str, int] = ("", 0)
        """The consumer's tag and prefetch, while there is one."""
        self._over = ""
        """Why the consumer has to be made again."""
        self._adjusting = asyncio.Lock()
        self._wake = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why the queue is not consumed or delivers nothing; empty if all is well."""
        return self._idle or ("" if self._begun else "its consumer is being made")

    @property
    def wanted(self) -> int:
        """The prefetch to consume with now; 0 is not to consume."""
        if not self._taking:
            return 0
        return self._prefetch if self._limit is None else min(self._prefetch, self._limit)

    @property
    def holding(self) -> dict[str, object]:
        """What an account of the queue needs to know: deliveries ever, those in hand, and whether it is consumed."""
        now = self._settlement
        return {
            "delivered": self._delivered_before + (now.delivered if now else 0),
            "unsettled": now.delivered - now.settled if now else 0,
            "consuming": bool(self._consuming[0]) if now else False,
        }

    def remake(self, why: str) -> bool:
        """Has the consumer made again on a new channel, unless it holds deliveries; whether it does so."""
        if self._settlement is None or self._settlement.settled != self._settlement.delivered:
            return False
        self._end(why)
        return True

    def limit(self, prefetch: int | None) -> None:
        """See broker.Consumer."""
        self._limit = prefetch
        self._wake.set()

    def made_anew(self) -> None:
        """The queue was missing, that was told, and it is declared: no doubt is left."""
        self._doubtful = False

    async def stop_taking(self) -> None:
        """Cancels the consumer; the channel stays, so that what was delivered can be settled."""
        self._taking = False
        if self._channel is not None:
            with suppress(amqp.AMQPError, TimeoutError):
                await self._adjust(self._channel)

    async def run(self, connection: amqp.Connection, works: Callable[[], None]) -> None:
        """Consumes until RabbitMQ or the watchdog ends the consumer; calls `works` when it has begun.

        Raises what ended the channel.
        """
        async with channel_of(connection) as channel:
            self._channel, self._settlement = channel, Settlement(channel)
            self._consuming, self._over = ("", 0), ""
            try:
                await self._consume(connection, channel, works)
            finally:
                self._delivered_before += self._settlement.delivered
                self._channel = self._settlement = None
                self._begun = False
        self.remade += 1
        log.warning("a consumer ended and is made again", link=self._link, queue=self.queue, reason=self._over)

    async def _consume(self, connection: amqp.Connection, channel: amqp.Channel, works: Callable[[], None]) -> None:
        await self._adjust(channel)
        self._tell_of_rebuilds()
        self._begun = True
        works()
        loops = [
            asyncio.create_task(self._until_over(channel), name=f"consume {self.queue}"),
            asyncio.create_task(self._watch(connection), name=f"watchdog {self.queue}"),
        ]
        closed = asyncio.create_task(channel.wait_closed())
        closed.add_done_callback(lambda _: self._wake.set())
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*loops, closed):
                task.cancel()
            await asyncio.gather(*loops, closed, return_exceptions=True)
        for task in done:
            task.result()

    async def _until_over(self, channel: amqp.Channel) -> None:
        while True:
            self._wake.clear()
            if channel.closed:
                raise channel.close_reason or amqp.ChannelClosed("the channel was closed by this client")
            if self._over:
                return
            await self._adjust(channel)
            await self._wake.wait()

    async def _adjust(self, channel: amqp.Channel) -> None:
        """Makes what is consumed what is wanted. A prefetch counts for the consumers that are made after it."""
        async with self._adjusting:
            wanted = self.wanted
            tag, prefetch = self._consuming
            if wanted == prefetch:
                return
            if tag:
                self._consuming = ("", 0)
                await channel.cancel(tag)
            if wanted:
                assert self._settlement is not None
                await channel.qos(wanted)
                tag = await channel.consume(self.queue, self._receiver(self._settlement), on_cancel=self._cancelled)
                self._consuming = (tag, wanted)

    def _receiver(self, settlement: Settlement) -> Callable[[list[amqp.Delivery]], None]:
        def received(deliveries: list[amqp.Delivery]) -> None:
            settlement.delivered += len(deliveries)
            self._receive([delivery_of(self.queue, delivery, settlement) for delivery in deliveries])

        return received

    def _cancelled(self, _consumer_tag: str) -> None:
        # RabbitMQ, "Consumer Cancel Notification": the queue was deleted, or (4.3) a message was not settled in time.
        self._doubtful = True
        self._end("RabbitMQ cancelled it")

    def _end(self, why: str) -> None:
        self._over = why
        self._wake.set()

    # the watchdog

    async def _watch(self, connection: amqp.Connection) -> None:
        while True:
            try:
                if self._doubtful:
                    await self._resolve_doubt(connection)
                idle = await self._given_nothing(connection, self._watchdog_seconds)
                second = min(SECOND_LOOK_SECONDS, self._watchdog_seconds)
                idle = idle and await self._given_nothing(connection, second)
            except (amqp.AMQPError, TimeoutError, OutsideError) as error:
                log.warning("the watchdog could not look", link=self._link, queue=self.queue, error=str(error))
                await asyncio.sleep(SECOND_LOOK_SECONDS)
                continue
            if idle and self.wanted:
                self.rebuilds += 1
                self._rebuilds_in_a_row += 1
                log.error(
                    "a queue has messages and delivers none", link=self._link, queue=self.queue, rebuilds=self.rebuilds
                )
                self._end("it is idle while messages are ready")
                return
            self._idle = ""
            self._rebuilds_in_a_row = 0

    async def _given_nothing(self, connection: amqp.Connection, seconds: float) -> bool:
        """Whether the queue gave nothing for so long, nothing of it is unsettled, and it has messages ready."""
        settlement = self._settlement
        assert settlement is not None
        before = settlement.delivered
        await asyncio.sleep(seconds)
        if not self.wanted or settlement.delivered != before or settlement.settled != settlement.delivered:
            return False
        state = await look(connection, self.queue)
        return state is not None and state.messages > 0  # deleted: RabbitMQ has cancelled the consumer, or is about to

    def _tell_of_rebuilds(self) -> None:
        if self._rebuilds_in_a_row >= REBUILDS_BEFORE_TROUBLE:
            self._idle = (
                f"RabbitMQ has messages for this consumer and delivers none, after {self._rebuilds_in_a_row} new "
                "consumers; look at the queue's consumers and leader on the management pages"
            )

    # a queue that may have been made anew

    async def _resolve_doubt(self, connection: amqp.Connection) -> None:
        is_new = await self._looks_new(connection)
        if is_new:
            await asyncio.sleep(SECOND_LOOK_SECONDS)  # what it holds may be on its way here
            is_new = await self._looks_new(connection)
        if is_new:
            log.info("a queue was made anew", link=self._link, queue=self.queue)
            await self._on_missing([self.queue])
        self._doubtful = False

    async def _looks_new(self, connection: amqp.Connection) -> bool:
        state = await look(connection, self.queue)
        if state is None:
            return False  # missing: RabbitMQ cancels this consumer too, and the queue is then found missing
        assert self._settlement is not None
        others = state.consumers - (1 if self._consuming[0] else 0)
        return not state.messages and not self._settlement.delivered and others <= 0
