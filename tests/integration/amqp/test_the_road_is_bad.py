"""A real node behind a proxy that cuts, delays, garbles and resets."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from hopline import Node
from hopline.amqp import (
    AMQPError,
    Channel,
    ChannelClosed,
    ConnectionClosed,
    ConnectionLost,
    HeartbeatTimeout,
    Published,
    connect,
)
from tests.support.waiting import wait_until

from .collector import Collector, MakeMessage
from .proxy import Proxy


async def open_channel(url: str, **settings: Any) -> Channel:
    channel = await (await connect(url, **settings)).channel()
    await channel.confirm_select()
    return channel


async def end_of(channel: Channel) -> AMQPError | None:
    return await asyncio.wait_for(channel.wait_closed(), 10)


@pytest.mark.parametrize("how", ["reset", "hang_up"])
async def test_a_cut_connection_is_lost_and_what_was_unconfirmed_is_unknown(
    rabbitmq: Node, quorum_queue: str, message: MakeMessage, how: str
) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        channel = await open_channel(proxy.url)
        assert await channel.publish([message(quorum_queue)]) == [Published.CONFIRMED]

        proxy.to_client = lambda data: b""
        publish = asyncio.create_task(channel.publish([message(quorum_queue)] * 3))
        await wait_until(lambda: channel._confirms is not None and channel._confirms.last == 4)
        getattr(proxy, how)()

        assert await publish == [Published.UNKNOWN] * 3
        assert isinstance(await end_of(channel), ConnectionLost)


async def test_a_half_open_connection_ends_after_two_heartbeats(
    rabbitmq: Node, quorum_queue: str, message: MakeMessage
) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        channel = await open_channel(proxy.url, heartbeat_seconds=1)

        proxy.stall()
        outcomes = await channel.publish([message(quorum_queue)])

        assert outcomes == [Published.UNKNOWN]
        assert isinstance(await end_of(channel), HeartbeatTimeout)


async def test_a_stall_shorter_than_two_heartbeats_is_only_a_delay(
    rabbitmq: Node, quorum_queue: str, message: MakeMessage
) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        channel = await open_channel(proxy.url, heartbeat_seconds=2)

        proxy.stall()
        publish = asyncio.create_task(channel.publish([message(quorum_queue)]))
        asyncio.get_running_loop().call_later(1, proxy.resume)

        assert await publish == [Published.CONFIRMED]


async def test_a_frame_cut_in_its_middle_is_a_lost_connection(
    rabbitmq: Node, quorum_queue: str, message: MakeMessage
) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        channel = await open_channel(proxy.url)
        collector = Collector()
        await channel.publish([message(quorum_queue, b"x" * 5000)])

        def cut(data: bytes) -> bytes:
            asyncio.get_running_loop().call_soon(proxy.hang_up)
            return data[:-2000]

        await channel.qos(1)
        proxy.to_client = cut
        with suppress(ConnectionLost):
            await channel.consume(quorum_queue, collector)

        assert isinstance(await end_of(channel), ConnectionLost)
        assert collector.deliveries == []


async def test_crumbs_of_a_few_bytes_change_nothing(rabbitmq: Node, quorum_queue: str, message: MakeMessage) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        proxy.piece_bytes = 3
        channel = await open_channel(proxy.url)
        bodies = [bytes((number,)) * 200 for number in range(50)]
        collector = Collector()

        outcomes = await channel.publish([message(quorum_queue, body) for body in bodies])
        await channel.consume(quorum_queue, collector)
        await collector.wait_for(50)

        assert outcomes == [Published.CONFIRMED] * 50
        assert collector.bodies == bodies


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
async def test_garbled_bytes_end_in_typed_errors_and_known_outcomes(
    rabbitmq: Node, quorum_queue: str, message: MakeMessage, direction: str
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    ends: list[AMQPError | None] = []

    for seed in range(30):
        chance = random.Random(seed)

        def garble(data: bytes, chance: random.Random = chance, always_ends: bool = seed % 3 == 0) -> bytes:
            # The last octet of what passes ends a frame: wrong, it must close the connection whatever else it hits.
            damaged = bytearray(data)
            damaged[-1 if always_ends else chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            return bytes(damaged)

        async with Proxy(rabbitmq.url) as proxy:
            channel = await open_channel(proxy.url, timeout_seconds=2)
            setattr(proxy, direction, garble)
            outcomes = await channel.publish([message(quorum_queue)] * 5, timeout_seconds=0.2)
            try:
                await asyncio.wait_for(channel.consume(quorum_queue, lambda deliveries: None), 0.5)
            except (AMQPError, TimeoutError) as error:
                ends.append(error if isinstance(error, AMQPError) else None)
            assert all(outcome in Published for outcome in outcomes)

    assert reported == []
    assert all(end is None or isinstance(end, ConnectionClosed | ChannelClosed) for end in ends)
    assert any(isinstance(end, ConnectionClosed | ChannelClosed) for end in ends)


async def test_the_next_host_is_taken_when_the_first_does_not_answer(rabbitmq: Node) -> None:
    async with Proxy(rabbitmq.url) as silent, Proxy(rabbitmq.url) as good:
        silent.stall()
        hosts = f"@{silent.url.rpartition('@')[2].partition('/')[0]},"

        connection = await connect(good.url.replace("@", hosts), timeout_seconds=0.5)

        assert connection.server_properties["product"] == "RabbitMQ"
        await connection.close()


async def test_closing_through_a_dead_road_ends_at_its_deadline(rabbitmq: Node) -> None:
    async with Proxy(rabbitmq.url) as proxy:
        connection = await connect(proxy.url)
        proxy.stall()

        await asyncio.wait_for(connection.close(timeout_seconds=0.1), 5)

        assert connection.closed
