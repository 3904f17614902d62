"""No-op messages with Dramatiq: confirmed; its queues are classic ones, it has no option for another type."""

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from bench.enqueueing import QUEUE, enqueue_blocking
from bench.tally import FILE, Tally

broker = RabbitmqBroker(url=os.environ["BENCH_BROKER_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)
tally = Tally.from_environment() if FILE in os.environ else None


@dramatiq.actor(queue_name=QUEUE)
def noop(sent_at: float, padding: str) -> None:  # noqa: ARG001 - it fills the body
    """Counts."""
    assert tally is not None
    tally.hit(sent_at)


if __name__ == "__main__":
    enqueue_blocking(noop.send)
