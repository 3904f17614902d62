"""The Publisher protocol on RabbitMQ: one channel with confirms, on a connection of its own.

A message is not published while a queue that it goes to is not known to be declared with its bindings: RabbitMQ would
give it to the other queues only, confirm it, and nobody would see what is missing. Such a message is REFUSED, and
comes again later. Other messages are published meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from hopline import amqp
from hopline.broker import Publish, Published
from hopline.properties import properties_of
from hopline.rabbitmq.link import Link, OnMissing, unheard
from hopline.topology import Topology

RESTORE_SECONDS = 5.0
"""Returned messages have the topology declared again at most so often."""

_OUTCOMES = {
    amqp.Published.CONFIRMED: Published.CONFIRMED,
    amqp.Published.RETURNED: Published.RETURNED,
    amqp.Published.REFUSED: Published.REFUSED,
    amqp.Published.UNKNOWN: Published.UNKNOWN,
}

log = structlog.get_logger("hopline.rabbitmq")


class RabbitPublisher(Link):
    """The Publisher protocol. A returned message has it look whether a queue is missing."""

    def __init__(self, url: str, topology: Topology, *, name: str, on_missing: OnMissing = unheard) -> None:
        super().__init__(url, topology, name=name, on_missing=on_missing)
        self._channel: amqp.Channel | None = None
        """The channel to publish on; None until its confirms are selected."""
        self._returned = asyncio.Event()
        self._confirmed_at = 0.0
        """When RabbitMQ last confirmed something (time.monotonic)."""

    async def opened(self, connection: amqp.Connection) -> None:
        """See Link. Confirms are on before anything can be published."""
        channel = await connection.channel()
        await channel.confirm_select()
        self._channel = channel

    def closing(self) -> None:
        """See Link."""
        self._channel = None

    def loops(self) -> Sequence[Coroutine[Any, Any, None]]:
        """See Link."""
        return [self._restore_when_returned(), self._until_channel_closed()]

    async def publish(self, batch: Sequence[Publish], *, timeout_seconds: float) -> list[Published]:
        """See broker.Publisher."""
        channel = self._channel
        if channel is None:
            return [Published.UNKNOWN] * len(batch)
        if not (withheld := self.withheld):
            return await self._publish(channel, batch, timeout_seconds)
        held = [(publish.exchange, publish.routing_key) in withheld for publish in batch]
        sent = [publish for publish, is_held in zip(batch, held, strict=True) if not is_held]
        outcomes = iter(await self._publish(channel, sent, timeout_seconds) if sent else ())
        return [Published.REFUSED if is_held else next(outcomes) for is_held in held]

    async def _publish(
        self, channel: amqp.Channel, batch: Sequence[Publish], timeout_seconds: float
    ) -> list[Published]:
        outgoing = [
            amqp.Outgoing(publish.exchange, publish.routing_key, properties_of(publish.envelope), publish.envelope.body)
            for publish in batch
        ]
        began = time.monotonic()
        try:
            outcomes = await channel.publish(outgoing, timeout_seconds=timeout_seconds)
        except amqp.EncodeError as error:  # nothing was sent
            return await self._publish_apart(channel, batch, timeout_seconds, error)
        if amqp.Published.CONFIRMED in outcomes:
            self._confirmed_at = time.monotonic()
        if amqp.Published.UNKNOWN in outcomes and not channel.closed and self.ready and self._confirmed_at < began:
            self.lose("no confirm within the deadline")  # of anything: one queue without a leader is no reason
        if amqp.Published.RETURNED in outcomes:
            self._returned.set()
        return [_OUTCOMES[outcome] for outcome in outcomes]

    async def _publish_apart(
        self, channel: amqp.Channel, batch: Sequence[Publish], timeout_seconds: float, error: amqp.EncodeError
    ) -> list[Published]:
        """Halves a batch of which one message cannot be encoded, down to that one: the others are sent."""
        if len(batch) == 1:
            (publish,) = batch
            log.error("a message cannot be sent", message_id=publish.envelope.id, error=str(error))
            return [Published.UNSENDABLE]
        half = len(batch) // 2
        first = await self._publish(channel, batch[:half], timeout_seconds)
        return first + await self._publish(channel, batch[half:], timeout_seconds)

    async def _until_channel_closed(self) -> None:
        channel = self._channel
        assert channel is not None
        reason = await channel.wait_closed()
        raise (reason or amqp.ChannelClosed("the publishing channel was closed"))

    async def _restore_when_returned(self) -> None:
        while True:
            await self._returned.wait()
            self.declare_again()
            await asyncio.sleep(RESTORE_SECONDS)
            self._returned.clear()
