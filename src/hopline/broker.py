"""What the engine asks of a broker: a Publisher, a Consumer, and the Delivery that passes between.

All of it lives in one asyncio loop and is called from that loop only. No method blocks the loop. The one who
starts a publisher or consumer closes it; both reconnect by themselves until then. Implementations: rabbitmq.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from hopline.message import Envelope


class Published(enum.Enum):
    """How one publish ended. Nothing in between."""

    CONFIRMED = "confirmed"
    """Stored by the broker."""
    RETURNED = "returned"
    """No queue is bound for it: it was not stored."""
    REFUSED = "refused"
    """Negatively acknowledged: the queue is full or had an internal error; not stored."""
    UNSENDABLE = "unsendable"
    """AMQP cannot carry it as it is, so it was not sent and never will be."""
    UNKNOWN = "unknown"
    """No answer before the deadline, or the connection died: stored or not."""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """One message for one routing key of one exchange."""

    exchange: str
    routing_key: str
    envelope: Envelope


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One delivery of one message from one queue; compared by identity, for a message can come twice."""

    queue: str
    body: bytes
    envelope: Envelope | None
    """None when the properties lack what every message of Hopline has (message_id, type)."""
    redelivered: bool
    """RabbitMQ's hint that it was delivered before. Never used to deduplicate."""
    receipt: object
    """What the consumer needs to settle it: bound to one channel of one connection."""
    describe: Callable[[], Mapping[str, object]]
    """The raw properties as JSON-able values, for a dead letter; computed only when asked for."""


class Publisher(Protocol):
    """Publishes persistent, mandatory, confirmed messages, pipelined."""

    @property
    def ready(self) -> bool:
        """Whether a publish has a chance now: connected, topology declared, not blocked by an alarm."""
        ...

    async def publish(self, batch: Sequence[Publish], *, timeout_seconds: float) -> list[Published]:
        """Sends all and waits for all outcomes, in the order of the batch, within one deadline. Never raises
        for a broker's fault: that is UNKNOWN. Several calls may run at once."""
        ...


class Consumer(Protocol):
    """Hands over deliveries and takes their settlement."""

    @property
    def ready(self) -> bool:
        """Whether it is connected and takes what its limits allow."""
        ...

    @property
    def prefetches(self) -> Mapping[str, int]:
        """The queues that it consumes, each with how many unsettled deliveries it takes of it."""
        ...

    def limit(self, queue: str, prefetch: int | None) -> None:
        """Takes at most so many of a queue from now on: 0 stops to consume it, None is its usual prefetch.

        Returns at once. What was delivered before may still come, and stays to be settled.
        """
        ...

    def owns(self, delivery: Delivery) -> bool:
        """Whether the delivery is still this consumer's to settle (its channel is open)."""
        ...

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledges. Does not block; a delivery of a channel that is gone is forgotten silently, because
        the broker has already given it to somebody else."""
        ...


Receive = Callable[[list[Delivery]], None]
"""Takes all deliveries of one read from one queue; must not block, must not raise."""
