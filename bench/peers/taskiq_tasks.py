"""No-op messages with Taskiq on aio-pika: confirmed and on a quorum queue, as its RabbitMQ broker does by default."""

import os

import uvloop
from taskiq_aio_pika import AioPikaBroker, Queue

from bench.enqueueing import QUEUE, enqueue
from bench.tally import FILE, Tally

broker = AioPikaBroker(os.environ["BENCH_BROKER_URL"], qos=500, task_queues=[Queue(name=QUEUE)])
tally = Tally.from_environment() if FILE in os.environ else None


@broker.task(task_name="noop")
async def noop(sent_at: float, padding: str) -> None:  # noqa: ARG001 - it fills the body
    """Counts."""
    assert tally is not None
    tally.hit(sent_at)


async def main() -> None:
    """Sends."""
    await broker.startup()
    await enqueue(noop.kiq)
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
