"""Collects deliveries, so that a test can wait for as many as it expects instead of sleeping."""

import asyncio
from collections.abc import Callable

from hopline.amqp import Delivery, Outgoing

MakeMessage = Callable[..., Outgoing]
"""The `message` fixture: (routing_key, body, exchange, **properties)."""


class Collector:
    """Give `self` as `on_deliveries`."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._arrived = asyncio.Event()

    def __call__(self, deliveries: list[Delivery]) -> None:
        self.deliveries += deliveries
        self._arrived.set()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    async def wait_for(self, count: int, timeout_seconds: float = 10.0) -> list[Delivery]:
        async with asyncio.timeout(timeout_seconds):
            while len(self.deliveries) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.deliveries
