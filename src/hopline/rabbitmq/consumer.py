"""The Consumer protocol on RabbitMQ: a Subscription for each queue, all on one connection.

What happens to one queue's channel or consumer touches that queue only: it is retried and reported for itself, and
the deliveries of the other queues stay theirs to settle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from hopline import amqp
from hopline.broker import Delivery, Receive
from hopline.rabbitmq.link import Link, OnMissing, unheard
from hopline.rabbitmq.settlement import Receipt, Settlement
from hopline.rabbitmq.subscription import WATCHDOG_SECONDS, Subscription
from hopline.topology import Topology


class RabbitConsumer(Link):
    """The Consumer protocol. It is ready when every one of its queues is consumed as its limit allows."""

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
        self._subscriptions = {
            queue: Subscription(
                queue, prefetch, receive, watchdog_seconds=watchdog_seconds, link=name, on_missing=on_missing
            )
            for queue, prefetch in self.prefetches.items()
        }

    @property
    def ready(self) -> bool:
        """See broker.Consumer."""
        return super().ready and not self.queue_troubles()

    @property
    def rebuilds(self) -> int:
        """How often the watchdog had a queue's consumer made again."""
        return sum(subscription.rebuilds for subscription in self._subscriptions.values())

    @property
    def remade(self) -> int:
        """How often a queue's consumer was made again, for any reason but a new connection."""
        return sum(subscription.remade for subscription in self._subscriptions.values())

    def queue_troubles(self) -> dict[str, str]:
        """See Link; with the queues that deliver nothing though they have messages."""
        idle = {queue: one.trouble for queue, one in self._subscriptions.items() if one.trouble}
        return {**idle, **super().queue_troubles()}

    def proving(self) -> frozenset[str]:
        """See Link: the queues that are consumed."""
        return frozenset(self._subscriptions)

    def made_anew(self, queue: str) -> None:
        """See Link."""
        if queue in self._subscriptions:
            self._subscriptions[queue].made_anew()

    def limit(self, queue: str, prefetch: int | None) -> None:
        """See broker.Consumer."""
        self._subscriptions[queue].limit(prefetch)

    def state(self) -> dict[str, object]:
        """See Link; with how often the watchdog had a consumer made again, and what is held of each queue."""
        holding = {queue: self.holding(queue) for queue in self._subscriptions}
        return {**super().state(), "rebuilds": self.rebuilds, "holding": holding}

    def holding(self, queue: str) -> dict[str, object]:
        """What is held of a queue (docs/reference/tables.md, `hopline_workers.state`)."""
        return self._subscriptions[queue].holding

    def remake(self, queue: str, why: str) -> bool:
        """Has a queue's consumer made again, unless it holds deliveries; whether it does so."""
        return self._subscriptions[queue].remake(why)

    def owns(self, delivery: Delivery) -> bool:
        """See broker.Consumer."""
        receipt = delivery.receipt
        return isinstance(receipt, Receipt) and not receipt.settlement.channel.closed

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """See broker.Consumer."""
        tags: dict[Settlement, list[int]] = {}
        for delivery in deliveries:
            receipt = delivery.receipt
            if isinstance(receipt, Receipt):
                tags.setdefault(receipt.settlement, []).append(receipt.tag)
        for settlement, settled in tags.items():
            settlement.settle(settled)

    async def stop_taking(self) -> None:
        """Cancels the consumers: no further delivery comes; what was delivered can still be settled."""
        await asyncio.gather(*(subscription.stop_taking() for subscription in self._subscriptions.values()))

    async def use(self, connection: amqp.Connection, queue: str) -> None:
        """See Link: consumes the queue, if it is one of this consumer's."""
        subscription = self._subscriptions.get(queue)
        if subscription is None:
            await super().use(connection, queue)
        else:
            await subscription.run(connection, lambda: self.works(queue))
