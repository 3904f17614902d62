"""pika's SelectConnection in `wire.py`: its fastest adapter, driven by callbacks."""

import time
from collections.abc import Callable
from typing import Any

import pika

from bench.wire_work import BODY, PREFETCH, WINDOW, Meter, Report, properties, run

OnChannel = Callable[[Any, Any, Report], None]


def run_loop(url: str, on_channel: OnChannel) -> Report:
    """Opens a channel, hands it to `on_channel` and runs until that closes; gives the report that it left."""
    report: Report = {}
    connection: Any = pika.SelectConnection(
        pika.URLParameters(url),
        on_open_callback=lambda opened: opened.channel(
            on_open_callback=lambda channel: on_channel(opened, channel, report)
        ),
        on_close_callback=lambda closed, _: closed.ioloop.stop(),
    )
    connection.ioloop.start()
    return report


def publish(url: str, queue: str, limit_seconds: float, count: int) -> Report:
    def on_channel(connection: Any, channel: Any, report: Report) -> None:
        sent = confirmed = 0
        over = False
        meter = Meter()

        def publish_more() -> None:
            nonlocal sent, over
            now = int(time.time())
            over = over or meter.seconds >= limit_seconds
            while sent - confirmed < WINDOW and sent < count and not over:
                message = pika.BasicProperties(**properties(sent, now))
                channel.basic_publish("", queue, BODY, message, mandatory=True)
                sent += 1

        def on_confirm(frame: Any) -> None:
            nonlocal confirmed
            # RabbitMQ confirms one queue's messages nearly in order: the highest tag is close enough for a window.
            confirmed = max(confirmed, frame.method.delivery_tag)
            publish_more()
            if confirmed == sent and (over or sent >= count):
                report.update(meter.report(sent))
                connection.close()

        channel.confirm_delivery(on_confirm, callback=lambda _: publish_more())

    return run_loop(url, on_channel)


def consume(url: str, queue: str, ack_every: int, count: int) -> Report:
    def on_channel(connection: Any, channel: Any, report: Report) -> None:
        got = 0
        meter = Meter()

        def on_message(channel: Any, method: Any, message: Any, body: bytes) -> None:
            nonlocal got
            got += len(body) == len(BODY) and message.message_id is not None
            if got % ack_every == 0 or got == count:
                channel.basic_ack(method.delivery_tag, multiple=ack_every > 1)
            if got == count:
                report.update(meter.report(got))
                connection.close()

        channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: channel.basic_consume(queue, on_message))

    return run_loop(url, on_channel)


if __name__ == "__main__":
    run(publish, consume, consume)
