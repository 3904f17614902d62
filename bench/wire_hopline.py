"""The client of `wire.py` that is measured: hopline.amqp on uvloop."""

import asyncio
import time
from collections.abc import Callable

import uvloop

from bench.wire_work import BODY, PREFETCH, WINDOW, Meter, Report, headers, message_id, run
from hopline.amqp import Delivery, Outgoing, Properties, Published, connect

CALLS = 5
"""Calls of `publish` at once; together they fill the window."""


async def publish(url: str, queue: str, limit_seconds: float, count: int) -> Report:
    connection = await connect(url)
    channel = await connection.channel()
    await channel.confirm_select()
    sent = 0
    meter = Meter()

    async def publish_pieces() -> None:
        nonlocal sent
        while sent < count and meter.seconds < limit_seconds:
            first, sent = sent, min(sent + WINDOW // CALLS, count)
            now = int(time.time())
            messages = [
                Outgoing(
                    "",
                    queue,
                    Properties(
                        content_type="application/json",
                        headers=headers(number),
                        delivery_mode=2,
                        message_id=message_id(number),
                        timestamp=now,
                        type="order.placed",
                    ),
                    BODY,
                )
                for number in range(first, sent)
            ]
            outcomes = await channel.publish(messages, timeout_seconds=60)
            if outcomes.count(Published.CONFIRMED) != len(outcomes):
                raise RuntimeError(f"not confirmed: {set(outcomes)}")

    await asyncio.gather(*(publish_pieces() for _ in range(CALLS)))
    report = meter.report(sent)
    await connection.close()
    return report


async def consume(url: str, queue: str, ack_every: int, count: int, id_of: Callable[[Delivery], str | None]) -> Report:
    connection = await connect(url)
    channel = await connection.channel()
    await channel.qos(PREFETCH)
    done = asyncio.Event()
    got = body_bytes = unacknowledged = 0

    def on_deliveries(deliveries: list[Delivery]) -> None:
        nonlocal got, body_bytes, unacknowledged
        got += len(deliveries)
        for delivery in deliveries:
            body_bytes += len(delivery.body) + (id_of(delivery) is None)
            if ack_every == 1:
                channel.ack(delivery.delivery_tag)
        unacknowledged += len(deliveries)
        if ack_every > 1 and (unacknowledged >= ack_every or got >= count):
            channel.ack(deliveries[-1].delivery_tag, multiple=True)
            unacknowledged = 0
        if got >= count:
            done.set()

    meter = Meter()
    await channel.consume(queue, on_deliveries)
    await done.wait()
    report = meter.report(got)
    if body_bytes != got * len(BODY):
        raise RuntimeError("bodies or message ids are missing")
    await connection.close()
    return report


def consume_ids(url: str, queue: str, ack_every: int, count: int) -> Report:
    return uvloop.run(consume(url, queue, ack_every, count, lambda delivery: delivery.message_id))


def consume_all(url: str, queue: str, ack_every: int, count: int) -> Report:
    return uvloop.run(consume(url, queue, ack_every, count, lambda delivery: delivery.properties.message_id))


if __name__ == "__main__":
    run(lambda *work: uvloop.run(publish(*work)), consume_ids, consume_all)
