"""What a thousand messages cost on the wire and in Python: counted, so that slowness shows without timing anything."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any, cast

import msgspec
from pamqp import commands, frame

from hopline.amqp.channel import Channel
from hopline.amqp.confirms import Confirms
from hopline.amqp.reader import Consumer, Reader
from hopline.broker import Delivery, Publish, Published
from hopline.clock import new_id
from hopline.message import message
from hopline.rabbitmq import RabbitPublisher, Receipt, Settlement, delivery_of
from hopline.topology import build
from tests.support.calls import counted_calls
from tests.support.engine import envelope_for

COUNT = 1000
WRITES_MAX = 3
"""Of about 256 KiB each; the event loop gets a turn after each one."""
OVERHEAD_BYTES_MAX = 330
"""Of one message beside its body: exchange, routing key, properties and headers, frames."""
PUBLISH_CALLS_MAX = 12
DELIVERY_CALLS_MAX = 20


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


def from_a_queue(wire: Wire) -> bytes:
    """What was published, as RabbitMQ delivers it."""
    contents = [raw for write in wire.writes for kind, raw in frames(write) if kind != 1]
    heads = [frame.marshal(commands.Basic.Deliver("1.1", tag, False, "hopline", "x"), 1) for tag in range(1, COUNT + 1)]
    return b"".join(part for at, head in enumerate(heads) for part in (head, *contents[2 * at : 2 * at + 2]))


def unexpected(error: Exception) -> None:
    raise error


async def test_a_thousand_deliveries_are_few_calls_and_one_acknowledgement() -> None:
    # Given a consumer, and a thousand messages in one read
    wire = Wire()
    await published(wire)
    incoming = from_a_queue(wire)
    wire.writes.clear()
    channel = Channel(1, cast("Any", wire), 10.0)
    settlement = Settlement(channel)
    taken: list[Delivery] = []
    channel._inlet.consumers[b"1.1"] = Consumer(
        "1.1", lambda read: taken.extend([delivery_of("orders", one, settlement) for one in read]), None, unexpected
    )
    wire.reader.inlets[1] = channel._inlet

    # When they are read and settled
    with counted_calls() as calls:
        wire.reader.feed(incoming)
        settlement.settle([cast("Receipt", one.receipt).tag for one in taken])

    # Then each has its envelope, and all have one acknowledgement
    assert len({one.envelope.id for one in taken if one.envelope}) == COUNT
    assert len(wire.writes) == 1
    assert calls.count <= COUNT * DELIVERY_CALLS_MAX
