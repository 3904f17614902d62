"""The job with FastStream: everything asyncio. `python -m bench.peers.faststream_flow` is the worker.

A durable quorum queue, confirmed and mandatory publishing (aio-pika's default), acknowledged after the handler, put
back on an error; a prefetch that lets so many handlers run at once, on a pooled engine and kept SMTP connections.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosmtplib
import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from sqlalchemy import func, update

from bench.peers.api import create_api, engine, sessions
from bench.peers.shop import BROKER_URL, QUEUE, SMTP_PORT, Order, OrderPlaced, letter

PREFETCH = 64
SMTP_CONNECTIONS = 8

log = logging.getLogger("orders")
"""At its usual level, WARNING: a line for each message would cost more than the message."""
broker = RabbitBroker(BROKER_URL, default_channel=Channel(prefetch_count=PREFETCH), logger=log)
orders = RabbitQueue(QUEUE, durable=True, queue_type=QueueType.QUORUM)
_idle: asyncio.LifoQueue[aiosmtplib.SMTP | None] = asyncio.LifoQueue()


@broker.subscriber(orders, ack_policy=AckPolicy.NACK_ON_ERROR)
async def decide(placed: OrderPlaced) -> None:
    """Confirms the order, then mails the customer."""
    async with sessions.begin() as session:
        change = update(Order).where(Order.id == placed.order_id, Order.state == "accepted")
        await session.execute(change.values(state="confirmed", decided_at=func.now()))
    await send(placed)


async def send(placed: OrderPlaced) -> None:
    """Sends the letter on one of the kept connections, which is opened if need be."""
    connection = await _idle.get()
    try:
        if connection is None or not connection.is_connected:
            connection = aiosmtplib.SMTP(
                hostname="127.0.0.1", port=SMTP_PORT, timeout=15, local_hostname="localhost", start_tls=False
            )
            await connection.connect()
        await connection.send_message(letter(placed))
    finally:
        _idle.put_nowait(connection)


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """The broker connected and the queue declared, for the API."""
    await broker.connect()
    await broker.declare_queue(orders)
    yield
    await broker.stop()


async def publish(placed: OrderPlaced) -> None:
    """Returns when RabbitMQ has confirmed it."""
    await broker.publish(placed, queue=orders, persist=True, mandatory=True)


api = create_api(publish, connected)


async def work() -> None:
    """The worker."""
    for _ in range(SMTP_CONNECTIONS):
        _idle.put_nowait(None)
    await FastStream(broker, logger=log).run()
    await engine.dispose()


if __name__ == "__main__":
    uvloop.run(work())
