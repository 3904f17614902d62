"""What the machine itself takes for a durable message, with no engine at all: the floor under `latency`.

The sender commits one row of the message's size (Postgres, with fsync), then publishes it confirmed to a quorum queue
on a bare connection; `python -m bench.floor work` takes it and acknowledges. Nothing is checked, remembered or retried.
"""

import asyncio
import os
import struct
import sys

import asyncpg
import uvloop

from bench.enqueueing import QUEUE, enqueue
from bench.tally import Tally
from hopline.amqp import Connection, Delivery, Outgoing, Properties, connect

PREFETCH = 500
CONNECTIONS = 8
TIME = struct.Struct("d")
"""A body begins with the time of its sending."""


async def main() -> None:
    """Sends."""
    url = os.environ["HOPLINE_DATABASE_URL"].replace("+asyncpg", "")
    database = await asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS)
    await database.execute("CREATE TABLE IF NOT EXISTS floor (body bytea)")
    connection = await _connected()
    channel = await connection.channel()
    await channel.confirm_select()

    async def send(sent_at: float, padding: str) -> None:
        body = TIME.pack(sent_at) + padding.encode()
        await database.execute("INSERT INTO floor VALUES ($1)", body)
        await channel.publish([Outgoing("", QUEUE, Properties(delivery_mode=2), body)], timeout_seconds=60)

    await enqueue(send)
    await connection.close()
    await database.close()


async def work() -> None:
    """Takes and acknowledges until it is stopped."""
    tally = Tally.from_environment()
    connection = await _connected()
    channel = await connection.channel()
    await channel.declare_queue(QUEUE, arguments={"x-queue-type": "quorum"})
    await channel.qos(PREFETCH)

    def take(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            tally.hit(TIME.unpack_from(delivery.body)[0])
        channel.ack(deliveries[-1].delivery_tag, multiple=True)

    await channel.consume(QUEUE, take)
    await asyncio.Event().wait()


async def _connected() -> Connection:
    return await connect(os.environ["BENCH_BROKER_URL"], name="floor")


if __name__ == "__main__":
    uvloop.run(work() if sys.argv[1] == "work" else main())
