"""What a thousand messages cost on the wire and in Python: counted, so that slowness shows without timing anything."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from hopline.amqp.channel import Channel
from hopline.amqp.confirms import Confirms
from hopline.amqp.reader import Reader
from hopline.broker import Publish, Published
from hopline.clock import new_id
from hopline.message import message
from hopline.rabbitmq import RabbitPublisher
from hopline.topology import build
from tests.support.calls import counted_calls
from tests.support.engine import envelope_for

COUNT = 1000
WRITES_MAX = 3
"""Of about 256 KiB each; the event loop gets a turn after each one."""
OVERHEAD_BYTES_MAX = 400
"""Of one message beside its body: exchange, routing key, properties and headers, frames."""
PUBLISH_CALLS_MAX = 12


@message("order.placed", key="order_id")
class Placed(msgspec.Struct):
    order_id: str
    padding: str = "x" * 300


class Wire:
    """A transport that keeps what is written."""

    writable = True

    def __init__(self) -> None:
        self.reader = Reader()
        self.writes: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.writes.append(data)

    send_content = send


def frames(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind of each frame, and the whole of it."""
    at = 0
    while at < len(raw):
        kind, _, size = struct.unpack_from(">BHI", raw, at)
        yield kind, raw[at : at + size + 8]
        at += size + 8


async def published(wire: Wire) -> tuple[list[Published], int]:
    """Publishes COUNT messages and confirms them at once; the outcomes, and the Python calls."""
    publisher = RabbitPublisher("amqp://127.0.0.1/", build([]), name="test")
    channel = publisher._channel = Channel(1, cast("Any", wire), 10.0)
    channel._confirms = Confirms()
    publisher.trouble = ""
    batch = [Publish("hopline", "order.placed", envelope_for(Placed(new_id()))) for _ in range(COUNT)]
    with counted_calls() as calls:
        publishing = asyncio.create_task(publisher.publish(batch, timeout_seconds=10.0))
        for _ in range(2 * WRITES_MAX):  # turns of the event loop: publishing gives it one after each write
            await asyncio.sleep(0)
    channel._on_confirm(COUNT, True, False)
    return await publishing, calls.count


async def test_a_thousand_publishes_are_few_bytes_and_calls() -> None:
    wire = Wire()

    outcomes, calls = await published(wire)

    sent = [one for write in wire.writes for one in frames(write)]
    assert outcomes == [Published.CONFIRMED] * COUNT
    assert len(wire.writes) <= WRITES_MAX
    assert [kind for kind, _ in sent] == [1, 2, 3] * COUNT
    bodies = sum(len(raw) - 8 for kind, raw in sent if kind == 3)
    assert sum(len(raw) for _, raw in sent) - bodies <= COUNT * OVERHEAD_BYTES_MAX
    assert calls <= COUNT * PUBLISH_CALLS_MAX
