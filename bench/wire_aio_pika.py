"""aio-pika in `wire.py`, on uvloop: a thousand publishes at once, as its documentation shows; a callback a message."""

import asyncio
import time

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from bench.wire_work import BODY, PREFETCH, WINDOW, Meter, Report, properties, run


async def publish(url: str, queue: str, limit_seconds: float, count: int) -> Report:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    exchange = channel.default_exchange
    sent = 0
    meter = Meter()
    while sent < count and meter.seconds < limit_seconds:
        first, sent = sent, min(sent + WINDOW, count)
        now = int(time.time())
        messages = [aio_pika.Message(BODY, **properties(number, now)) for number in range(first, sent)]
        await asyncio.gather(*(exchange.publish(message, queue) for message in messages))
    report = meter.report(sent)
    await connection.close()
    return report


async def consume(url: str, queue: str, ack_every: int, count: int) -> Report:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(PREFETCH)
    done = asyncio.Event()
    got = 0

    async def on_message(message: AbstractIncomingMessage) -> None:
        nonlocal got
        got += len(message.body) == len(BODY) and message.message_id is not None
        if got % ack_every == 0 or got == count:
            await message.ack(multiple=ack_every > 1)
        if got >= count:
            done.set()

    meter = Meter()
    await (await channel.get_queue(queue)).consume(on_message)
    await done.wait()
    report = meter.report(got)
    await connection.close()
    return report


if __name__ == "__main__":
    run(
        lambda *work: uvloop.run(publish(*work)),
        lambda *work: uvloop.run(consume(*work)),
        lambda *work: uvloop.run(consume(*work)),
    )
