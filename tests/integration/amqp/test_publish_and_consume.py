"""The ordinary life of messages on a real node."""

import asyncio

import pytest

from hopline import Node
from hopline.amqp import (
    AuthenticationFailed,
    Channel,
    ChannelClosed,
    Connection,
    NotAllowed,
    Published,
    Returned,
    connect,
)

from .collector import Collector, MakeMessage


async def test_a_message_to_a_quorum_queue_is_confirmed_and_arrives_as_it_was_sent(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    sent = message(quorum_queue, b'{"order": 1}', type="order.placed", headers={"hopline-version": 1})
    collector = Collector()

    outcomes = await channel.publish([sent])
    await channel.consume(quorum_queue, collector)
    [delivery] = await collector.wait_for(1)

    assert outcomes == [Published.CONFIRMED]
    assert delivery.body == b'{"order": 1}'
    assert delivery.properties == sent.properties
    assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", quorum_queue, False)


async def test_an_unroutable_message_is_returned_and_its_neighbours_are_confirmed(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    returned: list[Returned] = []
    channel.on_return = returned.append
    messages = [
        message(quorum_queue),
        message("no-such-queue"),
        message(quorum_queue),
        message("no-such-queue"),
    ]

    outcomes = await channel.publish(messages)

    assert outcomes == [Published.CONFIRMED, Published.RETURNED] * 2
    assert [each.message for each in returned] == [messages[1], messages[3]]
    assert (returned[0].reply_code, returned[0].reply_text) == (312, "NO_ROUTE")


async def test_a_full_queue_that_rejects_refuses_what_it_has_no_room_for(
    channel: Channel, fresh_name: str, message: MakeMessage
) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await channel.declare_queue(fresh_name, durable=False, exclusive=True, arguments=arguments)

    first = await channel.publish([message(fresh_name)])
    rest = await channel.publish([message(fresh_name) for _ in range(20)])

    assert first == [Published.CONFIRMED]
    assert rest == [Published.REFUSED] * 20


async def test_a_body_of_many_frames_arrives_whole_and_so_does_an_empty_one(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    large = bytes(range(256)) * 4096
    collector = Collector()

    outcomes = await channel.publish([message(quorum_queue, large), message(quorum_queue, b"")])
    await channel.consume(quorum_queue, collector)
    await collector.wait_for(2)

    assert outcomes == [Published.CONFIRMED] * 2
    assert collector.bodies == [large, b""]


async def test_many_calls_at_once_each_get_their_own_outcomes(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    async def one(number: int) -> list[Published]:
        key = quorum_queue if number % 3 else "no-such-queue"
        return await channel.publish([message(key, str(number).encode())])

    outcomes = await asyncio.gather(*(one(number) for number in range(300)))

    assert outcomes == [[Published.CONFIRMED] if number % 3 else [Published.RETURNED] for number in range(300)]


async def test_acknowledged_messages_are_gone_and_the_others_come_back(
    connection: Connection, channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    collector = Collector()
    await channel.publish([message(quorum_queue, str(number).encode()) for number in range(10)])
    worker = await connection.channel()
    await worker.qos(10)
    await worker.consume(quorum_queue, collector)
    deliveries = await collector.wait_for(10)

    worker.ack(deliveries[4].delivery_tag, multiple=True)
    worker.ack(deliveries[6].delivery_tag)
    worker.reject(deliveries[7].delivery_tag, requeue=False)
    await worker.close()

    second = Collector()
    await channel.consume(quorum_queue, second)
    again = await second.wait_for(3)
    assert sorted(second.bodies) == [b"5", b"8", b"9"]
    assert all(delivery.redelivered for delivery in again)


async def test_a_prefetch_bounds_what_is_delivered_unacknowledged(
    connection: Connection, channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    collector = Collector()
    await channel.publish([message(quorum_queue) for _ in range(20)])
    worker = await connection.channel()
    await worker.qos(3)
    await worker.consume(quorum_queue, collector)
    first = list(await collector.wait_for(3))

    state = await worker.declare_queue(quorum_queue, passive=True)
    worker.ack(first[2].delivery_tag, multiple=True)
    await collector.wait_for(6)

    assert len(first) == 3
    assert (state.messages, state.consumers) == (17, 1)


async def test_a_cancelled_consumer_gets_nothing_more_and_the_channel_goes_on(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    collector = Collector()
    tag = await channel.consume(quorum_queue, collector)

    await channel.cancel(tag)
    await channel.publish([message(quorum_queue, b"late")])
    delivery = await channel.get(quorum_queue)

    assert collector.deliveries == []
    assert delivery is not None
    assert delivery.body == b"late"


async def test_get_gives_one_message_or_none(channel: Channel, quorum_queue: str, message: MakeMessage) -> None:
    nothing = await channel.get(quorum_queue)
    await channel.publish([message(quorum_queue, b"one", message_id="id-1")])
    something = await channel.get(quorum_queue, no_ack=True)

    assert nothing is None
    assert something is not None
    assert (something.body, something.properties.message_id) == (b"one", "id-1")


async def test_exchanges_queues_and_bindings_are_made_used_and_unmade(
    channel: Channel, fresh_name: str, message: MakeMessage
) -> None:
    await channel.declare_exchange(fresh_name, "topic")
    await channel.declare_queue(fresh_name, durable=False, exclusive=True)

    await channel.bind_queue(fresh_name, fresh_name, "order.*")
    bound = await channel.publish([message("order.placed", exchange=fresh_name)])
    await channel.unbind_queue(fresh_name, fresh_name, "order.*")
    unbound = await channel.publish([message("order.placed", exchange=fresh_name)])

    assert (bound, unbound) == ([Published.CONFIRMED], [Published.RETURNED])
    assert await channel.purge_queue(fresh_name) == 1
    assert await channel.delete_queue(fresh_name) == 0
    await channel.delete_exchange(fresh_name)


async def test_exchanges_are_bound_to_exchanges(channel: Channel, fresh_name: str, message: MakeMessage) -> None:
    await channel.declare_exchange(fresh_name, "fanout", durable=False, auto_delete=True)
    await channel.declare_exchange(fresh_name + "-source", "direct", durable=False)
    await channel.declare_queue(fresh_name, durable=False, exclusive=True)
    await channel.bind_queue(fresh_name, fresh_name)

    await channel.bind_exchange(fresh_name, fresh_name + "-source", "key")
    bound = await channel.publish([message("key", exchange=fresh_name + "-source")])
    await channel.unbind_exchange(fresh_name, fresh_name + "-source", "key")
    unbound = await channel.publish([message("key", exchange=fresh_name + "-source")])

    assert (bound, unbound) == ([Published.CONFIRMED], [Published.RETURNED])
    await channel.delete_exchange(fresh_name + "-source")


async def test_a_wrong_password_is_an_authentication_failure(rabbitmq: Node) -> None:
    url = rabbitmq.url.replace("guest:guest", "guest:wrong")

    with pytest.raises(AuthenticationFailed) as caught:
        await connect(url)

    assert caught.value.code == 403
    assert "wrong" not in str(caught.value)


async def test_a_missing_virtual_host_is_not_allowed(rabbitmq: Node) -> None:
    url = rabbitmq.url.rsplit("/", 1)[0] + "/nowhere"

    with pytest.raises(NotAllowed) as caught:
        await connect(url)

    assert caught.value.code == 530


async def test_a_closed_channel_takes_no_acknowledgements_and_publishes_nothing(
    channel: Channel, quorum_queue: str, message: MakeMessage
) -> None:
    await channel.close()
    await channel.close()

    with pytest.raises(ChannelClosed):
        channel.ack(1)
    with pytest.raises(ChannelClosed):
        await channel.qos(1)
    assert await channel.publish([message(quorum_queue)]) == [Published.UNKNOWN]
    assert await channel.wait_closed() is None


async def test_a_closed_connection_ends_its_channels(rabbitmq: Node) -> None:
    connection = await connect(rabbitmq.url)
    channel = await connection.channel()

    await connection.close()
    await connection.close()

    assert await channel.wait_closed() is None
    assert connection.closed
    assert channel.closed
    assert await connection.wait_closed() is None
    with pytest.raises(ChannelClosed):
        channel.ack(1)
