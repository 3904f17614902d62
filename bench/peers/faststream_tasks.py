"""No-op messages with FastStream: confirmed, mandatory, quorum queue. `python -m … work` is the worker."""

import logging
import os
import sys

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from bench.enqueueing import QUEUE, enqueue
from bench.tally import FILE, Tally

log = logging.getLogger("noop")
broker = RabbitBroker(os.environ["BENCH_BROKER_URL"], default_channel=Channel(prefetch_count=500), logger=log)
queue = RabbitQueue(QUEUE, durable=True, queue_type=QueueType.QUORUM)
tally = Tally.from_environment() if FILE in os.environ else None


class Noop(BaseModel):
    """Nothing to do."""

    sent_at: float
    padding: str


@broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
async def noop(message: Noop) -> None:
    """Counts."""
    assert tally is not None
    tally.hit(message.sent_at)


async def main() -> None:
    """Sends."""
    await broker.connect()
    await broker.declare_queue(queue)
    await enqueue(
        lambda sent_at, padding: broker.publish(
            Noop(sent_at=sent_at, padding=padding), queue=queue, persist=True, mandatory=True
        )
    )
    await broker.stop()


if __name__ == "__main__":
    uvloop.run(FastStream(broker, logger=log).run() if sys.argv[1] == "work" else main())
