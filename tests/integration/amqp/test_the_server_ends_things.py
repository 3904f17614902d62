"""What RabbitMQ, or its death, does to an open connection, channel or consumer."""

import asyncio

import pytest

from hopline.amqp import (
    Channel,
    ChannelClosed,
    Connection,
    ConnectionClosed,
    ConnectionLost,
    NotFound,
    PreconditionFailed,
    Published,
    connect,
)
from tests.conftest import NodeFactory

from .collector import Collector, MakeMessage


async def test_other_arguments_close_the_channel_with_406_and_spare_the_others(
    connection: Connection, channel: Channel, quorum_queue: str
) -> None:
    other = await connection.channel()

    with pytest.raises(PreconditionFailed) as caught:
        await other.declare_queue(quorum_queue, arguments={"x-queue-type": "classic"})

    assert (caught.value.code, caught.value.class_id, caught.value.method_id) == (406, 50, 10)
    assert "inequivalent arg" in caught.value.text
    assert other.closed
    assert isinstance(await other.wait_closed(), PreconditionFailed)
    assert (await channel.declare_queue(quorum_queue, passive=True)).name == quorum_queue


async def test_a_missing_queue_is_not_found(channel: Channel) -> None:
    with pytest.raises(NotFound) as caught:
        await channel.declare_queue("no-such-queue", passive=True)

    assert caught.value.code == 404


async def test_an_unknown_delivery_tag_closes_the_channel_and_voids_the_rest(
    connection: Connection, quorum_queue: str
) -> None:
    channel = await connection.channel()

    channel.ack(4711)
    reason = await asyncio.wait_for(channel.wait_closed(), 10)

    assert isinstance(reason, PreconditionFailed)
    with pytest.raises(ChannelClosed):
        channel.ack(1)


async def test_publishing_to_a_missing_exchange_ends_as_unknown_and_names_the_exchange(
    channel: Channel, message: MakeMessage
) -> None:
    outcomes = await channel.publish([message("key", exchange="no-such-exchange")])

    assert outcomes == [Published.UNKNOWN]
    assert isinstance(channel.close_reason, NotFound)
    assert "no-such-exchange" in channel.close_reason.text


async def test_a_queue_deleted_under_its_consumer_cancels_it(
    connection: Connection, channel: Channel, fresh_name: str
) -> None:
    cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await channel.declare_queue(fresh_name, arguments={"x-queue-type": "quorum"})
    tag = await channel.consume(fresh_name, Collector(), on_cancel=cancelled.set_result)

    other = await connection.channel()
    await other.delete_queue(fresh_name)

    assert await asyncio.wait_for(cancelled, 10) == tag
    assert not channel.closed


async def test_kill_minus_9_ends_everything_with_connection_lost(
    rabbitmq_node: NodeFactory, message: MakeMessage
) -> None:
    node = rabbitmq_node()
    connection = await connect(node.url)
    channel = await connection.channel()
    await channel.confirm_select()
    await channel.declare_queue("q", arguments={"x-queue-type": "quorum"})
    collector = Collector()
    await channel.consume("q", collector)
    assert await channel.publish([message("q")]) == [Published.CONFIRMED]
    [delivery] = await collector.wait_for(1)

    node.kill()
    reason = await asyncio.wait_for(connection.wait_closed(), 10)

    assert isinstance(reason, ConnectionLost)
    assert isinstance(await channel.wait_closed(), ConnectionLost)
    assert await channel.publish([message("q")]) == [Published.UNKNOWN]
    with pytest.raises(ChannelClosed):
        delivery.channel.ack(delivery.delivery_tag)
    with pytest.raises(ConnectionClosed):
        await connection.channel()
