"""The broker protocols on hopline.amqp: a publisher and a consumer, each on a connection of its own.

Two connections, because a memory or disk alarm blocks the publishing one while consumers go on. A Link (`link`) keeps
one connection alive and each queue of the topology declared; RabbitPublisher (`publisher`) and RabbitConsumer
(`consumer`) are its two roles; a Subscription (`subscription`) is one queue's consumer on a channel of its own; a
Settlement (`settlement`) acknowledges on one channel.

Invariant: a queue that cannot be used is retried and reported for itself; no other queue waits for it.
"""

from hopline.rabbitmq.consumer import RabbitConsumer
from hopline.rabbitmq.link import ALARM, Link
from hopline.rabbitmq.publisher import RabbitPublisher
from hopline.rabbitmq.settlement import Receipt, Settlement, delivery_of
from hopline.rabbitmq.subscription import REBUILDS_BEFORE_TROUBLE, Subscription
from hopline.rabbitmq.waiting import BACKOFF_CAP_SECONDS, backoff_seconds

__all__ = [
    "ALARM",
    "BACKOFF_CAP_SECONDS",
    "REBUILDS_BEFORE_TROUBLE",
    "Link",
    "RabbitConsumer",
    "RabbitPublisher",
    "Receipt",
    "Settlement",
    "Subscription",
    "backoff_seconds",
    "delivery_of",
]
