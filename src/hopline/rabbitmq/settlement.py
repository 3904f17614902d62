"""Acknowledging on one channel, and the receipt that binds a delivery to it.

Invariant: a delivery tag is used on the channel that it came on, once; on a channel that is over it is forgotten,
because RabbitMQ has already given the message to somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hopline import amqp
from hopline.broker import Delivery
from hopline.properties import describe, envelope_of


class Settlement:
    """Acknowledges on one channel: `multiple` up to the lowest unsettled tag, one by one above it.

    A channel numbers its deliveries 1, 2, 3 … over all its consumers (AMQP 0-9-1, basic.deliver), so the lowest
    unsettled tag is known without a list of what was delivered.
    """

    def __init__(self, channel: amqp.Channel) -> None:
        self.channel = channel
        self.delivered = 0
        """Deliveries that came on this channel."""
        self.settled = 0
        """Deliveries that were settled on it."""
        self._lowest = 1
        self._acked: set[int] = set()
        """Tags above the lowest unsettled one that are acknowledged."""

    def settle(self, tags: Sequence[int]) -> None:
        """Settles deliveries; forgets them if the channel is gone."""
        if self.channel.closed:
            return
        settled = set(tags)
        self.settled += len(settled)
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
