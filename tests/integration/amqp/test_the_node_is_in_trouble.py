"""What RabbitMQ does under alarms, limits, missing permissions, restarts and stops, on a node of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import pytest_asyncio

from hopline import Node
from hopline.amqp import (
    AccessRefused,
    AMQPError,
    AuthenticationFailed,
    Channel,
    ChannelClosed,
    Connection,
    ConnectionForced,
    ConnectionLost,
    HeartbeatTimeout,
    NotAllowed,
    PreconditionFailed,
    Published,
    ResourceLocked,
    UsageError,
    connect,
)
from tests.conftest import NodeFactory
from tests.support.waiting import wait_until

from .collector import Collector, MakeMessage

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture(scope="module")
def tuned_node(tmp_path_factory: pytest.TempPathFactory, rabbitmq: Node) -> Iterator[Node]:
    """A node whose settings the tests change (`rabbitmq` is asked for since it skips where there is none)."""
    assert rabbitmq.port
    node = Node(tmp_path_factory.mktemp("tuned-rabbitmq"), management=False)
    node.start()
    yield node
    node.kill()
    node.stop()


@pytest_asyncio.fixture
async def tuned(tuned_node: Node) -> AsyncIterator[Connection]:
    connection = await connect(tuned_node.url)
    yield connection
    await connection.close()


async def ctl(node: Node, *arguments: str) -> str:
    return await asyncio.to_thread(node.ctl, *arguments)


async def confirming(connection: Connection) -> Channel:
    channel = await connection.channel()
    await channel.confirm_select()
    return channel


async def end_of(ending: Channel | Connection) -> AMQPError | None:
    return await asyncio.wait_for(ending.wait_closed(), 20)


async def test_a_memory_alarm_holds_publishers_back_and_spares_consumers(
    tuned_node: Node, tuned: Connection, fresh_name: str, message: MakeMessage
) -> None:
    changes: asyncio.Queue[str | None] = asyncio.Queue()
    publisher = await connect(tuned_node.url)
    publisher.on_blocked = changes.put_nowait
    channel = await confirming(publisher)
    await channel.declare_queue(fresh_name, arguments=QUORUM)
    assert await channel.publish([message(fresh_name)] * 5) == [Published.CONFIRMED] * 5

    await ctl(tuned_node, "set_vm_memory_high_watermark", "absolute", "1MB")
    unknown = await channel.publish([message(fresh_name)], timeout_seconds=0.5)
    reason = await asyncio.wait_for(changes.get(), 10)
    held = await channel.publish([message(fresh_name)], timeout_seconds=0.2)
    collector = Collector()
    worker = await tuned.channel()
    await worker.consume(fresh_name, collector)
    deliveries = await collector.wait_for(5)
    worker.ack(deliveries[-1].delivery_tag, multiple=True)
    waiting = asyncio.create_task(channel.publish([message(fresh_name)]))
    await ctl(tuned_node, "set_vm_memory_high_watermark", "absolute", "1GB")

    assert reason == "low on memory"
    assert (unknown, held) == ([Published.UNKNOWN], [Published.UNKNOWN])
    assert await waiting == [Published.CONFIRMED]
    assert await asyncio.wait_for(changes.get(), 10) is None
    assert publisher.blocked is None
    await publisher.close()


async def test_an_acknowledgement_later_than_the_consumer_timeout_ends_channel_or_consumer(
    tuned_node: Node, tuned: Connection, fresh_name: str, message: MakeMessage
) -> None:
    """Up to RabbitMQ 4.2 the channel is closed with 406, 4.3 cancels the consumer."""
    settings = (
        "application:set_env(rabbit, consumer_timeout, 300), application:set_env(rabbit, channel_tick_interval, 200)."
    )
    await ctl(tuned_node, "eval", settings)
    publisher, worker = await confirming(tuned), await tuned.channel()
    await publisher.declare_queue(fresh_name, arguments=QUORUM)
    cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    collector = Collector()
    await worker.consume(fresh_name, collector, on_cancel=cancelled.set_result)
    await publisher.publish([message(fresh_name)])
    [delivery] = await collector.wait_for(1)

    await wait_until(lambda: worker.closed or cancelled.done(), 30)
    await ctl(tuned_node, "eval", "application:set_env(rabbit, consumer_timeout, 1800000).")

    if worker.closed:
        assert isinstance(worker.close_reason, PreconditionFailed)
        with pytest.raises(ChannelClosed):
            worker.ack(delivery.delivery_tag)
    again = await publisher.get(fresh_name)
    assert again is not None
    assert again.redelivered


async def limit_messages(node: Node, limit_bytes: int) -> None:
    """The environment is what RabbitMQ 3.10 reads for each channel, the persistent term what 4.0 does."""
    name = f"max_message_size, {limit_bytes}"
    await ctl(node, "eval", f"application:set_env(rabbit, {name}), persistent_term:put({name}).")


async def test_a_message_above_the_servers_limit_closes_the_channel_and_is_unknown(
    tuned_node: Node, tuned: Connection, fresh_name: str, message: MakeMessage
) -> None:
    await limit_messages(tuned_node, 10_000)
    channel, other = await confirming(tuned), await confirming(tuned)
    await other.declare_queue(fresh_name, arguments=QUORUM)

    outcomes = await channel.publish([message(fresh_name, b"x" * 20_000), message(fresh_name)])
    await limit_messages(tuned_node, 16_777_216)

    assert outcomes == [Published.UNKNOWN] * 2
    assert isinstance(channel.close_reason, PreconditionFailed)
    assert "size" in channel.close_reason.text
    assert await other.publish([message(fresh_name)]) == [Published.CONFIRMED]


@pytest_asyncio.fixture
async def user_url(tuned_node: Node) -> AsyncIterator[str]:
    """The URL of a user who may do everything, until a test takes that away."""
    name = f"user-{uuid4().hex[:8]}"
    await ctl(tuned_node, "add_user", name, "secret")
    await ctl(tuned_node, "set_permissions", name, ".*", ".*", ".*")
    yield tuned_node.url.replace("guest:guest", f"{name}:secret")
    await ctl(tuned_node, "delete_user", name)


async def test_revoked_permissions_are_access_refused(tuned_node: Node, user_url: str, fresh_name: str) -> None:
    connection = await connect(user_url)
    name = user_url.partition("//")[2].partition(":")[0]

    await ctl(tuned_node, "set_permissions", name, "nothing", "nothing", "nothing")
    channel = await connection.channel()
    with pytest.raises(AccessRefused) as caught:
        await channel.declare_queue(fresh_name)

    assert caught.value.code == 403
    assert not connection.closed
    await ctl(tuned_node, "clear_permissions", name)
    with pytest.raises(NotAllowed):
        await connect(user_url)
    await connection.close()


async def test_publishing_without_permission_is_unknown_with_access_refused(
    tuned_node: Node, user_url: str, message: MakeMessage
) -> None:
    connection = await connect(user_url)
    name = user_url.partition("//")[2].partition(":")[0]
    await ctl(tuned_node, "set_permissions", name, ".*", "nothing", ".*")
    channel = await confirming(connection)

    outcomes = await channel.publish([message("key", exchange="amq.topic")])

    assert outcomes == [Published.UNKNOWN]
    assert isinstance(channel.close_reason, AccessRefused)
    await connection.close()


async def test_a_user_who_is_gone_cannot_log_in(tuned_node: Node, user_url: str) -> None:
    with pytest.raises(AuthenticationFailed):
        await connect(user_url.replace(":secret@", ":other@"))


async def test_an_operator_who_closes_the_connection_is_told_in_the_reason(tuned_node: Node) -> None:
    connection = await connect(tuned_node.url)

    await ctl(tuned_node, "close_all_connections", "maintenance at noon")
    reason = await end_of(connection)

    assert isinstance(reason, ConnectionForced)
    assert reason.code == 320
    assert "maintenance at noon" in reason.text


async def test_a_queue_of_another_connection_is_locked(tuned_node: Node, tuned: Connection, fresh_name: str) -> None:
    owner = await connect(tuned_node.url)
    await (await owner.channel()).declare_queue(fresh_name, durable=False, exclusive=True)

    with pytest.raises(ResourceLocked):
        await (await tuned.channel()).declare_queue(fresh_name, passive=True)

    await owner.close()


async def test_the_servers_channel_limit_is_kept(tuned_node: Node) -> None:
    await ctl(tuned_node, "eval", "application:set_env(rabbit, channel_max, 3).")
    connection = await connect(tuned_node.url)
    await ctl(tuned_node, "eval", "application:set_env(rabbit, channel_max, 2047).")

    for _ in range(connection.channel_max):
        await connection.channel()

    assert connection.channel_max == 3
    with pytest.raises(UsageError):
        await connection.channel()
    await connection.close()


async def test_the_smallest_frame_size_that_rabbitmq_takes_carries_large_bodies(
    tuned_node: Node, fresh_name: str, message: MakeMessage
) -> None:
    connection = await connect(tuned_node.url + "?frame_max=8192")
    channel = await confirming(connection)
    await channel.declare_queue(fresh_name, arguments=QUORUM)
    body = bytes(range(256)) * 200

    outcomes = await channel.publish([message(fresh_name, body)])
    delivery = await channel.get(fresh_name)

    assert connection.frame_max == 8192
    assert outcomes == [Published.CONFIRMED]
    assert delivery is not None
    assert delivery.body == body
    await connection.close()


async def test_operators_see_the_name_of_the_connection(tuned_node: Node) -> None:
    connection = await connect(tuned_node.url, name="orders relay 7")

    listing = await ctl(tuned_node, "list_connections", "client_properties")

    assert '"connection_name","orders relay 7"' in listing.replace(" ", "").replace("ordersrelay7", "orders relay 7")
    await connection.close()


async def test_a_stopped_node_is_found_out_by_heartbeats(rabbitmq_node: NodeFactory, message: MakeMessage) -> None:
    node = await asyncio.to_thread(rabbitmq_node, management=False)
    connection = await connect(node.url, heartbeat_seconds=1)
    channel = await confirming(connection)
    await channel.declare_queue("q", arguments=QUORUM)

    node.pause()
    try:
        outcomes = await channel.publish([message("q")])
        reason = await end_of(connection)
    finally:
        node.resume()

    assert outcomes == [Published.UNKNOWN]
    assert isinstance(reason, HeartbeatTimeout)


async def test_a_restart_in_order_is_connection_forced_and_what_was_confirmed_is_there_after(
    rabbitmq_node: NodeFactory, message: MakeMessage
) -> None:
    node = await asyncio.to_thread(rabbitmq_node, management=False)
    connection = await connect(node.url)
    channel = await confirming(connection)
    await channel.declare_queue("q", arguments=QUORUM)
    assert await channel.publish([message("q", b"kept")]) == [Published.CONFIRMED]

    await asyncio.to_thread(node.stop)
    reason = await end_of(connection)
    with pytest.raises(ConnectionLost):
        await connect(node.url)
    await asyncio.to_thread(node.start)
    again = await connect(node.url)
    delivery = await (await again.channel()).get("q")

    assert isinstance(reason, ConnectionForced)
    assert delivery is not None
    assert delivery.body == b"kept"
    await again.close()


def is_registered(node: Node, queue: bytes) -> bool:
    """Whether the raft library has the queue's log in its directory on disk, which it writes only every 500 ms.

    RabbitMQ 3.10 confirms messages before that, and a node that is killed so soon loses the whole new queue.
    """
    return any(b"%2F_" + queue in path.read_bytes() for path in node.folder.rglob("names.dets"))


async def test_what_was_confirmed_survives_kill_minus_9(rabbitmq_node: NodeFactory, message: MakeMessage) -> None:
    node = await asyncio.to_thread(rabbitmq_node, management=False)
    connection = await connect(node.url)
    channel = await confirming(connection)
    await channel.declare_queue("q", arguments=QUORUM)
    await wait_until(lambda: is_registered(node, b"q"))
    confirmed: list[bytes] = []

    async def publish(number: int) -> None:
        body = str(number).encode()
        if await channel.publish([message("q", body)]) == [Published.CONFIRMED]:
            confirmed.append(body)
            if len(confirmed) == 100:
                await asyncio.to_thread(node.kill)

    await asyncio.gather(*(publish(number) for number in range(3000)))
    await asyncio.to_thread(node.start)
    again = await connect(node.url)
    channel = await again.channel()
    found = set()
    while (delivery := await channel.get("q", no_ack=True)) is not None:
        found.add(delivery.body)

    assert len(confirmed) >= 100
    assert set(confirmed) <= found
    await again.close()
