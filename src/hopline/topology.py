"""Exchanges, queues and bindings as plain data, declared in full by every role at start.

- topic exchange `hopline`, routing key = message type: whatever is published once for all who want it;
- direct exchange `hopline.to`, routing key = queue name: whatever is meant for one queue (retries, replays);
- direct exchange `hopline.dead`: where RabbitMQ itself dead-letters to, one `NAME.dead` queue per queue.

Arguments follow RabbitMQ's quorum queue documentation: at-least-once dead-lettering needs
`x-overflow=reject-publish`; `.dead` queues get a very large positive delivery limit because 4.x drops after
20 by default and -1 is unknown to 3.10.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from hopline.errors import UsageError

EXCHANGE = "hopline"
DIRECT_EXCHANGE = "hopline.to"
DEAD_EXCHANGE = "hopline.dead"
DELIVERY_LIMIT = 20
QUEUE_NAME_BYTES = 250
"""AMQP allows 255, and `.dead` needs five."""
UNLIMITED_DELIVERIES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["topic", "direct"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue with its arguments."""

    name: str
    arguments: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of `exchange` with this routing key go to `queue`."""

    exchange: str
    queue: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """All that is declared on the broker, in the order in which it is declared."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


def dead_queue(queue: str) -> str:
    """The name of the queue that takes what RabbitMQ dead-letters from `queue`."""
    return f"{queue}.dead"


def build(subscriptions: Iterable[tuple[str, str]]) -> Topology:
    """The topology for (queue, message type) pairs; the same pairs in any order give the same topology."""
    pairs = sorted(set(subscriptions))
    names = sorted({queue for queue, _ in pairs})
    queues: list[Queue] = []
    bindings: list[Binding] = []
    for name in names:
        check_queue_name(name)
        queues += [Queue(name, _live_arguments(name)), Queue(dead_queue(name), _dead_arguments())]
        bindings += [Binding(DIRECT_EXCHANGE, name, name), Binding(DEAD_EXCHANGE, dead_queue(name), name)]
    bindings += [Binding(EXCHANGE, queue, message_type) for queue, message_type in pairs]
    exchanges = (Exchange(EXCHANGE, "topic"), Exchange(DIRECT_EXCHANGE, "direct"), Exchange(DEAD_EXCHANGE, "direct"))
    return Topology(exchanges, tuple(queues), tuple(bindings))


def check_queue_name(name: str) -> None:
    """UsageError unless the name is one that RabbitMQ and the `.dead` convention can take."""
    if not name or name.startswith("amq.") or name.endswith(".dead") or any(c.isspace() for c in name):
        raise UsageError(f"{name!r} is no queue name: not empty, no blanks, not 'amq.…', not '….dead'")
    if len(name.encode()) > QUEUE_NAME_BYTES:
        raise UsageError(f"the queue name {name[:40]!r}… is longer than 250 bytes")


def _live_arguments(name: str) -> dict[str, str | int]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _dead_arguments() -> dict[str, str | int]:
    return {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED_DELIVERIES}
